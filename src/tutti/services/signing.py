"""A node signs its updates, each under a number of its own.

What it has signed is on its disk before anybody is told, so that no coordinator can have it sign two updates under one
number, by asking for the same round again with another model.
"""

import os
from pathlib import Path

from msgspec.structs import replace

from tutti.domain.events import Digest
from tutti.domain.signing import Signed, digest_of
from tutti.ports.identity import SigningKey
from tutti.wire.messages import Start


class UpdateSigner:
    """Keeps a file for each job in `folder`, for ever: a line of 70 bytes an update. Blocks on the disk."""

    def __init__(self, key: SigningKey, folder: Path) -> None:
        self.key = key
        self._folder = folder

    def sign(self, start: Start, update: Digest, samples: int) -> Signed:
        """The signature for this outcome of a task: the same again for the same."""
        bare = Signed(
            key=self.key.public,
            round=start.round,
            base=start.weights,
            samples=samples,
            nonce=0,
            signature="",
            domain=start.domain,
        )
        claim = digest_of(start.job, update, bare)
        its = replace(bare, nonce=self._number(start.job, start.round, claim.hex()))
        return replace(its, signature=self.key.sign(digest_of(start.job, update, its)).hex())

    def _number(self, job: str, round: int, claim: str) -> int:
        """Which of the claims for this round it is; a new one is noted."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / job).open("a+") as file:
            file.seek(0)
            whole = file.read()
            lines = (line.split() for line in whole.splitlines())
            known = [its for number, its in (line for line in lines if len(line) == 2) if number == str(round)]
            if claim in known:
                return known.index(claim)
            cut = "\n" if whole and not whole.endswith("\n") else ""  # by a loss of power: nobody was told of it
            file.write(f"{cut}{round} {claim}\n")
            file.flush()
            os.fsync(file.fileno())
        return len(known)

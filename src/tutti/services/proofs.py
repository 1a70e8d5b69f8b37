"""How nodes with a key of their own prove who they are: by signatures, each of which is good once.

A browser that came by plain http says everything aloud. A secret would be anybody's who listens; so it joins with
`secp256k1:<public key>` in a secret's place, and shows `secp256k1:<public key>:<challenge>:<milliseconds>:<signature>`
from then on, at each connection and request. The key is the one by which it signs its updates too. What is signed is
its name, the coordinator's challenge, the time by the coordinator's clock, and what it is for: `CONNECTING`, or a
method and a path, as `PUT /api/v1/blobs/<digest>`, which names the body too.
"""

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from tutti.core.errors import Forbidden, Unproven
from tutti.core.keccak import keccak256
from tutti.domain.events import NodeId
from tutti.domain.signing import Verify

CONNECTING = "device:register"
"""What a proof is for that comes with a registration."""

APART_SECONDS = 900.0
"""How old a proof may be."""

REMEMBERED = 4096
"""Proofs of a node that are known to have been shown; older ones than these are not taken any more."""

_KEY = re.compile(r"secp256k1:[0-9a-f]{128}")
_KEYS = ("secp256k1:", "ed25519:")
"""How keys begin, and what is made of them: no secret begins so. The second were those of older pages."""

_PROOF = re.compile(r"(secp256k1:([0-9a-f]{128})):([0-9a-f]{16}):([0-9]{1,15}):([0-9a-f]{128})")


def is_public(shown: str) -> bool:
    """Whether this is no secret, but a key or a proof, of which only `Proofs.check` can tell what it is worth."""
    return shown.startswith(_KEYS)


def key_of(secret: str) -> str:
    """The public key with which somebody joins, empty for a secret; raises Forbidden for another kind of key."""
    if not is_public(secret):
        return ""
    if _KEY.fullmatch(secret) is None:
        raise Forbidden(
            "expected a secret, or `secp256k1:<public key>` in 128 hexadecimal digits, came another key: if a browser "
            "says this, its page is of another version than the coordinator, so load it again and join anew"
        )
    return secret.partition(":")[2]


@dataclass(slots=True)
class _Shown:
    times: set[int] = field(default_factory=set)
    floor: int = 0


def statement(node: NodeId, challenge: str, time: int, use: str) -> bytes:
    """The 32 bytes that are signed. What is hashed for updates begins otherwise, so neither stands for the other."""
    return keccak256(f"tutti {node} {challenge} {time} {use}".encode())


class Proofs:
    """What nodes have shown so far. A coordinator that starts anew has forgotten it: so its challenge is another one,
    and no proof from before is taken."""

    def __init__(self, verify: Verify, clock: Callable[[], float]) -> None:
        self.challenge = secrets.token_hex(8)
        self._verify, self._clock = verify, clock
        self._shown: dict[NodeId, _Shown] = {}

    @property
    def now(self) -> int:
        """The time that proofs are to bear, in milliseconds."""
        return int(1000 * self._clock())

    def stands_for(self, shown: str) -> str:
        """With what somebody must have joined who shows this: a public key, or the secret itself. Raises Forbidden."""
        if found := _PROOF.fullmatch(shown):
            return found[1]
        key_of(shown)
        return shown

    def check(self, node: NodeId, shown: str, use: str) -> None:
        """Raises Forbidden for a key without a signature, and for a proof that is wrong or for another use; Unproven
        for one that was good, and would be with a new challenge: shown before, too old, or from before a restart."""
        found = _PROOF.fullmatch(shown)
        if found is None:
            if key_of(shown):
                expected = "`<key>:<challenge>:<milliseconds>:<signature>`"
                raise Forbidden(f"node {node!r} has a key: expected {expected}, came the key")
            return
        _, public, challenge, time, signature = found.groups()
        if not self._verify(public, statement(node, challenge, int(time), use), bytes.fromhex(signature)):
            raise Forbidden(f"the signature is not that of node {node!r} for `{use[:100]}`")
        if challenge != self.challenge:
            raise Unproven(f"the proof of node {node!r} is from before this coordinator started: ask for its challenge")
        apart = int(time) / 1000 - self._clock()
        if abs(apart) > APART_SECONDS:
            how = f"{abs(apart) / 60:.0f} minutes {'ahead of' if apart > 0 else 'behind'}"
            raise Unproven(f"the proof of node {node!r} is {how} this coordinator's clock: ask for its challenge")
        self._use_up(node, int(time))

    def forget(self, node: NodeId) -> None:
        """It is removed; should it join again, then with another key."""
        self._shown.pop(node, None)

    def _use_up(self, node: NodeId, time: int) -> None:
        its = self._shown.setdefault(node, _Shown())
        if time in its.times or time <= its.floor:
            raise Unproven(f"this proof of node {node!r} has been shown before: it is good once")
        its.times.add(time)
        if len(its.times) > REMEMBERED:
            kept = sorted(its.times)[REMEMBERED // 2 :]
            its.floor, its.times = kept[0] - 1, set(kept)

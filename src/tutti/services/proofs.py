"""How nodes with a key of their own prove who they are: by signatures, each of which is good once.

A browser that came by plain http says everything aloud. A secret would be anybody's who listens; so it joins with
`ed25519:<public key>` in a secret's place, and shows `ed25519:<public key>:<milliseconds>:<signature>` from then on,
at each connection and request. What is signed is its name, the time by its own clock, and what it is for: `CONNECTING`,
or a method and a path, as `PUT /api/v1/blobs/<digest>`, which names the body too.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from tutti.core.errors import Forbidden
from tutti.domain.events import NodeId

Proves = Callable[[str, bytes, bytes], bool]
"""Whether the owner of a public key (64 hex digits) signed a message."""

CONNECTING = "device:register"
"""What a proof is for that comes with a registration."""

APART_SECONDS = 900.0
"""How far a node's clock may be from the coordinator's."""

REMEMBERED = 4096
"""Proofs of a node that are known to have been shown; older ones than these are not taken any more."""

_KEY = re.compile(r"ed25519:[0-9a-f]{64}")
_PROOF = re.compile(r"(ed25519:([0-9a-f]{64})):([0-9]{1,15}):([0-9a-f]{128})")


@dataclass(slots=True)
class _Shown:
    times: set[int] = field(default_factory=set)
    floor: int = 0


class Proofs:
    """What nodes have shown so far. A coordinator that starts anew has forgotten it, but for what the clock tells."""

    def __init__(self, proves: Proves, clock: Callable[[], float]) -> None:
        self._proves, self._clock = proves, clock
        self._shown: dict[NodeId, _Shown] = {}

    def stands_for(self, shown: str) -> str:
        """With what somebody must have joined who shows this: a public key, or the secret itself."""
        return found[1] if (found := _PROOF.fullmatch(shown)) else shown

    def check(self, node: NodeId, shown: str, use: str) -> None:
        """Raises Forbidden for a key without a signature, and for a proof that is wrong, old, for another use, or shown
        before."""
        found = _PROOF.fullmatch(shown)
        if found is None:
            if _KEY.fullmatch(shown):
                raise Forbidden(f"node {node!r} has a key: expected `<key>:<milliseconds>:<signature>`, came the key")
            return
        _, public, time, signature = found.groups()
        if not self._proves(public, f"tutti {node} {time} {use}".encode(), bytes.fromhex(signature)):
            raise Forbidden(f"the signature is not that of node {node!r} for `{use[:100]}`")
        apart = int(time) / 1000 - self._clock()
        if abs(apart) > APART_SECONDS:
            how = f"{abs(apart) / 60:.0f} minutes {'ahead of' if apart > 0 else 'behind'}"
            raise Forbidden(f"the clock of {node!r} is {how} the coordinator's: set it right")
        self._use_up(node, int(time))

    def _use_up(self, node: NodeId, time: int) -> None:
        its = self._shown.setdefault(node, _Shown())
        if time in its.times or time <= its.floor:
            raise Forbidden(f"this proof of node {node!r} has been shown before: it is good once")
        its.times.add(time)
        if len(its.times) > REMEMBERED:
            kept = sorted(its.times)[REMEMBERED // 2 :]
            its.floor, its.times = kept[0] - 1, set(kept)

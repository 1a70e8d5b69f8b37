"""Where each node is connected, if there are several ways in: the newest connection counts."""

import asyncio
from typing import Generic, NamedTuple, TypeVar

from tutti.domain.events import NodeId

TURNS, TURN_SECONDS = 20, 60.0
"""A node that is replaced by itself so often within so long is two processes with one name."""

W = TypeVar("W")

ELSEWHERE = "the node has connected elsewhere"
TWICE = "another process has connected as {node}: give each node a name of its own"


class Loser(NamedTuple, Generic[W]):
    """A connection that does not count any more; `fatal`: whoever has it should not come back."""

    where: W
    fatal: bool

    def reason(self, node: NodeId) -> str:
        return TWICE.format(node=node) if self.fatal else ELSEWHERE


class Places(Generic[W]):
    """What is heard of connections may be late, so that an older one can be heard of after a newer one."""

    def __init__(self) -> None:
        self._at: dict[NodeId, tuple[W, float]] = {}
        self._turns: dict[NodeId, tuple[int, float]] = {}

    def get(self, node: NodeId) -> W | None:
        found = self._at.get(node)
        return found[0] if found is not None else None

    def arrived(self, node: NodeId, where: W, age: float = 0.0) -> Loser[W] | None:
        """A node has been connected there for `age` seconds; which of two connections is the older one, if any."""
        now = asyncio.get_running_loop().time()
        before = self._at.get(node)
        if before is not None and before[0] != where and before[1] > now - age:
            return Loser(where, fatal=False)
        self._at[node] = where, now - age
        if before is None or before[0] == where:
            return None
        turns, since = self._turns.get(node, (0, now))
        turns, since = (turns + 1, since) if now - since < TURN_SECONDS else (1, now)
        self._turns[node] = turns, since
        return Loser(before[0], fatal=turns >= TURNS)

    def left(self, node: NodeId, where: W) -> bool:
        """That connection has ended; False if it is not the one that counts."""
        found = self._at.get(node)
        if found is None or found[0] != where:
            return False
        del self._at[node]
        return True

"""Whoever else works with the nodes of a coordinator, such as the compute market."""

from typing import Protocol

from tutti.domain.events import Digest, NodeId
from tutti.ports import FabricEvent


class Errands(Protocol):
    def on(self, event: FabricEvent) -> None:
        """Hear what a node did; returns at once."""
        ...

    def may_read(self, node: NodeId, digest: Digest) -> bool:
        """Whether the node may fetch the blob."""
        ...

    def update_limit(self, node: NodeId) -> int:
        """The largest blob in bytes that the node may store now; 0 if none is expected of it."""
        ...


class Several:
    """Errands of all that have some."""

    def __init__(self, *errands: Errands) -> None:
        self._errands = errands

    def on(self, event: FabricEvent) -> None:
        for each in self._errands:
            each.on(event)

    def may_read(self, node: NodeId, digest: Digest) -> bool:
        return any(each.may_read(node, digest) for each in self._errands)

    def update_limit(self, node: NodeId) -> int:
        return max((each.update_limit(node) for each in self._errands), default=0)

"""Several fabrics as one: nodes come by whichever they can."""

import asyncio
from collections.abc import AsyncIterator

from tutti.adapters.fabrics.places import ELSEWHERE, Places
from tutti.domain.events import NodeId
from tutti.ports import Arrived, Fabric, FabricEvent, Left
from tutti.ports.blobs import Buffer
from tutti.wire.messages import CoordinatorMessage, Refusal


class JoinedFabrics:
    """A Fabric. A node has one connection at a time, the newest; what is sent goes where it is connected."""

    def __init__(self, *fabrics: Fabric) -> None:
        self._fabrics = fabrics
        self._places = Places[Fabric]()

    async def events(self) -> AsyncIterator[FabricEvent]:
        """The next event of a fabric is asked for once the one before it was dealt with."""
        streams = {fabric: fabric.events() for fabric in self._fabrics}
        coming = {asyncio.ensure_future(anext(stream)): fabric for fabric, stream in streams.items()}
        try:
            while True:
                done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    fabric = coming.pop(task)
                    for event in self._told(fabric, task.result()):
                        yield event
                    coming[asyncio.ensure_future(anext(streams[fabric]))] = fabric
        finally:
            for task in coming:
                task.cancel()

    def _told(self, fabric: Fabric, event: FabricEvent) -> list[FabricEvent]:
        """What is to be heard of it: nothing of connections that do not count any more."""
        node = event.node
        if isinstance(event, Left):
            return [event] if self._places.left(node, fabric) else []
        if not isinstance(event, Arrived):
            return [event] if self._places.get(node) is fabric else []
        loser = self._places.arrived(node, fabric, event.age)
        if loser is None:
            return [event]
        if loser.fatal:
            loser.where.send(node, Refusal(code="replaced", detail=loser.reason(node), fatal=True))
        loser.where.disconnect(node, loser.reason(node))
        return [] if loser.where is fabric else [Left(node, ELSEWHERE), event]

    def send(self, node: NodeId, message: CoordinatorMessage, blob: Buffer = b"") -> bool:
        fabric = self._places.get(node)
        return fabric is not None and fabric.send(node, message, blob)

    def disconnect(self, node: NodeId, reason: str) -> None:
        if (fabric := self._places.get(node)) is not None:
            fabric.disconnect(node, reason)

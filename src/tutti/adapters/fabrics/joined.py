"""Several fabrics as one: nodes come by whichever they can."""

import asyncio
from collections.abc import AsyncIterator

from tutti.domain.events import NodeId
from tutti.ports import Fabric, FabricEvent
from tutti.ports.blobs import Buffer
from tutti.wire.messages import CoordinatorMessage


class JoinedFabrics:
    """A Fabric. A node has one connection at a time; what is sent goes where it is connected."""

    def __init__(self, *fabrics: Fabric) -> None:
        self._fabrics = fabrics

    async def events(self) -> AsyncIterator[FabricEvent]:
        """The next event of a fabric is asked for once the one before it was dealt with."""
        streams = [fabric.events() for fabric in self._fabrics]
        coming = {asyncio.ensure_future(anext(stream)): stream for stream in streams}
        try:
            while True:
                done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    stream = coming.pop(task)
                    yield task.result()
                    coming[asyncio.ensure_future(anext(stream))] = stream
        finally:
            for task in coming:
                task.cancel()

    def send(self, node: NodeId, message: CoordinatorMessage, blob: Buffer = b"") -> bool:
        return any(fabric.send(node, message, blob) for fabric in self._fabrics)

    def disconnect(self, node: NodeId, reason: str) -> None:
        for fabric in self._fabrics:
            fabric.disconnect(node, reason)

"""A peer: a node without data of its own that takes parts of uploaded tables, holds them in memory, and trains."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from msgspec.structs import replace

from tutti.core.errors import CorruptBlob, TuttiError
from tutti.domain.events import Digest
from tutti.domain.sessions import IDLE, PeerTraining, dataset_of
from tutti.domain.spec import DataSchema, Training
from tutti.ports import Data, Examples, Link, LinkRefused
from tutti.ports.blobs import Buffer
from tutti.wire import parts
from tutti.wire.messages import Assign, CoordinatorMessage, Dismiss, NodeMessage, Registration, Start

log = logging.getLogger(__name__)


class Key(Protocol):
    """What opens the parts that are sealed for this peer."""

    @property
    def public(self) -> str: ...

    def open(self, box: bytes) -> bytes:
        """Raises CorruptBlob."""
        ...


class Runtime(Protocol):
    async def run(self) -> None: ...


NO_CHANGES = PeerTraining()


@dataclass(frozen=True, slots=True, eq=False)
class Holding:
    """What a peer trains on now, and how."""

    data: Data
    training: PeerTraining = NO_CHANGES


def idle() -> Holding:
    """Nothing: no rows, so that no training asks for it."""
    nothing = Examples(np.empty((0, 1), np.float32), np.empty((0, 1), np.float32))
    return Holding(Data(IDLE, DataSchema("regression", (1,), 1), nothing, nothing))


class _Reassigned(TuttiError):
    """The coordinator gave this peer something else to hold."""

    def __init__(self, holding: Holding) -> None:
        super().__init__(f"holds {holding.data.name} from now on")
        self.holding = holding


async def serve(link: Link, key: Key, runtime_of: Callable[[Link, Data], Runtime]) -> None:
    """Wait for parts and train on them until cancelled; each is a life of a node of its own."""
    holding = idle()
    while True:
        try:
            await runtime_of(_PeerLink(link, key, holding), holding.data).run()
        except _Reassigned as given:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # a task group that ends by an error swallows this
                raise asyncio.CancelledError from None
            log.info("%s", given)
            holding = given.holding


class _PeerLink:
    """A Link that hears what concerns the peer, and lets the node have the rest."""

    def __init__(self, link: Link, key: Key, holding: Holding) -> None:
        self._link, self._key, self._holding = link, key, holding

    async def connect(self, registration: Registration) -> AsyncIterator[CoordinatorMessage]:
        return self._heard(await self._link.connect(replace(registration, sealing=self._key.public)))

    async def send(self, message: NodeMessage) -> None:
        await self._link.send(message)

    async def fetch(self, digest: Digest) -> Buffer:
        return await self._link.fetch(digest)

    async def store(self, blob: Buffer, digest: Digest) -> None:
        await self._link.store(blob, digest)

    async def _heard(self, messages: AsyncIterator[CoordinatorMessage]) -> AsyncIterator[CoordinatorMessage]:
        held = self._holding.data.name
        async with aclosing(messages) as coming:  # type: ignore[type-var]  # links give generators
            async for message in coming:
                match message:
                    case Assign(session=session, part=part) if dataset_of(session) != held:
                        raise _Reassigned(await self._open(part))
                    case Dismiss(session=session) if dataset_of(session) == held:
                        raise _Reassigned(idle())
                    case Assign() | Dismiss():
                        pass
                    case Start():
                        yield replace(message, training=self._own(message))
                    case _:
                        yield message

    def _own(self, start: Start) -> Training:
        mine = self._holding.training
        changes = {name: value for name in mine.__struct_fields__ if (value := getattr(mine, name)) is not None}
        return replace(start.training, **changes)

    async def _open(self, digest: Digest) -> Holding:
        try:
            part = parts.decode(self._key.open(bytes(await self._link.fetch(digest))))
            train, held_out = (
                Examples(x.values(), y.values())  # type: ignore[arg-type]  # their dtypes are checked
                for x, y in ((part.x, part.y), (part.held_out_x, part.held_out_y))
            )
        except (CorruptBlob, ValueError) as error:
            raise LinkRefused(f"the part for this peer cannot be opened: {error}") from None
        return Holding(Data(part.name, part.data, train, held_out), part.training)

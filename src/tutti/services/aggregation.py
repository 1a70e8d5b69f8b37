"""A job's numbers: the strategy's state, and the fold of the open round's updates as they arrive."""

import asyncio
import mmap
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutti.core.errors import CorruptBlob, NotFound, TuttiError
from tutti.core.params import Layout, Params
from tutti.core.reduce import Update
from tutti.core.strategy import ServerState, Strategy
from tutti.domain.events import Digest, NodeId, UpdateAccepted
from tutti.ports import BlobStore
from tutti.wire import tensors

CHUNK = 1 << 20


class UnreadableUpdate(TuttiError):
    """An update's bytes are gone or damaged; `node` is who sent it, where that is known."""

    node: NodeId = ""


@dataclass(slots=True)
class Fold:
    """The accumulator of one attempt at a round, whose updates are in it with which weight, and who waits."""

    key: tuple[int, int]
    accumulator: Any
    counted: dict[NodeId, int] = field(default_factory=dict)
    waiting: list[UpdateAccepted] = field(default_factory=list)
    finished: bool = False


async def chunks(data: bytes | bytearray | memoryview) -> AsyncIterator[bytes | memoryview]:
    """A buffer as the stream that a blob store takes."""
    view = memoryview(data)
    for start in range(0, len(view), CHUNK):
        yield view[start : start + CHUNK]


def read_blob(path: Path, digest: Digest | None = None) -> Params:
    """Map a stored tensor file without copying it; with a digest, raises CorruptBlob if the bytes differ."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if digest is not None and tensors.digest(data) != digest:
        raise CorruptBlob(f"blob {digest[:12]} has been damaged on disk: {path}")
    return tensors.decode(data)


class Aggregation:
    """Checks updates, folds them in the order in which they come, and makes the next model.

    The result does not depend on that order (see core.reduce), so after a crash the fold starts again from
    the stored updates. Arithmetic runs in worker threads, one at a time per job.
    """

    def __init__(self, strategy: Strategy, blobs: BlobStore, max_weight: int) -> None:
        self.strategy = strategy
        self.server: ServerState | None = None
        self._blobs = blobs
        self._max_weight = max_weight
        self._fold: Fold | None = None
        self._sound: set[Digest] = set()  # verified since this process started
        self._waiting: list[UpdateAccepted] = []
        self._lock = asyncio.Lock()

    @property
    def layout(self) -> Layout:
        assert self.server is not None
        return self.server.params.layout

    async def restore(self, model: Digest, state: Digest, steps: int) -> None:
        """Load the strategy's state; one without slots is the model itself."""
        if self.server is not None and self.server.steps == steps:
            return
        params = await asyncio.to_thread(read_blob, await self._blobs.path(model), model)
        if state == model:
            self.server = ServerState(params, {}, steps)
        else:
            data = (await self._blobs.path(state)).read_bytes()
            if tensors.digest(data) != state:
                raise CorruptBlob(f"checkpoint {state[:12]} has been damaged on disk")
            self.server = tensors.decode_state(data)

    def begin(self, key: tuple[int, int], cohort: int) -> Fold:
        """The fold of an attempt: the one that is open, or a new one."""
        if self._fold is None or self._fold.finished or self._fold.key != key:
            self._fold = Fold(key, self.strategy.reducer.zero(self.layout, cohort, self._max_weight))
        return self._fold

    async def examine(self, fold: Fold, digest: Digest, weight: int) -> tuple[str | None, int]:
        """Why a stored update cannot be admitted (None when it can), and its size in bytes.

        Raises UnreadableUpdate if it is not stored, or damaged; it is deleted then, so that it can be stored again.
        """
        if not digest:
            return "the submission names no update", 0
        try:
            delta = await self._read(digest)
        except tensors.BadTensors as error:
            return f"not a tensor file: {error}", 0
        update = Update(delta, min(weight, self._max_weight))
        reason = await asyncio.to_thread(self.strategy.reducer.check, fold.accumulator, update)
        return reason, delta.buffer.nbytes

    async def add(self, fold: Fold, updates: Iterable[UpdateAccepted]) -> None:
        """Add those updates that are not in the fold yet, with all that wait for their turn in one pass.

        Raises UnreadableUpdate for one that cannot be read; the others are in.
        """
        fold.waiting.extend(updates)
        async with self._lock:
            batch = {update.node: update for update in fold.waiting if update.node not in fold.counted}
            fold.waiting.clear()
            if fold.finished or not batch:
                return
            lost: UnreadableUpdate | None = None
            loaded: dict[NodeId, Update] = {}
            for node, accepted in batch.items():
                try:
                    loaded[node] = await self._load(accepted)
                except UnreadableUpdate as error:
                    lost = error
            await asyncio.to_thread(self.strategy.reducer.add, fold.accumulator, *loaded.values())
            fold.counted.update({node: update.weight for node, update in loaded.items()})
        if lost is not None:
            raise lost

    async def _load(self, update: UpdateAccepted) -> Update:
        try:
            return Update(await self._read(update.digest), update.weight)
        except UnreadableUpdate as error:
            error.node = update.node
            raise

    async def _read(self, digest: Digest) -> Params:
        """Map a stored update; its digest is checked once in the life of this process."""
        try:
            path = await self._blobs.path(digest)
            delta = await asyncio.to_thread(read_blob, path, None if digest in self._sound else digest)
        except (CorruptBlob, NotFound, OSError) as error:
            await self._blobs.delete(digest)
            raise UnreadableUpdate(str(error)) from error
        self._sound.add(digest)
        return delta

    async def finish(self, fold: Fold) -> tuple[ServerState, dict[NodeId, int], Digest, Digest]:
        """The next state from the whole fold, with who is in it, stored as (model, checkpoint)."""
        async with self._lock:
            server = self.server
            assert server is not None

            def step() -> tuple[ServerState, bytearray]:
                mean = self.strategy.reducer.finish(fold.accumulator)
                after = self.strategy.finish(server, mean)
                return after, tensors.encode(after.params)

            fold.finished = True  # the accumulator is used up; a repeated close folds again from the stored updates
            after, encoded = await asyncio.to_thread(step)
            model, state = await self._store(after, encoded)
            return after, dict(fold.counted), model, state

    async def _store(self, server: ServerState, encoded: bytearray) -> tuple[Digest, Digest]:
        model = await self._blobs.put(chunks(encoded))
        if not server.slots:
            return model, model
        return model, await self._blobs.put(chunks(await asyncio.to_thread(tensors.encode_state, server)))

    async def initialise(self, path: Path) -> tuple[Digest, Digest]:
        """Make the first state from a file of initial parameters."""
        params = await asyncio.to_thread(read_blob, path)
        self.server = self.strategy.init(Params(params.layout, params.buffer.copy()))
        self.strategy.reducer.zero(params.layout, 1, self._max_weight)  # raises BadSpec if the weights cannot be summed
        return await self._store(self.server, tensors.encode(self.server.params))

    def commit(self, server: ServerState) -> None:
        """The round is closed in the log: go on from its state."""
        self.server = server
        self._sound.clear()

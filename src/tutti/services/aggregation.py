"""A job's numbers: the strategy's state, and the fold of the open round's updates as they arrive."""

import asyncio
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from tutti.core.codec import NONE
from tutti.core.errors import CorruptBlob, NotFound, TuttiError, UserError
from tutti.core.params import Layout, Params
from tutti.core.reduce import BadUpdate, Update
from tutti.core.strategy import ServerState, folded
from tutti.domain.events import Digest, NodeId, UpdateAccepted
from tutti.domain.spec import JobSpec, Metrics, strategy_of
from tutti.ports import BlobStore
from tutti.ports.blobs import Buffer
from tutti.wire import partials, tensors, updates
from tutti.wire.messages import MAX_ATTACHED
from tutti.wire.updates import Examined

SMALL = 1 << 16
"""Values of a model whose updates are read and summed in the event loop: going to a thread would take longer."""

LARGEST_COHORT = 4095
"""Updates for which a job's weights must be summable without overflow before it starts (see core.fixedpoint)."""

AT_ONCE = 16
"""Updates that are mapped and summed in one pass, and that are looked at and kept until then at the same time.

Each takes a file descriptor and its size in memory meanwhile.
"""

UPDATE_OVERHEAD, BYTES_PER_ENTRY = 64 * 1024, 256
"""What an update may have beside its values: a header, and a name, shape and place for each tensor."""

ENTRIES_GUESSED = 1000
"""Tensors of a model that has not been loaded yet."""

NOBODY: Mapping[NodeId, float] = MappingProxyType({})

T = TypeVar("T")


class UnreadableUpdate(TuttiError):
    """An update's bytes are gone or damaged; `node` is who sent it, where that is known."""

    node: NodeId = ""


@dataclass(slots=True)
class Fold:
    """The accumulator of one attempt at a round, whose updates are in it with which weight, and who waits."""

    key: tuple[int, int]
    accumulator: Any
    counted: dict[NodeId, int] = field(default_factory=dict)
    facts: dict[NodeId, Metrics] = field(default_factory=dict)
    waiting: list[UpdateAccepted] = field(default_factory=list)
    examined: dict[Digest, Params] = field(default_factory=dict)  # until they are added
    room: bytearray | None = None
    """Where the sum is made, if it is to travel."""
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """A strategy's state as it will be stored: its blobs by digest, and which are model, checkpoint and step."""

    server: ServerState
    counted: dict[NodeId, int]
    shares: Mapping[NodeId, float]
    model: Digest
    state: Digest
    blobs: dict[Digest, Buffer]
    step: Digest = ""


def encoded(server: ServerState, counted: dict[NodeId, int], shares: Mapping[NodeId, float] = NOBODY) -> Result:
    """A state without slots and scalars is its model, and is stored once."""
    model = tensors.encode(server.params)
    digest = tensors.digest(model)
    if not server.slots and not server.scalars:
        return Result(server, counted, shares, digest, digest, {digest: model})
    checkpoint = tensors.encode_state(server)
    state = tensors.digest(checkpoint)
    return Result(server, counted, shares, digest, state, {digest: model, state: checkpoint})


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size` items (itertools.batched comes with Python 3.12)."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class Aggregation:
    """Checks updates, folds them in the order in which they come, and makes the next model.

    The result does not depend on that order (see core.reduce), so after a crash the fold starts again from
    the stored updates. Arithmetic on models that are not small runs in worker threads, one at a time per job.
    """

    def __init__(self, spec: JobSpec, blobs: BlobStore) -> None:
        self.strategy, max_weight = strategy_of(spec), spec.cohort.largest_weight
        self._model_codec = spec.model_codec
        self.server: ServerState | None = None
        self._blobs = blobs
        self._max_weight = max_weight
        self._fold: Fold | None = None
        self._lock = asyncio.Lock()
        self._looks = asyncio.Semaphore(AT_ONCE)
        self.blob = b""
        """What nodes fetch, the model or the whole state, if it is small: it comes with the message then."""

    @property
    def layout(self) -> Layout:
        """Of updates: that of the model, and the vectors that the strategy has beside it."""
        assert self.server is not None
        return self.server.params.layout.with_vectors(self.strategy.local.vectors)

    def largest_update(self, parameters: int) -> int:
        """Bytes that an update of a model with so many parameters may have."""
        entries = len(self.server.params.layout.entries) if self.server else ENTRIES_GUESSED
        return 4 * parameters * (1 + len(self.strategy.local.vectors)) + UPDATE_OVERHEAD + BYTES_PER_ENTRY * entries

    async def restore(self, model: Digest, state: Digest, steps: int) -> None:
        """Load the strategy's state; one without slots is the model itself."""
        if self.server is not None and self.server.steps == steps:
            return
        if state == model:
            blob = await self._blobs.read(model)
            self._go_on_from(ServerState(tensors.decode(blob), {}, steps), blob)
            return
        blob = await self._blobs.read(state)
        self._go_on_from(
            tensors.decode_state(blob), blob if self.strategy.shares_slots else await self._blobs.read(model)
        )

    @property
    def sums_in_parts(self) -> bool:
        """Whether updates may be summed in several places, and the sums merged, to the same model."""
        return self.strategy.asynchrony is None and self.strategy.reducer.linear

    def begin(self, key: tuple[int, int], cohort: int) -> Fold:
        """The fold of an attempt: the one that is open, or a new one."""
        if self._fold is None or self._fold.finished or self._fold.key != key:
            self._fold = Fold(key, self.strategy.reducer.zero(self.layout, cohort, self._max_weight))
        return self._fold

    def beside(self, fold: Fold, cohort: int) -> Fold:
        """An empty fold of the same attempt, to be `packed`, which takes over what was looked at."""
        empty = self.strategy.reducer.zero(self.layout, cohort, self._max_weight)
        return Fold(fold.key, empty, examined=fold.examined, room=partials.room_for(empty))

    @property
    def counted(self) -> Container[NodeId]:
        """Whose updates are in the fold that is open."""
        return self._fold.counted if self._fold is not None and not self._fold.finished else ()

    async def examine(self, fold: Fold, digest: Digest, weight: int, facts: Metrics, blob: bytes = b"") -> Examined:
        """Look whether an update can be admitted.

        One that came as `blob` is stored if it can. Raises StorageError if that fails, UnreadableUpdate if an update
        that did not come along is not stored, or damaged; it is deleted then, so that it can be stored again.
        """
        if not digest:
            return Examined("the submission names no update")
        if blob and tensors.digest(blob) != digest:
            return Examined("the attached update has another digest than the submission names")
        if reason := self.strategy.local.fault_of(facts):
            return Examined(reason)
        async with self._looks:
            return await self._look(fold, digest, weight, blob)

    async def _look(self, fold: Fold, digest: Digest, weight: int, blob: bytes) -> Examined:
        try:
            data = blob or await self._stored(digest)
            delta = await self._work(lambda: updates.decode(data, self.layout))
        except UserError as error:
            return Examined(f"not an update: {error}")
        update = Update(delta, min(weight, self._max_weight))
        reason = await self._work(lambda: self.strategy.reducer.check(fold.accumulator, update))
        if reason is None:
            if blob:
                await self._blobs.put(blob, digest=digest, sync=False)
            if self.layout.size <= SMALL or len(fold.examined) < AT_ONCE:  # others are read once more
                fold.examined[digest] = delta
        codec = updates.codec_of(data)
        return Examined(reason, min(len(data), delta.buffer.nbytes), codec.name if codec else NONE.name)

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
            for some in batched(batch.values(), AT_ONCE):
                loaded: dict[NodeId, Update] = {}
                for accepted in some:
                    try:
                        loaded[accepted.node] = await self._load(fold, accepted)
                    except UnreadableUpdate as error:
                        lost = error
                await self._work(partial(self.strategy.reducer.add, fold.accumulator, *loaded.values()))
                fold.counted.update({node: update.weight for node, update in loaded.items()})
                fold.facts.update({node: batch[node].facts for node in loaded})
        if lost is not None:
            raise lost

    async def packed(self, fold: Fold) -> Buffer:
        """The whole fold, which began `beside` another, for somebody who goes on with it; it is used up."""
        assert fold.room is not None
        room = fold.room
        async with self._lock:
            fold.finished = True
            return await self._work(lambda: partials.encode(fold.accumulator, room))

    async def merge(self, fold: Fold, updates: Sequence[UpdateAccepted], digest: Digest) -> None:
        """Add the sum of just these updates, none of which is in the fold yet, as another has packed and stored it.

        Raises BadPartial for the sum of something else, NotFound, StorageError; the fold is as it was then.
        """
        partials.check_length(await self._blobs.size(digest), fold.accumulator)
        data = await self._blobs.read(digest)
        async with self._lock:
            if fold.finished or any(update.node in fold.counted for update in updates):
                raise BadUpdate("some of these updates are in the sum already")
            weights = {update.node: update.weight for update in updates}
            part = await self._work(lambda: partials.decode(data, fold.accumulator))
            partials.check(part, len(weights), sum(weights.values()))
            await self._work(lambda: self.strategy.reducer.merge(fold.accumulator, part))
            fold.counted.update(weights)
            fold.facts.update({update.node: update.facts for update in updates})

    async def _work(self, work: Callable[[], T]) -> T:
        return work() if self.layout.size <= SMALL else await asyncio.to_thread(work)

    async def _load(self, fold: Fold, update: UpdateAccepted) -> Update:
        try:
            delta = fold.examined.pop(update.digest, None) or await self._read(update.digest)
            if (asynchrony := self.strategy.asynchrony) is not None:
                delta = asynchrony.discounted(delta, update.staleness)
            return Update(delta, update.weight, update.node)
        except UnreadableUpdate as error:
            error.node = update.node
            raise

    async def _read(self, digest: Digest) -> Params:
        """A stored update that was examined once."""
        data = await self._stored(digest)
        return await self._work(lambda: updates.decode(data, self.layout))

    async def _stored(self, digest: Digest) -> tensors.Data:
        try:
            return await self._blobs.read(digest)
        except (CorruptBlob, NotFound) as error:
            await self._blobs.delete(digest)
            raise UnreadableUpdate(str(error)) from error

    async def finish(self, fold: Fold, candidates: int, root: Params | None = None) -> "Result":
        """The next state from the whole fold, with who is in it, encoded but not stored yet.

        `candidates` is the number of nodes that could have been drawn, `root` the coordinator's own update, where the
        reducer compares with it.
        """
        async with self._lock:
            server = self.server
            assert server is not None

            def step() -> Result:
                strategy, reducer = self.strategy, self.strategy.reducer
                if root is not None and reducer.rooted is not None:
                    reducer = reducer.rooted(root)
                mean = reducer.finish(fold.accumulator)
                given = [(weight, fold.facts[node]) for node, weight in fold.counted.items()]
                update = folded(mean, server.params.layout, strategy.local, given, candidates)
                shares = reducer.shares(fold.accumulator)
                return self._with_step(encoded(strategy.finish(server, update), dict(fold.counted), shares))

            fold.finished = True  # the accumulator is used up; a repeated close folds again from the stored updates
            return await self._work(step)

    def _with_step(self, result: Result) -> Result:
        """Also what led to the model, unless that is so small that it comes with the message."""
        server = result.server
        if not server.step or len(result.blobs[result.model]) <= MAX_ATTACHED:
            return result
        step = updates.encode_coded(server.params.layout, server.step, self._model_codec)
        digest = tensors.digest(step)
        return replace(result, step=digest, blobs={**result.blobs, digest: step})

    async def store(self, result: "Result", *, sync: bool = True) -> None:
        puts = (self._blobs.put(data, digest=digest, sync=sync) for digest, data in result.blobs.items())
        await asyncio.gather(*puts)

    async def initialise(self, path: Path) -> "Result":
        """The first state, from a file of initial parameters; raises UserError if updates could not be summed."""

        def begin() -> Result:
            params = tensors.decode(path.read_bytes())
            layout = params.layout.with_vectors(self.strategy.local.vectors)
            self.strategy.reducer.zero(layout, LARGEST_COHORT, self._max_weight)
            return encoded(self.strategy.init(Params(params.layout, params.buffer.copy())), {})

        result = await asyncio.to_thread(begin)
        self.commit(result)
        return result

    def commit(self, result: "Result") -> None:
        """The round is closed in the log: go on from its state."""
        fetched = result.state if self.strategy.shares_slots else result.model
        self._go_on_from(result.server, result.blobs[fetched])

    def _go_on_from(self, server: ServerState, fetched: tensors.Data) -> None:
        self.server, self.blob = server, bytes(fetched) if len(fetched) <= MAX_ATTACHED else b""

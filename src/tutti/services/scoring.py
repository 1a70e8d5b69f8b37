"""Measures one round's updates: one gradient, one pass over each update, and now and then an audit."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from tutti.core import scoring
from tutti.core.errors import CorruptBlob, NotFound, UserError
from tutti.core.params import Layout, Params, Role
from tutti.core.registry import Choice
from tutti.core.sampling import node_seed
from tutti.core.strategy import Asynchrony, strategies
from tutti.domain.contributions import Contribution, portions
from tutti.domain.events import Digest, UpdateAccepted
from tutti.domain.jobs import Job
from tutti.domain.spec import Training
from tutti.ports import BlobStore, Task, Workbench
from tutti.wire import tensors, updates

LEAVE_ONE_OUT_COHORT = 24
"""Up to so many updates an audit leaves out each in turn; for more it draws coalitions."""

COALITIONS = 64

GRADIENT_ROWS = 1024
"""Rows over which a gradient is measured, at most: they are one batch, drawn by the seed."""

STEP = 1e-2
"""Learning rate of the step that shows the gradient: small enough that even a thousand single steps stay near, large
enough that float32 sees them."""


LEFT_OUT = "the job's reducer left its update out of the model"

Read = Callable[[UpdateAccepted], Awaitable[Params]]
"""Gives an update's change of the model; raises CorruptBlob or NotFound."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A round that made a model: from which `base`, out of which updates, in the order in which they were accepted.

    `left_out` are those that counted, and that the job's reducer did not take.
    """

    job: str
    round: int
    base: Digest
    model: Digest
    updates: tuple[UpdateAccepted, ...]
    left_out: tuple[UpdateAccepted, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Scores before any payment; `sketches` (n, SKETCH) of the updates, by which replays are known later."""

    contributions: list[Contribution]
    sketches: NDArray[np.float32]
    rows: Digest = ""
    note: str = ""


class Scorer:
    """Reads models and updates from the blob store, and has losses and gradients computed by the workbench."""

    def __init__(self, blobs: BlobStore, workbench: Workbench) -> None:
        self._blobs, self._workbench = blobs, workbench

    async def measure(self, closed: Closed, job: Job, data: Choice, past: "Past", *, audited: bool) -> Measured:
        """Score the updates of a round; those that were left out of its model come last, and earn nothing.

        What keeps a model from being measured becomes a note, and scores are 0.
        """
        nobody = Measured([], np.zeros((0, scoring.SKETCH), np.float32))
        found = await self._measure(closed, job, data, past, audited) if closed.updates else nobody
        found.contributions.extend(_contribution(closed, update, fault=LEFT_OUT) for update in closed.left_out)
        return found

    async def _measure(self, closed: Closed, job: Job, data: Choice, past: "Past", audited: bool) -> Measured:
        seed = node_seed(job.spec.seed, closed.round, "contributions")
        with tempfile.TemporaryDirectory(prefix="tutti-") as folder:
            place = Path(folder)
            try:
                base, made = await self._params(closed.base), await self._params(closed.model)
                gradient, rows = await self._gradient(job, data, base, made, place, seed)
            except (UserError, CorruptBlob) as error:
                unmeasured = np.zeros((len(closed.updates), scoring.SKETCH), np.float32)
                nothing = [_contribution(closed, update) for update in closed.updates]
                return Measured(nothing, unmeasured, note=f"the model could not be measured: {error}")
            read = partial(self._delta, base.layout, strategies.build(job.spec.strategy).asynchrony)
            found = await self._judge(closed, read, gradient, job.spec.seed, past)
            if audited:
                evaluate = partial(self._loss, job, data, place / "coalition.safetensors")
                audit = await self._audit(closed, base, read, evaluate, seed)
                parts = zip(found.contributions, portions(audit.tolist()), strict=True)
                found.contributions[:] = [msgspec.structs.replace(one, audit=part) for one, part in parts]
            return Measured(found.contributions, found.sketches, rows, found.note)

    async def _params(self, digest: Digest) -> Params:
        return tensors.decode(await self._blobs.read(digest))

    async def _delta(self, layout: Layout, asynchrony: Asynchrony | None, update: UpdateAccepted) -> Params:
        """What an update changes in the model: without extra vectors, and discounted as it was in the round."""
        whole = updates.decode(await self._blobs.read(update.digest))
        delta = Params(layout, whole.buffer[: layout.size])
        return delta if asynchrony is None else asynchrony.discounted(delta, update.staleness)

    async def _gradient(
        self, job: Job, data: Choice, base: Params, made: Params, place: Path, seed: int
    ) -> tuple[Params, Digest]:
        """The gradient of the validation loss half-way between the two models, and the digest of the data.

        It is what one small step of plain SGD changes, so every trainer can be asked. scikit-learn's models step once
        an example: theirs is a multiple of it.
        """
        at, into = place / "midpoint.safetensors", place / "gradient.safetensors"
        middle = Params(base.layout, (base.buffer + made.buffer) / np.float32(2))
        await asyncio.to_thread(at.write_bytes, tensors.encode(middle))
        task = Task(Training(lr=STEP, max_steps=1), seed=seed, batch_size=GRADIENT_ROWS, lr=STEP)
        rows = await self._workbench.train(job.spec.model, job.data, data, task, at, into)
        step = tensors.decode(await asyncio.to_thread(into.read_bytes))
        return Params(step.layout, step.buffer / np.float32(-STEP)), rows

    async def _judge(self, closed: Closed, read: Read, gradient: Params, seed: int, past: "Past") -> Measured:
        slopes, norms, sketches = [], [], []
        gone: list[str] = []
        for update in closed.updates:
            try:
                delta = await read(update)
            except (CorruptBlob, NotFound):
                gone.append(update.node)  # not its fault: it keeps what its standing earns
                sketched, slope, norm = np.zeros(scoring.SKETCH, np.float32), 0.0, 0.0
            else:
                sketched, slope, norm = await asyncio.to_thread(_look, delta, gradient, seed)
            slopes.append(slope)
            norms.append(norm)
            sketches.append(sketched)
        lengths, rows = np.array(norms), np.array(sketches)
        gains = scoring.influence(np.array(slopes), lengths, [update.weight for update in closed.updates])
        gains = gains / scoring.multiplicity(rows)
        faults = [
            "" if update.node in gone else fault
            for update, fault in zip(closed.updates, _faults(closed, lengths, rows, past), strict=True)
        ]
        parts = portions([0.0 if fault else float(gain) for fault, gain in zip(faults, gains, strict=True)])
        contributions = [
            _contribution(closed, update, gain=part, fault=fault)
            for update, part, fault in zip(closed.updates, parts, faults, strict=True)
        ]
        lost = f"gone before they could be scored: the updates of {', '.join(gone)}" if gone else ""
        return Measured(contributions, rows, note=lost)

    async def _audit(
        self, closed: Closed, base: Params, read: Read, evaluate: Callable[[Params], Awaitable[float]], seed: int
    ) -> scoring.Scores:
        """Leave-one-out values, or sampled Banzhaf values of a large cohort."""
        n = len(closed.updates)
        few = n <= LEAVE_ONE_OUT_COHORT
        wanted = scoring.all_but_one(n) if few else scoring.coalitions(n, COALITIONS, seed)
        values = [-await evaluate(await self._coalition(closed, base, read, some)) for some in wanted]
        return scoring.leave_one_out(values) if few else scoring.banzhaf(values, wanted, n)

    async def _coalition(self, closed: Closed, base: Params, read: Read, some: frozenset[int]) -> Params:
        """The base plus the weighted mean of some updates."""
        total = np.zeros(base.layout.size)
        weight = sum(closed.updates[i].weight for i in some)
        for i in sorted(some):
            update = closed.updates[i]
            try:
                delta = await read(update)
            except (CorruptBlob, NotFound):
                continue
            total += delta.buffer * (update.weight / weight)
        return Params(base.layout, (base.buffer + total).astype(np.float32))

    async def _loss(self, job: Job, data: Choice, place: Path, params: Params) -> float:
        await asyncio.to_thread(place.write_bytes, tensors.encode(params))
        return (await self._workbench.evaluate(job.spec.model, job.data, data, place))["loss"]


@dataclass(slots=True, eq=False)
class Past:
    """The updates of earlier rounds of a job: all digests, and the sketches of the newest rounds since the start."""

    digests: set[Digest]
    recent: list[NDArray[np.float32]]

    KEPT = 4

    @property
    def sketches(self) -> NDArray[np.float32]:
        return np.concatenate(self.recent) if self.recent else np.zeros((0, scoring.SKETCH), np.float32)

    def add(self, digests: Sequence[Digest], sketches: NDArray[np.float32] | None = None) -> None:
        self.digests.update(digests)
        if sketches is not None:
            self.recent = [*self.recent[1 - self.KEPT :], sketches]


def _look(delta: Params, gradient: Params, seed: int) -> tuple[NDArray[np.float32], float, float]:
    """Sketch of an update's weights, their inner product with the gradient, and their norm."""
    spans = delta.layout.spans_of(Role.WEIGHT)
    whole = np.concatenate([delta.buffer[span] for span in spans])
    slope = sum(float(np.dot(delta.buffer[s].astype(np.float64), gradient.buffer[s])) for s in spans)
    return scoring.sketch(whole, seed), slope, float(np.linalg.norm(whole.astype(np.float64)))


def _faults(closed: Closed, norms: NDArray[np.float64], sketches: NDArray[np.float32], past: Past) -> list[str]:
    """Of each update why it earns nothing; empty if it is sound."""
    least = scoring.EMPTY * float(np.median(norms))
    again = scoring.repeated(sketches, past.sketches)
    found, first = [], dict[Digest, str]()
    for update, norm, is_repeated in zip(closed.updates, norms, again, strict=True):
        owner = first.setdefault(update.digest, update.node)
        if norm <= least:
            found.append("its update is empty")
        elif owner != update.node:
            found.append(f"its update is that of {owner}, which came first")
        elif is_repeated or update.digest in past.digests:
            found.append("its update repeats one of an earlier round")
        else:
            found.append("")
    return found


def _contribution(closed: Closed, update: UpdateAccepted, *, gain: int = 0, fault: str = "") -> Contribution:
    return Contribution(
        job=closed.job,
        round=closed.round,
        node=update.node,
        digest=update.digest,
        weight=update.weight,
        gain=gain,
        fault=fault,
        signed=update.signed,
    )

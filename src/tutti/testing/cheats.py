"""Workers that cheat on the compute market, to test what it costs them; each is a way to solve, or a kind of worker."""

import asyncio
from collections.abc import Mapping

import numpy as np
from blake3 import blake3

from tutti.core.registry import Choice
from tutti.core.workload import Floats, Table
from tutti.services.market.judging import solve
from tutti.services.market.worker import Held, Solve, Worker
from tutti.wire.messages import Committed, Computed
from tutti.wire.tables import Data, decode_table, encode_table


def random(kind: Choice, data: Data, seed: int) -> Mapping[str, Floats]:
    """Numbers of the right shape, and no work at all."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return {name: rng.standard_normal(array.shape) for name, array in solve(kind, data, seed).items()}


def lazy(kind: Choice, data: Data, seed: int) -> Mapping[str, Floats]:
    """The work on a tenth of the rows; what follows cheaply from its result is made to fit all of them."""
    table = decode_table(data)
    few = max(10, len(table.x) // 10)
    part = encode_table(Table(table.x[:few], None if table.y is None else table.y[:few]))
    return _fitted(table, dict(solve(kind, part, seed)))


def slightly_wrong(kind: Choice, data: Data, seed: int) -> Mapping[str, Floats]:
    """The right result, off by a thousandth, with what follows from it made to fit."""
    rng = np.random.Generator(np.random.PCG64(seed))
    table = decode_table(data)
    found = {k: v * (1 + 1e-3 * rng.standard_normal(v.shape)) for k, v in solve(kind, data, seed).items()}
    return _fitted(table, found)


def forged_run(kind: Choice, data: Data, seed: int) -> Mapping[str, Floats]:
    """Of k-means: the true first step and a true end, and what lies between made up, to save most of the steps."""
    found = dict(solve(kind, data, seed))
    if "history" in found and len(found["history"]) > 4:
        history = found["history"].copy()
        history[2:-2] = history[-1]
        found["history"] = history
    return found


def _fitted(table: Table, found: dict[str, Floats]) -> Mapping[str, Floats]:
    if "coefficients" in found and table.y is not None:
        w = found["coefficients"]
        found["intercept"] = np.asarray(table.y.mean() - table.x.mean(axis=0) @ w)
        found["mse"] = np.asarray(np.mean((table.x @ w + found["intercept"] - table.y) ** 2))
    if "centers" in found:
        distances = ((table.x[:, None] - found["centers"]) ** 2).sum(axis=2)
        found["labels"] = distances.argmin(axis=1).astype(np.float64)
        found["inertia"] = np.asarray(distances.min(axis=1).sum())
    return found


WRONG: Mapping[str, Solve] = {"random": random, "lazy": lazy, "slightly wrong": slightly_wrong}
"""Ways to solve that are wrong on every kind of job."""


class Silent(Worker):
    """Takes work, and is never heard of again."""

    async def _work(self, held: Held) -> None:
        await asyncio.Event().wait()


class Late(Worker):
    """Does the work, and hands it in when nobody waits for it any more: once `now` is set."""

    now = asyncio.Event()

    async def _work(self, held: Held) -> None:
        await Late.now.wait()
        await super()._work(held)

    async def _renew(self, asked: object) -> None:
        pass


class Honest(Worker):
    """Does its work well, and lets anybody see what it says (as an eavesdropper would)."""

    overheard: asyncio.Queue[Committed | Computed] = asyncio.Queue()

    async def _commit(self, held: Held) -> None:
        job, attempt = held.key
        Honest.overheard.put_nowait(Committed(job=job, attempt=attempt, commitment=self._commitment(held)))
        await super()._commit(held)

    async def _show(self, held: Held) -> None:
        job, attempt = held.key
        await super()._show(held)
        digest = blake3(held.result).hexdigest()
        Honest.overheard.put_nowait(Computed(job=job, attempt=attempt, digest=digest, nonce=self._nonce(held)))


class Copier(Worker):
    """Does nothing itself: says what it overhears of an honest worker of the same job."""

    async def _work(self, held: Held) -> None:
        heard = await Honest.overheard.get()
        assert isinstance(heard, Committed)
        held.result = b"?"
        job, attempt = held.key
        await self.tasks.say(Committed(job=job, attempt=attempt, commitment=heard.commitment))

    async def _show(self, held: Held) -> None:
        heard = await Honest.overheard.get()
        assert isinstance(heard, Computed)
        job, attempt = held.key
        await self.tasks.say(Computed(job=job, attempt=attempt, digest=heard.digest, nonce=heard.nonce))


class Overtaken(Honest):
    """Is overheard before its own commitment is out: it hands that in once `now` is set."""

    now = asyncio.Event()

    async def _commit(self, held: Held) -> None:
        job, attempt = held.key
        Honest.overheard.put_nowait(Committed(job=job, attempt=attempt, commitment=self._commitment(held)))
        await Overtaken.now.wait()
        await Worker._commit(self, held)


class Shy(Copier):
    """Commits to what it overhears, and shows nothing when it is asked to."""

    async def _show(self, held: Held) -> None:
        pass


class Reneging(Worker):
    """Commits, and shows nothing when it is asked to."""

    async def _show(self, held: Held) -> None:
        pass


class Swapping(Worker):
    """Commits to one result, and shows another that it likes better."""

    async def _show(self, held: Held) -> None:
        held.result = held.result[:-8] + bytes(8)
        await super()._show(held)

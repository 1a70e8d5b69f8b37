"""Two sums of one round at the same time: each is of what was asked for."""

import asyncio
from pathlib import Path

import numpy as np

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.core.params import Params
from tutti.domain.events import UpdateAccepted
from tutti.domain.spec import load_spec
from tutti.services.aggregation import Aggregation, Fold
from tutti.wire import partials, tensors

NODES = 5


async def test_each_has_its_own_numbers(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path / "blobs")
    aggregation = Aggregation(load_spec({"dataset": "digits", "model": "linear"}), blobs)
    first = tmp_path / "first"
    first.write_bytes(tensors.encode(Params.from_arrays({"w": np.zeros(3, np.float32)})))
    await aggregation.store(await aggregation.initialise(first))
    looked_at, updates = aggregation.begin((1, 0), NODES), []
    for number in range(NODES):
        digest = await blobs.put(tensors.encode(Params.from_arrays({"w": np.full(3, 1 + number, np.float32)})))
        assert (await aggregation.examine(looked_at, digest, 1, {})).fault is None
        updates.append(UpdateAccepted(at=0.0, round=1, node=f"n{number}", digest=digest, weight=1))

    async def summed(fold: Fold, count: int) -> int:
        await aggregation.add(fold, updates[:count])
        return partials.decode(await aggregation.packed(fold), looked_at.accumulator).count

    folds = [aggregation.beside(looked_at, NODES) for _ in range(2)]
    assert await asyncio.gather(summed(folds[0], NODES), summed(folds[1], 2)) == [NODES, 2]
    assert aggregation.begin((1, 0), NODES) is looked_at
    assert looked_at.accumulator.count == 0

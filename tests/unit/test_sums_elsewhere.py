"""Sums from elsewhere: two of one round are each of what was asked for, and what is no sum is not read."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.core.params import Params
from tutti.domain.events import Digest, UpdateAccepted
from tutti.domain.spec import load_spec
from tutti.ports.blobs import Mapped
from tutti.services.aggregation import Aggregation, Fold
from tutti.wire import partials, tensors

NODES = 5


class Read(DirectoryBlobs):
    """Knows how many bytes were read of it."""

    total = 0

    async def read(self, digest: Digest) -> Mapped:
        data = await super().read(digest)
        self.total += len(data)
        return data


async def aggregation_over(blobs: DirectoryBlobs, folder: Path) -> Aggregation:
    aggregation = Aggregation(load_spec({"dataset": "digits", "model": "linear"}), blobs)
    first = folder / "first"
    first.write_bytes(tensors.encode(Params.from_arrays({"w": np.zeros(3, np.float32)})))
    await aggregation.store(await aggregation.initialise(first))
    return aggregation


async def test_a_blob_that_is_no_sum_is_not_read(tmp_path: Path) -> None:
    blobs = Read(tmp_path / "blobs")
    aggregation = await aggregation_over(blobs, tmp_path)
    fold, named = aggregation.begin((1, 0), NODES), await blobs.put(bytes(1_000_000))
    update = UpdateAccepted(at=0.0, round=1, node="n0", digest="a" * 64, weight=1)
    before = blobs.total
    with pytest.raises(partials.BadPartial, match="came 1000000"):
        await aggregation.merge(fold, [update], named)
    assert (blobs.total, fold.counted) == (before, {})


async def test_each_has_its_own_numbers(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path / "blobs")
    aggregation = await aggregation_over(blobs, tmp_path)
    looked_at, updates = aggregation.begin((1, 0), NODES), []
    for number in range(NODES):
        digest = await blobs.put(tensors.encode(Params.from_arrays({"w": np.full(3, 1 + number, np.float32)})))
        assert (await aggregation.examine(looked_at, digest, 1, {})).fault is None
        updates.append(UpdateAccepted(at=0.0, round=1, node=f"n{number}", digest=digest, weight=1))

    async def summed(fold: Fold, count: int) -> int:
        await aggregation.add(fold, updates[:count])
        return partials.decode(await aggregation.packed(fold), looked_at.accumulator).count

    folds = [aggregation.beside(looked_at, NODES) for _ in range(2)]
    assert list(await asyncio.gather(summed(folds[0], NODES), summed(folds[1], 2))) == [NODES, 2]
    assert aggregation.begin((1, 0), NODES) is looked_at
    assert looked_at.accumulator.count == 0

"""However many updates come at once, few of them are in memory: counted by the mappings that are alive."""

import asyncio
import weakref
from pathlib import Path

import numpy as np

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.core.params import Params
from tutti.domain.events import Digest, UpdateAccepted
from tutti.domain.spec import load_spec
from tutti.ports.blobs import Mapped
from tutti.services.aggregation import AT_ONCE, SMALL, Aggregation
from tutti.wire import tensors

UPDATES = 10 * AT_ONCE


class Counted(DirectoryBlobs):
    """Knows how many of the blobs that were read are still mapped, and how many at most."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.alive = self.most = 0

    async def read(self, digest: Digest) -> Mapped:
        found = await super().read(digest)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(found, self._gone)
        return found

    def _gone(self) -> None:
        self.alive -= 1


async def test_few_of_many_updates_are_mapped_at_the_same_time_and_each_counts_once(tmp_path: Path) -> None:
    blobs = Counted(tmp_path / "blobs")
    aggregation = Aggregation(load_spec({"dataset": "digits", "model": "linear"}), blobs)
    first = tmp_path / "first"
    first.write_bytes(tensors.encode(Params.from_arrays({"w": np.zeros(SMALL + 1, np.float32)})))
    await aggregation.store(await aggregation.initialise(first))
    fold = aggregation.begin((1, 0), UPDATES)

    async def hand_in(number: int) -> None:
        delta = Params.from_arrays({"w": np.full(SMALL + 1, number, np.float32)})
        digest = await blobs.put(tensors.encode(delta))
        assert (await aggregation.examine(fold, digest, 1, {})).fault is None
        await asyncio.sleep(0)  # as for the log
        update = UpdateAccepted(at=0.0, round=1, node=f"n{number}", digest=digest, weight=1)
        await aggregation.add(fold, [update])

    await asyncio.gather(*map(hand_in, range(UPDATES)))
    result = await aggregation.finish(fold, UPDATES)
    assert set(result.counted) == {f"n{number}" for number in range(UPDATES)}
    assert np.all(result.server.params["w"] == np.float32((UPDATES - 1) / 2))
    assert AT_ONCE <= blobs.most <= 3 * AT_ONCE, f"{blobs.most} of {UPDATES}"

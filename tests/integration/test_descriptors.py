"""A process that runs out of file descriptors while it folds updates: the fold goes on later, to the same bits."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

from support.commands import DEADLINE, ENVIRONMENT

FOLD = """
    import asyncio, json, os, resource, sys
    from pathlib import Path

    import numpy as np

    from tutti.adapters.blobs.directory import MAPPED, DirectoryBlobs
    from tutti.core.errors import StorageError
    from tutti.core.params import Params
    from tutti.domain.events import UpdateAccepted
    from tutti.domain.spec import load_spec
    from tutti.services.aggregation import AT_ONCE, Aggregation
    from tutti.wire import tensors

    NODES, SIZE, FREE = 2 * AT_ONCE + 3, MAPPED // 2, AT_ONCE // 2


    def params(seed):
        return Params.from_arrays({"w": np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)})


    async def stored(blobs, n):
        digest = await blobs.put(tensors.encode(params(n)), sync=False)
        return UpdateAccepted(at=0, round=1, node=f"n{n}", digest=digest, weight=n + 1, metrics={}, seconds=0, bytes=0)


    async def opened(blobs):
        aggregation = Aggregation(load_spec({"dataset": "d", "model": "linear"}), blobs)
        aggregation.commit(await aggregation.initialise(Path(sys.argv[1]) / "initial"))
        return aggregation, aggregation.begin((1, 0), NODES)


    def allow(descriptors):
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))


    async def refused(work):
        try:
            await work
        except StorageError as error:
            return str(error)
        return ""


    async def main():
        folder = Path(sys.argv[1])
        (folder / "initial").write_bytes(tensors.encode(params(1000)))
        before = DirectoryBlobs(folder / "blobs")
        updates = [await stored(before, n) for n in range(NODES)]
        aggregation, fold = await opened(before)
        await aggregation.add(fold, updates)
        expected = await aggregation.finish(fold, NODES)

        blobs = DirectoryBlobs(folder / "blobs")  # as after a restart: nothing is known of any blob
        aggregation, fold = await opened(blobs)
        allow(len(os.listdir("/proc/self/fd")) + FREE)
        folding = await refused(aggregation.add(fold, updates))
        part = len(fold.counted)
        allow(3)
        examining = await refused(aggregation.examine(fold, updates[-1].digest, 1, {}))
        storing = await refused(aggregation.examine(fold, tensors.digest(late), 1, {}, late))
        allow(soft)
        verdicts = [(await aggregation.examine(fold, update.digest, update.weight, {}))[0] for update in updates]
        await aggregation.add(fold, updates)
        result = await aggregation.finish(fold, NODES)
        kept = len(await blobs.digests())
        print(json.dumps({
            "folding": folding, "examining": examining, "storing": storing, "part": part, "verdicts": verdicts,
            "same": result.model == expected.model, "counted": len(result.counted), "nodes": NODES, "kept": kept,
        }))


    late = tensors.encode(params(2000))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    asyncio.run(main())
"""


def test_a_fold_that_runs_out_of_descriptors_goes_on_to_the_same_bits_and_refuses_nobody(tmp_path: Path) -> None:
    script = [sys.executable, "-c", textwrap.dedent(FOLD), str(tmp_path)]
    run = subprocess.run(script, env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    for doing in ("folding", "examining", "storing"):
        assert "Too many open files" in said[doing], doing
    assert said["part"] < said["nodes"]
    assert set(said["verdicts"]) == {None}
    assert said["same"]
    assert said["counted"] == said["kept"] == said["nodes"]

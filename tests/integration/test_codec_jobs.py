"""Jobs whose updates travel by codec: real coordinators and node runtimes, kills, and nodes that have no codec."""

from pathlib import Path

import pytest

from support.worlds import World, toy_data, toy_spec
from tutti.adapters.fabrics.local import LocalLink
from tutti.core.codec import RESIDUAL
from tutti.core.errors import UserError
from tutti.domain.events import Digest
from tutti.domain.forecast import usage
from tutti.domain.jobs import Job
from tutti.domain.spec import BadSpec, JobSpec
from tutti.ports.blobs import Buffer
from tutti.services import aggregation, runner
from tutti.services import node as node_module
from tutti.services.manifest import manifest_of_job
from tutti.sim import Federation, simulate
from tutti.wire import tensors

NODES = ("ada", "bob", "cy")


def spec_of(codec: str, **fields: object) -> JobSpec:
    return toy_spec(nodes=3, rounds=5, codec=codec, training={"batch_size": 4}, **fields)


async def run(folder: Path, spec: JobSpec, restart_after: int = 0) -> Job:
    """A whole job of three nodes; after so many rounds the coordinator and a node are killed."""
    world = World(folder)
    await world.up()
    for number, name in enumerate(NODES):
        await world.join(name, number)
    job = await world.core.submit(spec)
    if restart_after:
        await world.until(lambda job: job.rounds_done >= restart_after, job)
        await world.kill("bob")
        await world.down()
        await world.up()
        await world.join("bob", 1)
    job = await world.finished(job)
    await world.close()
    assert job.status == "completed", job.outcome
    return job


def simulated(spec: JobSpec) -> str:
    parts = {name: toy_data(number) for number, name in enumerate(NODES)}
    return simulate(spec, Federation.of(parts), engine="sequential", batch_size=4).header.model


@pytest.mark.parametrize("codec", ["shuffle", "fp16", "int8", "int4", "topk:0.5"])
async def test_a_deployment_and_a_simulation_make_the_same_model(tmp_path: Path, codec: str) -> None:
    job = await run(tmp_path, spec_of(codec))
    assert job.model == simulated(spec_of(codec))
    assert (job.model == simulated(spec_of("none"))) == (codec == "shuffle")


@pytest.mark.parametrize("strategy", ["scaffold", "ditto:lam=0.5"])
async def test_a_strategy_keeps_its_memory_beside_what_the_codec_left_out(tmp_path: Path, strategy: str) -> None:
    job = await run(tmp_path, spec_of("topk:0.3", strategy=strategy))
    assert job.model == simulated(spec_of("topk:0.3", strategy=strategy))
    file = next((tmp_path / "nodes" / "ada" / "memory" / job.id).iterdir())
    names = {entry.name for entry, _ in tensors.decode(file.read_bytes()).items()}
    assert RESIDUAL in names
    assert len(names) > 1


async def test_kills_change_nothing(tmp_path: Path) -> None:
    job = await run(tmp_path, spec_of("topk:0.3"), restart_after=2)
    assert job.model == simulated(spec_of("topk:0.3"))


class Fetched:
    """Which blobs nodes fetch, and how large these are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[tuple[str, int]] = []
        fetch = LocalLink.fetch

        async def noted(link: LocalLink, digest: Digest) -> Buffer:
            blob = await fetch(link, digest)
            self.sizes.append((digest, len(blob)))
            return blob

        monkeypatch.setattr(LocalLink, "fetch", noted)
        monkeypatch.setattr(aggregation, "MAX_ATTACHED", 0)  # else the toy is so small that it comes with the message


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
@pytest.mark.parametrize("codec", ["shuffle", "fp16", "int8", "int4", "topk:0.5"])
async def test_models_travel_in_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, strategy: str
) -> None:
    """And are the same for a simulation, which knows whole models only; a lossless codec changes nothing at all."""
    fetched = Fetched(monkeypatch)
    spec = spec_of("none", model_codec=codec, strategy=strategy)
    job = await run(tmp_path, spec)
    assert job.model == simulated(spec)
    assert (job.model == simulated(spec_of("none", strategy=strategy))) == (codec == "shuffle")
    models = {job.model_of(number) for number in range(6)}
    whole = [digest for digest, _ in fetched.sizes if digest in models]
    assert whole == [job.initial_model] * len(NODES), "a node that held a model fetched another one whole"
    assert usage(job).bytes_down == sum(size for _, size in fetched.sizes)
    assert len(fetched.sizes) == len(NODES) * 6


async def test_who_holds_no_base_of_a_step_fetches_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a node that is new in the cohort, or was killed; the model is that of an undisturbed job."""
    fetched, spec = Fetched(monkeypatch), spec_of("int4", model_codec="int4")
    job = await run(tmp_path, spec, restart_after=2)
    assert job.model == simulated(spec)
    models = {job.model_of(number) for number in range(6)}
    assert sum(digest in models for digest, _ in fetched.sizes) > len(NODES)


async def test_a_step_that_leads_elsewhere_costs_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = Fetched(monkeypatch)
    right = runner.updates.applied
    monkeypatch.setattr(runner.updates, "applied", lambda *files: bytes(right(*files))[:-4] + bytes(4))
    spec = spec_of("none", model_codec="int8")
    job = await run(tmp_path, spec)
    assert job.model == simulated(spec)
    models = {job.model_of(number) for number in range(6)}
    assert sum(digest in models for digest, _ in fetched.sizes) == len(NODES) * 6


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model_codec": "auto"}, "name one, such as int8"),
        ({"strategy": "scaffold", "model_codec": "int8"}, "no steps"),
    ],
)
def test_models_that_can_have_no_steps_are_refused(fields: dict[str, str], says: str) -> None:
    with pytest.raises(BadSpec, match=says):
        simulated(spec_of("none", **fields))


async def test_a_robust_reducer_works_on_what_was_decoded(tmp_path: Path) -> None:
    assert (await run(tmp_path, spec_of("int8", reducer="median"))).model == simulated(
        spec_of("int8", reducer="median")
    )


async def test_nodes_without_codecs_send_every_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As browsers do."""
    monkeypatch.setattr(node_module, "codecs", ())
    assert (await run(tmp_path, spec_of("int4"))).model == simulated(spec_of("none"))


async def test_a_node_on_a_fast_link_that_may_choose_takes_none(tmp_path: Path) -> None:
    job = await run(tmp_path, spec_of("auto"))
    assert job.model == simulated(spec_of("none"))
    assert "chose codecs" in " ".join(manifest_of_job(job, [], []).incidents)


def test_a_simulation_has_no_links_to_choose_by() -> None:
    with pytest.raises(BadSpec, match="name one, such as int8"):
        simulated(spec_of("auto"))


async def test_a_codec_that_there_is_not_is_refused_with_the_names(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.up()
    with pytest.raises(UserError, match="no codec 'zip'; choose from: fp16, "):
        await world.core.submit(spec_of("zip"))
    await world.close()

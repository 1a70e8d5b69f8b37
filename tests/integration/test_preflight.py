"""Statistics over a real coordinator and real nodes: what owners allow, the same in simulation, and scaling by them."""

import asyncio

import msgspec
import numpy as np
import pytest

from support.served import app_of, caller
from support.worlds import World
from tutti import simulate
from tutti.core.errors import NotFound
from tutti.core.statistics import Column, Statistics
from tutti.domain.policy import Policy, parse_window
from tutti.domain.spec import BadSpec, DataSchema, JobSpec, load_spec
from tutti.ports import Data, Examples
from tutti.ports.training import normalized
from tutti.services.preflight import Preflight
from tutti.services.views import EvaluationView, PreflightView, preflight_view
from tutti.sim import Federation
from tutti.wire.messages import Describe, Described

SCHEMA = DataSchema("classification", (2,), 2, ("age", "weight"), ("no", "yes"))


def clinic(seed: int, rows: int = 60, missing: dict[str, int] | None = None) -> Data:
    rng = np.random.default_rng(seed + 10)
    x = np.column_stack([rng.normal(50 + seed, 15, rows), rng.normal(80, 10, rows)]).astype(np.float32)
    y = (x[:, 0] > 55).astype(np.int64)
    cut = rows * 4 // 5
    return Data("clinic", SCHEMA, Examples(x[:cut], y[:cut]), Examples(x[cut:], y[cut:]), missing or {})


PARTS = {"ann": clinic(0), "bob": clinic(5, 90, {"weight": 12}), "cyd": clinic(-5, 75, {"age": 2})}


def spec(**fields: object) -> JobSpec:
    training = {"lr": 0.1, "batch_size": 16}
    raw = {"dataset": "clinic", "model": "linear", "rounds": 3, "cohort": {"min_nodes": 3}, "training": training}
    return load_spec({**raw, **fields})


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    await world.up()
    yield world
    await world.close()


async def joined(world: World, policies: dict[str, Policy] | None = None) -> None:
    for name, data in PARTS.items():
        await world.join(name, 0, (policies or {}).get(name), data=data)
    await connected(world, len(PARTS))


async def connected(world: World, nodes: int) -> None:
    async with asyncio.timeout(10):
        while len(world.core.presence.connected()) < nodes:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0)


async def test_a_deployment_tells_what_a_simulation_tells(world):
    await joined(world)
    told = await world.core.describe("clinic")
    assert told == Federation.of(PARTS).describe()
    view = preflight_view(told)
    whole = np.concatenate([data.train.x for data in PARTS.values()])
    assert view.rows == len(whole)
    assert view.columns[0].mean == pytest.approx(whole[:, 0].mean(), abs=0.2)  # cyd's rows without one count
    assert view.columns[1].deviation == pytest.approx(whole[:, 1].std(), abs=1e-4)
    assert "bob: column 'weight' misses 12 values" in view.remarks
    assert "cyd: column 'age' misses a few values" in view.remarks


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Policy(allow_statistics=False), "its owner does not let statistics be told (allow_statistics)"),
        (Policy(min_rows=61), "holds fewer than 61 rows"),
        (Policy(min_cohort=4), "its owner wants company of 4 nodes or more, 3 are asked"),
        (Policy(hours=(parse_window("00:00-00:01"),)), "outside its owner's hours"),
    ],
)
async def test_the_owner_decides_what_is_told(world, policy, reason):
    await joined(world, {"cyd": policy})
    told = await world.core.describe("clinic")
    assert told.silent == {"cyd": reason}
    assert told.parts.keys() == {"ann", "bob"}
    with pytest.raises(BadSpec, match=r"normalize needs .* cyd: "):
        await world.core.submit(spec(normalize=True))


async def test_the_owner_may_ask_for_more_rows_than_the_asker(world):
    await joined(world, {"cyd": Policy(min_rows=25)})
    told = await world.core.describe("clinic", 12)
    assert told.least == {"ann": 12, "bob": 12, "cyd": 25}
    assert all(each.rows >= 25 for column in told.parts["cyd"].columns for each in column.ranges)


async def test_scaled_training_is_the_same_in_simulation_and_better_than_none(world):
    await joined(world)
    job = await world.finished(await world.core.submit(spec(normalize=True)))
    history = simulate(spec(normalize=True), Federation.of(PARTS), engine="sequential")
    assert history.model == job.model
    assert job.data.mean == pytest.approx([50.4, 80.0], abs=3)
    plain = await world.finished(await world.core.submit(spec()))
    assert job.evaluations[3]["nodes"]["loss"] < plain.evaluations[3]["nodes"]["loss"]
    scaled = normalized(PARTS["ann"].train, job.data)
    assert abs(scaled.x.mean()) < 1
    assert 0.5 < scaled.x.std() < 1.5


async def test_who_asks_for_nothing_that_is_there_is_told(world):
    await joined(world)
    with pytest.raises(NotFound, match="no connected node holds 'digits'"):
        await world.core.describe("digits")
    async with caller(app_of(world)) as http:
        answer = await http.get("/api/v1/datasets/clinic/preflight?least=15")
        assert msgspec.json.decode(answer.content, type=PreflightView).nodes[0].least == 15
        assert (await http.get("/api/v1/datasets/none/preflight")).status_code == 404
        assert (await http.get("/api/v1/datasets/clinic/preflight?least=0")).status_code == 422


async def test_nodes_whose_columns_differ_are_named(world):
    await joined(world)
    other = msgspec.structs.replace(SCHEMA, features=("age", "height"))
    data = clinic(9)
    await world.join("dan", 0, data=Data("clinic", other, data.train, data.held_out))
    await connected(world, 4)
    with pytest.raises(BadSpec, match="dan: it lacks the column 'weight' and has the column 'height'"):
        await world.core.submit(spec())


class Mute:
    """A fabric whose nodes answer what the test says."""

    def __init__(self, answer: Described | None) -> None:
        self.answer = answer
        self.preflight = Preflight(self)  # type: ignore[arg-type]

    def send(self, node: str, message: Describe) -> bool:
        if self.answer is None:
            self.preflight.left(node)
        else:
            self.preflight.heard(node, msgspec.structs.replace(self.answer, id=message.id))
        return True


AGE = Column(name="age", count=20, mean=50.0, squares=9.0)
WEIGHT = Column(name="weight", count=20, mean=50.0, squares=9.0)


@pytest.mark.parametrize(
    ("statistics", "reason"),
    [
        (None, "left before it had answered"),
        (Statistics(rows=20, columns=(AGE,), classes=(10, 10)), "told of other columns than the 2"),
        (Statistics(rows=20, columns=(AGE, WEIGHT), classes=(20,)), "told of 1 classes, its data have 2"),
        (
            Statistics(rows=20, columns=(AGE, Column(name="weight", count=20, squares=-1.0)), classes=(10, 10)),
            "told impossible statistics of column 'weight'",
        ),
    ],
)
async def test_a_node_that_answers_nonsense_or_leaves_is_silent(statistics, reason):
    answer = None if statistics is None else Described(id="", least=10, statistics=statistics)
    told = await Mute(answer).preflight.ask("clinic", SCHEMA, {"ann": 20}, 10)
    assert told.parts == {}
    assert told.silent["ann"].startswith(reason)


def test_a_simulation_refuses_rows_that_are_no_numbers_naming_node_and_column():
    bad = clinic(1)
    bad.train.x[3, 1] = np.nan
    with pytest.raises(Exception, match="bob: training row 3, column 'weight' is nan"):
        Federation.of({"ann": clinic(0), "bob": bad})


async def test_every_node_measures_the_model_and_the_worst_is_named(world):
    await joined(world)
    job = await world.finished(await world.core.submit(spec(normalize=True)))
    async with caller(app_of(world)) as http:
        url = f"/api/v1/jobs/{job.id}/evaluation"
        newest = msgspec.json.decode((await http.get(url)).content, type=EvaluationView)
        first = msgspec.json.decode((await http.get(f"{url}?round=0")).content, type=EvaluationView)
    assert (newest.round, first.round) == (3, 0)
    assert {node: each["examples"] for node, each in newest.nodes.items()} == {"ann": 12, "bob": 18, "cyd": 15}
    accuracies = {node: each["accuracy"] for node, each in newest.nodes.items()}
    assert newest.pooled["accuracy"] == pytest.approx(
        sum(accuracies[node] * each["examples"] for node, each in newest.nodes.items()) / 45
    )
    even = newest.fairness["accuracy"]
    assert (even.worst, even.worst_node) == min((value, node) for node, value in accuracies.items())
    assert even.variance == pytest.approx(np.var(list(accuracies.values())))
    assert newest.fairness["loss"].worst == max(each["loss"] for each in newest.nodes.values())
    assert newest.pooled["loss"] < first.pooled["loss"]

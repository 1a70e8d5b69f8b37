"""Statistics over a real coordinator and real nodes: what owners allow, the same in simulation, and scaling by them."""

import asyncio

import msgspec
import numpy as np
import pytest

from support.served import app_of, caller
from support.worlds import World
from tutti import simulate
from tutti.adapters.fabrics.local import LocalFabric
from tutti.core.errors import NotFound
from tutti.core.statistics import Column, Range, Statistics
from tutti.domain.policy import Policy, parse_window
from tutti.domain.spec import BadSpec, DataSchema, JobSpec, load_spec
from tutti.ports import Data, Examples
from tutti.ports.training import normalized
from tutti.services.preflight import Preflight, statistics_of, with_normalization
from tutti.services.views import EvaluationView, PreflightView, preflight_view
from tutti.sim import Federation
from tutti.wire.messages import Describe, Described, decode_from_coordinator

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
    assert view.columns[0].mean == pytest.approx(whole[:, 0].mean())
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


async def test_the_owner_alone_says_of_how_many_rows_a_figure_is(world):
    await joined(world, {"cyd": Policy(min_rows=25)})
    told = await world.core.describe("clinic")
    assert told.least == {"ann": 10, "bob": 10, "cyd": 25}
    assert all(each.rows >= 25 for column in told.parts["cyd"].columns for each in column.ranges)


async def test_asking_again_tells_nothing_new(world):
    """Not even where the rows change under a node that runs, or a coordinator wishes for other groups."""
    data = clinic(0)
    await world.join("ann", 0, data=data)
    await connected(world, 1)
    first = await world.core.describe("clinic")
    data.train.x[0] = 99.0
    assert await world.core.describe("clinic") == first
    fabric = Wishful(world.fabric)
    world.core.preflight._fabric = fabric
    assert await world.core.describe("clinic") == first
    assert fabric.sent == 1


class Wishful:
    """A fabric of a coordinator that asks for larger groups than the owner's, as an older version did."""

    def __init__(self, fabric: LocalFabric) -> None:
        self.fabric, self.sent = fabric, 0

    def send(self, node: str, message: Describe) -> bool:
        self.sent += 1
        wish = {**msgspec.to_builtins(message), "least": 40}
        return self.fabric.send(node, decode_from_coordinator(msgspec.json.encode(wish)))


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
        answer = await http.post("/api/v1/datasets/clinic/preflight")
        assert msgspec.json.decode(answer.content, type=PreflightView).nodes[0].least == 10
        assert (await http.post("/api/v1/datasets/none/preflight")).status_code == 404
        assert (await http.get("/api/v1/datasets/clinic/preflight")).status_code == 405


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
FLOAT32 = float(np.finfo(np.float32).max)
MANY = 10**400


def weighing(**fields: object) -> Statistics:
    """A good answer but for what it says of the column `weight`."""
    return Statistics(rows=20, columns=(AGE, msgspec.structs.replace(WEIGHT, **fields)), classes=(10, 10))


@pytest.mark.parametrize(
    ("statistics", "reason"),
    [
        (None, "left before it had answered"),
        (Statistics(rows=20, columns=(AGE,), classes=(10, 10)), "told of other columns than the 2"),
        (Statistics(rows=20, columns=(AGE, WEIGHT), classes=(20,)), "told of 1 classes, its data have 2"),
        (Statistics(rows=20, columns=(AGE, WEIGHT), classes=(10, 9)), "told of classes that are not those of 20 rows"),
        (Statistics(rows=20, columns=(AGE, WEIGHT), classes=(None, 21)), "told of classes that are not those of 20"),
        (Statistics(rows=20, columns=(AGE, WEIGHT), classes=(-MANY, MANY)), "told of classes that are not those of 20"),
        (Statistics(rows=21, columns=(AGE, WEIGHT), classes=(10, 11)), "told of 21 rows, it registered 20"),
        (Statistics(rows=MANY, columns=(AGE, WEIGHT), classes=(10, 10)), "told of impossibly many rows, it registered"),
        *(
            (weighing(**fields), "told impossible statistics of column 'weight'")
            for fields in (
                {"squares": -1.0},
                {"squares": 1e300},
                {"mean": -1e308},
                {"mean": float("nan")},
                {"count": 21},
                {"count": 0},
                {"count": MANY},
                {"missing": -1},
                {"missing": MANY},
                {"ranges": (Range(0.0, 1e308, 20),)},
                {"ranges": (Range(0.0, float("inf"), 20),)},
                {"ranges": (Range(2.0, 1.0, 20),)},
                {"ranges": (Range(0.0, 1.0, -1), Range(1.0, 2.0, 20))},
                {"ranges": (Range(0.0, 1.0, 20), Range(1.0, 2.0, 20))},
                {"ranges": (Range(0.0, 1.0, 1),) * 1000},
            )
        ),
    ],
)
async def test_a_node_that_answers_nonsense_or_leaves_is_silent(statistics, reason):
    answer = None if statistics is None else Described(id="", least=10, statistics=statistics)
    told = await Mute(answer).preflight.ask("clinic", SCHEMA, {"ann": 20})
    assert told.parts == {}
    assert told.silent["ann"].startswith(reason)
    preflight_view(told)
    with pytest.raises(BadSpec, match="normalize needs the mean and deviation of every node's data: ann: "):
        with_normalization(SCHEMA, told)


@pytest.mark.parametrize("least", [0, 21, MANY])
async def test_groups_of_no_or_too_many_rows_cannot_be(least):
    answer = Described(id="", least=least, statistics=weighing())
    told = await Mute(answer).preflight.ask("clinic", SCHEMA, {"ann": 20})
    assert told.silent["ann"].startswith("told of groups of ")


@pytest.mark.parametrize("missing", [0, 3, 500])
@pytest.mark.parametrize("rows", [10, 57, 4000])
async def test_the_largest_rows_there_can_be_are_believed_and_pooled(rows, missing):
    x = np.full((rows, 2), np.float32(FLOAT32))
    x[::2, 0] *= -1
    held = Examples(x, np.arange(rows, dtype=np.int64) % 2)
    answer = Described(id="", least=10, statistics=statistics_of(held, {"age": missing}, SCHEMA, 10))
    told = await Mute(answer).preflight.ask("clinic", SCHEMA, {"ann": rows, "bob": rows})
    assert told.silent == {}
    schema = with_normalization(SCHEMA, told)
    assert np.isfinite([*schema.mean, *schema.deviation]).all()
    assert schema.deviation[0] == pytest.approx(FLOAT32, rel=0.01)


async def test_the_pixels_of_images_are_believed():
    schema = DataSchema("classification", (1, 5, 5), 2)
    x = np.random.default_rng(3).random((119, 1, 5, 5), np.float32)
    told = statistics_of(Examples(x, np.arange(119) % 2), {}, schema, 1)
    answer = Described(id="", least=1, statistics=told)
    assert (await Mute(answer).preflight.ask("digits", schema, {"ann": 119})).parts == {"ann": told}


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

"""A simulated job against a deployment: the real coordinator and node runtimes, the same parts, the same model."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.worlds import World, toy_data, toy_spec
from tutti import simulate
from tutti.adapters.datasets import Carving
from tutti.core.errors import UserError
from tutti.core.params import Role
from tutti.core.registry import Choice
from tutti.domain.jobs import Job
from tutti.domain.spec import BadSpec, JobSpec, load_spec
from tutti.ports import Data, Examples
from tutti.ports.training import Task, datasets, models
from tutti.services.telling import node_seed
from tutti.sim import Federation, History
from tutti.sim.engines.sequential import Sequential
from tutti.sim.history import RoundRecord
from tutti.wire import tensors

NODES = 4


def spec_of(model: str = "mlp:hidden=16", **fields: object) -> JobSpec:
    cohort = {"min_nodes": NODES, **dict(fields.pop("cohort", {}))}  # type: ignore[call-overload]
    training = {"batch_size": 16, "lr": 0.05, **dict(fields.pop("training", {}))}  # type: ignore[call-overload]
    raw = {"dataset": "digits", "model": model, "rounds": 3, "seed": 5, "cohort": cohort, "training": training}
    return load_spec({**raw, **fields})


def digits(nodes: int = NODES, held_out: float = 0.2, partition: str = "dirichlet:0.5") -> Federation:
    return Federation.divide("digits", nodes, partition, seed=5, held_out=held_out)


def part(number: int) -> Data:
    """What a deployed node loads by the options of its data source."""
    options = {"part": f"{number}/{NODES}", "partition": "dirichlet:0.5", "seed": 5}
    return datasets.build(Choice("digits", options)).load()


async def deployed(folder: Path, spec: JobSpec, parts: dict[str, Data]) -> Job:
    world = World(folder)
    await world.up()
    try:
        for name, data in parts.items():
            await world.join(name, 0, data=data)
        return await world.finished(await world.core.submit(spec))
    finally:
        await world.close()


JOBS = {
    "mlp": spec_of(),
    "linear": spec_of("linear", training={"optimizer": "adam", "lr": 0.01}),
    "sgd-linear": spec_of("sgd-linear"),
    "fedadam": spec_of(strategy="fedadam:server_lr=0.02", training={"momentum": 0.9, "lr_schedule": "cosine"}),
    "fedprox": spec_of(strategy="fedprox:mu=0.1", evaluation={"data": "digits:split=test"}),
    "cohort": spec_of(cohort={"size": 2}, rounds=5, training={"epochs": 2, "max_steps": 9}),
    "median": spec_of(reducer="median"),
    "fltrust": spec_of(reducer="fltrust", trusted="digits:split=test"),
    "scaffold": spec_of(strategy="scaffold", cohort={"size": 2}, rounds=6),
    "scaffold by scikit-learn": spec_of("sgd-linear", strategy="scaffold", training={"lr": 0.01}),
    "feddyn": spec_of(strategy="feddyn:alpha=0.1", training={"momentum": 0.5}),
    "fednova": spec_of(strategy="fednova", training={"momentum": 0.9, "lr": 0.02}),
    "qfedavg": spec_of(strategy="qfedavg:q=0.5"),
    "fedper": spec_of(strategy="fedper", cohort={"size": 3}),
    "ditto": spec_of(strategy="ditto:lam=0.5", training={"lr_schedule": "cosine"}),
    "equal": spec_of("sgd-linear", strategy="fedadam", cohort={"weighting": "equal"}),
    "early": spec_of(rounds=20, training={"lr": 1.0}, early_stopping={"metric": "accuracy", "patience": 2}),
}


@pytest.mark.parametrize("spec", JOBS.values(), ids=JOBS.keys())
async def test_a_simulation_makes_the_model_of_a_deployment(tmp_path, spec):
    parts = {f"node-{number + 1}": part(number) for number in range(NODES)}
    job = await deployed(tmp_path, spec, parts)
    history = simulate(spec, digits(), engine="sequential")
    assert history.model == job.model
    assert tensors.digest(tensors.encode(history.params)) == job.model
    assert [record.model for record in history.rounds[1:]] == [past.model for past in job.past if past.model][
        : job.rounds_done
    ]
    assert (history.header.status, history.header.outcome) == (job.status, job.outcome)
    for record in history.rounds:
        measured = job.evaluations.get(record.round, {})
        assert record.evaluated.keys() == measured.keys()
        for by, metrics in measured.items():
            assert record.evaluated[by] == pytest.approx(metrics)


async def test_a_simulation_of_any_trainer_makes_the_same_model_too(tmp_path):
    parts = {name: toy_data(number) for number, name in enumerate(("ada", "bob", "cyd"))}
    job = await deployed(tmp_path, toy_spec(), parts)
    assert simulate(toy_spec(), Federation.of(parts)).model == job.model


@pytest.mark.parametrize(
    ("engine", "strategy"),
    [
        ("vectorised", "fedavg"),
        ("vectorised", "scaffold"),
        ("vectorised", "feddyn:alpha=0.1"),
        ("vectorised", "fednova"),
        ("fused", "fedavg"),
        ("fused", "fedprox:mu=0.1"),
        ("fused", "fednova"),
    ],
)
def test_fast_engines_come_to_nearly_the_same_model(engine, strategy):
    spec = spec_of(strategy=strategy)
    expected = simulate(spec, digits(), engine="sequential")
    found = simulate(spec, digits(), engine=engine)
    assert (found.header.engine, expected.header.engine) == (engine, "sequential")
    np.testing.assert_allclose(found.params.buffer, expected.params.buffer, rtol=1e-4, atol=1e-5)
    assert found.rounds[-1].evaluated["nodes"] == pytest.approx(expected.rounds[-1].evaluated["nodes"], rel=1e-3)


def test_every_part_is_the_one_that_a_node_would_load():
    federation = digits()
    for number in range(NODES):
        loaded, node = part(number), f"node-{number + 1}"
        for ours, theirs in (
            (federation.examples(node), loaded.train),
            (federation.measured_on(node), loaded.held_out),
        ):
            np.testing.assert_array_equal(ours.x, theirs.x)
            np.testing.assert_array_equal(ours.y, theirs.y)


def test_parts_are_standardised_one_by_one():
    federation = Federation.divide("diabetes:standardize=true", 3, held_out=0.25)
    for number in range(3):
        options = {"part": f"{number}/3", "held_out": 0.25, "standardize": True}
        loaded = datasets.build(Choice("diabetes", options)).load()
        np.testing.assert_array_equal(federation.examples(f"node-{number + 1}").x, loaded.train.x)
        np.testing.assert_array_equal(federation.measured_on(f"node-{number + 1}").x, loaded.held_out.x)


class Interrupted(Sequential):
    """Stops, as by ctrl-C, in the middle of a round."""

    def __init__(self, federation: Federation, spec: JobSpec, after: int) -> None:
        from tutti.ports.training import models

        super().__init__(models.build(spec.model, data=federation.schema), federation)
        self._left = after

    def train(self, params, assignments):
        for result in super().train(params, assignments):
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            yield result


@pytest.mark.parametrize("after", [0, 3, 4, 9])
@pytest.mark.parametrize("name", ["mlp", "fedadam", "early", "scaffold", "ditto"])
def test_an_interrupted_run_goes_on_to_the_same_model(tmp_path, name, after):
    spec, federation, file = JOBS[name], digits(), tmp_path / "run.ckpt"
    trainings = 2 * after if name == "ditto" else after
    expected = simulate(spec, federation, engine="sequential")
    with pytest.raises(KeyboardInterrupt):
        simulate(spec, federation, engine=Interrupted(federation, spec, trainings), checkpoint=file)
    seen: list[int] = []
    again = simulate(
        spec, federation, engine="sequential", checkpoint=file, watch=lambda record: seen.append(record.round)
    )
    assert again.model == expected.model
    assert [record.model for record in again.rounds] == [record.model for record in expected.rounds]
    assert len(again.rounds) == len(expected.rounds)
    assert seen[-1] == again.rounds[-1].round
    assert len(seen) <= len(expected.rounds) - after // NODES
    assert simulate(spec, federation, checkpoint=file).model == expected.model  # nothing is left to do
    assert os.listdir(tmp_path) == ["run.ckpt"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    file = tmp_path / "run.ckpt"
    simulate(spec_of(), digits(), checkpoint=file)
    with pytest.raises(UserError, match=r"another simulation \(rounds differs\)"):
        simulate(spec_of(rounds=9), digits(), checkpoint=file)
    with pytest.raises(UserError, match=r"the data or their partition differs"):
        simulate(spec_of(), digits(partition="iid"), checkpoint=file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="no checkpoint of a simulation, or damaged"):
        simulate(spec_of(), digits(), checkpoint=file)


def poisoned(node: str, federation: Federation, value: float = np.nan) -> Federation:
    federation.rows.x[federation.train[node]] = value
    return federation


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "training diverged"), (1e6, "may change by at most 256")])
@pytest.mark.parametrize("engine", ["sequential", "vectorised", "fused"])
def test_a_node_that_diverges_costs_only_its_share(engine, value, reason):
    spec = spec_of(cohort={"min_nodes": NODES, "quorum": 3}, rounds=2, evaluation={"nodes": False})
    history = simulate(spec, poisoned("node-2", digits(), value), engine=engine)
    assert history.header.status == "completed"
    for record in history.rounds[1:]:
        assert record.counted == 3
        assert list(record.dropped) == ["node-2"]
        assert reason in record.dropped["node-2"]
    assert np.isfinite(history.params.buffer).all()


def test_a_round_that_fails_too_often_fails_the_job():
    spec = spec_of(cohort={"min_nodes": NODES, "retries": 1}, evaluation={"nodes": False})
    history = simulate(spec, poisoned("node-2", digits()))
    assert history.header.status == "failed"
    assert history.header.outcome.startswith("round 1 failed 2 times, last: 3 of 4 updates counted, quorum is 4")


def test_more_are_asked_than_wanted_and_who_is_first_depends_on_the_seed_alone():
    spec = spec_of(cohort={"min_nodes": 8, "size": 4, "over_select": 0.5}, rounds=4)
    one, two = (simulate(spec, digits(8), engine=engine) for engine in ("sequential", "sequential"))
    assert one.model == two.model
    assert all((len(record.cohort), record.counted) == (6, 4) for record in one.rounds[1:])
    assert all(set(record.dropped.values()) == {"enough others came first"} for record in one.rounds[1:])


def test_in_overlapping_rounds_a_node_works_on_one_task_at_a_time():
    spec = spec_of("linear", strategy="fedbuff:buffer=2", rounds=8, cohort={"min_nodes": 5, "size": 4})
    history = simulate(spec, digits(5))
    assert [record.round for record in history.rounds] == list(range(9))
    for record in history.rounds[1:]:
        assert len(set(record.cohort)) == len(record.cohort) == 4
        assert (record.counted, record.dropped) == (2, {})


def test_a_job_that_could_never_start_is_refused():
    with pytest.raises(BadSpec, match="needs 4 nodes, this federation has 3"):
        simulate(spec_of(), digits(3))
    with pytest.raises(BadSpec, match="trains on 'digits'"):
        simulate(spec_of(), Federation.of({"ada": toy_data(0)}))
    with pytest.raises(UserError, match="leave out split and part"):
        Federation.divide("digits:part=0/4", 4)
    with pytest.raises(UserError, match="not to the data source"):
        Federation.divide("digits:seed=3", 4)
    with pytest.raises(UserError, match="came digits, toy"):
        Federation.of({"ada": toy_data(0), "bob": part(0)})
    assert Carving().part == "0/1"


def test_memory_does_not_grow_with_nodes_that_are_not_drawn():
    rows = Examples(np.zeros((1, 3), np.float32), np.zeros((1, 1), np.float32))
    data, none = toy_data(0), np.zeros(0, np.int64)
    train = {f"node-{number}": np.zeros(1, np.int64) for number in range(20_000)}
    many = Federation("toy", data.schema, rows, train, dict.fromkeys(train, none))
    spec = toy_spec(nodes=10, rounds=3, cohort={"size": 5}, evaluation={"nodes": False})
    history = simulate(spec, many)
    assert [len(record.cohort) for record in history.rounds] == [0, 5, 5, 5]
    assert all(not record.dropped for record in history.rounds)


@pytest.mark.parametrize("evaluation", [{}, {"every": 3}, {"data": "digits:split=test"}, {"nodes": False}])
def test_whoever_watches_sees_every_round_with_all_that_was_measured(evaluation):
    seen: list[RoundRecord] = []
    spec = spec_of("linear", rounds=10, cohort={"size": 2}, evaluation=evaluation)
    history = simulate(spec, digits(), engine="sequential", watch=seen.append)
    if evaluation.get("data"):  # what nodes measure besides comes a round later
        assert [record.evaluated["coordinator"] for record in seen] == [
            record.evaluated["coordinator"] for record in history.rounds
        ]
    else:
        assert seen == list(history.rounds)
    assert any(record.evaluated for record in seen) == (evaluation != {"nodes": False})


def test_a_history_can_be_written_and_read(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    history: History = simulate(spec_of(evaluation={"data": "digits:split=test"}), digits(), engine="sequential")
    history.write(tmp_path / "history.json")
    history.write(tmp_path / "history.parquet")
    plain = json.loads((tmp_path / "history.json").read_text())
    assert plain["header"]["model"] == history.model
    assert [row["model"] for row in plain["rounds"]] == [record.model for record in history.rounds]
    table = parquet.read_table(tmp_path / "history.parquet")
    assert table.column("round").to_pylist() == [0, 1, 2, 3]
    assert table.column("coordinator_accuracy").to_pylist() == [
        record.evaluated["coordinator"]["accuracy"] for record in history.rounds
    ]
    assert json.loads(table.schema.metadata[b"tutti"])["spec"]["dataset"] == "digits"
    with pytest.raises(UserError, match=r"ends in .json or .parquet"):
        history.write(tmp_path / "history.csv")


def test_a_long_simulation_remembers_every_round():
    rounds = simulate(spec_of("linear", rounds=25, cohort={"size": 2}), digits()).rounds
    assert [record.round for record in rounds] == list(range(26))
    assert all(len(record.cohort) == record.counted == 2 for record in rounds[1:])


@pytest.mark.parametrize("strategy", ["fedbn", "fedavgm", "fedadam:server_lr=0.01", "fednova", "scaffold", "diloco"])
def test_batch_norm_is_averaged_or_stays_at_home_and_is_never_optimised(strategy):
    """One round of a network with BatchNorm: its statistics are the mean of the nodes', its counter the largest."""
    spec = spec_of("resnet:depth=8,width=4", strategy=strategy, rounds=1, training={"max_steps": 3})
    federation = Federation.divide("digits:image=true", NODES, seed=5, held_out=0.9)
    history = simulate(spec, federation, engine="sequential")
    trainer = models.build(spec.model, data=federation.schema)
    start, found = trainer.init(spec.seed), history.params
    task = Task(spec.training, 0, 16, 0.05)
    nodes = [
        (len(federation.examples(node)), trainer.train(start, federation.examples(node), seeded, lambda *_: None))
        for node in federation.nodes
        for seeded in [replace(task, seed=node_seed(spec.seed, 1, node))]
    ]
    total = sum(weight for weight, _ in nodes)
    for entry, values in found.items():
        if entry.role is Role.WEIGHT:
            continue
        if strategy == "fedbn":
            expected = start[entry.name]
        elif entry.role is Role.BUFFER:
            expected = sum(weight * work.params[entry.name].astype(np.float64) for weight, work in nodes) / total
        else:
            expected = max(work.params[entry.name] for _, work in nodes)
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6, err_msg=entry.name)

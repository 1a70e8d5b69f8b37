"""Engines that hand nodes to the workers of a cluster: the same bits as one node after another, also when one dies."""

import os
import signal

import numpy as np
import pytest

from tutti.core.errors import UserError
from tutti.core.local import Correction
from tutti.core.registry import Choice
from tutti.domain.spec import JobSpec, load_spec
from tutti.ports.training import Task, models
from tutti.sim import Federation, History, simulate
from tutti.sim.engines import Assignment, Engine, engines
from tutti.sim.engines.sequential import Sequential

pytestmark = [pytest.mark.xdist_group("clusters"), pytest.mark.timeout(300)]

WORKERS = 2


def spec_of(model: str = "mlp:hidden=16", **fields: object) -> JobSpec:
    training = {"batch_size": 16, "lr": 0.05}
    raw = {"dataset": "digits", "model": model, "rounds": 3, "seed": 5, "cohort": {"min_nodes": 6}}
    return load_spec({**raw, "training": training, **fields})


@pytest.fixture(scope="module")
def federation() -> Federation:
    return Federation.divide("digits", 6, "dirichlet:0.5", seed=5)


@pytest.fixture(scope="module")
def expected(federation) -> History:
    return simulate(spec_of(), federation, engine="sequential")


def engine(text: str, federation: Federation, spec: JobSpec | None = None) -> Engine:
    spec = spec or spec_of()
    trainer = models.build(spec.model, data=federation.schema)
    return engines.build(Choice.parse(text), spec=spec, trainer=trainer, federation=federation)


class Murder:
    """Kills the process that `victim` names once, after the first result."""

    def __init__(self, engine, victim) -> None:
        self.name, self._engine, self._victim = engine.name, engine, victim
        self.killed: int | None = None
        self.close = engine.close

    def train(self, params, assignments):
        for result in self._engine.train(params, assignments):
            if self.killed is None:
                self.killed = self._victim(self._engine)
                os.kill(self.killed, signal.SIGKILL)
            yield result


@pytest.fixture
def no_dask():
    pytest.importorskip("distributed", reason="the dask engine needs pip install 'tutti[dask]'")


@pytest.fixture
def no_ray():
    pytest.importorskip("ray", reason="the ray engine needs pip install 'tutti[ray]'")


def dask_worker(engine) -> int:
    return next(iter(engine._client.run(os.getpid).values()))


@pytest.mark.usefixtures("no_dask")
def test_dask_gives_the_same_model(federation, expected):
    found = simulate(spec_of(), federation, engine=f"dask:workers={WORKERS}")
    assert found.model == expected.model
    assert found.header.engine == "dask"


@pytest.mark.usefixtures("no_dask")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_dask_worker_that_is_killed_costs_nothing_but_time(federation, expected, workers):
    murder = Murder(engine(f"dask:workers={workers}", federation), dask_worker)
    found = simulate(spec_of(), federation, engine=murder)
    assert murder.killed
    assert found.model == expected.model
    assert not any(record.dropped for record in found.rounds)


@pytest.mark.usefixtures("no_dask")
def test_a_dask_cluster_that_is_there_already_is_used_and_left_as_it_was(federation, expected):
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster:
        for _ in range(2):
            address = cluster.scheduler_address
            assert simulate(spec_of(), federation, engine=f"dask:address={address}").model == expected.model
        with Client(cluster) as client:
            assert len(client.scheduler_info()["workers"]) == WORKERS


@pytest.mark.usefixtures("no_dask", "no_ray")
@pytest.mark.parametrize("name", ["dask", "ray"])
def test_workers_pull_towards_the_model_and_count_their_steps(federation, name):
    spec = spec_of()
    trainer = models.build(spec.model, data=federation.schema)
    task = Task(spec.training, 1, 16, 0.05, Correction(pull=0.5))
    work = [Assignment(node, task) for node in federation.nodes]
    params, cluster = trainer.init(0), engine(f"{name}:workers={WORKERS}", federation)
    try:
        found = {result.node: (result.steps, result.delta.buffer.copy()) for result in cluster.train(params, work)}
    finally:
        cluster.close()
    for reference in Sequential(trainer, federation).train(params, work):
        steps, delta = found.pop(reference.node)
        assert steps == reference.steps
        np.testing.assert_array_equal(delta, reference.delta.buffer)
    assert not found


@pytest.mark.usefixtures("no_dask")
def test_an_address_without_a_cluster_is_said_in_words(federation, monkeypatch):
    monkeypatch.setattr("tutti.sim.engines.dask.JOIN_SECONDS", 0.5)
    with pytest.raises(UserError, match=r"no cluster with a worker answers at 'tcp://127.0.0.1:9'"):
        engine("dask:address=tcp://127.0.0.1:9", federation)


@pytest.mark.usefixtures("no_ray")
def test_ray_gives_the_same_model_also_when_a_worker_is_killed(federation, expected):
    def victim(engine) -> int:
        import ray

        return ray.get(engine._actors[0].__ray_call__.remote(lambda _: os.getpid()))

    murder = Murder(engine(f"ray:workers={WORKERS}", federation), victim)
    found = simulate(spec_of(), federation, engine=murder)
    assert murder.killed
    assert found.model == expected.model
    assert not any(record.dropped for record in found.rounds)


@pytest.mark.usefixtures("no_dask")
def test_what_goes_wrong_with_a_node_is_said_and_costs_only_its_share(expected):
    federation = Federation.divide("digits", 6, "dirichlet:0.5", seed=5)
    federation.rows.x[federation.train["node-2"]] = np.nan
    spec = spec_of(cohort={"min_nodes": 6, "quorum": 5}, rounds=1, evaluation={"nodes": False})
    found = simulate(spec, federation, engine=f"dask:workers={WORKERS}")
    assert found.rounds[-1].counted == 5
    assert "training diverged" in found.rounds[-1].dropped["node-2"]


@pytest.mark.parametrize(("name", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_an_engine_that_is_not_installed_says_how_to_install_it(federation, monkeypatch, name, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=rf"not installed: pip install '\.\[{name}\]'"):
        simulate(spec_of(), federation, engine=name)

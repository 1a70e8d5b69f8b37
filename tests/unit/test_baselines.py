"""What a federated model is put beside: nodes alone, and all rows in one place."""

import pytest

from tutti.core.registry import Choice
from tutti.domain.spec import JobSpec, load_spec
from tutti.ports.training import Task, datasets, models
from tutti.services.driver import node_seed
from tutti.sim import Federation, simulate
from tutti.sim.baselines import MOST_ALONE, baselines, final


def job(nodes: int = 4, **fields) -> JobSpec:
    training = {"epochs": 2, "batch_size": 16, "lr": 0.05, "momentum": 0.9, **fields.pop("training", {})}
    cohort = {"min_nodes": nodes, **fields.pop("cohort", {})}
    plain = {"dataset": "digits", "model": "mlp:hidden=16", "rounds": 4, "training": training, "cohort": cohort}
    return load_spec({"evaluation": {"nodes": False, "data": "digits:split=test"}, **plain, **fields})


def divided(nodes: int = 4, partition: str = "dirichlet:0.3", held_out: float = 0.0) -> Federation:
    return Federation.divide("digits", nodes, partition, held_out=held_out)


def test_federated_averaging_beats_every_node_alone_and_not_all_rows_in_one_place() -> None:
    spec, federation = job(model="mlp", rounds=20), divided()
    found = baselines(spec, federation, 20)
    federated = final(simulate(spec, federation).result)["accuracy"]
    best = max(each.metrics["accuracy"] for each in found.alone.values())
    assert federated > 0.92
    assert best + 0.03 < federated <= found.pooled.metrics["accuracy"]
    assert list(found.alone) == federation.nodes
    assert found.pooled.examples == sum(each.examples for each in found.alone.values()) == 1438


def test_a_node_alone_does_the_rounds_it_would_be_drawn_for_from_the_same_start() -> None:
    """By hand: with two of four nodes in each of four rounds, a node works twice."""
    spec, federation = job(cohort={"size": 2}), divided()
    trainer = models.build(spec.model, data=federation.schema)
    params, training = trainer.init(spec.seed), spec.training
    for round in (1, 2):
        task = Task(training, node_seed(spec.seed, round, "node-3"), 16, training.lr)
        params = trainer.train(params, federation.examples("node-3"), task, lambda *_: None).params
    expected = trainer.evaluate(params, datasets.build(Choice.parse("digits:split=test")).load().held_out)
    found = baselines(spec, federation, 4, engine="sequential").alone["node-3"]
    assert found.metrics["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_what_is_for_many_nodes_does_not_count_for_one() -> None:
    plain = baselines(job(nodes=7), divided(7, "iid"), 2)
    fields = {"strategy": "fedadam", "reducer": "krum:f=1", "early_stopping": {"target": 0.1}}
    assert baselines(job(nodes=7, **fields), divided(7, "iid"), 2) == plain


def test_without_common_rows_all_are_measured_on_what_everyone_holds_out() -> None:
    federation = divided(held_out=0.2)
    found = baselines(job(evaluation={"nodes": True}), federation, 2)
    held_out = sum(map(len, federation.held_out.values()))
    assert federation.alone("node-1").measured_on("node-1").y.size == held_out
    assert all(0 < each.metrics["accuracy"] < 1 for each in [*found.alone.values(), found.pooled])


def test_of_many_nodes_some_are_drawn_and_the_pool_takes_the_steps_of_all() -> None:
    federation, seen = divided(30, "iid"), []
    found = baselines(job(30, training={"max_steps": 1}), federation, 1, told=lambda *done: seen.append(done))
    assert (len(found.alone), found.nodes) == (MOST_ALONE, 30)
    assert seen == [(k, MOST_ALONE + 1) for k in range(MOST_ALONE + 2)]
    assert found.pooled.metrics["loss"] < min(each.metrics["loss"] for each in found.alone.values())


def test_scales_are_those_of_all_nodes_and_divergence_is_no_figure() -> None:
    parts = {f"node-{k}": datasets.build(Choice.parse(f"diabetes:part={k}/2")).load() for k in range(2)}
    federation, plain = Federation.of(parts), {"dataset": "diabetes", "model": "linear"}
    assert baselines(load_spec({**plain, "normalize": True}), federation, 1).pooled.metrics["loss"] > 0
    wild = load_spec({**plain, "training": {"lr": 1e3, "epochs": 50}})
    assert baselines(wild, federation, 1).pooled.metrics == {}

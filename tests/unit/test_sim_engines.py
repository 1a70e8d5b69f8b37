"""Every engine against the sequential one: the same work, to within rounding or to the bit."""

import os
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from tutti.adapters.trainers.torch import computes_half
from tutti.core.errors import UserError
from tutti.core.local import Correction
from tutti.core.params import Params
from tutti.core.registry import Choice
from tutti.domain.spec import JobSpec, load_spec
from tutti.ports.training import Task, Trainer, models
from tutti.sim import Federation
from tutti.sim.engines import Assignment, Engine, Failed, Trained
from tutti.sim.engines._batched import Vectorised
from tutti.sim.engines.choose import choose
from tutti.sim.engines.fused import Fused
from tutti.sim.engines.port import CannotCompute, longest_first
from tutti.sim.engines.processes import Processes, gpu_for
from tutti.sim.engines.sequential import Sequential

_fused = pytest.importorskip("tutti.sim.engines._fused", reason="built without a C compiler")

CLOSE = 1e-5
"""Largest difference of a parameter after some dozens of steps, beside a relative 1e-5.

It holds as long as no sum before a relu lies within rounding of zero: then one of two networks takes another step.
"""

DENSE = [
    ("digits", "mlp", {}),
    ("digits", "linear", {"epochs": 2}),
    ("digits", "mlp:hidden=33x17x5", {}),
    ("digits", "2nn", {"momentum": 0.9, "lr": 0.05}),
    ("digits", "mlp", {"momentum": 0.5, "weight_decay": 0.01}),
    ("digits", "mlp", {"weight_decay": 0.01, "max_steps": 7}),
    ("diabetes", "mlp", {"weight_decay": 0.01, "epochs": 2, "lr": 0.02}),
]
TORCH_ONLY = [
    ("digits", "mlp:hidden=20,activation=tanh", {"epochs": 2}),
    ("digits", "mlp:hidden=20,activation=gelu", {}),
    ("digits", "mlp", {"optimizer": "adam", "lr": 0.001}),
    ("digits:image=true", "cnn", {"momentum": 0.9, "lr": 0.01}),
    ("digits:image=true", "cnn", {"max_steps": 2}),
]


class Case:
    """A federation with ragged parts, and one task for each of its nodes."""

    def __init__(self, source: str, model: str, training: dict, *, mu: float = 0.0, batch: int = 10, nodes: int = 4):
        partition = "dirichlet:0.3" if source.startswith("digits") else "iid"
        self.federation = Federation.divide(source, nodes, partition, seed=1, held_out=0.0)
        self.spec: JobSpec = load_spec({"dataset": self.federation.name, "model": model, "training": training})
        self.trainer: Trainer = models.build(self.spec.model, data=self.federation.schema)
        self.params = self.trainer.init(3)
        task = Task(self.spec.training, 0, batch, self.spec.training.lr, Correction(pull=mu))
        nodes_by_name = enumerate(self.federation.nodes)
        self.assignments = [Assignment(node, replace(task, seed=seed)) for seed, node in nodes_by_name]

    def run(self, engine: Engine) -> dict[str, Trained | Failed]:
        """Results by node, each with a copy of its update."""
        found = {}
        try:
            for result in engine.train(self.params, self.assignments):
                if isinstance(result, Trained):
                    copy = Params(result.delta.layout, result.delta.buffer.copy())
                    result = replace(result, delta=copy)
                found[result.node] = result
        finally:
            engine.close()
        return found

    def reference(self) -> dict[str, Trained | Failed]:
        return self.run(Sequential(self.trainer, self.federation))


def assert_equal(found: dict, expected: dict, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for node, result in found.items():
        assert isinstance(result, Trained), result
        reference = expected[node]
        np.testing.assert_allclose(result.delta.buffer, reference.delta.buffer, rtol=tolerance, atol=tolerance)
        assert (result.examples, result.steps) == (reference.examples, reference.steps)
        assert result.metrics == pytest.approx(reference.metrics, rel=max(tolerance, 1e-6) if tolerance else 0)
        assert np.abs(reference.delta.buffer).max() > 100 * tolerance


@pytest.mark.parametrize(("source", "model", "training"), DENSE)
@pytest.mark.parametrize("lanes", _fused.lanes())
def test_the_compiled_loop_equals_torch_on_every_instruction_set(monkeypatch, source, model, training, lanes):
    case = Case(source, model, training, mu=0.1 if training.get("weight_decay") else 0.0)
    train, room = _fused.train, _fused.room
    monkeypatch.setattr(_fused, "train", lambda *arguments: train(*arguments, lanes))
    monkeypatch.setattr(_fused, "room", lambda *arguments: room(*arguments, lanes))
    assert_equal(case.run(Fused(case.spec, case.trainer, case.federation)), case.reference(), CLOSE)


@pytest.mark.parametrize("batch", [1, 3, 16, 33, 500])
def test_the_compiled_loop_takes_batches_of_any_size(batch):
    case = Case("digits", "mlp:hidden=20", {}, batch=batch)
    assert_equal(case.run(Fused(case.spec, case.trainer, case.federation)), case.reference(), CLOSE)


def test_the_compiled_loop_is_the_same_on_any_number_of_threads():
    case = Case("digits", "mlp", {}, nodes=7)
    one = case.run(Fused(case.spec, case.trainer, case.federation, threads=1))
    assert_equal(case.run(Fused(case.spec, case.trainer, case.federation, threads=3)), one, 0.0)


def test_nodes_with_most_rows_are_begun_first():
    case = Case("digits", "mlp:hidden=4", {}, nodes=7)
    rows = [len(case.federation.train[each.node]) for each in longest_first(case.assignments, case.federation)]
    assert rows == sorted(rows, reverse=True)
    assert len(set(rows)) > 3
    found = case.run(Processes(case.spec, case.federation, workers=1))
    assert [len(case.federation.train[node]) for node in found] == rows


@pytest.mark.parametrize(("source", "model", "training"), DENSE + TORCH_ONLY)
def test_a_batched_computation_equals_one_node_after_another(source, model, training):
    case = Case(source, model, training, mu=0.1 if training.get("weight_decay") else 0.0)
    assert_equal(case.run(Vectorised(case.spec, case.trainer, case.federation)), case.reference(), 5 * CLOSE)


@pytest.mark.parametrize("mu", [0.0, 0.1])
@pytest.mark.parametrize(
    ("source", "model", "training"),
    [
        ("digits", "mlp", {}),
        ("digits", "mlp:hidden=20,activation=tanh", {"momentum": 0.9}),
        ("digits:image=true", "cnn", {"max_steps": 2}),
    ],
)
def test_each_node_may_have_an_offset_of_its_own(source, model, training, mu):
    case = Case(source, model, training)
    rng = np.random.default_rng(0)

    def corrected(task):
        offset = rng.standard_normal(case.params.layout.size).astype(np.float32)
        return replace(task, correction=Correction(0.01 * offset, pull=mu))

    case.assignments = [replace(given, task=corrected(given.task)) for given in case.assignments]
    found = case.run(Vectorised(case.spec, case.trainer, case.federation, group=3))
    assert_equal(found, case.reference(), 5 * CLOSE)


def test_the_size_of_a_group_does_not_matter():
    case = Case("digits", "mlp", {"epochs": 2}, nodes=5)
    groups = Vectorised(case.spec, case.trainer, case.federation, group=2)
    assert_equal(case.run(groups), case.reference(), CLOSE)


class Small(Vectorised):
    """A device on which so many nodes and no more have room."""

    def __init__(self, *parts, room: int, error: Exception) -> None:
        super().__init__(*parts)
        self._room, self._error = room, error
        self.groups: list[int] = []

    def _run(self, params, plans):
        if len(plans) > self._room:
            raise self._error
        self.groups.append(len(plans))
        return super()._run(params, plans)


NO_MEMORY = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory: you tried to allocate"),
]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_a_group_that_is_too_large_for_the_memory_is_halved(caplog, error):
    case = Case("digits", "mlp", {}, nodes=7)
    engine = Small(case.spec, case.trainer, case.federation, room=2, error=error)
    assert_equal(case.run(engine), case.reference(), CLOSE)
    assert engine.groups == [1] * 7  # 7, 3, 1
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: 3 nodes are computed at once from here on",
        "out of memory: 1 nodes are computed at once from here on",
    ]


def test_a_node_that_does_not_fit_alone_is_a_failure_with_advice():
    case = Case("digits", "mlp", {}, nodes=2)
    found = case.run(Small(case.spec, case.trainer, case.federation, room=0, error=MemoryError()))
    assert {type(result) for result in found.values()} == {Failed}
    assert all("smaller batch_size or model" in result.reason for result in found.values())


def test_an_unknown_device_is_refused():
    case = Case("digits", "mlp", {})
    with pytest.raises(UserError, match="cannot compute on device 'warp'"):
        Vectorised(case.spec, case.trainer, case.federation, device="warp")


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@on_a_gpu
@pytest.mark.parametrize(("source", "model", "training"), DENSE + TORCH_ONLY)
def test_a_gpu_computes_what_a_cpu_computes(source, model, training):
    case = Case(source, model, training)
    on_gpu = Vectorised(case.spec, case.trainer, case.federation, device="cuda")
    assert_equal(case.run(on_gpu), case.run(Vectorised(case.spec, case.trainer, case.federation, device="cpu")), 1e-4)


@on_a_gpu
@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_gpu_gives_the_same_bits_again_whatever_is_recorded_of_it(model, mixed):
    case = Case("digits:image=true", model, {"mixed_precision": mixed, "momentum": 0.5, "lr": 0.02})
    engine = Vectorised(case.spec, case.trainer, case.federation, device="cuda")
    first = {node: result.delta.buffer.tobytes() for node, result in case.run(engine).items()}
    for _ in range(3):
        again = case.run(engine)
        assert {node: result.delta.buffer.tobytes() for node, result in again.items()} == first


def test_workers_share_out_the_gpus_that_this_process_may_use():
    assert gpu_for(0, 0, None) == {}
    assert [gpu_for(i, 2, None)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["0", "1", "0"]
    assert [gpu_for(i, 2, "3,5")["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["3", "5", "3"]


@pytest.mark.skipif(not computes_half(torch.device("cpu")), reason="this CPU does not compute in bfloat16")
@pytest.mark.parametrize(("source", "model"), [("digits", "mlp"), ("digits:image=true", "cnn")])
def test_mixed_precision_is_nearly_what_the_trainer_makes_of_it(source, model):
    case = Case(source, model, {"mixed_precision": True, "lr": 0.02})
    found, expected = case.run(Vectorised(case.spec, case.trainer, case.federation)), case.reference()
    for node, result in found.items():
        moved = np.linalg.norm(expected[node].delta.buffer)
        assert np.linalg.norm(result.delta.buffer - expected[node].delta.buffer) < 0.05 * moved


def test_the_compiled_loop_leaves_mixed_precision_to_others():
    case = Case("digits", "mlp", {"mixed_precision": True})
    with pytest.raises(CannotCompute, match="mixed precision"):
        Fused(case.spec, case.trainer, case.federation)


def test_worker_processes_give_the_same_bits():
    case = Case("digits", "mlp", {}, nodes=5)
    assert_equal(case.run(Processes(case.spec, case.federation, workers=2)), case.reference(), 0.0)


class Killed(Processes):
    """Its first worker is killed after the first result."""

    def train(self, params, assignments):
        for number, result in enumerate(super().train(params, assignments)):
            if number == 0:
                os.kill(self.pids[0], 9)
            yield result


def test_a_killed_worker_costs_nothing_but_time():
    case = Case("digits", "mlp", {}, nodes=6)
    assert_equal(case.run(Killed(case.spec, case.federation, workers=2)), case.reference(), 0.0)


def test_an_abandoned_cohort_leaves_nothing_behind():
    case = Case("digits", "mlp", {}, nodes=5)
    engine = Processes(case.spec, case.federation, workers=2)
    abandoned = engine.train(case.params, case.assignments)
    next(abandoned)
    abandoned.close()
    assert_equal(case.run(engine), case.reference(), 0.0)


@pytest.mark.parametrize("make", [Fused, Vectorised], ids=["fused", "vectorised"])
def test_what_an_engine_cannot_compute_it_says(make):
    case = Case("digits", "mlp:hidden=20,dropout=0.5", {})
    with pytest.raises(CannotCompute):
        make(case.spec, case.trainer, case.federation)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is taken where there is one")
@pytest.mark.parametrize(
    ("model", "training", "engine"),
    [
        ("mlp", {}, "fused"),
        ("mlp:hidden=64,activation=tanh", {}, "vectorised"),
        ("mlp", {"optimizer": "adam"}, "vectorised"),
        ("mlp:hidden=64,dropout=0.1", {}, "sequential"),
        ("sgd-linear", {}, "sequential"),
        ("mlp", {"mixed_precision": True}, "sequential"),
    ],
)
def test_the_fastest_engine_that_fits_is_taken(model, training, engine):
    case = Case("digits", model, training)
    chosen = choose("auto", case.spec, case.trainer, case.federation)
    chosen.close()
    assert chosen.name == engine


def test_an_engine_that_does_not_fit_is_replaced_with_one_warning(caplog):
    case = Case("digits", "sgd-linear", {})
    assert choose("fused", case.spec, case.trainer, case.federation).name == "sequential"
    assert [record.getMessage() for record in caplog.records] == [
        "engine 'fused' cannot compute this job, the sequential one does: the model is not made of torch layers"
    ]


@pytest.mark.parametrize(
    ("strategy", "asked", "engine", "why"),
    [
        ("scaffold", "auto", "vectorised", None),
        ("scaffold", "vectorised", "vectorised", None),
        ("scaffold", "fused", "sequential", "corrects each node's gradients by a vector of its own"),
        ("scaffold", "processes", "sequential", "corrects each node's gradients by a vector of its own"),
        ("scaffold", "dask", "sequential", "corrects each node's gradients by a vector of its own"),
        ("scaffold", "ray:workers=2", "sequential", "corrects each node's gradients by a vector of its own"),
        ("ditto", "auto", "sequential", None),
        ("ditto", "vectorised", "sequential", "trains from each node's own model"),
        ("fednova", "fused", "fused", None),
    ],
)
def test_an_engine_that_cannot_do_what_a_strategy_asks_for_is_replaced_with_one_warning(
    caplog, strategy, asked, engine, why
):
    case = Case("digits", "mlp", {})
    chosen = choose(asked, replace_strategy(case.spec, strategy), case.trainer, case.federation)
    chosen.close()
    assert chosen.name == engine
    name = Choice.parse(asked).name
    said = f"engine {name!r} cannot compute this job, the sequential one does: strategy {strategy} {why}"
    assert [record.getMessage() for record in caplog.records] == ([said] if why else [])


def replace_strategy(spec, strategy):
    return msgspec.structs.replace(spec, strategy=Choice.parse(strategy))


def test_an_unknown_engine_is_refused():
    case = Case("digits", "mlp", {})
    with pytest.raises(
        UserError, match="there is no engine 'warp'; choose from: dask, fused, processes, ray, sequential, vectorised"
    ):
        choose("warp", case.spec, case.trainer, case.federation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": np.array([0, 99])}, "row number"),
        ({"y": np.array([0, 7])}, "class is out of range"),
        ({"y": np.array([0])}, "same number of rows"),
        ({"sizes": np.array([1])}, "do not cover"),
        ({"sizes": np.array([3, -1])}, "batch is empty"),
        ({"params": np.zeros(3, np.float32)}, "size of this network"),
        ({"delta": np.zeros(3, np.float32)}, "delta does not"),
        ({"space": np.zeros(10, np.uint8)}, "workspace is too small"),
        ({"x": np.zeros(4, np.float64)}, "expected aligned items"),
    ],
)
def test_the_kernel_refuses_what_would_lead_outside_its_arrays(change, message):
    widths = np.array([2, 2])
    arrays = {
        "params": np.zeros(6, np.float32),
        "x": np.zeros(4, np.float32),
        "y": np.array([0, 1]),
        "order": np.array([0, 1]),
        "sizes": np.array([2]),
        "space": np.zeros(_fused.room(widths, 2, 0.0, 0.0), np.uint8),
        "delta": np.zeros(6, np.float32),
    }
    with pytest.raises(ValueError, match=message):
        _fused.train(widths, *(arrays | change).values(), 0, 0.1, 0.0, 0.0, 0.0)

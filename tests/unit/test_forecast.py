"""Forecasts, by numbers worked out by hand; and the memory bound, by measuring."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tutti.adapters.blobs.scratch import ScratchBlobs
from tutti.core.params import Params
from tutti.domain.events import UpdateAccepted
from tutti.domain.forecast import Pace, forecast, trained_rows, usage
from tutti.domain.history import RoundSummary
from tutti.domain.jobs import Job
from tutti.domain.spec import DataSchema, Training, load_spec
from tutti.services.aggregation import Aggregation
from tutti.services.forecast import slots_of
from tutti.wire import tensors

DATA = DataSchema("classification", (64,), 10)


def spec(**fields):
    return load_spec({"dataset": "digits", "model": "linear", "evaluation": {"nodes": False}, **fields})


def test_by_hand() -> None:
    """Two nodes, all asked: 100 rows, 2 epochs at 50 rows/s and at 40 rows/s; 1000 parameters at 4000 B/s."""
    job = spec(rounds=3, training={"epochs": 2}, cohort={"min_nodes": 2})
    fast = Pace(examples=100, speed=50, overhead=0.5, up=4000, down=8000)
    slow = Pace(examples=100, speed=40, overhead=1.0, up=4000, down=8000)
    found = forecast(job, DATA, 1000, {"a": fast, "b": slow}, watts=5, joules=2)
    assert found.seconds == pytest.approx(3 * (1.0 + 0.5 + 5.0 + 1.0))
    assert (found.updates, found.bytes_up, found.bytes_down) == (6, 24_000, 24_000)
    assert found.joules == pytest.approx(5 * 3 * (4 + 5) + 2 * 0.048)
    assert (found.nodes, found.measured, found.notes) == (2, 2, [])


def test_a_codec_shortens_what_is_sent() -> None:
    pace = Pace(examples=10, speed=10, up=1000, down=1000)
    plain, int8 = (forecast(spec(codec=codec), DATA, 1000, {"a": pace}) for codec in ("none", "int8"))
    assert (plain.bytes_up, int8.bytes_up, int8.bytes_down) == (
        4 * int8.bytes_up,
        plain.bytes_up // 4,
        plain.bytes_down,
    )
    assert plain.seconds - int8.seconds == pytest.approx(plain.rounds * 3.0)
    assert forecast(spec(codec="auto"), DATA, 1000, {"a": pace}).bytes_up == plain.bytes_up


def test_models_in_steps_are_fetched_whole_once() -> None:
    """By hand: of two nodes all are asked, then one; int8 makes a quarter, and at most three steps are fetched."""
    pace = Pace(examples=10, speed=10)
    all_asked = forecast(spec(rounds=3, model_codec="int8"), DATA, 1000, {"a": pace, "b": pace})
    assert all_asked.bytes_down == 2 * 4000 + 2 * 2 * 1000
    assert all_asked.notes == []
    one = forecast(
        spec(rounds=3, model_codec="int8", cohort={"min_nodes": 2, "size": 1}), DATA, 1000, {"a": pace, "b": pace}
    )
    again = 0.5 * 1000 + 0.25 * 2000 + 0.125 * 3000 + 0.125 * 4000
    assert one.bytes_down == 4000 + 2 * again


def test_what_was_fetched_is_what_nodes_say_and_a_model_for_each_that_says_nothing() -> None:
    past = RoundSummary(
        number=1, attempt=0, task="train", base="m", opened_at=1.0, deadline=9.0, closed_at=3.0, wanted=3, quorum=1,
        cohort=5, accepted=3, bytes=300, succeeded=True, reason="", received=70, untold=2,
    )  # fmt: skip
    job = Job(id="j", spec=spec(), data=DATA, submitted_at=0.0, parameters=1000, past=(past,))
    assert (usage(job).bytes_up, usage(job).bytes_down) == (300, 70 + 2 * 4000)


def test_the_last_model_is_measured_by_all() -> None:
    job = spec(rounds=1, cohort={"min_nodes": 1, "size": 1}, evaluation={"nodes": True})
    pace = Pace(examples=30, held_out=30, speed=10, overhead=0)
    found = forecast(job, DATA, 10, {"a": pace, "b": pace})
    assert found.bytes_down == 4 * 10 * (1 + 2)
    assert found.seconds == pytest.approx((3 + 1) + 1)


def test_only_the_wanted_are_waited_for() -> None:
    job = spec(rounds=1, cohort={"min_nodes": 2, "size": 2, "over_select": 0.5})
    paces = {name: Pace(examples=10, speed=speed, overhead=0) for name, speed in (("a", 10), ("b", 5), ("c", 0.1))}
    found = forecast(job, DATA, 10, paces)
    assert found.seconds == pytest.approx(2)
    assert (found.updates, found.bytes_down) == (2, 4 * 10 * 3)
    assert "1 more nodes are asked" in found.notes[0]


def test_who_is_missing_is_assumed() -> None:
    found = forecast(spec(cohort={"min_nodes": 3}), DATA, 10, {"a": Pace(examples=10, speed=10)})
    assert "3 nodes are needed, 1 are ready" in found.notes[0]
    assert (found.nodes, found.measured) == (3, 1)


def test_a_long_job_is_sampled() -> None:
    pace = Pace(examples=10, speed=10, overhead=0)
    assert forecast(spec(rounds=1000), DATA, 10, {"a": pace}).seconds == pytest.approx(1000)


def test_trained_rows() -> None:
    assert trained_rows(100, Training(epochs=3), 10) == 300
    assert trained_rows(100, Training(epochs=3, max_steps=5), 10) == 50


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
@pytest.mark.parametrize("reducer", ["mean", "median", "krum", "geometric-median"])
async def test_aggregation_stays_within_its_memory(tmp_path: Path, strategy: str, reducer: str) -> None:
    """What is allocated while a round of a large model is aggregated; and the bound is no wild guess."""
    job, cohort = spec(strategy=strategy, reducer=reducer, cohort={"min_nodes": 8}), 8
    size = 500_000
    blobs = ScratchBlobs(tmp_path)
    aggregation = Aggregation(job, blobs)
    first = tmp_path / "first"
    first.write_bytes(tensors.encode(Params.from_arrays({"w": np.zeros(size, np.float32)})))
    updates = []
    for number in range(cohort):
        delta = tensors.encode(Params.from_arrays({"w": np.full(size, 1e-3 * number, np.float32)}))
        digest = await blobs.put(delta)
        updates.append(UpdateAccepted(at=0.0, round=1, node=f"n{number}", digest=digest, weight=10))
    del delta
    bound = forecast(job, DATA, size, {u.node: Pace(examples=10, speed=1) for u in updates}, slots=slots_of(job))
    tracemalloc.start()
    try:
        result = await aggregation.initialise(first)
        await aggregation.store(result)
        aggregation.commit(result)
        fold = aggregation.begin((1, 0), cohort)
        for update in updates:
            assert (await aggregation.examine(fold, update.digest, update.weight, {}))[0] is None
            await aggregation.add(fold, [update])
        result = await aggregation.finish(fold, cohort)
        await aggregation.store(result)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= bound.coordinator_memory, f"{peak / size:.1f} bytes a parameter"
    assert peak >= bound.coordinator_memory / 4

"""Worlds on virtual time: the deployment's services, determinism, availability, bad nodes, and forecasts that hold."""

import os
import subprocess
import sys
from typing import Any

import pytest

from tutti.domain import events as e
from tutti.domain.forecast import usage
from tutti.domain.spec import load_spec
from tutti.sim import Federation, simulate
from tutti.sim.worlds import Outcome, forecast_world, load_world, simulate_world

FLEET: dict[str, Any] = {
    "nodes": 8,
    "seed": 3,
    "train": False,
    "examples": "lognormal:median=100,sigma=0.5",
    "machine": {"speed": "lognormal:median=20,sigma=0.6", "watts": 7},
    "network": {"latency": 0.1, "up": "lognormal:median=1000", "down": 5000, "joules": 3},
}
JOB: dict[str, Any] = {
    "dataset": "digits",
    "model": "linear",
    "rounds": 5,
    "seed": 11,
    "cohort": {"min_nodes": 8, "size": 4},
    "evaluation": {"nodes": False},
}
SCRIPT = """
from tutti.sim.worlds import load_world, simulate_world
print(simulate_world(load_world({world!r}), {job!r}).digest())
"""


def run(world: dict[str, Any], **job: Any) -> Outcome:
    return simulate_world(load_world({**FLEET, **world}), {**JOB, **job})


def test_same_world_same_seed_same_bytes() -> None:
    """In processes with other hash seeds, so with other orders of sets, under faults."""
    faults = {"crash": "exponential:mean=15", "drop_out": 0.2, "away": "uniform:low=1,high=10", "disk": 0.01}
    world = {**FLEET, "faults": faults, "network": {"latency": "exponential:mean=0.2", "duplicate": 0.2}}
    digests = {simulate_world(load_world(world), JOB).digest()}
    for hash_seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(world=world, job=JOB)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        digests.add(found.stdout.split()[-1])
    assert len(digests) == 1
    assert simulate_world(load_world({**world, "seed": 4}), JOB).digest() not in digests


def test_the_model_is_that_of_a_simulation_without_time() -> None:
    """Real training: the same parts, seeds and arithmetic, reached by way of messages, blobs and crashes."""
    job = load_spec({**JOB, "rounds": 3, "training": {"epochs": 1, "batch_size": 20, "lr": 0.1}})
    world = load_world(
        {
            "nodes": 8,
            "seed": 3,
            "partition": "dirichlet:0.5",
            "faults": {"crash": 3, "outage": 1},
            "machine": {"speed": 100},
        }
    )
    done = simulate_world(world, job)
    whole = Federation.divide("digits", 8, "dirichlet:0.5", seed=3, held_out=0.0)
    assert done.crashes > 0
    assert done.job.model == simulate(job, whole, engine="sequential").header.model


def test_a_forecast_holds_where_nothing_breaks() -> None:
    """Bytes to the byte, but for the header of each model that is fetched; time and energy within a tenth."""
    world, job = load_world(FLEET), load_spec(JOB)
    expected, done = forecast_world(world, job), simulate_world(world, job)
    happened = usage(done.job, watts=7, joules=3)
    assert (happened.updates, happened.bytes_up) == (expected.updates, expected.bytes_up)
    assert 0 < happened.bytes_down - expected.bytes_down <= happened.updates * 256
    assert happened.seconds == pytest.approx(expected.seconds, rel=0.1)
    assert happened.joules == pytest.approx(expected.joules, rel=0.1)


def test_nights() -> None:
    """A job handed in at noon waits for the night; no round opens by day."""
    done = run({"start": 12 * 3600.0, "availability": "diurnal:opens=22,hours=6,spread=0.2,miss=0"})
    assert done.job.status == "completed"
    hours = [(each.event.at % 86_400) / 3600 for each in done.events if isinstance(each.event, e.RoundOpened)]
    assert len(hours) == 5
    assert all(hour > 21 or hour < 5 for hour in hours), hours


def test_a_world_ends_when_it_is_told_to() -> None:
    done = run({"longest": 3600.0, "availability": "diurnal:opens=22,hours=1,spread=0", "start": 6 * 3600.0})
    assert (done.job.final, done.job.rounds_done, done.seconds) == (False, 0, 3600.0)


def test_bad_nodes_do_harm() -> None:
    """And only those that are bad: with a share of 0 the attack is not even built in."""
    world = {"train": True, "machine": {}, "byzantine": {"share": 0.5, "attack": "sign_flip:scale=3"}}
    job = {"training": {"lr": 0.1}, "evaluation": {"nodes": False, "data": "digits:split=test"}}
    bad = run(world, **job).job.evaluations[5]["coordinator"]["accuracy"]
    good = run({**world, "byzantine": {}}, **job).job.evaluations[5]["coordinator"]["accuracy"]
    assert good > 0.8
    assert bad < good - 0.2

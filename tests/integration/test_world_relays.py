"""Seeded faults on virtual time with replicas that have nodes: whatever breaks, the model is that of a calm day.

Relays that die with the updates that they keep, letters between replicas that are lost or come twice, beside all that
breaks in test_world_faults.
"""

from typing import Any

import msgspec
import pytest
from test_world_faults import FLEET, HASTY, PATIENT, check, counted, events_of, models_by_the_log, schedule, takeovers

from tutti.domain import events as e
from tutti.domain.spec import JobSpec, load_spec
from tutti.sim.worlds import Outcome, World, load_world, simulate_world


def relays(seed: int) -> World:
    """Another half of the schedules with each seed; every fourth post is sound."""
    raw: dict[str, Any] = msgspec.to_builtins(takeovers(seed) if seed % 2 else schedule(seed))
    raw["relays"] = 1 + seed % 3
    raw["faults"] |= {
        "relay": msgspec.to_builtins(load_world({"faults": {"relay": "exponential:mean=15"}}).faults.relay),
        "post": 0.02 * (seed % 4),
    }
    return load_world(raw)


@pytest.fixture(scope="module")
def calm() -> Outcome:
    return simulate_world(load_world(FLEET), PATIENT)


def test_relays_change_nothing(calm: Outcome) -> None:
    done = simulate_world(load_world({**FLEET, "relays": 2}), PATIENT)
    check(done, 0)
    assert (done.job.model, counted(done)) == (calm.job.model, counted(calm))
    assert done.sums >= 4, "relays gave hardly any sums"


@pytest.mark.parametrize("part", [{"reducer": "median"}, {"strategy": "fedbuff"}], ids=str)
def test_what_needs_single_updates_reads_them(part: dict[str, str]) -> None:
    spec = load_spec({**msgspec.to_builtins(PATIENT), **part})
    alone, done = (simulate_world(load_world({**FLEET, "relays": relays}), spec) for relays in (0, 2))
    assert done.job.status == alone.job.status == "completed"
    assert done.sums == 0
    if "reducer" in part:  # which updates fedbuff takes depends on when they come
        assert done.job.model == alone.job.model


def test_the_same_seed_gives_the_same_events() -> None:
    assert simulate_world(relays(3), PATIENT).digest() == simulate_world(relays(3), PATIENT).digest()


@pytest.mark.parametrize("group", range(4))
def test_relays_that_die_and_letters_that_are_lost_change_nothing(calm: Outcome, group: int) -> None:
    deaths = sums = 0
    for seed in range(3000 + 15 * group, 3015 + 15 * group):
        done = simulate_world(relays(seed), PATIENT)
        check(done, seed)
        assert done.job.model == calm.job.model, f"relays {seed}: another model than on a calm day"
        assert counted(done) == counted(calm), f"relays {seed}"
        deaths, sums = deaths + done.relay_deaths, sums + done.sums
    assert deaths > 15, "hardly any relay died"
    assert sums > 15, "relays gave hardly any sums"


def test_relays_that_cannot_sum_leave_it_to_the_owner(calm: Outcome) -> None:
    """Each of them is asked in vain once: the updates are asked for again, and come to the owner from then on.

    With these seeds one cannot read what it keeps, one gives no sum in time, and two cannot store it.
    """
    for seed in range(2):
        done = simulate_world(load_world({**FLEET, "relays": 2, "faults": {"store": 1, "seed": seed}}), PATIENT)
        check(done, seed)
        assert (done.job.model, counted(done)) == (calm.job.model, counted(calm))
        assert done.sums == 0
        assert 0 < len(events_of(done, e.UpdateLost)) <= FLEET["nodes"]


@pytest.mark.parametrize("spec", [PATIENT, HASTY], ids=["patient", "hasty"])
def test_some_relays_that_cannot_sum(calm: Outcome, spec: JobSpec) -> None:
    sums = 0
    for seed in range(5000, 5010):
        raw: dict[str, Any] = msgspec.to_builtins(relays(seed))
        raw["faults"]["store"] = 0.5
        done = simulate_world(load_world(raw), spec)
        check(done, seed)
        assert models_by_the_log(done) == [event.model for event in events_of(done, e.RoundClosed)], f"relays {seed}"
        assert spec is HASTY or done.job.model == calm.job.model, f"relays {seed}: another model than on a calm day"
        sums += done.sums
    assert sums > 3, "relays gave hardly any sums"


def test_only_who_is_counted_counts() -> None:
    for seed in range(4000, 4015):
        done = simulate_world(relays(seed), HASTY)
        check(done, seed)
        assert models_by_the_log(done) == [event.model for event in events_of(done, e.RoundClosed)], f"relays {seed}"

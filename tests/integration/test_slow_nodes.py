"""Slow links and slow machines, on virtual time: nodes choose codecs by their links, and get work by their speed."""

from collections import Counter
from statistics import median
from typing import Any

import pytest

from tutti.core.codec import chosen, codecs
from tutti.domain import events as e
from tutti.domain import jobs
from tutti.domain.pacing import LEAST, SLOWER, Tempo, less_work, of_batch_and_steps
from tutti.domain.spec import BadSpec, load_spec
from tutti.domain.turns import DUE, FAST, NEW
from tutti.sim import Federation, simulate
from tutti.sim.worlds import Outcome, load_world, simulate_world
from tutti.sim.worlds.node import profiles

NODES = 8
JOB: dict[str, Any] = {
    "dataset": "digits",
    "model": "mlp:hidden=512",
    "rounds": 5,
    "cohort": {"min_nodes": NODES},
    "training": {"epochs": 2, "batch_size": 10, "lr": 0.05},
    "evaluation": {"nodes": False, "data": "digits:split=test"},
}
VALUES = 64 * 512 + 512 + 512 * 10 + 10


def run(world: dict[str, Any], **job: Any) -> Outcome:
    done = simulate_world(load_world({"nodes": NODES, "seed": 2, **world}), {**JOB, **job})
    assert done.job.status == "completed", done.job.outcome
    return done


def last_updates(done: Outcome) -> dict[str, e.UpdateAccepted]:
    found = [each.event for each in done.events if isinstance(each.event, e.UpdateAccepted)]
    return {event.node: event for event in found if event.round == JOB["rounds"]}


def test_nodes_choose_codecs_by_their_upward_links() -> None:
    """Downward all are fast: what counts is the way that the update takes."""
    world = {"network": {"latency": 0.01, "up": "lognormal:median=60000,sigma=1.2", "down": 1e8}}
    done = run(world, codec="auto")
    speeds = {
        f"node-{number}": each.up
        for number, each in enumerate(profiles(load_world({**world, "nodes": NODES, "seed": 2})), 1)
    }
    sent = {node: update.bytes for node, update in last_updates(done).items()}
    expected = {node: str(chosen(4 * VALUES, 0.97 * speed)) for node, speed in speeds.items()}
    assert len(set(expected.values())) >= 3, expected
    for node, name in expected.items():
        assert sent[node] <= 1.35 * 4 * VALUES / codecs.factory(name)().ratio, (node, name)
    slowest, fastest = min(speeds, key=speeds.__getitem__), max(speeds, key=speeds.__getitem__)
    assert sent[slowest] * 3 < sent[fastest]


@pytest.mark.parametrize("less_of", ["steps", "batch"])
def test_slow_nodes_get_less_work_and_are_done_with_the_others(less_of: str) -> None:
    """The rounds become shorter; the model learns about as well from it; the log says how much each was asked for."""
    world = {"machine": {"speed": "lognormal:median=100,sigma=1"}, "network": {"latency": 0.01}}
    plain, paced = run(world), run(world, cohort={**JOB["cohort"], "by_speed": True, "less_of": less_of})
    opened = [
        each.event for each in paced.events if isinstance(each.event, e.RoundOpened) and each.event.task == "train"
    ]
    assert not opened[0].less, "nothing is known of anybody yet"
    assert 2 <= len(opened[-1].less) <= NODES // 2
    assert all(LEAST <= share < 1 for share in opened[-1].less.values())
    seconds = [past.closed_at - past.opened_at for past in paced.job.past]
    assert max(seconds[1:]) < 0.6 * seconds[0]
    waited = [member.waited for member in paced.job.past[-1].round.members.values()]
    assert max(waited) < 1.5 * median(waited)
    full, sizes = JOB["training"]["batch_size"], {n: u.metrics["batch_size"] for n, u in last_updates(paced).items()}
    shares = opened[-1].less if less_of == "batch" else {}
    assert sizes == {node: round(max(0.5, shares.get(node, 1.0)) * full) for node in sizes}
    again = run(world, cohort={**JOB["cohort"], "by_speed": True, "less_of": less_of})
    assert again.digest() == paced.digest()
    accuracy = [done.job.evaluations[JOB["rounds"]]["coordinator"]["accuracy"] for done in (plain, paced)]
    assert accuracy[1] > accuracy[0] - 0.05


def test_less_work_by_hand() -> None:
    known = {"a": Tempo(10, 11), "b": Tempo(10, 12), "c": Tempo(40, 41), "d": Tempo(4, 5, share=0.1), "e": Tempo(1, 90)}
    cohort = ["a", "b", "c", "d", "new"]
    assert less_work(cohort, known) == {"c": 0.637, "d": 0.637}  # the middle of 11, 12, 41 and 41 is 26.5
    assert less_work(["a", "b", "e"], known) == {"e": LEAST}  # its link is slow, not its machine
    assert less_work(["a"], known) == {}
    assert less_work(["a", "b", "z"], {**known, "z": Tempo(0, 90)}) == {}


@pytest.mark.parametrize(
    ("times", "beside_rows", "batch", "steps"),
    [(3, 0.5, 0.5, 0.5), (1.5, 0.5, 0.5, 1.0), (1.5, 0.1, 0.63, 1.0), (9, 0, 0.5, 2 / 9)],
)
def test_a_node_with_a_cost_for_each_step_is_in_time_and_keeps_half_of_its_batch(
    times: float, beside_rows: float, batch: float, steps: float
) -> None:
    """Its whole work takes `times` as long as the others'; a step costs so much of its full batch beside that."""
    share = 1.0
    for _ in range(60):
        of_batch, of_steps = of_batch_and_steps(share)
        took = times * of_steps * (beside_rows + of_batch) / (beside_rows + 1)
        known = {**{f"n{number}": Tempo(1, 1) for number in range(4)}, "slow": Tempo(took, took, share)}
        share = less_work([*known], known).get("slow", 1.0)
    assert took <= SLOWER
    assert (of_batch, of_steps) == pytest.approx((batch, steps), abs=0.01)


def test_fast_nodes_are_asked_more_often_and_nobody_never() -> None:
    """By machine and link; the log says why, its replay is the same job, and the same world is the same log."""
    world = {
        "machine": {"speed": "lognormal:median=100,sigma=1"},
        "network": {"latency": 0.01, "up": "lognormal:median=200000,sigma=1"},
    }
    rules = {"min_nodes": NODES, "size": 2}
    plain = run(world, rounds=24, cohort=rules)
    preferring = {**rules, "prefer_fast": 0.9, "at_least_every": 12}
    fast = run(world, rounds=24, cohort=preferring)
    assert run(world, rounds=24, cohort=preferring).digest() == fast.digest()
    assert fast.job.model != plain.job.model
    assert fast.seconds < 0.8 * plain.seconds
    stream = f"job:{fast.job.id}"
    assert jobs.replay([each.event for each in fast.events if each.stream == stream]) == fast.job
    opened = [each.event for each in fast.events if isinstance(each.event, e.RoundOpened)]
    cohorts = [event.cohort for event in opened if event.task == "train"]
    assert {reason for event in opened for reason in event.drawn.values()} == {FAST, NEW, DUE}
    asked = Counter(node for cohort in cohorts for node in cohort)
    assert len(asked) == NODES
    assert max(asked.values()) >= 2 * min(asked.values())
    longest = 12 + NODES // 2 - 1
    for first in range(len(cohorts) - longest + 1):
        assert len({node for cohort in cohorts[first : first + longest] for node in cohort}) == NODES
    seconds = {node: turn.seconds for node, turn in fast.job.turns.items()}
    assert asked[min(seconds, key=seconds.__getitem__)] > asked[max(seconds, key=seconds.__getitem__)]


@pytest.mark.parametrize("strategy", ["fedbuff", "cyclic"])
@pytest.mark.parametrize("rule", [{"by_speed": True}, {"prefer_fast": 0.5, "size": 1}])
def test_where_nobody_waits_for_slow_nodes_it_is_refused(strategy: str, rule: dict[str, Any]) -> None:
    job = {**JOB, "cohort": rule, "strategy": strategy}
    with pytest.raises(BadSpec, match=rf"leave cohort\.{next(iter(rule))} out"):
        simulate_world(load_world({"nodes": 2}), job)


@pytest.mark.parametrize("rule", [{"by_speed": True}, {"prefer_fast": 0.5, "size": 1}])
def test_a_simulation_has_no_speeds(rule: dict[str, Any]) -> None:
    with pytest.raises(BadSpec, match="tutti world run"):
        simulate(load_spec({**JOB, "cohort": {"min_nodes": 2, **rule}}), Federation.divide("digits", 2, "iid"))


def test_less_of_without_by_speed() -> None:
    with pytest.raises(BadSpec, match=r"set cohort\.by_speed"):
        simulate_world(load_world({"nodes": 2}), {**JOB, "cohort": {"less_of": "batch"}})

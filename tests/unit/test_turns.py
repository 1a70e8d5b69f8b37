"""Whose turn it is: fast nodes more often, nobody never; by hand and over many pools."""

from collections import Counter
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutti.core.sampling import Pool, sample
from tutti.domain import events as e
from tutti.domain.rounds import evolve_round, open_round
from tutti.domain.spec import BadSpec, check_composition, load_spec
from tutti.domain.turns import DUE, FAST, NEW, Turn, choose, remember

EVERYBODY = Pool.of(f"n{number:02d}" for number in range(12))
JOB = {"dataset": "digits", "model": "linear"}


def asked_in(rounds: int, pool: Pool, k: int, seconds: dict[str, float], prefer: float, within: int, seed: int = 0):
    """The cohorts of so many rounds, in which every node takes the seconds that it always takes."""
    turns: dict[str, Turn] = {}
    for round in range(1, rounds + 1):
        cohort, why = choose(pool, k, turns, prefer=prefer, within=within, seed=seed, round=round, attempt=0)
        turns |= {node: Turn(round, seconds[node]) for node in cohort}
        yield cohort, why


def test_the_first_cohort_is_drawn_by_chance_and_the_same_every_time() -> None:
    draw = lambda seed: choose(EVERYBODY, 4, {}, prefer=0.9, within=9, seed=seed, round=1, attempt=0)  # noqa: E731
    assert draw(1) == draw(1)
    assert set(draw(1)[1].values()) == {NEW}
    assert len({draw(seed)[0] for seed in range(20)}) > 15
    assert choose(EVERYBODY, 12, {}, prefer=0.9, within=1, seed=0, round=9, attempt=0) == (tuple(EVERYBODY), {})


def test_places_by_hand() -> None:
    """Of four places one is for who waits longest, two are for fast nodes; a slow one is drawn by chance or not."""
    turns = {node: Turn(asked=8, seconds=1.0) for node in EVERYBODY} | {
        "n00": Turn(asked=1, seconds=500.0),
        **{f"n{number:02d}": Turn(asked=8, seconds=1e6) for number in range(6, 12)},
    }
    cohort, why = choose(EVERYBODY, 4, turns, prefer=0.5, within=9, seed=3, round=10, attempt=0)
    assert why["n00"] == DUE
    fast = [node for node, reason in why.items() if reason == FAST]
    assert len(fast) == 2
    assert set(fast) <= {"n01", "n02", "n03", "n04", "n05"}
    assert len(cohort) == 4
    assert set(why) < set(cohort)


def test_whoever_takes_three_times_as_long_as_the_middle_is_a_ninth_as_likely() -> None:
    seconds = dict.fromkeys(EVERYBODY, 1.0) | {"n11": 3.0}
    turns = {node: Turn(1, took) for node, took in seconds.items()}
    drawn = Counter(
        choose(EVERYBODY, 1, turns, prefer=0.9, within=99, seed=seed, round=2, attempt=0)[0][0] for seed in range(3000)
    )
    assert drawn["n11"] / drawn["n00"] == pytest.approx(1 / 9, abs=0.06)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(2, 30), st.integers(1, 8), st.integers(1, 15), st.sampled_from([0.1, 0.5, 0.9]), st.integers(0, 2**32)
)
def test_nobody_waits_longer_than_promised(nodes: int, k: int, within: int, prefer: float, seed: int) -> None:
    pool = Pool.of(f"n{number:02d}" for number in range(nodes))
    seconds = {node: 10.0 ** (number % 5) for number, node in enumerate(pool)}
    longest = within + ceil(nodes / k) - 1
    last = dict.fromkeys(pool, 0)
    for round, (cohort, why) in enumerate(asked_in(2 * longest + 2, pool, k, seconds, prefer, within, seed), start=1):
        assert len(set(cohort)) == min(k, nodes)
        assert set(why) <= set(cohort)
        last |= dict.fromkeys(cohort, round)
        assert round - min(last.values()) < longest


def test_without_a_preference_cohorts_are_what_they_were() -> None:
    """The draw of McMahan's algorithm stays as it is: old jobs replay to the same cohorts."""
    assert sample(EVERYBODY, 3, seed=1, round=1, attempt=0) == ("n03", "n04", "n05")


def test_what_is_remembered_of_an_attempt() -> None:
    opened = e.RoundOpened(
        at=0.0, round=4, attempt=0, task="train", model="m", cohort=("a", "b", "c", "d"), wanted=2, quorum=1,
        deadline=100.0, less={"a": 0.5},
    )  # fmt: skip
    state = open_round(opened)
    state = evolve_round(state, e.UpdateAccepted(at=12.0, round=4, node="a", digest="x", weight=1, seconds=10.0))
    state = evolve_round(state, e.NodeDropped(at=13.0, round=4, node="c", reason="gone"))
    before = {"b": Turn(1, 3.0), "c": Turn(2, 7.0), "d": Turn(2, 99.0), "z": Turn(3, 1.0)}
    assert remember(before, state, 30.0) == {
        "a": Turn(4, 22.0),  # ten seconds for half of the work, and two for its link
        "b": Turn(4, 30.0),
        "c": Turn(4, 7.0),
        "d": Turn(4, 99.0),
        "z": Turn(3, 1.0),
    }


@pytest.mark.parametrize(
    ("cohort", "problem"),
    [
        ({"prefer_fast": 0.5}, r"set cohort\.size or cohort\.fraction"),
        ({"prefer_fast": 1.0, "size": 1}, "prefer_fast"),
        ({"prefer_fast": 0.5, "size": 1, "at_least_every": 0}, "at_least_every"),
    ],
)
def test_what_is_refused(cohort: dict[str, float], problem: str) -> None:
    with pytest.raises(BadSpec, match=problem):
        check_composition(load_spec({**JOB, "cohort": cohort}))

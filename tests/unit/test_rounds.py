"""When a round closes, and how long it may take: hand-computed cases."""

import pytest

from tutti.domain import events as e
from tutti.domain.rounds import Part, allowed_seconds, due, evolve_round, open_round
from tutti.domain.spec import CohortRules


def opened(*cohort: str, wanted: int | None = None, quorum: int = 1, deadline: float = 100.0) -> e.RoundOpened:
    return e.RoundOpened(
        at=0.0,
        round=1,
        attempt=0,
        task="train",
        model="m",
        cohort=cohort,
        wanted=wanted or len(cohort),
        quorum=quorum,
        deadline=deadline,
    )


def accepted(node: str, at: float = 1.0) -> e.UpdateAccepted:
    return e.UpdateAccepted(at=at, round=1, node=node, digest=f"digest-of-{node}", weight=3)


def after(opening: e.RoundOpened, *events: e.JobEvent):
    state = open_round(opening)
    for event in events:
        state = evolve_round(state, event)
    return state


def test_a_round_waits_for_everyone_before_its_deadline():
    state = after(opened("a", "b"), accepted("a"))
    assert due(state, 99.0) is None
    assert state.waiting_for == ("b",)


def test_a_round_closes_when_all_have_answered():
    verdict = due(after(opened("a", "b"), accepted("b"), accepted("a")), 2.0)
    assert verdict is not None
    assert verdict.succeeds
    assert verdict.reason == "all 2 answered, 2 counted"


def test_with_over_selection_the_first_k_are_enough():
    verdict = due(after(opened("a", "b", "c", wanted=2), accepted("c"), accepted("a")), 2.0)
    assert verdict is not None
    assert verdict.succeeds
    assert "2 of 3 came first" in verdict.reason


def test_at_the_deadline_the_quorum_decides():
    two = after(opened("a", "b", "c", quorum=2), accepted("a"), accepted("b"))
    one = after(opened("a", "b", "c", quorum=2), accepted("a"))
    assert (verdict := due(two, 100.0)) is not None
    assert verdict.succeeds
    assert "without c" in verdict.reason
    assert (verdict := due(one, 100.0)) is not None
    assert not verdict.succeeds
    assert "1 updates, quorum is 2; silent: b, c" in verdict.reason


def test_a_round_that_cannot_reach_its_quorum_fails_at_once():
    refused = e.UpdateRefused(at=1.0, round=1, node="a", reason="NaN", final=True)
    dropped = e.NodeDropped(at=1.0, round=1, node="b", reason="gone")
    verdict = due(after(opened("a", "b"), refused, dropped), 2.0)
    assert verdict is not None
    assert not verdict.succeeds


def test_a_lost_update_is_owed_again():
    lost = e.UpdateLost(at=2.0, round=1, node="a", reason="corrupt")
    state = after(opened("a"), accepted("a"), lost)
    assert state.members["a"].part is Part.ASSIGNED
    assert (state.open, state.came) == (1, 0)
    assert due(state, 3.0) is None


def test_a_dropped_node_that_comes_back_in_time_counts():
    state = after(opened("a", "b"), e.NodeDropped(at=1.0, round=1, node="a", reason="gone"), accepted("a"))
    assert (state.open, state.came) == (1, 1)


def test_accepted_updates_are_ordered_by_node_not_by_arrival():
    state = after(opened("a", "b", "c"), accepted("c"), accepted("a"), accepted("b"))
    assert [update.node for update in state.accepted] == ["a", "b", "c"]


def test_an_extension_moves_the_deadline():
    extended = e.RoundExtended(at=90.0, round=1, deadline=190.0, reason="restart")
    state = after(opened("a", "b"), accepted("a"), extended)
    assert due(state, 150.0) is None
    assert due(state, 190.0) is not None


@pytest.mark.parametrize(
    ("arrivals", "expected"),
    [
        ([], 600.0),
        ([1.0, 1.0, 1.0], 600.0),  # too few to go by
        ([1.0, 1.0, 1.0, 1.0], 30.0),  # never under the floor
        ([40.0, 50.0, 60.0, 70.0, 80.0], 60.0 + 6 * 1.4826 * 10.0),
        ([500.0, 600.0, 700.0, 800.0], 600.0),  # never over the deadline
    ],
)
def test_the_deadline_adapts_to_median_and_mad(arrivals, expected):
    assert allowed_seconds(CohortRules(), arrivals) == pytest.approx(expected)

"""When a round closes, and how long it may take: hand-computed cases."""

import pytest

from tutti.domain import events as e
from tutti.domain.rounds import ARRIVALS_KEPT, Pace, Part, allowed_seconds, due, evolve_round, open_round, pace_of
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
    again = after(opened("a"), accepted("a"), lost, accepted("a")).members["a"]
    assert (again.part, again.reason) == (Part.ACCEPTED, "its update was lost, and asked for again: corrupt")


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


def test_a_reason_names_only_some_of_many_silent_nodes():
    verdict = due(after(opened(*(f"n{i:02}" for i in range(50)))), 100.0)
    assert verdict is not None
    assert verdict.reason.endswith("silent: n00, n01, n02, n03, n04, n05, n06, n07 and 42 more")


def test_the_pace_of_a_round_in_which_all_came():
    state = after(opened("a", "b", "c", quorum=2), accepted("c", 9.0), accepted("a", 4.0), accepted("b", 6.0))
    assert pace_of(state, 9.5) == Pace((4.0, 6.0, 9.0), 6.0)


def test_silent_nodes_enter_with_the_time_for_which_they_were_waited():
    state = after(opened("a", "b", "c", quorum=1), accepted("a", 4.0))
    assert pace_of(state, 100.0) == Pace((4.0, 100.0, 100.0), 4.0)
    assert pace_of(state, 5_000.0) == Pace((4.0, 100.0, 100.0), 4.0)  # the machine slept: nobody waited for that


def test_a_missed_quorum_enters_with_the_time_for_which_it_was_waited():
    state = after(opened("a", "b", quorum=2), accepted("a", 4.0))
    assert pace_of(state, 100.0) == Pace((4.0, 100.0), 100.0)


def test_refused_and_dropped_nodes_say_nothing_about_time():
    refused = e.UpdateRefused(at=1.0, round=1, node="a", reason="NaN", final=True)
    dropped = e.NodeDropped(at=2.0, round=1, node="b", reason="gone")
    assert pace_of(after(opened("a", "b", "c"), refused, dropped, accepted("c", 5.0)), 5.0) == Pace((5.0,), 5.0)
    assert pace_of(after(opened("a", "b", quorum=2), refused, dropped), 2.0) is None


def test_time_without_a_coordinator_does_not_count():
    extended = e.RoundExtended(at=1_000.0, round=1, deadline=1_100.0, reason="restart")
    state = after(opened("a", "b", "c", quorum=2), accepted("a", 4.0), extended, accepted("b", 1_006.0))
    assert pace_of(state, 1_100.0) == Pace((4.0, 6.0, 100.0), 6.0)


def test_of_a_large_cohort_the_fastest_the_slowest_and_some_between_are_kept():
    nodes = [f"n{i:03}" for i in range(100)]
    pace = pace_of(after(opened(*nodes), *(accepted(node, float(i)) for i, node in enumerate(nodes))), 99.0)
    assert pace is not None
    assert (len(pace.arrivals), pace.arrivals[0], pace.arrivals[-1]) == (ARRIVALS_KEPT, 0.0, 99.0)
    assert sorted(set(pace.arrivals)) == list(pace.arrivals)


@pytest.mark.parametrize(
    ("paces", "expected"),
    [
        ([], 600.0),
        ([Pace((1.0, 1.0, 1.0), 1.0)], 600.0),  # too few to go by
        ([Pace((1.0, 1.0), 1.0), Pace((1.0, 1.0), 1.0)], 30.0),  # never under the floor
        ([Pace((40.0, 50.0, 60.0, 70.0, 80.0), 40.0)], 60.0 + 6 * 1.4826 * 10.0),
        ([Pace((5.0, 5.0, 5.0, 40.0), 5.0)], 30.0),  # an outlier that no quorum needs
        ([Pace((5.0, 5.0, 5.0, 40.0), 40.0)], 80.0),  # one that the quorum needs
        ([Pace((5.0, 5.0, 5.0, 5.0), 5.0), Pace((5.0, 5.0, 5.0, 30.0), 30.0)], 60.0),  # a missed quorum: twice the time
        ([Pace((500.0, 600.0, 700.0, 800.0), 500.0)], 600.0),  # never over the deadline
    ],
)
def test_the_deadline_adapts_to_median_and_mad_and_to_the_quorum(paces, expected):
    assert allowed_seconds(CohortRules(), paces) == pytest.approx(expected)

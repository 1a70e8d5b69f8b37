"""What nodes and strangers can cost the coordinator: bounds that only show when somebody tests them."""

from tutti.domain.spec import CohortRules
from tutti.services.aggregation import batched
from tutti.services.members import TURNED_AWAY_BURST, TURNED_AWAY_EVERY, Door


def test_one_name_is_noted_once_in_a_while():
    door = Door()
    assert door.may_note("eve", 1000.0)
    assert not door.may_note("eve", 1000.0 + TURNED_AWAY_EVERY - 1)
    assert door.may_note("eve", 1000.0 + TURNED_AWAY_EVERY)


def test_many_names_share_one_allowance_that_fills_up_again():
    door = Door()
    noted = sum(door.may_note(f"stranger-{n}", 1000.0) for n in range(1000))
    assert noted == TURNED_AWAY_BURST
    assert not door.may_note("late", 1000.5)
    assert door.may_note("later", 1002.0)


def test_equal_weights_leave_the_whole_precision_to_the_values():
    assert CohortRules(weighting="equal").largest_weight == 1
    assert CohortRules(max_weight=50).largest_weight == 50


def test_updates_are_mapped_a_few_at_a_time():
    assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]

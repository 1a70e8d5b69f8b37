"""How fast a hub reads from one node."""

from tutti.adapters.fabrics.hub import Pace


def test_as_many_as_the_rate_come_at_once_and_then_they_wait_for_each_other():
    pace = Pace(rate=4, left=4, at=10.0)
    assert [pace.pause(10.0) for _ in range(4)] == [0, 0, 0, 0]
    assert pace.pause(10.0) == 0.25
    assert pace.pause(10.25) == 0.25
    assert pace.pause(11.0) == 0  # three quarters of a second: three more
    assert [pace.pause(100.0) for _ in range(5)] == [0, 0, 0, 0, 0.25]  # what was not used is not saved up

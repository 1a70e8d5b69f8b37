"""What the coordinator keeps in mind of the nodes that are here."""

import pytest

from tutti.domain.nodes import Capabilities, DataSummary, Terms
from tutti.domain.spec import DataSchema
from tutti.services.presence import Presence
from tutti.wire.messages import Heartbeat, Registration


def comes(*, opened: bool) -> Registration:
    data = DataSummary("digits", DataSchema("classification", (4,), 3), 10)
    terms = Terms(models=("linear",), open=opened)
    return Registration(protocol=1, node="ada", token="", capabilities=Capabilities(), data=data, terms=terms)


@pytest.mark.parametrize("opened", [True, False])
def test_what_a_node_offers_follows_its_heartbeats(opened):
    """A node that comes paused, and goes on later, may be asked again; and the other way round."""
    presence = Presence(0.0)
    presence.arrived("ada", comes(opened=opened), 1.0)
    turns = [opened, not opened, not opened, opened]
    heard = [presence.heard("ada", Heartbeat(open=now), 2.0) for now in turns]
    assert heard == [False, not opened, False, opened]
    presence.heard("ada", Heartbeat(open=not opened), 3.0)
    (seen,) = presence.connected().values()
    assert seen.registration == comes(opened=not opened)
    assert [terms for _, terms in presence.offers()] == [Terms(models=("linear",), open=not opened)]

    presence.left("ada", 4.0, took_leave=False)
    assert not presence.offers()
    assert not presence.heard("ada", Heartbeat(open=opened), 5.0)
    presence.arrived("ada", comes(opened=opened), 6.0)
    assert list(presence.offers().values()) == [1]

"""A node's membership: bought once with a link, and kept for when the coordinator is away."""

import json
import socket

import pytest

from tutti.apps.client import Unreachable
from tutti.apps.nodes import NodeSettings, membership
from tutti.core.registry import Choice


@pytest.fixture
def nobody():
    """A join link to an address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}/join#token"


def settings(link, folder):
    return NodeSettings(link=link, data=Choice("digits"), name="ward-1", state_dir=folder)


async def test_a_stranger_is_told_that_nobody_answers(nobody, tmp_path):
    with pytest.raises(Unreachable, match="no coordinator answers"):
        await membership(settings(nobody, tmp_path))
    assert json.loads((tmp_path / "membership.json").read_text())["joined"] is False


async def test_a_member_waits_for_its_coordinator_even_if_started_with_the_link(nobody, tmp_path):
    with pytest.raises(Unreachable):
        await membership(settings(nobody, tmp_path))
    file = tmp_path / "membership.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "joined": True}))
    member = await membership(settings(nobody, tmp_path))
    assert (member.node, member.joined) == ("ward-1", True)

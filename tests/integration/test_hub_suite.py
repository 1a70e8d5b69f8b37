"""The hub against the suite that every pair of Fabric and Link must pass."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hub_server import Doorkeeper, running_hub

from tutti.adapters.fabrics.hub_link import HubLink
from tutti.testing.fabrics import Setup, TokenSuite, authenticate


class TestHubFabric(TokenSuite):
    @pytest.fixture
    async def setup(self, tmp_path: Path) -> AsyncIterator[Setup]:
        links: list[HubLink] = []

        def make_link(node: str, token: str) -> HubLink:
            links.append(hub.link(node, token))
            return links[-1]

        async with running_hub(tmp_path / "blobs", keeper=Doorkeeper(check=authenticate)) as hub:
            yield Setup(hub.fabric, hub.blobs, make_link)
            for link in links:
                await link.close()

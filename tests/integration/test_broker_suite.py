"""The broker fabric on RabbitMQ against the suite: with blobs by the coordinator's HTTP, and in a bucket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hub_server import Doorkeeper, running_hub

from support.services import bucket, coordinator_uid, overwrite
from tutti.adapters.blobs.mirrored import MirroredBlobs
from tutti.adapters.blobs.s3 import S3Blobs
from tutti.adapters.fabrics.amqp import Address
from tutti.adapters.fabrics.broker import BrokerFabric
from tutti.adapters.fabrics.broker_link import BrokerLink
from tutti.adapters.fabrics.bucket import BucketDepot
from tutti.testing.fabrics import Setup, TokenSuite, authenticate


@asynccontextmanager
async def running(fabric: BrokerFabric) -> AsyncIterator[BrokerFabric]:
    async with fabric:
        task = asyncio.create_task(fabric.run())
        yield fabric
        task.cancel()
        await asyncio.wait([task])


class Links:
    """Makes links, and closes them."""

    def __init__(self, address: Address) -> None:
        self._address, self._made = address, list[BrokerLink]()

    def __call__(self, node: str, token: str) -> BrokerLink:
        self._made.append(BrokerLink(self._address, node, token))
        return self._made[-1]

    async def close(self) -> None:
        for link in self._made:
            await link.close()


class TestBrokerAndDirectory(TokenSuite):
    flood = 800  # each is on disk before the next is sent

    @pytest.fixture
    async def setup(self, tmp_path: Path) -> AsyncIterator[Setup]:
        keeper = Doorkeeper(check=authenticate)
        async with running_hub(tmp_path / "blobs", keeper=keeper) as hub, coordinator_uid() as address:
            links = Links(address)
            async with running(BrokerFabric(address, authenticate, blobs_url=hub.url)) as fabric:
                yield Setup(fabric, hub.blobs, links)
                await links.close()


class TestBrokerAndBucket(TokenSuite):
    flood = 800  # each is on disk before the next is sent

    @pytest.fixture
    async def setup(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Setup]:
        async with bucket(monkeypatch) as url, coordinator_uid() as address:
            blobs, links, keeper = MirroredBlobs(tmp_path, await S3Blobs.open(url)), Links(address), Doorkeeper()
            depot = BucketDepot(blobs, keeper.may_read, keeper.update_limit)
            async with running(BrokerFabric(address, authenticate, depot=depot)) as fabric:
                yield Setup(fabric, blobs, links, lambda digest, data: overwrite(blobs.far, digest, data))
                await links.close()

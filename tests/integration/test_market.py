"""The compute market with real workers: jobs are done, checked and paid, whatever happens on the way."""

import pytest

from support.market import Marketplace
from tutti.domain.market.jobs import Status


@pytest.fixture
async def place(tmp_path):
    place = Marketplace(tmp_path)
    await place.open()
    yield place
    await place.close()


@pytest.mark.parametrize("kind", ["linear_regression", "kmeans:clusters=3", "pca:components=2"])
async def test_a_job_is_assigned_checked_and_paid(place, kind):
    await place.hire("ada")
    (job,) = await place.settled(await place.submit(kind, 10))
    assert job.status is Status.VERIFIED
    assert (await place.worker_holds("ada")).free == 10
    assert await place.client_holds() == 9_990
    assert (await place.balanced()).escrowed == 0

"""What nobody counts is cleared away at a member, and the updates of the open round are not."""

import msgspec
import pytest

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.blobs.held import HeldBlobs
from tutti.domain import commands as c
from tutti.domain import events as e
from tutti.domain import jobs
from tutti.domain.jobs import Status
from tutti.domain.spec import DataSchema, load_spec
from tutti.services.leftovers import Leftovers
from tutti.wire import tensors

SCHEMA = DataSchema("classification", (2,), 2)
SPEC = load_spec({"name": "toy", "dataset": "toy", "model": "linear", "rounds": 2, "evaluation": {"nodes": False}})


class Held:
    """A member's blobs, which it looks at; `jobs` are those that were agreed on, `needed` what they need."""

    def __init__(self, folder) -> None:
        self.blobs = HeldBlobs(DirectoryBlobs(folder))
        self.jobs, self.needed = {}, set()
        self.leftovers = Leftovers(self.blobs.digests, lambda: self.needed, lambda: self.jobs, self._delete)

    async def _delete(self, digests) -> None:
        await self.blobs.delete(*digests)

    async def came(self, data: bytes) -> str:
        digest = tensors.digest(data)
        await self.blobs.hold(digest, data)
        return digest

    def now(self, job) -> None:
        self.jobs = {job.id: job}


@pytest.fixture
def held(tmp_path):
    return Held(tmp_path)


def after(job, *commands):
    for command in commands:
        for event in jobs.decide(job, command, now=2.0):
            job = jobs.evolve(job, event)
    return job


def waiting():
    job = jobs.begin(jobs.submit("toy-1", SPEC, SCHEMA, now=1.0))
    return after(job, c.Initialise(model="m" * 64, state="m" * 64, parameters=2))


def failed(job):
    """A round that began and failed, as a member reads it in one record."""
    opened = jobs.decide(job, c.Open(candidates=["a"], settings={}, shares_state=False), now=2.0)
    for event in (*opened, e.RoundFailed(at=3.0, round=1, attempt=0, reason="nobody")):
        job = jobs.evolve(job, event)
    return job


async def test_without_a_job_what_two_looks_find_unneeded_goes(held):
    left, model = await held.came(b"left"), await held.came(b"model")
    await held.blobs.put(b"on disk")
    held.needed = {model}
    await held.leftovers.look()
    fresh = await held.came(b"fresh")
    await held.leftovers.look()
    assert {*await held.blobs.digests()} == {model, fresh}
    assert not held.blobs.has(left)
    await held.leftovers.look()
    assert await held.blobs.digests() == [model]


async def test_an_update_of_an_open_round_stays_however_long_that_takes(held):
    job = waiting()
    held.now(job)
    update = await held.came(b"update")
    for _ in range(5):
        await held.leftovers.look()
    assert held.blobs.has(update)
    held.now(failed(job))  # it is over, and the update was not in it
    await held.leftovers.look()
    assert not held.blobs.has(update)


async def test_an_update_that_came_too_late_for_the_last_round_goes_with_the_job(held):
    job = waiting()
    held.now(job)
    update = await held.came(b"update")
    await held.leftovers.look()
    await held.leftovers.look()
    assert held.blobs.has(update)
    held.now(msgspec.structs.replace(job, status=Status.COMPLETED))
    await held.leftovers.look()
    assert not held.blobs.has(update)


async def test_what_was_needed_in_between_is_looked_at_anew(held):
    update = await held.came(b"update")
    await held.leftovers.look()
    held.needed = {update}
    await held.leftovers.look()
    held.needed = set()
    await held.leftovers.look()
    assert held.blobs.has(update)

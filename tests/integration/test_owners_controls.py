"""What whoever runs a coordinator can say: maintenance, how many jobs an organisation may have, how much is kept."""

import asyncio
import json
import threading
from pathlib import Path

import pytest

from support.faults import Saboteur
from support.served import BEARER, OPEN_TO_THE_NETWORK, TOKEN, app_of, caller, served
from support.worlds import World, toy_spec
from tutti.adapters.accounts.argon2 import Argon2Passwords
from tutti.adapters.accounts.memory import MemoryAccounts
from tutti.apps.cli.app import run
from tutti.core.errors import Conflict
from tutti.domain.events import JobArchived
from tutti.domain.jobs import Job, replay
from tutti.domain.quotas import Kind, Quota, excess
from tutti.ports import Recorded
from tutti.services.accounts import Accounts
from tutti.services.archive import Archivist, events_in
from tutti.services.coordinator import Coordinator
from tutti.services.history import attempts_of
from tutti.services.keeping import DAY, Keep

PASSWORD = "correct horse battery"
JOB = {"dataset": "toy", "model": "toy", "rounds": 3, "training": {"lr": 0.01}}


async def test_in_maintenance_rounds_end_and_nothing_begins_also_after_a_restart(tmp_path: Path) -> None:
    world, gate = World(tmp_path), threading.Event()
    await world.up()
    await world.join("ada", 0, gate=gate)
    job = await world.core.submit(toy_spec(1, rounds=2))
    await world.until(lambda job: job.round is not None, job)
    paused = await world.core.submit(toy_spec(1, rounds=1), paused=True)
    await world.core.maintenance.begin("new disks", by="oz")
    gate.set()
    await world.until(lambda job: job.rounds_done == 1, job)
    assert world.core.job(job.id).paused == "maintenance: new disks"
    for _ in range(2):
        with pytest.raises(Conflict, match="maintenance: new disks"):
            await world.core.submit(toy_spec(1))
        assert world.core.job(job.id).round is None
        await world.down()
        await world.up()
    await world.core.maintenance.end(by="oz")
    done = await world.finished(job)
    assert (done.status, done.rounds_done) == ("completed", 2)
    assert world.core.job(paused.id).paused == "not started yet", "it was not for maintenance that it waits"
    await world.close()


async def test_a_crash_while_maintenance_begins_or_ends_leaves_nothing_half_done(tmp_path: Path) -> None:
    """The register says what is wanted; the next start sees to the jobs."""
    world = World(tmp_path)
    await world.up()
    job = await world.core.submit(toy_spec(1, rounds=1))
    for reason, paused in (("new disks", "maintenance: new disks"), ("", None)):
        settle, world.core.maintenance.settle = world.core.maintenance.settle, nothing
        await (world.core.maintenance.begin(reason) if reason else world.core.maintenance.end())
        world.core.maintenance.settle = settle
        await world.down()
        await world.up()
        assert world.core.job(job.id).paused == paused
    await world.close()


async def nothing() -> None:
    """Killed here."""


async def test_an_organisation_has_no_more_jobs_at_once_than_it_may(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.up()
    accounts = Accounts(MemoryAccounts(), Argon2Passwords(memory=64, passes=1), world.core.clock)
    app = app_of(world, OPEN_TO_THE_NETWORK, accounts)
    async with caller(app, BEARER) as operator, caller(app) as people:
        await operator.post("/auth/signup", json={"name": "ada", "password": PASSWORD, "organisation": "Host"})
        bearers = {}
        for name, where in (("ada", "Host"), ("zoe", "Ward"), ("yan", "Ward")):
            if name != "ada":
                person = {"name": name, "password": PASSWORD, "organisation": where, "role": "admin"}
                assert (await people.post("/auth/signup", json=person, headers=bearers["ada"])).status_code == 201
            grant = await people.post("/auth/signin", json={"name": name, "password": PASSWORD})
            bearers[name] = {"authorization": f"Bearer {grant.json()['access_token']}"}

        async def submit(name: str) -> tuple[int, str]:
            answer = await people.post("/api/v1/jobs?paused=true", json=JOB, headers=bearers[name])
            return answer.status_code, answer.json().get("id") or answer.json()["detail"]

        limited = await people.patch("/api/v1/organisations/Ward", json={"jobs": 2}, headers=bearers["ada"])
        assert (limited.json()["quota"]["jobs"], limited.json()["used"]["jobs"]) == (2, 0)
        _, first = await submit("zoe")
        assert (await submit("yan"))[0] == 201
        status, said = await submit("zoe")
        assert (status, "Ward may have 2 jobs at once and has 2" in said) == (409, True)
        assert (await submit("ada"))[0] == 201, "another organisation's"
        listed = (await people.get("/api/v1/organisations", headers=bearers["zoe"])).json()["items"]
        assert [(each["name"], each["quota"]["jobs"], each["used"]["jobs"]) for each in listed] == [("Ward", 2, 2)]
        await people.patch("/api/v1/organisations/Ward", json={"nodes": 1}, headers=bearers["ada"])
        wish = {"uses": 5, "seconds": 60}
        invitation = (await people.post("/api/v1/invites", json=wish, headers=bearers["zoe"])).json()
        joined = [
            await people.post("/api/v1/nodes", json={"token": invitation["token"], "node": name})
            for name in ("w1", "w2")
        ]
        assert [each.status_code for each in joined] == [201, 409]
        assert joined[1].headers["content-type"] == "application/problem+json"
        assert "Ward may have 1 nodes and has 1: remove one" in joined[1].json()["detail"]
        (ward,) = (await people.get("/api/v1/organisations", headers=bearers["zoe"])).json()["items"]
        assert (ward["quota"]["jobs"], ward["quota"]["nodes"], ward["used"]["nodes"]) == (2, 1, 1)
        more = await people.patch("/api/v1/organisations/Ward", json={"jobs": None}, headers=bearers["zoe"])
        assert more.status_code == 403, "its own admin may not raise it"
        await people.post(f"/api/v1/jobs/{first}/stop", headers=bearers["zoe"])
        assert (await submit("zoe"))[0] == 201
    await world.close()


async def test_quotas_hold_for_those_who_come_at_once(tmp_path: Path) -> None:
    """Each is counted in its turn to be written, and not when it asks."""
    world = World(tmp_path)
    await world.up()
    quota = Quota(jobs=1, nodes=2)

    def check(by: str, one_more: Kind) -> None:
        if reason := excess(quota, world.core.used(lambda who: who == by), one_more):
            raise Conflict(reason)

    world.core.admit_by(check)
    jobs = (world.core.submit(toy_spec(2, name=f"job{number}"), by="zoe") for number in range(5))
    asked = await asyncio.gather(*jobs, return_exceptions=True)
    assert [type(each) for each in asked] == [Job] + 4 * [Conflict]
    token = await world.core.members.invite(uses=9, by="zoe")
    nodes = (world.core.members.admit(token, f"n{number}") for number in range(9))
    joined = await asyncio.gather(*nodes, return_exceptions=True)
    assert [type(each) for each in joined] == 2 * [str] + 7 * [Conflict]
    await world.close()


async def read(world: World) -> list[Recorded]:
    return await world.core.log.read(limit=10_000)


@pytest.mark.parametrize("at", range(6), ids=lambda at: f"killed-at-write-{at}")
async def test_events_of_a_job_long_over_move_into_an_archive_and_are_read_as_before(tmp_path: Path, at: int) -> None:
    """Killed after the blob, the log's word or the trimming, or not at all: the next look ends with the same."""
    world = World(tmp_path)
    await world.up()
    for number, name in enumerate(("ada", "bob")):
        await world.join(name, number)
    job = await world.finished(await world.core.submit(toy_spec(2, rounds=12)))
    other = await world.finished(await world.core.submit(toy_spec(2, rounds=1)))
    of = lambda events, job: [each for each in events if each.stream == f"job:{job}"]  # noqa: E731
    before, why = await read(world), await attempts_of(world.core.journal, world.core.blobs, job, range(1, 14))
    manifest = await world.core.manifest(job.id)
    await world.down()
    saboteur = Saboteur("stop after")
    world.later = 31 * DAY
    archivist = long_over(await world.up(saboteur, of="blobs" if at == 1 else "log"), job)
    saboteur.arm({1: 1, 2: 1, 3: 2}.get(at, -1))
    looking = asyncio.ensure_future(archivist.tidy())
    if at in (1, 2, 3):
        await saboteur.struck.wait()
        looking.cancel()
        await world.down()
        archivist = long_over(await world.up(), job)
        looking = asyncio.ensure_future(archivist.tidy())
    await looking
    if at == 4:
        await world.down()
        archivist = long_over(await world.up(), job)
    await archivist.tidy()
    core = world.core
    await core.keeper.clear()
    after = await read(world)
    (left,) = of(after, job.id)
    assert isinstance(left.event, JobArchived)
    assert left.event.events == len(of(before, job.id))
    assert of(after, other.id) == of(before, other.id)
    archived = core.job(job.id)
    assert (archived.status, archived.model, archived.contributions) == (job.status, job.model, job.contributions)
    assert await events_in(core.blobs, archived) == [each.event for each in of(before, job.id)]
    assert replay(await events_in(core.blobs, archived)) == job
    assert await attempts_of(core.journal, core.blobs, archived, range(1, 14)) == why
    assert await core.manifest(job.id) == manifest
    await world.close()


def long_over(core: Coordinator, job: Job) -> Archivist:
    core.keeper.keep, core.keeper.archivable = Keep(days=30), lambda it: it.id == job.id
    return Archivist(core.journal, core.keeper)


async def test_what_is_kept_of_a_job(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.up()
    await world.join("ada", 0)
    keeper = world.core.keeper
    keeper.keep = Keep(models=2, days=30)
    job = await world.finished(await world.core.submit(toy_spec(1, rounds=6)))
    await keeper.clear()
    best = job.model_of(job.best[0]) if job.best else None
    wanted = {job.initial_model, best, *(past.model for past in job.past[-2:])}
    assert {model for model in map(job.model_of, range(7)) if model in await keeper.store.digests()} == wanted - {None}
    world.later = 31 * DAY
    await keeper.clear()
    assert set(await keeper.store.digests()) == {job.model, best} - {None}
    await world.close()


async def test_the_command_for_quotas_does_what_the_docs_show(tmp_path: Path, capsys) -> None:
    world = World(tmp_path)
    await world.up()
    accounts = Accounts(MemoryAccounts(), Argon2Passwords(memory=64, passes=1), world.core.clock)
    app = app_of(world, OPEN_TO_THE_NETWORK, accounts)
    async with caller(app, BEARER) as operator:
        for name, where in (("ada", "home"), ("zoe", "Ward")):
            person = {"name": name, "password": PASSWORD, "organisation": where, "role": "admin"}
            assert (await operator.post("/auth/signup", json=person)).status_code == 201
    (tmp_path / "token").write_text(TOKEN)
    async with served(app) as url:

        async def tutti(*arguments: str) -> tuple[int, str]:
            there = ["--url", url, "--token-file", str(tmp_path / "token")]
            code = await asyncio.to_thread(run, ["quotas", *arguments, *there])
            said = capsys.readouterr()
            return code, said.out or said.err

        shown = (Path(__file__).parents[2] / "docs" / "operations.md").read_text().split("$ tutti quotas ")[1:]
        assert len(shown) == 2
        for command, _, output in (each.partition("\n") for each in shown):
            assert await tutti(*command.split()) == (0, output.partition("```")[0])
        assert await tutti("set", "Ward", "--jobs", "any", "--stored", "0") == (0, "Ward: jobs any, stored 0\n")
        (ward, home) = json.loads((await tutti("show", "--json"))[1])
        assert ward["quota"] == {"jobs": None, "nodes": None, "node_hours": 500.0, "stored": 0}
        assert home["quota"]["jobs"] is None
        for bad in (["Ward"], ["Ward", "--jobs", "-1"], ["Ward", "--node-hours", "nan"], ["Wart", "--jobs", "1"]):
            assert (await tutti("set", *bad))[0] == 2, bad
    await world.close()

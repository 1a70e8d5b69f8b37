"""The typed client has a method for every call that people and programs make, and each answer is of its type."""

import asyncio
import re

import pytest

import tutti
from support.served import OPEN_TO_THE_NETWORK, TOKEN, app_of, served
from support.worlds import World
from tutti.apps.client import Client
from tutti.core.errors import Conflict, NotFound
from tutti.domain.quotas import Quota

JOB = {"dataset": "toy", "model": "toy", "rounds": 2, "training": {"lr": 0.01}}
PASSWORD = "correct horse battery"

ELSEWHERE = ("documented: ", "market")
"""Aliases; and calls that have a client of their own."""

BY_NODES = {"GET /api/v1/blobs/{digest}", "HEAD /api/v1/blobs/{digest}", "PUT /api/v1/blobs/{digest}"}
FOR_PROMETHEUS = {"GET /metrics"}


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    await world.up()
    await world.join("ada", 0)
    yield world
    await world.close()


def listen(client: Client, heard: set[tuple[str, str]]) -> None:
    client._http.event_hooks["request"].append(lambda request: heard.add((request.method, request.url.path)))


def call_everything(client: Client, url: str, folder, heard: set[tuple[str, str]]) -> None:
    listen(client, heard)
    assert client.health().status == "healthy"
    assert client.ready().status == "ready"
    assert client.configuration().authentication
    assert client.registries()["models"].keys() == client.registry("models").keys()
    assert client.check(JOB).nodes_needed == 1
    assert client.forecast(JOB).rounds == 2
    job = client.submit({**JOB, "rewards": {"pool": 10, "data": "digits:split=test"}}).id
    client.wait(job)
    assert client.usage(job).updates == 2
    assert client.manifest(job).run == job
    assert client.evaluation(job).round == 2
    other = client.submit({**JOB, "rounds": 100_000}, paused=True).id
    client.resume(other)
    client.pause(other)
    assert client.stop(other).status == "stopped"
    assert [shown.id for shown in client.jobs()] == [other, job]
    assert client.job(job).rounds_done == 2
    assert client.overview().rounds_completed >= 2
    for several in (client.rounds(job), client.metrics(job), client.models(job), client.models(), client.nodes()):
        assert list(several)
    assert next(iter(client.contributions())).node == "ada"
    assert client.why(job, 1).round == 1
    assert client.download(job, folder / "model.safetensors").stat().st_size
    assert [event.type for event in client.events_of("JobStopped", "JobCompleted")] == ["JobCompleted", "JobStopped"]
    newest = client.status().offset
    assert all(event.offset > newest for event in client.events(newest))  # scores may still come

    invitation = client.invite()
    client.check_invite(invitation.token)
    client.join(invitation.token, "bob", "s" * 43)
    assert client.drain_node("bob").drained
    assert not client.undrain_node("bob").drained
    assert client.begin_maintenance("new disks").maintenance == "new disks"
    assert client.end_maintenance().maintenance == ""
    assert client.node("bob").name == "bob"
    client.remove_node("bob")
    assert client.preflight("toy").rows == 16

    assert client.mint("spare", 100, key="m").free == 100
    assert [holder.account for holder in client.holders()] == ["spare"]
    assert client.account("spare").free == 100
    assert client.transfer("spare", "other", 40, key="t").free == 60
    assert client.transfer("other", "spare", 40, key="u").free == 0
    assert not client.chain().connected
    for on_chain in (
        lambda: next(client.chain_sessions()),
        lambda: client.chain_session(job),
        lambda: client.chain_round(job, 1),
        lambda: client.chain_proof(job, 1, "ada"),
        lambda: client.claimable("spare"),
        lambda: next(client.transactions()),
        lambda: next(client.blocks()),
    ):
        with pytest.raises(NotFound, match="tutti chain deploy"):
            on_chain()
    assert client.ledger().minted == 100
    assert next(iter(client.entries())).seq == 0
    with pytest.raises(Conflict, match="nothing is owed to 'spare'"):
        client.claim("spare", key="c")
    assert [each.job for each in client.all_rewards()] == [job]
    assert client.rewards(job).pool == 10
    for missing in (lambda: client.scored(job, 9), lambda: client.proof(job, 9, "ada")):
        with pytest.raises(NotFound):
            missing()

    assert client.session().setup
    assert client.sign_up("ada", PASSWORD, organisation="Ward").role == "admin"
    assert client.sign_up("bob", PASSWORD, role="viewer").role == "viewer"
    with Client(url) as ada:
        listen(ada, heard)
        grant = ada.refresh(ada.sign_in("ada", PASSWORD))
        assert ada.session().name == "ada"
        assert [account.name for account in ada.accounts()] == ["ada", "bob"]
        assert ada.change_account("bob", role="operator").role == "operator"
        assert [(each.name, each.quota.jobs) for each in ada.organisations()] == [("Ward", None)]
        assert ada.limit_organisation("Ward", jobs=3, stored=10**9).quota == Quota(jobs=3, stored=10**9)
        ada.remove_account("bob")
        issued = ada.issue_token("nightly", "operator", days=1)
        with Client(url, issued.secret) as program:
            assert program.session().role == "operator"
        assert [token.id for token in ada.tokens()] == [issued.token.id]
        ada.revoke_token(issued.token.id)
        ada.change_password(PASSWORD, PASSWORD + "!")
        assert "POST /api/v1/tokens" in {entry.entry.action for entry in ada.audit(who="ada")}
        assert list(ada.audit(newest="true")) == list(ada.audit())[::-1]
        assert b"POST /api/v1/tokens" in ada.export_audit(folder / "audit.csv").read_bytes()
        ada.sign_out(grant)


async def test_every_call_has_a_method(world, tmp_path):
    heard: set[tuple[str, str]] = set()
    app = app_of(world, OPEN_TO_THE_NETWORK)
    async with served(app) as url:
        with tutti.Client(url, TOKEN) as client:
            await asyncio.to_thread(call_everything, client, url, tmp_path, heard)
    for operation, tags in operations(app.openapi()).items():
        if operation in BY_NODES | FOR_PROMETHEUS or any(tag.startswith(ELSEWHERE) for tag in tags):
            continue
        method, path = operation.split()
        pattern = re.compile(re.sub(r"{\w+}", "[^/]+", path))
        assert any(it == method and pattern.fullmatch(at) for it, at in heard), f"the client never calls {operation}"


def operations(document: dict) -> dict[str, list[str]]:
    return {
        f"{method.upper()} {path}": operation["tags"]
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in ("get", "post", "put", "patch", "delete", "head")
    }

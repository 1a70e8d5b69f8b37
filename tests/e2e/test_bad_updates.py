"""A rogue node among honest ones, all in processes of their own: what it sends never counts, and `why` says why."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

import numpy as np
import pytest

from support.commands import running
from tutti.adapters.fabrics.hub_link import HubLink
from tutti.apps.client import Client
from tutti.core.errors import TuttiError, UserError
from tutti.core.params import Params
from tutti.domain.nodes import Capabilities, DataSummary
from tutti.domain.spec import DataSchema
from tutti.ports import LinkRefused
from tutti.services.views import WhyView
from tutti.wire import tensors
from tutti.wire.messages import PROTOCOL, Registration, Start, Submission, Verdict

DIGITS = DataSummary("digits", DataSchema("classification", (64,), 10), 100)
SPEC = {
    "dataset": "digits",
    "model": "sgd-linear",
    "rounds": 1,
    "cohort": {"min_nodes": 3, "quorum": 2},
    "evaluation": {"nodes": False},
}
DEADLINE = 60
SECRET = "a secret of thirty-two characters or more"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("rogue")
    with ExitStack() as stack:
        up = stack.enter_context(running("up", "--port", "0", "--data-dir", folder / "data", cwd=folder))
        client = stack.enter_context(Client(up.ready["url"]))
        link = client.invite(uses=2).link
        for part in range(2):
            source, state = f"digits:part={part}/2", folder / f"honest{part}"
            join = ("join", link, "--data", source, "--name", f"honest{part}", "--state-dir", state)
            stack.enter_context(running(*join, cwd=folder))
        client.join(client.invite().link.partition("#")[2], "rogue", SECRET)
        yield client


@dataclass
class Rogue:
    """A node that speaks the protocol well and sends what it likes."""

    link: HubLink
    messages: AsyncIterator[object]

    async def hear(self, kind: type) -> object:
        async with asyncio.timeout(DEADLINE):
            async for message in self.messages:
                if isinstance(message, kind):
                    return message
        raise AssertionError(f"the coordinator ended without a {kind.__name__}")

    async def model(self, start: Start) -> Params:
        return tensors.decode(await self.link.fetch(start.weights))

    async def submit(self, start: Start, blob: bytes | bytearray, *, store: bool = True, **fields: object) -> Verdict:
        digest = tensors.digest(blob)
        if store:
            await self.link.store(memoryview(blob), digest)
        told = {"job": start.job, "round": start.round, "attempt": start.attempt, "digest": digest, "weight": 10}
        await self.link.send(Submission(**{**told, **fields}))
        verdict = await self.hear(Verdict)
        assert isinstance(verdict, Verdict)
        return verdict


def registration(secret: str = SECRET, name: str = "rogue", protocol: int = PROTOCOL) -> Registration:
    return Registration(protocol=protocol, node=name, token=secret, capabilities=Capabilities(), data=DIGITS)


@asynccontextmanager
async def a_rogue(client: Client, *, attach: bool = True) -> AsyncIterator[Rogue]:
    """Its small updates come attached to their submissions, or are uploaded before as large ones are."""
    async with HubLink(client.url, "rogue", SECRET) as link:
        messages = await link.connect(registration())
        if not attach:
            link._attached = 0
        yield Rogue(link, messages)


def delta(params: Params, value: float = 0.0) -> bytearray:
    return tensors.encode(Params(params.layout, np.full_like(params.buffer, value)))


def poisoned(params: Params, value: float) -> bytearray:
    bad = Params.zeros(params.layout)
    bad.buffer[3] = value
    return tensors.encode(bad)


def reshaped(params: Params) -> bytearray:
    return tensors.encode(Params.from_arrays({entry.name: view.T.copy() for entry, view in params.items()}))


def other_layout(params: Params) -> bytearray:
    return tensors.encode(Params.from_arrays({"evil": np.zeros(params.layout.size, np.float32)}))


Forge = Callable[[Params], bytes | bytearray]


@pytest.mark.parametrize(
    ("forge", "fields", "reason"),
    [
        (lambda params: poisoned(params, np.nan), {}, "holds nan at"),
        (lambda params: poisoned(params, np.inf), {}, "holds inf at"),
        (lambda params: poisoned(params, 1e9), {}, "a value may change by at most"),
        (reshaped, {}, "wrong layout: 'coef' should be float32"),
        (other_layout, {}, "is missing"),
        (lambda params: b"not a tensor file at all", {}, "not an update"),
        (lambda params: b"", {}, "not an update: expected a safetensors file, came 0 bytes"),
        (delta, {"round": 7}, "the update is for round 7 attempt 0, round 1 attempt 0 is open"),
        (delta, {"attempt": 5}, "round 1 attempt 5"),
        (delta, {"job": "no-such-job"}, "there is no running job 'no-such-job'; rogue was asked by job"),
        (delta, {"weight": 0}, "the weight is 0, expected a whole number of examples, 1 or more"),
        (delta, {"weight": -5}, "the weight is -5"),
        (delta, {"digest": ""}, "the submission names no update"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("attach", [True, False])
async def test_a_forged_update_is_refused_and_the_round_goes_on(client, forge: Forge, fields, reason, attach):
    async with a_rogue(client, attach=attach) as rogue:
        job = await asyncio.to_thread(client.submit, SPEC)
        start = await rogue.hear(Start)
        verdict = await rogue.submit(start, forge(await rogue.model(start)), **fields)
        assert not verdict.accepted
        assert reason in verdict.reason
    done = await asyncio.to_thread(client.wait, job.id)
    assert done.status == "completed"
    assert refusals(client.why(job.id, 1)) == [("rogue", verdict.reason)]
    assert counted(client.why(job.id, 1)) == ["honest0", "honest1"]


def refusals(why: WhyView) -> list[tuple[str, str]]:
    return [(refusal.node, refusal.reason) for refusal in why.attempts[-1].refusals]


def counted(why: WhyView) -> list[str]:
    return [part.node for part in why.attempts[-1].nodes if part.outcome == "counted"]


async def test_an_update_that_comes_twice_counts_once(client):
    async with a_rogue(client) as rogue:
        job = await asyncio.to_thread(client.submit, {**SPEC, "cohort": {"min_nodes": 4, "quorum": 2}})
        async with HubLink(client.url, "late", SECRET) as late:
            await asyncio.to_thread(client.join, (client.invite().link.partition("#")[2]), "late", SECRET)
            held = await late.connect(registration(SECRET, "late"))  # it answers nothing: the round stays open
            start = await rogue.hear(Start)
            blob = delta(await rogue.model(start))
            assert (await rogue.submit(start, blob)).accepted
            again = await rogue.submit(start, blob, store=False)
            assert (again.accepted, again.reason) == (True, f"the same update came again; {once(blob)}")
            other = delta(await rogue.model(start), 0.5)
            second = await rogue.submit(start, other)
            assert (second.accepted, second.reason) == (False, f"a second, other update came; {once(blob)}")
            await held.aclose()
    done = await asyncio.to_thread(client.wait, job.id)
    assert done.status == "completed"
    why = client.why(job.id, 1)
    assert counted(why) == ["honest0", "honest1", "rogue"]
    assert [reason.partition(";")[0] for _, reason in refusals(why)] == [
        "the same update came again",
        "a second, other update came",
    ]
    client.remove_node("late")


def once(blob: bytearray) -> str:
    return f"the first one, {tensors.digest(blob)[:12]}, is counted, once"


async def test_a_node_that_was_not_asked_is_refused(client):
    """The rogue knows a running job's model, but joined after the cohort was drawn."""
    spec = {**SPEC, "rounds": 1, "cohort": {"min_nodes": 2}, "training": {"epochs": 200, "batch_size": 1}}
    job = await asyncio.to_thread(client.submit, spec)
    for event in client.follow(job.id):
        if event.type == "RoundOpened":
            break
    async with a_rogue(client) as rogue:
        await rogue.link.send(Submission(job=job.id, round=1, attempt=0, digest="0" * 64, weight=1))
        verdict = await rogue.hear(Verdict)
        assert verdict.reason == "rogue was not asked in round 1"
    client.stop(job.id)
    assert refusals(client.why(job.id, 1)) == [("rogue", verdict.reason)]


async def test_an_update_that_is_too_large_is_refused_before_it_is_read(client):
    async with a_rogue(client) as rogue:
        job = await asyncio.to_thread(client.submit, SPEC)
        start = await rogue.hear(Start)
        huge = bytearray(8 << 20)
        with pytest.raises(UserError, match="bytes"):
            await rogue.submit(start, huge)
    assert (await asyncio.to_thread(client.wait, job.id)).status == "completed"
    assert counted(client.why(job.id, 1)) == ["honest0", "honest1"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "stranger"}, "no node 'stranger' has joined here"),
        ({"secret": "guessed"}, "the token is not that of node 'rogue'"),
        ({"protocol": 99}, "speaks protocol 1, the node 99"),
    ],
)
async def test_an_unknown_node_is_turned_away_and_it_is_noted(client, changes, reason):
    before = client.status().offset
    async with HubLink(client.url, "rogue", "irrelevant here") as link:
        with pytest.raises(LinkRefused, match=reason):
            await link.connect(registration(**changes))
    if "protocol" not in changes:
        noted = next(event for event in client.follow(after=before) if event.type == "NodeTurnedAway")
        assert reason in noted.data["reason"]


async def test_without_a_secret_nothing_is_stored(client):
    async with HubLink(client.url, "stranger", "x") as link:
        with pytest.raises(TuttiError, match="has joined here"):
            await link.store(b"hello", tensors.digest(b"hello"))

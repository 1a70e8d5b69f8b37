"""A node that says it is a browser on public rows, and hands in what it likes: an audit finds it out."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.commands import running
from tutti.adapters.browser.kernel import Kernel, Step, shape_of
from tutti.adapters.fabrics.hub_link import HubLink
from tutti.adapters.trainers.batches import batches
from tutti.apps.client import Client
from tutti.apps.nodes import load_data
from tutti.core.params import Params
from tutti.core.registry import Choice
from tutti.domain.nodes import Capabilities, DataSummary
from tutti.ports.training import Task
from tutti.wire import tensors
from tutti.wire.messages import PROTOCOL, Registration, Start, Submission, Verdict

SECRET = "a secret of thirty-two characters or more"
SOURCE = "digits:part=3/16"
JOB = {"dataset": "digits", "model": "mlp", "rounds": 1, "cohort": {"min_nodes": 1}, "evaluation": {"nodes": False}}


Forge = Callable[[Start, Params, int], Params]


def honest(start: Start, params: Params, batch: int) -> Params:
    data = load_data(Choice.parse(SOURCE))
    work = [rows for _, rows in batches(len(data.train), Task(start.training, start.seed, batch, start.training.lr))]
    shape = shape_of(start.model, start.data)
    return Params(params.layout, Kernel().train(shape, Step(start.training.lr), params, data.train, work, 0).delta)


def lazy(start: Start, params: Params, batch: int) -> Params:
    return Params(params.layout, np.full_like(params.buffer, 1e-4))


def nearly(start: Start, params: Params, batch: int) -> Params:
    delta = honest(start, params, batch)
    delta.buffer[5] = np.nextafter(delta.buffer[5], np.float32(1))
    return delta


async def hand_in(
    url: str, forge: Forge, *, digest: str = "", batch: int = 8, weight: int = 0, examples: int = 0
) -> Verdict:
    data = load_data(Choice.parse(SOURCE))
    n = examples or len(data.train)
    summary = DataSummary("digits", data.schema, n, 0, digest or data.digest(), SOURCE)
    async with HubLink(url, "ada", SECRET) as link, asyncio.timeout(60):
        its = Capabilities(trainers=("browser",))
        messages = await link.connect(
            Registration(protocol=PROTOCOL, node="ada", token=SECRET, capabilities=its, data=summary)
        )
        async for message in messages:
            if isinstance(message, Start):
                blob = tensors.encode(forge(message, tensors.decode(await link.fetch(message.weights)), batch))
                name = tensors.digest(blob)
                await link.store(memoryview(blob), name)
                place = {"job": message.job, "round": message.round, "attempt": message.attempt}
                metrics = {"batch_size": float(batch)}
                await link.send(Submission(**place, digest=name, weight=weight or n, metrics=metrics))
            if isinstance(message, Verdict):
                return message
    raise AssertionError("no verdict came")


CHEATS = {
    "lazy": (lazy, {}, "audited: computed again, "),
    "off by one bit": (nearly, {}, "audited: computed again, 1 of "),
    "other rows": (honest, {"digest": "0" * 64}, f"audited: its rows are not those of {SOURCE}"),
    "weight of its own": (honest, {"weight": 10_000}, "audited: expected a weight of "),
    "more rows than there are": (honest, {"examples": 10_000}, "audited: it says that it has 10000 rows to train on"),
    "no batch size": (lazy, {"batch": 0}, "audited: expected its batch_size in the metrics"),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_what_was_not_computed_is_refused_and_its_node_gets_no_more_work(tmp_path, cheat):
    forge, claims, reason = CHEATS[cheat]
    is_refused(tmp_path, JOB, forge, claims, reason)


@pytest.mark.parametrize(
    ("fields", "forge", "reason"),
    [
        ({"model": "mlp:activation=tanh"}, lazy, "audited: browsers have no mlp:activation=tanh"),
        ({"training": {"optimizer": "adam"}}, honest, "audited: browsers train with SGD, this job wants adam"),
    ],
)
def test_what_no_browser_can_compute_costs_its_node_and_not_the_job(tmp_path, fields, forge, reason):
    is_refused(tmp_path, {**JOB, **fields}, forge, {}, reason)


def is_refused(folder: Path, fields: dict[str, Any], forge: Forge, claims: dict[str, Any], reason: str) -> None:
    with running("up", "--port", 0, "--audited", 1, cwd=folder) as up, Client(up.ready["url"]) as client:
        client.join(client.invite().link.partition("#")[2], "ada", SECRET)
        job = client.submit(fields)
        verdict = asyncio.run(hand_in(client.url, forge, **claims))
        assert not verdict.accepted
        assert verdict.reason.startswith(reason)
        (part,) = (part for part in client.why(job.id, 1).attempts[0].nodes if part.node == "ada")
        assert part.reason == verdict.reason
        assert client.node("ada").drained
        assert client.job(job.id).status != "failed"


def test_what_was_computed_counts(tmp_path):
    with running("up", "--port", 0, "--audited", 1, cwd=tmp_path) as up, Client(up.ready["url"]) as client:
        client.join(client.invite().link.partition("#")[2], "ada", SECRET)
        job = client.submit(JOB)
        assert asyncio.run(hand_in(client.url, honest)).accepted
        assert client.wait(job.id).status == "completed"
        assert not client.node("ada").drained

"""Nodes by way of a broker and a bucket: everything is killed in turn, and the model is that of the hub."""

import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from support.commands import running, tutti
from support.rabbit import rabbit
from support.services import S3_KEYS, bucket
from tutti.apps.client import Client

SPEC = {
    "dataset": "digits",
    "model": "mlp:hidden=64",
    "name": "broker",
    "rounds": 8,
    "seed": 5,
    "training": {"lr": 0.05, "batch_size": 32, "epochs": 2},
    "cohort": {"min_nodes": 2, "grace": 120},
}


class Federation:
    def __init__(self, folder: Path, up: list[object], stack: ExitStack) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = free.getsockname()[1]
        self._folder, self._stack = folder, stack
        self._up = ["up", "--port", port, "--data-dir", folder / "data", *up]
        self._running: dict[str, ExitStack] = {}
        self.client = stack.enter_context(Client(f"http://127.0.0.1:{port}"))

    def start(self, name: str, link: str = "") -> dict[str, object]:
        """The coordinator, or a node with a link."""
        data = f"digits:part={name[1:]}/2" if link else ""
        join = ["join", link, "--data", data, "--name", name, "--state-dir", self._folder / name]
        alive = self._running[name] = self._stack.enter_context(ExitStack())
        process = running(*(join if link else self._up), cwd=self._folder, **S3_KEYS)
        return alive.enter_context(process).ready

    def kill(self, name: str) -> None:
        self._running.pop(name).close()

    def train(self, link: str, at: dict[int, Callable[[], object]]) -> str:
        """The model's digest; things happen when rounds are closed."""
        job = self.client.submit(SPEC)
        for event in self.client.follow(job.id):
            if event.type == "RoundClosed" and (happens := at.get(event.data["round"])):
                happens()
        done = self.client.wait(job.id)
        assert (done.status, done.rounds_done) == ("completed", 8)
        return done.model_digest


async def test_the_same_model_as_by_the_hub_whoever_is_killed(tmp_path, monkeypatch):
    (here := tmp_path / "hub").mkdir()
    (there := tmp_path / "broker").mkdir()
    (rabbits := tmp_path / "rabbit").mkdir()
    with ExitStack() as stack:
        hub = Federation(here, [], stack)
        hub.start("coordinator")
        link = hub.client.invite(uses=2).link
        for name in ("n0", "n1"):
            hub.start(name, link)
        expected = hub.train(link, {})
    async with bucket(monkeypatch) as place:
        with rabbit(rabbits) as server, ExitStack() as stack:
            broker = Federation(there, ["--broker", server.url, "--blobs", place], stack)
            assert "guest" not in str(broker.start("coordinator")["broker_link"])
            link = f"{server.url}?coordinator=main#{broker.client.invite(uses=2).link.partition('#')[2]}"
            for name in ("n0", "n1"):
                broker.start(name, link)

            def restart(name: str) -> None:
                broker.kill(name)
                broker.start(name, "" if name == "coordinator" else link)

            def restart_the_broker() -> None:
                server.stop()
                server.start()

            faults = {2: lambda: restart("n1"), 4: restart_the_broker, 6: lambda: restart("coordinator")}
            assert broker.train(link, faults) == expected


def test_a_broker_that_does_not_answer_ends_the_start_with_a_reason(tmp_path):
    ended = tutti("up", "--broker", "amqp://me:secret@127.0.0.1:1/", cwd=tmp_path)
    assert (ended.returncode, "does not answer" in ended.stderr) == (3, True)
    refused = tutti("join", "amqp://me:secret@127.0.0.1:1/#token", "--data", "digits", "--name", "n", cwd=tmp_path)
    assert (refused.returncode, "does not answer" in refused.stderr) == (3, True)
    wrong = tutti("up", "--broker", "http://host", cwd=tmp_path)
    assert (wrong.returncode, "expected a broker's address" in wrong.stderr) == (2, True)
    assert "secret" not in ended.stderr + refused.stderr
    assert "Traceback" not in ended.stderr + refused.stderr + wrong.stderr

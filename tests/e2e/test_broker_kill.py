"""Nodes by way of a broker and a bucket: everything goes away in turn, and the model is that of the hub."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from support.commands import running, tutti
from support.gateway import gateway
from support.ports import free_port
from support.rabbit import rabbit
from support.services import S3_KEYS, bucket
from tutti.adapters.blobs.s3 import S3Blobs
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
        port = free_port()
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
    """Each in the middle of a round; what nobody refers to goes from the bucket meanwhile."""
    here, there, rabbits, shelf = (tmp_path / name for name in ("hub", "broker", "rabbit", "gateway"))
    for folder in (here, there, rabbits, shelf):
        folder.mkdir()
    with ExitStack() as stack:
        hub = Federation(here, [], stack)
        hub.start("coordinator")
        link = hub.client.invite(uses=2).link
        for name in ("n0", "n1"):
            hub.start(name, link)
        expected = hub.train(link, {})
    with gateway(shelf) as store:
        async with bucket(monkeypatch, server=store.url) as place:
            orphan = await (await S3Blobs.open(place)).put(b"a model that nobody knows")
            with rabbit(rabbits) as server, ExitStack() as stack:
                broker = Federation(there, ["--broker", server.url, "--blobs", place], stack)
                assert "guest" not in str(broker.start("coordinator")["broker_link"])
                link = f"{server.url}?coordinator=main#{broker.client.invite(uses=2).link.partition('#')[2]}"
                for name in ("n0", "n1"):
                    broker.start(name, link)

                def restart(name: str) -> None:
                    broker.kill(name)
                    broker.start(name, "" if name == "coordinator" else link)

                def kill_the_broker() -> None:
                    server.kill()
                    server.start()

                def take_the_store_away() -> None:
                    store.stop()
                    store.start()

                faults = {
                    1: lambda: restart("n1"),
                    3: kill_the_broker,
                    4: take_the_store_away,
                    6: lambda: restart("coordinator"),
                }
                assert broker.train(link, faults) == expected
            digests = await (await S3Blobs.open(place)).digests()
            assert expected in digests
            assert orphan not in digests


def test_a_broker_that_does_not_answer_ends_the_start_with_a_reason(tmp_path):
    ended = tutti("up", "--port", free_port(), "--broker", "amqp://me:secret@127.0.0.1:1/", cwd=tmp_path)
    assert (ended.returncode, "does not answer" in ended.stderr) == (3, True)
    refused = tutti("join", "amqp://me:secret@127.0.0.1:1/#token", "--data", "digits", "--name", "n", cwd=tmp_path)
    assert (refused.returncode, "does not answer" in refused.stderr) == (3, True)
    wrong = tutti("up", "--broker", "http://host", cwd=tmp_path)
    assert (wrong.returncode, "expected an address such as amqps://" in wrong.stderr) == (2, True)
    assert "secret" not in ended.stderr + refused.stderr
    assert "Traceback" not in ended.stderr + refused.stderr + wrong.stderr

"""Real processes, `kill -9`, and the same final bits: one coordinator and three nodes on digits serve all tests."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.commands import running, tutti
from support.ports import free_port
from tutti.apps.client import Client
from tutti.services.views import EventView, JobView
from tutti.wire.messages import MAX_ATTACHED

NODES = ("n0", "n1", "n2")
SPEC = {
    "dataset": "digits",
    "model": "sgd-linear",
    "name": "kill",
    "rounds": 12,
    "seed": 7,
    "training": {"lr": 0.02, "batch_size": 32},
    "cohort": {"min_nodes": 3, "grace": 60},
}
LARGE = {**SPEC, "name": "kill-large", "model": "mlp:hidden=256", "rounds": 5}
"""Its updates do not fit into a message (ADR 7): they are PUT, and the model is fetched."""


class Federation:
    """A coordinator on a fixed port and three nodes, each of which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self._running: dict[str, ExitStack] = {}
        self.pids: dict[str, int] = {}
        self.start("coordinator")
        self.link = self.client.invite(uses=len(NODES)).link
        for name in NODES:
            self.start(name)

    def start(self, name: str) -> None:
        if name == "coordinator":
            arguments = ["up", "--port", str(self.port), "--data-dir", str(self.folder / "data")]
        else:
            source = f"digits:part={NODES.index(name)}/3,partition=dirichlet:0.5"
            arguments = ["join", self.link, "--data", source, "--name", name, "--state-dir", str(self.folder / name)]
        stack = self._running[name] = ExitStack()
        self.pids[name] = stack.enter_context(running(*arguments, cwd=self.folder)).process.pid

    def kill(self, name: str) -> None:
        os.kill(self.pids[name], signal.SIGKILL)
        self._running.pop(name).close()

    def end(self, name: str, number: int) -> None:
        os.kill(self.pids[name], number)
        os.waitid(os.P_PID, self.pids[name], os.WEXITED | os.WNOWAIT)
        self._running.pop(name).close()

    def blob(self, digest: str) -> Path:
        return self.folder / "data" / "blobs" / digest[:2] / digest

    def close(self) -> None:
        self.client.close()
        for stack in self._running.values():
            stack.close()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    federation = Federation(tmp_path_factory.mktemp("kill"))
    yield federation
    federation.close()


@pytest.fixture(scope="module")
def undisturbed(federation: Federation) -> JobView:
    job = federation.client.wait(federation.client.submit(SPEC).id)
    assert job.status == "completed", job.reason
    return job


def counted(client: Client, job: JobView) -> list[tuple[int, int, list[str]]]:
    """Of every closed round, who is in it: each node once."""
    return [
        (view.round, view.counted, sorted(part.node for part in client.why(job.id, view.round).attempts[-1].nodes))
        for view in client.rounds(job.id)
    ]


def run_and_kill(
    federation: Federation, victim: str, when: Callable[[EventView], bool], spec: Mapping[str, object] = SPEC
) -> JobView:
    """Submit the job, kill the victim at the first event that `when` picks, bring it back, wait for the end."""
    client = federation.client
    job = client.submit(spec)
    for event in client.follow(job.id):
        if when(event):
            federation.kill(victim)
            federation.start(victim)
            break
    return client.wait(job.id)


def is_event(kind: str, round: int) -> Callable[[EventView], bool]:
    return lambda event: event.type == kind and event.data.get("round") == round


@pytest.mark.parametrize(
    ("victim", "kind"),
    [
        ("coordinator", "JobSubmitted"),
        ("coordinator", "RoundOpened"),
        ("coordinator", "UpdateAccepted"),
        ("coordinator", "RoundClosed"),
        ("n1", "RoundOpened"),
        ("n1", "UpdateAccepted"),
        ("n1", "RoundClosed"),
    ],
)
def test_killed_and_restarted_the_model_is_the_same_to_the_bit(federation, undisturbed, victim, kind):
    when = (lambda event: event.type == kind) if kind == "JobSubmitted" else is_event(kind, 4)
    job = run_and_kill(federation, victim, when)
    assert (job.status, job.reason) == (undisturbed.status, undisturbed.reason)
    assert job.model_digest == undisturbed.model_digest
    assert counted(federation.client, job) == counted(federation.client, undisturbed)


@pytest.mark.parametrize("strategy", ["scaffold", "ditto"])
def test_what_nodes_keep_survives_kills_too(federation, strategy):
    """Control variates and personal models: on disk before the update is handed in, and the log says which count."""
    spec = {**SPEC, "rounds": 6, "strategy": strategy}

    def kept(job: JobView) -> dict[str, list[str]]:
        """Round and digest of what each node keeps."""
        return {name: os.listdir(federation.folder / name / "work" / "memory" / job.id) for name in NODES}

    calm = federation.client.wait(federation.client.submit(spec).id)
    assert calm.status == "completed", calm.reason
    for victim, kind in (("n1", "RoundOpened"), ("n1", "UpdateAccepted"), ("coordinator", "UpdateAccepted")):
        job = run_and_kill(federation, victim, is_event(kind, 4), spec)
        assert (job.status, job.model_digest) == (calm.status, calm.model_digest), f"{victim} at {kind}"
        assert kept(job) == kept(calm)


@pytest.fixture(scope="module")
def undisturbed_large(federation: Federation) -> JobView:
    pytest.importorskip("torch", reason="mlp needs pip install 'tutti[torch]'")
    job = federation.client.wait(federation.client.submit(LARGE).id)
    assert job.status == "completed", job.reason
    assert 4 * job.parameters > MAX_ATTACHED
    return job


@pytest.mark.parametrize(
    ("victim", "kind"), [("coordinator", "RoundOpened"), ("coordinator", "UpdateAccepted"), ("n1", "RoundOpened")]
)
def test_killed_while_updates_are_put_the_model_is_the_same_to_the_bit(federation, undisturbed_large, victim, kind):
    job = run_and_kill(federation, victim, is_event(kind, 3), LARGE)
    assert (job.status, job.reason) == (undisturbed_large.status, undisturbed_large.reason)
    assert job.model_digest == undisturbed_large.model_digest
    assert counted(federation.client, job) == counted(federation.client, undisturbed_large)


def test_an_update_whose_bytes_were_lost_is_asked_for_again(federation, undisturbed_large):
    """As after a loss of power: logged as accepted, and the bytes, which are not synced, are gone. The third node
    stands still meanwhile, so that the round is open at the kill for certain."""
    client = federation.client
    os.kill(federation.pids["n2"], signal.SIGSTOP)
    job = client.submit(LARGE)
    accepted = [event for event in until(client.follow(job.id), "UpdateAccepted", 2) if event.type == "UpdateAccepted"]
    federation.kill("coordinator")
    lost = accepted[0].data
    federation.blob(str(lost["digest"])).unlink()
    federation.start("coordinator")
    os.kill(federation.pids["n2"], signal.SIGCONT)
    job = client.wait(job.id)
    assert (job.status, job.model_digest) == ("completed", undisturbed_large.model_digest)
    assert counted(client, job) == counted(client, undisturbed_large)
    said = [event for event in client.events(0, f"job:{job.id}") if event.type == "UpdateLost"]
    assert [event.data["node"] for event in said] == [lost["node"]]
    why = tutti("why", job.id, "--round", "1", "--url", client.url, cwd=federation.folder)
    assert f"its update was lost, and asked for again: there is no blob {lost['digest']}" in why.stdout, why.stdout


def until(events: Iterator[EventView], kind: str, times: int) -> Iterator[EventView]:
    """The events up to the given one of a kind."""
    for event in events:
        yield event
        times -= event.type == kind
        if not times:
            return


def test_asynchronous_rounds_go_on_without_a_node_that_stands_still_and_take_its_stale_update(federation):
    """FedBuff over the hub: two updates make a step, so that nobody waits for the third node."""
    client = federation.client
    job = client.submit({**SPEC, "strategy": "fedbuff:buffer=2", "rounds": 100_000})
    events = client.follow(job.id)
    first = next(event for event in events if event.type == "RoundOpened")
    assert sorted(first.data["cohort"]) == [*NODES]
    os.kill(federation.pids["n2"], signal.SIGSTOP)
    stopped = client.job(job.id).rounds_done  # the reader of events may be behind
    next(event for event in events if event.type == "RoundClosed" and event.data["round"] == stopped + 5)
    os.kill(federation.pids["n2"], signal.SIGCONT)
    accepted = (event.data for event in events if event.type == "UpdateAccepted")
    late = next(update for update in accepted if update["node"] == "n2" and "base" in update)
    next(event for event in events if event.type == "RoundClosed" and event.data["round"] == late["round"])
    assert client.wait(client.stop(job.id).id).status == "stopped"
    assert late["base"] < late["round"]
    parts = {part.node: part for part in client.why(job.id, late["round"]).attempts[-1].nodes}
    assert parts["n2"].outcome == "counted"
    assert sum(part.outcome == "counted" for part in parts.values()) >= 2


def test_killed_at_random_moments_again_and_again(federation, undisturbed):
    """Three kills per run, of anybody, at moments drawn from a printed seed."""
    seed = int(os.environ.get("TUTTI_TEST_SEED", time.time_ns() % 10**6))
    print(f"TUTTI_TEST_SEED={seed}")
    chance = random.Random(seed)
    client = federation.client
    job = client.submit(SPEC)
    moments = sorted(chance.sample(range(3, 50), 3))
    for seen, _ in enumerate(client.follow(job.id)):
        if moments and seen >= moments[0]:
            moments.pop(0)
            victim = chance.choice(("coordinator", *NODES))
            federation.kill(victim)
            federation.start(victim)
    job = client.job(job.id)
    assert (job.status, job.model_digest) == ("completed", undisturbed.model_digest), f"TUTTI_TEST_SEED={seed}"


def test_a_node_that_never_returns_costs_only_its_share(federation, undisturbed):
    client = federation.client
    job = client.submit({**SPEC, "cohort": {"min_nodes": 2, "grace": 0.5}})
    for event in client.follow(job.id):
        if event.type == "RoundOpened" and event.data["round"] == 4:
            federation.kill("n2")
            break
    job = client.wait(job.id)
    federation.start("n2")
    assert job.status == "completed"
    why = client.why(job.id, 12)
    outcomes = {part.node: (part.outcome, part.reason) for part in why.attempts[-1].nodes}
    assert outcomes["n0"][0] == outcomes["n1"][0] == "counted"
    assert outcomes["n2"] == ("left out", "not connected")


def test_ctrl_c_of_a_node_is_a_goodbye_that_nobody_waits_for(federation, undisturbed):
    client = federation.client
    assert client.wait(client.submit({**SPEC, "rounds": 1}).id).status == "completed"  # all three are connected
    before = client.status().offset
    federation.end("n2", signal.SIGINT)
    job = client.wait(client.submit({**SPEC, "rounds": 1, "cohort": {"min_nodes": 2, "grace": 600}}).id)
    federation.start("n2")
    assert job.status == "completed"
    (left,) = [event for event in client.events(before, "nodes") if event.type == "NodeDisconnected"]
    assert left.data["reason"] == "the node closed the connection"

"""Jobs over a real bad link: a network namespace, latency, loss, a narrow band, `kill -9`, and the same final bits."""

import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from time import monotonic, sleep

import pytest

from support.badlink import BadLink, bad_link, why_not
from support.commands import running
from tutti import simulate
from tutti.apps.client import Client
from tutti.domain.pacing import LEAST
from tutti.domain.spec import load_spec
from tutti.domain.turns import DUE, FAST
from tutti.sim import Federation

DEADLINE = 120.0
SPEC = {
    "dataset": "digits",
    "rounds": 2,
    "seed": 5,
    "training": {"batch_size": 32, "lr": 0.05},
    "cohort": {"grace": 60},
    "evaluation": {"nodes": False},
}
NARROW = {**SPEC, "name": "int8", "model": "mlp:hidden=256", "codec": "int8", "model_codec": "int8", "rounds": 3}
LARGE = {**SPEC, "name": "large", "model": "mlp:hidden=8192", "rounds": 1}
CHOOSY = {
    **SPEC,
    "name": "choosy",
    "model": "mlp:hidden=512",
    "rounds": 14,
    "cohort": {"min_nodes": 4, "size": 2, "by_speed": True, "prefer_fast": 0.5, "at_least_every": 4},
}


class Far:
    """A coordinator here, and a node behind the link; the coordinator can be killed and started again."""

    def __init__(self, folder: Path, link: BadLink) -> None:
        self.folder, self.link = folder, link
        with closing(socket.create_server((link.here, 0))) as free:
            self.port = free.getsockname()[1]
        self._node, self._coordinator = ExitStack(), ExitStack()
        self.start()
        token = (folder / "data" / "operator-token").read_text().strip()
        self.client = Client(f"http://{link.here}:{self.port}", token)
        self.join("node-1", "digits:part=0/1,seed=5", link.inside)

    def join(self, name: str, data: str, prefix: Sequence[str] = ()) -> None:
        join = ("join", self.client.invite().link, "--data", data, "--name", name, "--state-dir", self.folder / name)
        self._node.enter_context(running(*join, cwd=self.folder, prefix=prefix))

    def start(self) -> None:
        up = ("up", "--host", self.link.here, "--port", self.port, "--data-dir", self.folder / "data")
        self.pid = self._coordinator.enter_context(running(*up, cwd=self.folder)).process.pid

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._coordinator.close()

    def arrived(self) -> int:
        """Bytes of uploads that are on their way."""
        return sum(file.stat().st_size for file in (self.folder / "data").glob("blobs/partial/*"))

    def close(self) -> None:
        self._node.close()
        self.client.close()
        self._coordinator.close()


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    if reason := why_not():
        pytest.skip(reason)
    with bad_link(seed=3) as link:
        far = Far(tmp_path_factory.mktemp("far"), link)
        try:
            yield far
        finally:
            far.close()


def simulated(spec: dict[str, object]) -> str:
    federation = Federation.divide("digits", 1, "iid", seed=5, held_out=0.2)
    return simulate(load_spec(spec), federation, engine="sequential").model


def until(condition: Callable[[], object]) -> None:
    end = monotonic() + DEADLINE
    while not condition():
        assert monotonic() < end, "waited too long"
        sleep(0.05)


def test_a_job_over_a_lossy_slow_link_makes_the_model_of_a_good_one(far: Far) -> None:
    far.link.delay, far.link.loss, far.link.band = 0.02, 0.02, 400e3
    job = far.client.submit(NARROW).id
    until(lambda: far.client.job(job).status in ("completed", "failed"))
    assert far.client.job(job).model_digest == simulated(NARROW)
    assert far.link.lost > 0, "the link lost nothing"


def test_an_upload_that_a_killed_coordinator_cut_off_goes_on(far: Far) -> None:
    far.link.delay, far.link.loss, far.link.band = 0.005, 0.002, 1.5e6
    job = far.client.submit(LARGE).id
    until(lambda: far.arrived() > 50_000)
    far.kill()
    assert (before := far.arrived()) > 0
    far.start()
    assert far.arrived() >= before, "what had arrived is gone"
    until(lambda: far.client.job(job).status in ("completed", "failed"))
    assert far.client.job(job).model_digest == simulated(LARGE)


def test_a_node_behind_a_slow_link_gets_less_work_and_fewer_turns_but_keeps_its_turn(far: Far) -> None:
    """Its machine is as fast as the others': what makes it slow is the time that model and update take."""
    far.link.delay, far.link.loss, far.link.band = 0.05, 0.0, 150e3
    for number in (2, 3, 4):
        far.join(f"node-{number}", f"digits:part={number}/5,seed=5")
    job = far.client.submit(CHOOSY).id
    until(lambda: far.client.job(job).status in ("completed", "failed"))
    assert far.client.job(job).status == "completed"
    parts = [far.client.why(job, round).attempts[-1].nodes for round in range(1, 15)]
    asked = [{part.node: part for part in each if part.selected} for each in parts]
    later = [each["node-1"].work for each in asked[5:] if "node-1" in each]
    assert later == [LEAST] * len(later), "computing less is all that it can do"
    fast = [part.node for each in asked for part in each.values() if part.reason == FAST]
    assert fast.count("node-1") <= 2 < len(fast)
    assert any(part.reason == DUE for each in asked for part in each.values())
    for first in range(14 - 5 + 1):
        assert any("node-1" in each for each in asked[first : first + 5]), "4 + 4/2 - 1 rounds without it"

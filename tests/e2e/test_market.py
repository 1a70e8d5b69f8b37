"""The market as processes: its demo, its command line, and kill -9 of a worker and of the coordinator."""

import io
import json
import re
import shlex
import signal
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from support.commands import running, tutti
from tutti.apps.client import Client

PAGE = Path(__file__).parents[2] / "docs" / "market.md"
LONG = {"clusters": 40, "iterations": 3000}


def table() -> bytes:
    """Rows without any clusters, on which k-means takes many steps."""
    file = io.BytesIO()
    np.savez(file, x=np.random.default_rng(0).random((40_000, 8)))
    return file.getvalue()


def test_the_demo_runs_the_whole_market(tmp_path):
    done = tutti("market", "demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for expected in (
        "coefficients",
        "inertia",
        "explained_variance",
        "alice     1000    950",
        "3450 are accounted for",
    ):
        assert expected in done.stdout


def test_the_commands_of_the_page_run(tmp_path):
    """Each of docs/market.md, in its order; its `tutti up` and `tutti join` go on in the background."""
    lines = re.findall(r"^\$ tutti (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    commands = [shlex.split(line) for line in lines]
    rows = "\n".join(f"{i},{2 * i + 1}" for i in range(20))
    (tmp_path / "rows.csv").write_text(f"size,price\n{rows}\n")
    with ExitStack() as stack:
        coordinator = stack.enter_context(running("up", "--port", 0, "--data-dir", "data", cwd=tmp_path))
        url = coordinator.ready["url"]
        for command in commands:
            if command[0] == "join":
                link = [coordinator.ready["join_link"] if part == "$LINK" else part for part in command]
                stack.enter_context(running(*link, "--state-dir", "worker", cwd=tmp_path))
            elif command[0] != "up":
                done = tutti(*command, cwd=tmp_path, TUTTI_URL=url)
                assert done.returncode == 0, (command, done.stderr)
        assert [command[0] for command in commands].count("market") == 5
        check_listings(tmp_path, url)
        check_refusals(tmp_path, url)


def check_listings(folder: Path, url: str) -> None:
    (worker,) = json.loads(tutti("market", "workers", "--json", cwd=folder, TUTTI_URL=url).stdout)
    assert (worker["worker_id"], worker["jobs_completed"], worker["reputation"]) == ("gpu-box", 7, 100)
    job = json.loads(tutti("market", "jobs", "--json", cwd=folder, TUTTI_URL=url).stdout)[-1]
    done = tutti("market", "result", job["job_id"], "--json", cwd=folder, TUTTI_URL=url)
    values = json.loads(done.stdout)["values"]
    assert values["coefficients"] == pytest.approx([2.0], rel=1e-2)
    assert len(json.loads(tutti("market", "kinds", "--json", cwd=folder, TUTTI_URL=url).stdout)) >= 3
    assert "alice" in tutti("market", "clients", cwd=folder, TUTTI_URL=url).stdout


def check_refusals(folder: Path, url: str) -> None:
    too_much = tutti("market", "submit", "alice", "kmeans", "--reward", 951, cwd=folder, TUTTI_URL=url)
    assert (too_much.returncode, "920 tokens" in too_much.stderr) == (7, True)
    unknown = tutti("market", "submit", "alice", "deep_thought", "--reward", 1, cwd=folder, TUTTI_URL=url)
    assert (unknown.returncode, "kmeans" in unknown.stderr) == (2, True)


def test_a_node_without_data_has_to_be_a_worker(tmp_path):
    done = tutti("join", "http://127.0.0.1:1/join#x", cwd=tmp_path)
    assert (done.returncode, "--worker" in done.stderr) == (2, True)


class Market:
    """A coordinator that can be killed and started again at the same address, and workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = ("--data-dir", folder / "data")

    def worker(self, link: str, name: str):
        options = ("--name", name, "--state-dir", self.folder / name, "--worker", "--stake", 150)
        return running("join", link, *options, cwd=self.folder)


def busy(client: Client, job: str, *, but: str = "") -> str:
    """Wait until a worker is at the job; its name."""
    while True:
        live = [a for a in client.market.job(job).attempts if a.holds is None and not a.reason]
        if live and live[0].worker_id != but:
            return live[0].worker_id


def check_paid_once(client: Client, job: str) -> None:
    done = client.market.wait(job)
    assert done.status == "verified", done
    assert client.account(f"node:{done.worker_id}").free == 10
    assert client.market.client("alice").balance == 990
    totals = client.ledger()
    assert totals.minted == totals.free + totals.staked + totals.escrowed + totals.burned
    assert (totals.escrowed, totals.burned) == (0, 0)


def test_kill_9_of_a_worker_and_of_the_coordinator_while_they_work(tmp_path):
    market = Market(tmp_path)
    with running("up", "--port", 0, *market.data, cwd=tmp_path) as first:
        url = first.ready["url"]
        with Client(url) as client:
            link = client.invite(uses=2).link
            for name in ("ada", "bob"):
                client.mint(f"node:{name}", 150, key=name)
            client.market.register_client("alice", 1000)
            data = client.market.upload(table()).data
            job = client.market.submit("alice", "kmeans", 10, options=LONG, data=data, key="once").job_id
            with market.worker(link, "ada") as ada:
                assert busy(client, job) == "ada"
                ada.end(signal.SIGKILL)
            with market.worker(link, "bob"):
                assert busy(client, job, but="ada") == "bob"
                first.end(signal.SIGKILL)
                port = url.rpartition(":")[2]
                with running("up", "--port", port, *market.data, cwd=tmp_path), Client(url) as again:
                    again.market.submit("alice", "kmeans", 10, options=LONG, data=data, key="once")  # the same job
                    check_paid_once(again, job)
                    assert again.market.worker("ada").jobs_lost == 1
                    assert again.market.worker("ada").staked == 150

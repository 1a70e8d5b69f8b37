"""The market as processes: its demo, its command line, and kill -9 of a worker and of the coordinator."""

import io
import json
import signal
from pathlib import Path

import numpy as np
import pytest

from support.commands import running, tutti
from tutti.apps.client import Client

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


def test_ask_for_work_on_the_command_line(tmp_path):
    rows = "\n".join(f"{i},{2 * i + 1}" for i in range(20))
    (tmp_path / "rows.csv").write_text(f"size,price\n{rows}\n")
    with running("up", "--port", 0, "--data-dir", "data", cwd=tmp_path) as coordinator:
        url = ("--url", coordinator.ready["url"])
        assert tutti("market", "client", "alice", "--balance", 100, *url, cwd=tmp_path).returncode == 0
        tutti("ledger", "mint", "node:ada", 150, "--key", "k", *url, cwd=tmp_path)
        link = ("join", coordinator.ready["join_link"], "--name", "ada", "--state-dir", "ada")
        with running(*link, "--worker", "--stake", 150, cwd=tmp_path):
            asked = ("market", "submit", "alice", "linear_regression:ridge=1e-6", "--reward", 50, "--target", "price")
            done = tutti(*asked, "--data", "rows.csv", "--wait", "--json", *url, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            values = json.loads(done.stdout)["values"]
            assert values["coefficients"] == pytest.approx([2.0], abs=1e-4)
            assert values["intercept"] == pytest.approx(1.0, abs=1e-3)
            (worker,) = json.loads(tutti("market", "workers", "--json", *url, cwd=tmp_path).stdout)
            assert (worker["worker_id"], worker["jobs_completed"], worker["reputation"]) == ("ada", 1, 100)
            for listing in ("clients", "jobs", "kinds"):
                assert json.loads(tutti("market", listing, "--json", *url, cwd=tmp_path).stdout)
                assert tutti("market", listing, *url, cwd=tmp_path).returncode == 0
            assert "1 verified" in tutti("market", "show", *url, cwd=tmp_path).stdout
        too_much = tutti("market", "submit", "alice", "kmeans", "--reward", 51, *url, cwd=tmp_path)
        assert (too_much.returncode, "50 tokens" in too_much.stderr) == (7, True)
        unknown = tutti("market", "submit", "alice", "deep_thought", "--reward", 1, *url, cwd=tmp_path)
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

"""The chain as a stranger uses it: deploy, train, look, claim; then with Hardhat, its deploy script, and its death."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.commands import ENVIRONMENT, running, tutti
from support.evm import CONTRACTS, hardhat
from tutti.apps.cli.exits import Exit
from tutti.apps.client import Client
from tutti.core.errors import TuttiError

JOB = """
name = "chained"
rounds = 2
dataset = "digits"
model = "linear"
cohort = { min_nodes = 2 }
rewards = { pool = 100, data = "digits:split=test" }
"""


def ok(*arguments, cwd, **environment):
    done = tutti(*arguments, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(found, wanted, seconds=60):
    """Ask until the answer is as wanted."""
    import time

    end = time.monotonic() + seconds
    while not wanted(answer := found()):
        assert time.monotonic() < end, answer
        time.sleep(0.05)
    return answer


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="t-") as path:
        yield Path(path)


def test_sessions_contributions_and_rewards_are_on_the_chain_and_survive_a_kill(folder):
    said = json.loads(ok("chain", "deploy", "--veto", 0, "--json", cwd=folder))
    assert set(said["contracts"]) == {"token", "staking", "escrow", "rewards", "registry", "tracker"}
    (folder / "job.toml").write_text(JOB)
    with ExitStack() as stack:
        up = stack.enter_context(running("up", "--port", 0, cwd=folder))
        at = {"TUTTI_URL": up.ready["url"]}
        ok("ledger", "mint", "treasury", 500, "--key", "start", cwd=folder, **at)
        link = ok("invite", "--uses", 2, cwd=folder, **at).strip()
        for part, name in enumerate(("clinic-a", "clinic-b")):
            source = f"digits:part={part}/2"
            stack.enter_context(
                running("join", link, "--data", source, "--name", name, "--state-dir", name, cwd=folder)
            )
        job = json.loads(ok("run", "job.toml", "--json", cwd=folder, **at))["id"]
        with Client(up.ready["url"]) as client:
            until(lambda: client.chain_session(job).closed_at if client.chain().sessions else None, bool)
            status = client.chain()
            assert (status.connected, status.sessions, status.waiting, status.minted) == (True, 1, 0, 500)
            assert status.contracts == said["contracts"]
            session = client.chain_session(job)
            assert (session.rounds, session.recorded) == (2, [1, 2])
            assert session.model in {client.chain_round(job, number).model for number in (1, 2)}
            recorded = client.chain_round(job, 2)
            assert (recorded.count, recorded.root) == (2, client.scored(job, 2).root)
            proven = client.chain_proof(job, 1, "clinic-a")
            assert proven.verified
            assert proven.proof == client.proof(job, 1, "clinic-a")
            earned = client.rewards(job).earned
            assert client.claimable("node:clinic-a").owed == earned["clinic-a"] > 0
        up.end(signal.SIGKILL)

        up = stack.enter_context(running("up", "--port", 0, cwd=folder))
        at = {"TUTTI_URL": up.ready["url"]}
        ok("ledger", "claim", "node:clinic-a", "--key", "november", cwd=folder, **at)
        ok("ledger", "claim", "node:clinic-a", "--key", "november", cwd=folder, **at)
        again = tutti("ledger", "claim", "node:clinic-a", "--key", "december", cwd=folder, **at)
        assert again.returncode == Exit.CONFLICT
        assert "has been claimed" in again.stderr
        with Client(up.ready["url"]) as client:
            assert client.account("node:clinic-a").free == earned["clinic-a"]
            assert [each.job for each in client.chain_sessions()] == [job]
            hers = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
            left = client.transfer("node:clinic-a", hers, 3, key="payout").free
            assert (left, client.account(hers).free) == (earned["clinic-a"] - 3, 3)
            with pytest.raises(TuttiError, match="holds its own key"):
                client.transfer(hers, "node:clinic-a", 3, key="back")
            until(lambda: client.chain().waiting, lambda waiting: waiting == 0)
            status = client.chain()
            assert (status.sessions, status.owed) == (1, earned["clinic-b"])
            held = {each.account: each for each in client.holders()}
            assert held.keys() >= {"node:clinic-a", "node:clinic-b", hers}
            assert held["node:clinic-b"].owed == earned["clinic-b"]
            assert held[hers].free == 3
        assert "minted 500" in " ".join(ok("ledger", "show", cwd=folder, **at).split())
        operator = json.loads(ok("chain", "keys", "--json", cwd=folder))["operator"]
        ok("ledger", "export", "ledger.jsonl", cwd=folder, **at)
        checked = ok("ledger", "verify", "--key", operator, "--file", "ledger.jsonl", cwd=folder)
        assert "executed again, signed and as told; 500 tokens are accounted for" in checked
        assert "2 rounds are paid by the rule" in checked
        assert "clinic-a: 2 updates, signed by 0x" in checked
        assert f"2 rounds of {job} are paid" in ok(
            "ledger", "verify", "--key", operator, "--job", job, cwd=folder, **at
        )
        told = folder / "ledger.jsonl"
        told.write_text(told.read_text().replace('"amount":500', '"amount":501'))
        forged = tutti("ledger", "verify", "--key", operator, "--file", "ledger.jsonl", cwd=folder)
        assert "is said to be Mint: it says 500" in forged.stderr
        assert "finds clinic-b's update" in ok(
            "chain", "session", job, "--round", 2, "--node", "clinic-b", cwd=folder, **at
        )
        assert "1 sessions" in ok("chain", "status", cwd=folder, **at)

    twice = tutti("chain", "deploy", cwd=folder)
    assert twice.returncode == Exit.CONFLICT
    assert "has a chain already" in twice.stderr


def test_without_a_chain_the_coordinator_says_so_and_all_else_works(folder):
    with running("up", "--port", 0, cwd=folder) as up, Client(up.ready["url"]) as client:
        status = client.chain()
        assert not status.connected
        assert "tutti chain deploy" in status.error
        assert client.mint("a", 5, key="k").free == 5
        assert "not connected" in ok("chain", "status", cwd=folder, TUTTI_URL=up.ready["url"])
    refused = tutti("chain", "deploy", cwd=folder)
    assert refused.returncode == Exit.CONFLICT
    assert "a ledger with tokens in it" in refused.stderr


def test_no_node_there_is_said_in_a_line(folder):
    done = tutti("chain", "deploy", "--rpc", "http://127.0.0.1:9", cwd=folder)
    assert done.returncode == Exit.UNAVAILABLE
    assert done.stderr.startswith("tutti: no chain answers at http://127.0.0.1:9")


@pytest.mark.xdist_group("hardhat")
def test_with_hardhat_as_documented_and_when_it_dies(folder):
    with hardhat(folder / "node.log") as node:
        keys = json.loads(ok("chain", "keys", "--json", cwd=folder))
        roles = {f"TUTTI_{role.upper()}": keys[role] for role in ("operator", "arbiter", "guardian")}
        assert deploy(node.url, {})  # with nothing said, the roles are the node's own accounts
        deployment = CONTRACTS / "deployments" / "localhost.json"
        wrong = tutti("chain", "connect", deployment, cwd=folder)
        assert wrong.returncode == Exit.CONFLICT
        assert f"TUTTI_OPERATOR={keys['operator']}" in wrong.stderr
        printed = deploy(node.url, roles)
        shutil.copy(deployment, folder / "deployed.json")
        assert json.loads((folder / "deployed.json").read_text())["contracts"]["token"] in printed
        ok("chain", "connect", "deployed.json", cwd=folder)
        ok("chain", "deploy", "--rpc", node.url, "--data-dir", "other", cwd=folder)  # gives itself gas money
        with running("up", "--port", 0, "--data-dir", "other", cwd=folder) as up, Client(up.ready["url"]) as client:
            assert client.mint("alice", 5, key="k").free == 5
            assert client.chain().connected
            operator = json.loads(ok("chain", "keys", "--data-dir", "other", "--json", cwd=folder))["operator"]
            at = {"TUTTI_URL": up.ready["url"]}
            checked = ok("ledger", "verify", "--key", operator, "--rpc", node.url, cwd=folder, **at)
            assert "1 transactions are on chain 31337, signed and as told; 5 tokens" in checked
            os.killpg(node.process.pid, signal.SIGKILL)
            node.process.wait()
            status = client.chain()
            assert not status.connected
            assert "no chain answers" in status.error
            done = tutti("ledger", "account", "alice", cwd=folder, TUTTI_URL=up.ready["url"])
            assert (done.returncode, "no chain answers" in done.stderr) == (Exit.UNAVAILABLE, True)
            assert client.status() is not None  # training does not need it


def deploy(url, roles):
    """`npx hardhat run scripts/deploy.js --network localhost`."""
    done = subprocess.run(
        ["npx", "hardhat", "run", "scripts/deploy.js", "--network", "localhost"],
        cwd=CONTRACTS,
        env=ENVIRONMENT | roles | {"TUTTI_RPC": url},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

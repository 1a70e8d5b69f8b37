"""Rewards of real jobs: nodes train, the desk scores and pays, anybody checks, crashes change nothing."""

import asyncio

import numpy as np
import pytest

from support.served import app_of, caller
from support.worlds import SCHEMA, World, toy_data, toy_spec
from tutti.adapters.identities.ed25519 import verify
from tutti.adapters.ledgers.sqlite import read_entries
from tutti.core.registry import Choice
from tutti.domain import events as e
from tutti.domain.contributions import BadProof, check_paid, check_proof, entry_of, prove
from tutti.domain.ledger import Account, Mint, Order, verify_chain
from tutti.domain.spec import BadSpec, load_spec
from tutti.ports import Data, Examples
from tutti.ports.training import datasets

DEADLINE = 30.0


class ToySource:
    """Rows of the same kind as the nodes'."""

    def load(self) -> Data:
        parts = [toy_data(part) for part in range(10, 14)]
        x = np.concatenate([part.train.x for part in parts]) - 10  # where the nodes' rows are
        y = (x @ np.array([1.0, -2.0, 0.5], np.float32))[:, None]
        return Data("toy", SCHEMA, Examples(x, y), Examples(x[:0], y[:0]))


if "toy" not in datasets:

    @datasets.register("toy")
    def toy_source() -> ToySource:
        """Rows for tests."""
        return ToySource()


def spec(**fields):
    return toy_spec(3, rewards={"pool": 1000, "data": "toy"}, training={"lr": 0.002, "epochs": 1}, **fields)


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    await world.up()
    for i, name in enumerate("abc"):
        await world.join(name, i)
    yield world
    await world.close()


async def settled(world, job):
    """Wait until the desk is done with a job."""
    offset = 0
    async with asyncio.timeout(DEADLINE):
        async for batch in world.core.log.follow(offset):
            if any(isinstance(r.event, e.RewardsSettled) and r.event.job == job.id for r in batch):
                return world.desk.account(job.id)


async def test_nodes_are_paid_for_what_their_updates_did_and_anybody_can_check_it(world):
    await world.ledger.post(Order("mint", Mint(to="treasury", amount=10_000)))
    job = await world.core.submit(spec())
    account = await settled(world, job)
    assert sorted(account.scored) == [1, 2, 3, 4]
    entries = read_entries(world.folder / "ledger.sqlite")
    books = verify_chain(entries, verify, (await world.ledger.head()).public_key)
    paid = sum(books.account(f"node:{name}").owed for name in "abc")
    assert 0 < paid <= 4000
    assert books.account("treasury") == Account(free=10_000 - paid)  # the rest of the pool came back
    for number, scored in account.scored.items():
        assert [one.fault for one in scored.contributions] == ["", "", ""], number
        assert check_paid(scored.contributions, scored.pool, entries)
        for name in "abc":
            proof = prove(scored.contributions, name)
            check_proof(proof)
            assert entry_of(proof, entries).operation.evidence == scored.root
        with pytest.raises(BadProof):
            check_paid([*scored.contributions[1:]], scored.pool, entries)
    assert any(scored.contributions[0].gain for scored in account.scored.values())


@pytest.mark.parametrize("strategy", ["scaffold", "fedbuff:buffer=2"])
async def test_the_models_part_of_an_update_is_scored(world, strategy):
    """SCAFFOLD's updates carry a control variate beside the change; FedBuff's may have begun rounds ago."""
    await world.ledger.post(Order("mint", Mint(to="treasury", amount=10_000)))
    account = await settled(world, await world.core.submit(spec(strategy=strategy)))
    assert sorted(account.scored) == [1, 2, 3, 4]
    for scored in account.scored.values():
        assert scored.note == ""
        assert len(scored.rows) == 64
        assert any(one.gain for one in scored.contributions)


async def test_who_was_left_out_of_the_model_earns_nothing_and_has_given_nothing(tmp_path):
    world = World(tmp_path)
    await world.up()
    try:
        for i, name in enumerate("abcd"):
            await world.join(name, i)
        rows = toy_data(4)
        liar = Examples(rows.train.x, rows.train.y - 1000)
        await world.join("mallory", 4, data=Data("toy", rows.schema, liar, rows.held_out))
        await world.ledger.post(Order("mint", Mint(to="treasury", amount=10_000)))
        fields = {"rewards": {"pool": 1000, "data": "toy"}, "training": {"lr": 0.002, "epochs": 1}}
        job = await world.core.submit(toy_spec(5, reducer="multi-krum:f=1", **fields))
        account = await settled(world, job)
        for scored in account.scored.values():
            *honest, last = scored.contributions
            assert (last.node, last.payment, "left its update out" in last.fault) == ("mallory", 0, True)
            assert not any(one.fault for one in honest)
        assert set(world.core.job(job.id).contributions) == set("abcd")
        assert await world.ledger.account("node:mallory") == Account()
        assert (await world.ledger.totals()).owed > 0
    finally:
        await world.close()


async def test_without_funds_rounds_are_scored_and_paid_when_there_are_some(world):
    job = await world.core.submit(spec())
    await world.finished(job)
    async with asyncio.timeout(DEADLINE):
        async for _ in world.core.log.follow(0):
            account = world.desk.account(job.id)
            if len(account.scored) == 4:
                break
    assert (await world.ledger.totals()).minted == 0
    async with caller(app_of(world)) as http:
        wish = {"to": "treasury", "amount": 4000, "key": "m"}
        assert (await http.post("/api/v1/ledger/mint", json=wish)).status_code == 200
    await settled(world, job)
    assert (await world.ledger.totals()).owed > 0


async def test_a_restart_in_the_middle_changes_no_payment(world, tmp_path):
    await world.ledger.post(Order("mint", Mint(to="treasury", amount=10_000)))
    job = await world.core.submit(spec(rounds=6))
    await world.until(lambda job: job.rounds_done >= 2, job)
    await world.down()
    await world.up()
    account = await settled(world, job)
    assert sorted(account.scored) == [1, 2, 3, 4, 5, 6]
    keys = [entry.key for entry in read_entries(world.folder / "ledger.sqlite")]
    assert len(keys) == len(set(keys))
    assert sum(key.startswith("reward/") for key in keys) == 6
    for scored in account.scored.values():
        assert not any("gone" in one.fault for one in scored.contributions)


async def test_updates_are_forgotten_once_they_are_scored(world):
    await world.ledger.post(Order("mint", Mint(to="treasury", amount=10_000)))
    job = await world.core.submit(spec())
    await settled(world, job)
    assert world.desk.retained() == set()
    updates = {
        r.event.digest for r in await world.core.log.read() if isinstance(r.event, e.UpdateAccepted) and r.event.digest
    }
    assert not updates & world.core.keeper.needed()


async def test_over_http_with_the_reasons(world):
    await world.ledger.post(Order("mint", Mint(to="treasury", amount=10_000)))
    job = await world.core.submit(spec())
    await settled(world, job)
    async with caller(app_of(world)) as http:
        shown = (await http.get("/api/v1/ledger")).json()
        assert shown["public_key"] == (await world.ledger.head()).public_key
        page = (await http.get("/api/v1/ledger/entries?limit=3")).json()
        assert [entry["seq"] for entry in page["items"]] == [0, 1, 2]
        rest = (await http.get(f"/api/v1/ledger/entries?after={page['next']}")).json()
        assert rest["items"][-1]["hash"] == shown["head"]
        rewards = (await http.get(f"/api/v1/jobs/{job.id}/rewards")).json()
        assert rewards["settled"]
        assert set(rewards["earned"]) == {"a", "b", "c"}
        scored = (await http.get(f"/api/v1/jobs/{job.id}/rewards/2")).json()
        assert all(each["contribution"]["node"] in each["why"] for each in scored["earned"])
        owed = (await http.get("/api/v1/ledger/accounts/node:a")).json()["owed"]
        headers = {"idempotency-key": "c1"}
        for _ in range(2):
            claimed = (await http.post("/api/v1/ledger/accounts/node:a/claim", headers=headers)).json()
            assert (claimed["free"], claimed["owed"]) == (owed, 0)
        again = await http.post("/api/v1/ledger/accounts/node:a/claim", headers={"idempotency-key": "c2"})
        assert again.status_code == 409
        assert (await http.get("/api/v1/jobs/none/rewards")).status_code == 404
        assert (await http.get(f"/api/v1/jobs/{job.id}/rewards/9")).status_code == 404
        assert (await http.get(f"/api/v1/jobs/{job.id}/rewards/1/proof/z")).status_code == 422
        bad = await http.post("/api/v1/ledger/mint", json={"to": "x", "amount": 1.5, "key": "k"})
        assert bad.status_code == 422


async def test_a_job_whose_rewards_cannot_be_measured_is_refused(world):
    with pytest.raises(BadSpec, match=r"rewards\.data"):
        await world.core.submit(toy_spec(3, rewards={"pool": 1, "data": "csv:path=/etc/passwd,target=x"}))
    with pytest.raises(BadSpec, match="more than there can be"):
        await world.core.submit(
            load_spec({"dataset": "toy", "model": "toy", "rounds": 2**20, "rewards": {"pool": 2**40, "data": "toy"}})
        )


async def test_an_update_handed_in_again_next_round_earns_nothing(tmp_path):
    """A lazy node: it trains once, and hands in the same update in every round."""
    from support.worlds import ToyTrainer
    from tutti.core.params import Params
    from tutti.ports import Work
    from tutti.ports.training import models

    class Lazy(ToyTrainer):
        kept: Params | None = None

        def train(self, params, examples, task, report):
            if examples.x[0, 0] < 50:  # an honest node
                return super().train(params, examples, task, report)
            if Lazy.kept is None:
                Lazy.kept = Params(params.layout, np.full(4, 0.5, np.float32))
            return Work(Params(params.layout, params.buffer + Lazy.kept.buffer), len(examples), {"loss": 1.0}, 1)

    if "lazy-toy" not in models:

        @models.register("lazy-toy")
        def lazy(*, data):
            """For this test."""
            return Lazy()

    world = World(tmp_path)
    await world.up()
    try:
        for i, name in enumerate("ab"):
            await world.join(name, i)
        far = toy_data(100)
        await world.join("lazy", 2, data=Data(far.name, far.schema, far.train, far.held_out))
        await world.ledger.post(Order("mint", Mint(to="treasury", amount=10_000)))
        lazy_spec = load_spec(
            {
                "dataset": "toy",
                "model": "lazy-toy",
                "rounds": 3,
                "cohort": {"min_nodes": 3},
                "training": {"lr": 0.002},
                "rewards": {"pool": 100, "data": "toy"},
            }
        )
        account = await settled(world, await world.core.submit(lazy_spec))
        faults = {n: {one.node: one.fault for one in s.contributions} for n, s in account.scored.items()}
        assert faults[1]["lazy"] == ""
        assert "repeats" in faults[2]["lazy"]
        assert "repeats" in faults[3]["lazy"]
        assert not any(found[name] for found in faults.values() for name in "ab")
    finally:
        await world.close()


def test_the_reward_data_may_be_written_short():
    assert load_spec(
        {"dataset": "d", "model": "mlp", "rewards": {"pool": 1, "data": "digits:split=test"}}
    ).rewards.data == (Choice("digits", {"split": "test"}))

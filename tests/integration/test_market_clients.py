"""Clients and operators who cheat: what they cannot spend, whom they cannot hurt, and what is refused at once."""

import io
import threading
import time

import numpy as np
import pytest

from support.market import ADMIN, Marketplace
from support.served import BEARER, OPEN_TO_THE_NETWORK, app_of, caller
from tutti.adapters.accounts.argon2 import Argon2Passwords
from tutti.adapters.accounts.memory import MemoryAccounts
from tutti.core.registry import Choice
from tutti.core.workload import BadTable, Table
from tutti.core.workloads import training
from tutti.domain.ledger import Mint, Order
from tutti.domain.market import assignment
from tutti.domain.market.jobs import Status
from tutti.services.accounts import Accounts
from tutti.services.market.judging import admit, fault_of_the_job, solve
from tutti.services.market.tables import read_table
from tutti.testing.market import random_job
from tutti.wire.tables import encode_table

PASSWORD = "correct horse battery"


@pytest.fixture
async def place(tmp_path):
    place = Marketplace(tmp_path)
    await place.open()
    yield place
    await place.close()


@pytest.fixture
async def sign_in(place):
    """Gives the headers of somebody with a role."""
    accounts = Accounts(MemoryAccounts(), Argon2Passwords(memory=64, passes=1), time.time)
    app = app_of(place, OPEN_TO_THE_NETWORK, accounts)

    async def headers(http, name: str, role: str) -> dict[str, str]:
        wish = {"name": name, "password": PASSWORD, "role": role, "organisation": "Ward"}
        boss = await http.post("/auth/signin", json={"username": "ada", "password": PASSWORD})
        by = {"authorization": f"Bearer {boss.json()['access_token']}"} if boss.status_code == 200 else BEARER
        assert (await http.post("/auth/signup", json=wish, headers=by)).status_code == 201
        answer = await http.post("/auth/signin", json={"username": name, "password": PASSWORD})
        return {"authorization": f"Bearer {answer.json()['access_token']}"}

    async with caller(app) as http:
        yield http, headers


async def test_nobody_has_anothers_tokens_pay_for_a_training(place, sign_in):
    http, headers = sign_in
    boss = await headers(http, "ada", "admin")
    mallory = await headers(http, "mallory", "operator")
    await place.ledger.post(Order("m", Mint(to="treasury", amount=1000)))
    job = {"dataset": "toy", "model": "toy", "rounds": 4}
    for sponsor in ("client:client-0", "treasury", "node:ada", "client:nobody"):
        rewards = {"pool": 250, "data": "toy", "sponsor": sponsor}
        answer = await http.post("/api/v1/jobs", json={**job, "rewards": rewards}, headers=mallory)
        assert answer.status_code == 403, answer.text
        assert "mallory cannot spend its tokens" in answer.json()["detail"]
    mine = await http.post("/api/v1/market/clients", json={"client_address": "mine"}, headers=mallory)
    assert mine.status_code == 201
    rewards = {"pool": 250, "data": "toy", "sponsor": "client:mine"}
    its_own = await http.post("/api/v1/jobs", json={**job, "rewards": rewards}, headers=mallory)
    assert its_own.status_code != 403, its_own.text
    assert (await http.post("/api/v1/jobs", json={**job, "rewards": rewards}, headers=boss)).status_code != 403


async def test_an_operator_does_not_touch_anothers_worker(place, sign_in):
    http, headers = sign_in
    await headers(http, "ada", "admin")
    mallory = await headers(http, "mallory", "operator")
    await place.hire("gpu-box", 150)
    root = "/api/v1/market/workers"
    wish = {"worker_id": "gpu-box", "stake_amount": 150, "price": 2**53, "owner": "client-0"}
    tried = [
        await http.post(root, json=wish, headers=mallory),
        await http.post(f"{root}/gpu-box/unstake", json={"amount": 150}, headers={**mallory, "Idempotency-Key": "u"}),
        await http.post(f"{root}/gpu-box/withdraw", headers={**mallory, "Idempotency-Key": "w"}),
    ]
    assert [answer.status_code for answer in tried] == [403, 403, 403], [answer.text for answer in tried]
    assert (await place.worker_holds("gpu-box")).staked == 150
    assert place.market.worker("gpu-box").offer.price == 1


# -- tables and limits that would hurt honest workers ---------------------------------------------------


def poisoned() -> bytes:
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    np.savez(file, x=rng.standard_normal((40, 2)), y=rng.standard_normal(40), start=np.full(3, 1e200))
    return file.getvalue()


async def test_a_start_that_overflows_is_refused(place):
    data = await place.market.keep_table(encode_table(read_table(poisoned(), "")), ADMIN)
    with pytest.raises(BadTable, match="between -1e\\+06 and 1e\\+06"):
        await place.submit("training", 100, data=data)


async def test_nobody_is_slashed_for_what_an_honest_result_does_not_pass_either(place, monkeypatch):
    """Should such a table get by, or a check be wrong: the same work is done here before anybody is called a cheat."""
    monkeypatch.setattr(training, "FARTHEST", float("inf"))
    for name in ("ada", "bob"):
        await place.hire(name, 1000)
    data = await place.market.keep_table(encode_table(read_table(poisoned(), "")), ADMIN)
    with np.errstate(all="ignore"):
        (job,) = await place.settled(await place.submit("training", 100, data=data, replicas=2))
    assert job.status is Status.FAILED
    assert job.failed.startswith("an honest result does not pass its check either"), job.failed
    assert await place.client_holds() == 10_000
    for name in ("ada", "bob"):
        held = await place.worker_holds(name)
        assert (held.free + held.staked, place.market.worker(name).overall.score) == (1000, 100)


def test_honest_work_has_no_fault_of_the_job():
    for seed in range(50):
        job, table = random_job(np.random.default_rng(seed))
        assert fault_of_the_job(job, encode_table(table), seed) == ""


def test_a_result_that_could_not_be_handed_in_is_not_asked_for():
    data = encode_table(Table(np.random.default_rng(0).standard_normal((1000, 100))))
    with pytest.raises(BadTable, match="the result may take 78 MiB, and 64 are taken"):
        admit(Choice.parse("kmeans:clusters=1000,iterations=100"), data)
    assert admit(Choice.parse("kmeans:clusters=800,iterations=80"), data) == (1000, 100)


async def test_a_job_that_gives_no_time_hurts_nobody(place):
    """One that was given it is not blamed for its end."""
    gate = threading.Event()

    def slow(kind: Choice, data, seed: int):
        gate.wait()
        return solve(kind, data, seed)

    await place.hire("ada", 150, solve=slow)
    short = await place.submit("linear_regression", 10, seconds=20.0)
    await place.until_market(lambda: place.market.job(short.id).attempts)
    place.later, place.floor.leases.started = 21.0, place.floor.leases.started - 60.0
    place.floor.poke(short.id)
    (done,) = await place.settled(short)
    gate.set()
    assert done.attempt(1).reason == "no result within 20 s"
    assert place.market.worker("ada").overall.score == 100
    assert await place.client_holds() == 10_000


async def test_jobs_that_nobody_takes_are_looked_through_once(place, monkeypatch):
    """Thousands of jobs that pay too little keep nobody's heartbeats waiting: equal ones are asked about once."""
    await place.hire("ada", 150, price=50)
    draws = []
    for _ in range(30):
        await place.submit("linear_regression", 1)
    await place.until_market(lambda: all(job.funded for job in place.market.market.jobs.values()))
    tried = assignment.why_not

    def counted(*given):
        draws.append(given)
        return tried(*given)

    monkeypatch.setattr(assignment, "why_not", counted)
    assert await place.floor.assigning.assign() == 0
    assert len(draws) == 1
    (job,) = await place.settled(await place.submit("linear_regression", 60))
    assert job.attempt(1).worker == "ada"

"""The market as a machine: in whatever order, nobody is paid twice, and every token is accounted for."""

import numpy as np
import pytest

from tutti.core.errors import Conflict, NotFound
from tutti.core.registry import Choice
from tutti.core.workload import Table, verify, workloads
from tutti.core.workloads import kmeans
from tutti.core.workloads.kmeans import _distances
from tutti.domain.ledger import Books, Found, Mint, Stake
from tutti.domain.market import events as e
from tutti.domain.market import jobs as j
from tutti.domain.market import money, sealing
from tutti.domain.market.assignment import draw
from tutti.domain.market.jobs import Status
from tutti.domain.market.reputation import Record, beta_below, lower_bound
from tutti.domain.market.rules import RULES
from tutti.domain.market.standing import Market
from tutti.services.market.judging import judge, solve
from tutti.testing.market import check_honest, garbage, random_job
from tutti.wire.tables import decode_table, encode, encode_table

WORKERS = ("ada", "bob", "eve", "mal", "zoe")


class Walk:
    """A market and its books, driven at random. `done` counts what has happened, lest nothing is tested."""

    def __init__(self, seed: int, kind: type[Market] = Market) -> None:
        self.rng = np.random.default_rng(seed)
        self.now = 0.0
        self.market, self.books = kind(RULES), Books()
        self.posted: dict[str, object] = {}
        self.done: dict[str, int] = {}
        self._post("found", Found(public_key=""))
        for name in WORKERS:
            self._post(f"m/{name}", Mint(to=money.worker_account(name), amount=500))
            self._post(f"s/{name}", Stake(account=money.worker_account(name), amount=500))
            self.market.apply(e.WorkerRegistered(at=0, worker=name, stake=500))
            self.market.apply(e.WorkerMeasured(at=0, worker=name, gflops=1.0))
        self._post("c", Mint(to=money.client_account("carl"), amount=2000))
        self.market.apply(e.ClientRegistered(at=0, client="carl"))

    def _post(self, key: str, operation: object) -> None:
        """As a ledger does: an order that is known changes nothing."""
        if key in self.posted:
            assert self.posted[key] == operation, key
            return
        postings = self.books.decide(operation, int(self.now))  # type: ignore[arg-type]
        self.books.apply(operation, postings, int(self.now))  # type: ignore[arg-type]
        self.posted[key] = operation

    def step(self) -> None:
        self.now += float(self.rng.exponential(1.0))
        open_jobs = list(self.market.open)
        if not open_jobs or (len(open_jobs) < 4 and self.rng.random() < 0.1):
            self._submit()
        else:
            job = self.market.jobs[str(self.rng.choice(open_jobs))]
            acts = [self._fund, self._assign, self._hand_in, self._hand_in, self._judge, self._release, self._conclude]
            act = self.rng.choice(acts)
            act = self._dispute if job.status is Status.VERIFIED and self.rng.random() < 0.3 else act
            (self._settle if job.final and self.rng.random() < 0.5 else act)(job)
        self.check()

    def _do(self, job: j.ComputeJob, command: j.Command) -> None:
        try:
            for event in j.decide(job, command, RULES, now=self.now):
                self.market.apply(event, job.id)
                self.done[type(event).__name__] = self.done.get(type(event).__name__, 0) + 1
        except Conflict:
            self.done["refused"] = self.done.get("refused", 0) + 1
        self._secure(self.market.jobs[job.id])

    def _secure(self, job: j.ComputeJob) -> None:
        """As the floor does it, which may come to an attempt only once it is over: it never had a bond then."""
        for attempt in job.attempts:
            bond, end = money.bond(job, attempt), money.bond_end(job, attempt)
            if bond.key not in self.posted and (attempt.over or self.rng.random() < 0.1):
                continue
            try:
                self._post(bond.key, bond.operation)
            except NotFound:  # a dispute whose deposit is gone
                continue
            if end is not None:
                self.done["slashed"] = self.done.get("slashed", 0) + (
                    "penalty" in end.key and end.key not in self.posted
                )
                self._post(end.key, end.operation)

    def _submit(self) -> None:
        kind = Choice(str(self.rng.choice(["linear_regression", "kmeans", "pca"])))
        event = e.ComputeSubmitted(
            at=self.now,
            job=f"job-{len(self.market.jobs)}",
            client="carl",
            kind=kind,
            data="",
            rows=10,
            columns=2,
            seed=0,
            reward=int(self.rng.integers(3, 60)),
            replicas=int(self.rng.integers(1, 4)),
            seconds=float(self.rng.integers(10, 400)),
            window=float(self.rng.choice([0.0, 200.0])),
        )
        self.market.apply(event)

    def _fund(self, job: j.ComputeJob) -> None:
        try:
            for order in money.funding(job):
                self._post(order.key, order.operation)
        except Conflict:
            if not job.funded:
                self._do(job, j.Conclude(reason="no funds"))
            return
        self._do(job, j.Fund())

    def _assign(self, job: j.ComputeJob) -> None:
        free = [name for name in WORKERS if name not in self.market.busy]
        stakes = {name: self.books.account(money.worker_account(name)).staked for name in WORKERS}
        for slot in job.open_slots(RULES)[:1]:
            if found := draw(self.market, job, slot, free, stakes, self.rng.random, self.now):
                self._do(job, j.Assign(slot=slot, worker=found.worker.name, owner=found.worker.owner, bond=found.bond))

    def _hand_in(self, job: j.ComputeJob) -> None:
        if not job.attempts:
            return
        attempt = job.attempt(int(self.rng.integers(1, len(job.attempts) + 1)))
        who = attempt.worker if self.rng.random() < 0.9 else "mal"
        if attempt.commitment and self.rng.random() < 0.8:
            self._do(job, j.Reveal(worker=who, attempt=attempt.number, result="r", nonce="n"))
        else:
            self._do(
                job,
                j.Commit(
                    worker=who, attempt=attempt.number, commitment=str(self.rng.choice(["x", "y"], p=[0.95, 0.05]))
                ),
            )

    def _judge(self, job: j.ComputeJob) -> None:
        for number in sealing.to_judge(job, RULES):
            self._do(self.market.jobs[job.id], j.Judge(attempt=number, holds=bool(self.rng.random() < 0.6), reason="r"))

    def _release(self, job: j.ComputeJob) -> None:
        for attempt in job.live:
            if not attempt.result and self.rng.random() < 0.2:
                self._do(self.market.jobs[job.id], j.Release(attempt=attempt.number, reason="gone"))

    def _dispute(self, job: j.ComputeJob) -> None:
        self._do(job, j.Dispute(by="carl"))
        self._fund(self.market.jobs[job.id])

    def _conclude(self, job: j.ComputeJob) -> None:
        if self.now >= job.expires:
            self._do(job, j.Seal())
            for attempt in self.market.jobs[job.id].live:
                if not attempt.commitment or (not attempt.result and self.rng.random() < 0.5):
                    self._do(self.market.jobs[job.id], j.Release(attempt=attempt.number, reason="late"))
        self._do(self.market.jobs[job.id], j.Conclude())

    def _settle(self, job: j.ComputeJob) -> None:
        if job.verified is not None and self.now < job.verified_at + job.submitted.window:
            return
        for order in money.settlement(job):
            try:
                self._post(order.key, order.operation)
            except NotFound:
                assert f"market/{job.id}/escrow/{order.key.rpartition('/')[2]}" not in self.posted
        self._do(job, j.Settle())

    def check(self) -> None:
        assert self.books.totals().conserved
        assert all(amount >= 0 for bucket, amount in self.books.balances.items() if bucket != "minted:")
        for name in WORKERS:
            bonds = [a.bond for job in self.market.jobs.values() for a in j.at_risk(job) if a.worker == name]
            assert self.market.locked.get(name, 0) == sum(bonds)
            slashed = sum(
                a.bond
                for job_id in self.market.open
                for a in self.market.jobs[job_id].attempts
                if a.worker == name and a.holds is False
            )
            account = money.worker_account(name)
            assert sum(bonds) - slashed <= self.books.account(account).staked
            assert 0 <= self.books.bound.get(account, 0) <= self.books.account(account).staked
            at = [(job.id, a.number) for job in self.market.jobs.values() for a in job.live if a.worker == name]
            busy = self.market.busy.get(name)
            assert busy is None or busy in at
        for job in self.market.jobs.values():
            if job.settled:
                for slot in job.slots:
                    assert self.books.of(f"escrow:{money.escrow_of(job.id, slot)}") == 0
                    held = self.books.escrows.get(money.escrow_of(job.id, slot))
                    assert held is None or held.bond is None

    def finish(self) -> None:
        """Every job comes to an end, by its deadline at the latest."""
        self.now += 1e6
        for job_id in list(self.market.open):
            for _ in range(20):
                job = self.market.jobs[job_id]
                if job.settled:
                    break
                self._fund(job) if not job.funded and not job.final else None
                self._conclude(self.market.jobs[job_id])
                self._judge(self.market.jobs[job_id])
                self._conclude(self.market.jobs[job_id])
                self.now += 100
                if self.market.jobs[job_id].final:
                    self._settle(self.market.jobs[job_id])
            assert self.market.jobs[job_id].settled, self.market.jobs[job_id]
            self.check()
        assert self.books.totals().escrowed == 0
        assert not any(self.books.bound.values())


def test_whatever_happens_the_books_balance_and_every_job_ends():
    seen: dict[str, int] = {}
    for seed in range(40):
        walk = Walk(seed)
        for _ in range(500):
            walk.step()
        walk.finish()
        for name, count in walk.done.items():
            seen[name] = seen.get(name, 0) + count
    reached = {
        "ComputeVerified",
        "ComputeFailed",
        "ComputeDisputed",
        "ComputeReleased",
        "ComputeSealed",
        "ComputeSettled",
    }
    assert all(seen.get(name, 0) > 25 for name in (*reached, "refused")), sorted(
        seen.items()
    )  # else this would test nothing
    assert seen["ComputeJudged"] > 200
    assert seen["slashed"] > 50


def _recorded(market, event, job="") -> None:
    market.log.append((event, job))
    Market.apply(market, event, job)


def test_the_same_events_give_the_same_market():
    walk = Walk(7, kept := type("Recorded", (Market,), {"log": [], "apply": _recorded}))
    for _ in range(300):
        walk.step()
    again = Market(RULES)
    for event, job in kept.log:
        again.apply(event, job)
    assert again.jobs == walk.market.jobs
    assert again.workers == walk.market.workers
    assert (again.busy, again.owes) == (walk.market.busy, walk.market.owes)
    assert {k: v for k, v in again.locked.items() if v} == {k: v for k, v in walk.market.locked.items() if v}


@pytest.mark.parametrize("block", range(10))
def test_honest_results_hold_on_ten_thousand_random_jobs(block):
    """So the honest are never slashed: odd tables, every kind, checks and full replays."""
    for seed in range(1000 * block, 1000 * (block + 1)):
        assert check_honest(np.random.default_rng(seed)) == "", f"seed {seed}"


def test_garbage_is_judged_and_never_breaks_the_judge():
    wrong = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        job, table = random_job(rng)
        data = encode_table(table)
        honest = solve(job.kind, data, job.seed)
        with np.errstate(all="ignore"):
            sent = garbage(rng, honest)
            verdict = judge(job, data, encode(sent), seed, replay=True)
        wrong += not verdict.holds
    assert wrong > 200
    assert not judge(job, data, b"", 0, replay=True).holds
    assert not judge(job, data, b"\xff" * 64, 0, replay=True).holds


@pytest.mark.parametrize("kind", ["linear_regression", "kmeans", "pca"])
def test_a_full_replay_accepts_what_the_check_accepts_of_the_honest(kind):
    rng = np.random.default_rng(3)
    workload = workloads.build(Choice(kind))
    table = decode_table(encode_table(random_job(rng)[1]))
    while len(table.x) < 20 or table.x.shape[1] < 2:
        table = random_job(rng)[1]
    result = workload.solve(table, 5)
    assert verify(workload, table, result, 5, 6, replay=True).holds
    assert workload.work(1000, 10) > 0


# -- reputation --------------------------------------------------------------------------------------


def test_the_bound_is_the_quantile_of_the_beta_distribution():
    stats = pytest.importorskip("scipy.stats")
    for successes in (0, 0.5, 1, 3, 10, 48.7):
        for failures in (0, 0.25, 1, 2.5, 20):
            expected = stats.beta(1 + successes, 1 + failures).ppf(0.05)
            assert lower_bound(successes, failures) == pytest.approx(expected, abs=1e-6)
            assert beta_below(expected, 1 + successes, 1 + failures) == pytest.approx(0.05, abs=1e-6)


def test_reputation_begins_at_100_falls_with_failures_and_recovers():
    record = Record()
    assert (record.score, round(record.bound, 3)) == (100, 0.05)
    for _ in range(20):
        record = record.after(success=1)
    assert record.score == 100
    assert record.bound > 0.8
    fallen = record.after(failure=1)
    assert fallen.score < 95
    assert fallen.bound < record.bound
    recovered = fallen
    for _ in range(100):
        recovered = recovered.after(success=1)
    assert recovered.score > fallen.score
    assert Record().after(failure=1).bound < Record().bound  # who fails at once is worth less than a newcomer


def test_a_bond_makes_cheating_unprofitable():
    """p (R + S) > c R for the whole of the work saved (c = 1), with what checks and spot checks find together."""
    for detection in (1.0, 0.75, 2 / 98, 0.0):
        for reward in (1, 10, 1000):
            bond = RULES.bond(reward, detection)
            found = 1 - (1 - detection) * (1 - RULES.spot)
            assert found * (reward + bond) >= reward


# -- another machine's arithmetic ----------------------------------------------------------------------


def _sums_reversed(x, centres):
    for rows, _, tie in _distances(x, centres):
        yield rows, ((x[rows][:, None, ::-1] - centres[None, :, ::-1]) ** 2).sum(axis=2), tie


def _step_elsewhere(x, centres):
    """`kmeans._step`, with every sum taken the other way round."""
    labels = np.empty(len(x), np.int64)
    for rows, distances, tie in _sums_reversed(x, centres):
        labels[rows] = (distances <= distances.min(axis=1, keepdims=True) + tie).argmax(axis=1)
    counts = np.bincount(labels, minlength=len(centres))
    sums = np.stack([np.bincount(labels[::-1], column[::-1], len(centres)) for column in x.T], axis=1)
    moved = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    return moved, labels, float(((x - centres[labels]) ** 2)[::-1].sum())


def test_k_means_of_a_machine_that_adds_in_another_order_holds(monkeypatch):
    done = 0
    for seed in range(1200):
        job, table = random_job(np.random.default_rng(seed))
        if job.kind.name != "kmeans":
            continue
        workload = workloads.build(job.kind)
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(kmeans, "_step", _step_elsewhere)
            result = dict(workload.solve(table, job.seed))
        verdict = verify(workload, table, result, job.seed, seed, replay=True)
        assert verdict.holds, f"seed {seed}: {verdict.reason}"
        done += 1
    assert done > 200


@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e90])
def test_a_left_out_component_is_found_at_every_scale(scale):
    """PCA by the second component instead of the first: its squares must not overflow on the way."""
    rng, passed = np.random.default_rng(1), 0
    workload = workloads.build(Choice.parse("pca:components=1"))
    for columns in (6, 60):
        table = Table(scale * rng.standard_normal((200, columns)) * np.r_[10.0, 5.0, np.ones(columns - 2)])
        assert verify(workload, table, workload.solve(table, 0), 0, 1).holds
        two = workloads.build(Choice.parse("pca:components=2")).solve(table, 0)
        second = {name: values if name == "covariance" else values[1:] for name, values in two.items()}
        passed += sum(verify(workload, table, second, 0, seed).holds for seed in range(20))
    assert passed == 0

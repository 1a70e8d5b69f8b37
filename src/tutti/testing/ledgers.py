"""What every Ledger must do. Inherit, and say how to make an empty one whose time can be moved:

    class TestMyLedger(LedgerSuite):
        @pytest.fixture
        async def bench(self) -> AsyncIterator[Bench]:
            ledger = await MyLedger.open(unbonding=UNBONDING, cap=CAP)
            yield Bench(ledger, later)
            await ledger.close()

Needs pytest-asyncio in its auto mode, and hypothesis.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from tutti.core.errors import Conflict, NotFound, UserError
from tutti.domain import ledger as l
from tutti.domain.ledger import Account, AnyOperation, Books, Order, Totals
from tutti.ports.ledger import KeyReused, Ledger, Receipt

UNBONDING = 100
"""Seconds for which the ledger under test unbonds."""

CAP = 10_000
"""The most it may mint."""

NAMES = ("alice", "bob", "node:clinic-a", "zoe@example.org")


@dataclass(frozen=True, slots=True)
class Bench:
    """A ledger on trial, and how to let so many seconds pass for it."""

    ledger: Ledger
    later: Callable[[int], Awaitable[None]]


async def post(ledger: Ledger, *operations: AnyOperation, start: int = 0) -> list[Receipt]:
    """Operations one after another, with keys of their own."""
    return [await ledger.post(Order(f"k{start + i}", operation)) for i, operation in enumerate(operations)]


def random_operation(rng: random.Random) -> AnyOperation:
    """Any operation, often one that will be refused."""
    name, other = rng.sample(NAMES, 2)
    amount, escrow = rng.choice((1, 7, 100, 900)), f"e{rng.randrange(6)}"
    return rng.choice(
        (
            l.Mint(to=name, amount=amount),
            l.Transfer(source=name, to=other, amount=amount),
            l.Stake(account=name, amount=amount),
            l.Unstake(account=name, amount=amount),
            l.Withdraw(account=name),
            l.Escrow(escrow=escrow, payer=name, amount=amount),
            l.Escrow(escrow=escrow, payer=name, amount=amount, purpose="pool"),
            l.Bond(escrow=escrow, account=name, amount=amount),
            l.Bond(escrow=escrow, account=name, amount=amount),
            l.Release(escrow=escrow),
            l.Penalise(escrow=escrow, reason="test", compensation=rng.choice((0, 1, amount))),
            l.Reward(escrow=escrow, to=name),
            l.Distribute(escrow=escrow, payments={name: amount, other: 1}, evidence="ab" * 32),
            l.Claim(account=name),
            l.Refund(escrow=escrow),
        )
    )


class LedgerSuite:
    @pytest.fixture
    def bench(self) -> Bench:
        raise NotImplementedError("yield an empty ledger, and close it afterwards")

    async def test_empty(self, bench: Bench) -> None:
        assert await bench.ledger.account("nobody") == Account()
        assert await bench.ledger.totals() == Totals()

    async def test_a_job_is_paid_once(self, bench: Bench) -> None:
        ledger = bench.ledger
        await post(ledger, l.Mint(to="client", amount=100), l.Escrow(escrow="job-1", payer="client", amount=60))
        assert await ledger.account("client") == Account(free=40)
        assert await ledger.totals() == Totals(minted=100, free=40, escrowed=60)
        await post(ledger, l.Reward(escrow="job-1", to="worker"), start=2)
        assert await ledger.account("worker") == Account(free=60)
        for again in (l.Reward(escrow="job-1", to="worker"), l.Refund(escrow="job-1")):
            with pytest.raises(l.EscrowOver):
                await ledger.post(Order(f"again {type(again).__name__}".replace(" ", "-"), again))
        assert await ledger.totals() == Totals(minted=100, free=100)

    async def test_a_bond_is_bound_to_its_job_and_lost_by_a_wrong_result(self, bench: Bench) -> None:
        ledger = bench.ledger
        await post(
            ledger,
            l.Mint(to="client", amount=100),
            l.Mint(to="w", amount=80),
            l.Mint(to="v", amount=80),
            l.Stake(account="w", amount=80),
            l.Stake(account="v", amount=30),
            l.Escrow(escrow="job", payer="client", amount=60),
            l.Bond(escrow="job", account="w", amount=50),
        )
        for refused in (
            l.Unstake(account="w", amount=31),
            l.Bond(escrow="job", account="v", amount=10),
            l.Reward(escrow="job", to="v"),
            l.Penalise(escrow="job", reason="wrong", compensation=26),
        ):
            with pytest.raises(UserError):
                await ledger.post(Order(f"x-{type(refused).__name__}", refused))
        await post(ledger, l.Penalise(escrow="job", reason="wrong", compensation=20), start=7)
        assert await ledger.account("w") == Account(staked=30)
        assert await ledger.account("client") == Account(free=60)
        await post(
            ledger,
            l.Bond(escrow="job", account="v", amount=30),
            l.Release(escrow="job"),
            l.Bond(escrow="job", account="w", amount=30),
            l.Reward(escrow="job", to="w"),
            l.Unstake(account="w", amount=30),
            l.Unstake(account="v", amount=30),
            start=8,
        )
        assert await ledger.account("w") == Account(free=60, unbonding=30)
        assert await ledger.totals() == Totals(minted=260, burned=30, free=170, unbonding=60)
        with pytest.raises(l.EscrowOver):
            await ledger.post(Order("late", l.Release(escrow="job")))

    async def test_a_refund_goes_to_the_payer(self, bench: Bench) -> None:
        await post(
            bench.ledger,
            l.Mint(to="client", amount=100),
            l.Escrow(escrow="job-1", payer="client", amount=60),
            l.Refund(escrow="job-1"),
        )
        assert await bench.ledger.account("client") == Account(free=100)
        with pytest.raises(l.EscrowOver):
            await bench.ledger.post(Order("id-taken", l.Escrow(escrow="job-1", payer="client", amount=1)))

    async def test_a_pool_is_distributed_claimed_and_its_rest_refunded(self, bench: Bench) -> None:
        ledger = bench.ledger
        await post(
            ledger,
            l.Mint(to="sponsor", amount=100),
            l.Escrow(escrow="pool-1", payer="sponsor", amount=90, purpose="pool"),
            l.Distribute(escrow="pool-1", payments={"alice": 30, "bob": 10}, evidence="ab" * 32),
            l.Distribute(escrow="pool-1", payments={"alice": 5}, evidence="cd" * 32),
        )
        assert await ledger.account("alice") == Account(owed=35)
        assert (await ledger.totals()).owed == 45
        await post(ledger, l.Claim(account="alice"), l.Refund(escrow="pool-1"), start=4)
        assert await ledger.account("alice") == Account(free=35)
        assert await ledger.account("sponsor") == Account(free=55)
        with pytest.raises(l.InsufficientFunds, match="claimed"):
            await ledger.post(Order("double-claim", l.Claim(account="alice")))
        await post(ledger, l.Claim(account="bob"), start=6)
        assert await ledger.account("bob") == Account(free=10)
        assert (await ledger.totals()).conserved

    async def test_it_says_who_holds_anything_and_how_far_it_has_come(self, bench: Bench) -> None:
        ledger = bench.ledger
        assert await ledger.holders() == {}
        before = await ledger.head()
        await post(
            ledger,
            l.Mint(to="alice", amount=50),
            l.Mint(to="broke", amount=9),
            l.Stake(account="alice", amount=10),
            l.Transfer(source="broke", to="bob", amount=9),
            l.Escrow(escrow="pool", payer="alice", amount=5, purpose="pool"),
            l.Distribute(escrow="pool", payments={"node:clinic-a": 5}),
        )
        assert await ledger.holders() == {
            "alice": Account(free=35, staked=10),
            "bob": Account(free=9),
            "node:clinic-a": Account(owed=5),
        }
        after = await ledger.head()
        assert after.entries >= before.entries + 6
        assert after.hash not in ("", before.hash)
        await post(ledger, l.Mint(to="alice", amount=50))  # the same key again
        assert await ledger.head() == after

    async def test_more_than_the_pool_holds_is_not_distributed(self, bench: Bench) -> None:
        await post(
            bench.ledger,
            l.Mint(to="s", amount=10),
            l.Escrow(escrow="p", payer="s", amount=10, purpose="pool"),
        )
        with pytest.raises(l.InsufficientFunds):
            await bench.ledger.post(Order("k9", l.Distribute(escrow="p", payments={"a": 6, "b": 5})))
        assert await bench.ledger.account("a") == Account()
        assert (await bench.ledger.totals()).escrowed == 10

    async def test_stake_unbonds_for_a_while(self, bench: Bench) -> None:
        ledger = bench.ledger
        await post(
            ledger, l.Mint(to="w", amount=100), l.Stake(account="w", amount=80), l.Unstake(account="w", amount=50)
        )
        assert await ledger.account("w") == Account(free=20, staked=30, unbonding=50)
        with pytest.raises(l.StillUnbonding):
            await ledger.post(Order("early", l.Withdraw(account="w")))
        await bench.later(UNBONDING + 1)
        await post(ledger, l.Withdraw(account="w"), start=3)
        assert await ledger.account("w") == Account(free=70, staked=30)
        assert await ledger.totals() == Totals(minted=100, free=70, staked=30)

    @pytest.mark.parametrize(
        "operation",
        [
            l.Transfer(source="poor", to="b", amount=11),
            l.Stake(account="poor", amount=11),
            l.Unstake(account="poor", amount=1),
            l.Escrow(escrow="e", payer="poor", amount=11),
            l.Claim(account="poor"),
            l.Withdraw(account="poor"),
            l.Mint(to="poor", amount=CAP),
        ],
        ids=lambda operation: type(operation).__name__,
    )
    async def test_what_is_not_there_cannot_be_taken(self, bench: Bench, operation: AnyOperation) -> None:
        await post(bench.ledger, l.Mint(to="poor", amount=10))
        before = await bench.ledger.totals()
        with pytest.raises(Conflict):
            await bench.ledger.post(Order("k1", operation))
        assert await bench.ledger.totals() == before
        assert await bench.ledger.account("poor") == Account(free=10)

    @pytest.mark.parametrize("operation", [l.Reward(escrow="none", to="a"), l.Refund(escrow="none")], ids=str)
    async def test_an_unknown_escrow_is_not_found(self, bench: Bench, operation: AnyOperation) -> None:
        with pytest.raises(NotFound):
            await bench.ledger.post(Order("k1", operation))

    @pytest.mark.parametrize("amount", [0, -1, 1.5, 2**53 + 1, "7", True])
    async def test_amounts_are_whole_and_positive(self, bench: Bench, amount: int) -> None:
        with pytest.raises(l.BadOperation, match="whole units"):
            await bench.ledger.post(Order("k1", l.Mint(to="a", amount=amount)))
        assert await bench.ledger.totals() == Totals()

    async def test_the_same_order_again_changes_nothing(self, bench: Bench) -> None:
        order = Order("once", l.Mint(to="a", amount=5))
        assert await bench.ledger.known("once") is None
        first = await bench.ledger.post(order)
        assert await bench.ledger.known("once") == first
        assert await bench.ledger.post(order) == first
        assert await bench.ledger.account("a") == Account(free=5)
        with pytest.raises(KeyReused):
            await bench.ledger.post(Order("once", l.Mint(to="a", amount=6)))

    async def test_a_refused_order_may_be_tried_again_with_its_key(self, bench: Bench) -> None:
        order = Order("t", l.Transfer(source="a", to="b", amount=5))
        with pytest.raises(l.InsufficientFunds):
            await bench.ledger.post(order)
        await post(bench.ledger, l.Mint(to="a", amount=5))
        await bench.ledger.post(order)
        assert await bench.ledger.account("b") == Account(free=5)

    async def test_orders_at_once_neither_overdraw_nor_get_lost(self, bench: Bench) -> None:
        await post(bench.ledger, l.Mint(to="a", amount=10))
        orders = [Order(f"t{i}", l.Transfer(source="a", to="b", amount=1)) for i in range(15)]
        outcomes = await asyncio.gather(*map(bench.ledger.post, orders), return_exceptions=True)
        assert sum(isinstance(outcome, Receipt) for outcome in outcomes) == 10
        assert sum(isinstance(outcome, l.InsufficientFunds) for outcome in outcomes) == 5
        assert await bench.ledger.account("b") == Account(free=10)

    @pytest.mark.parametrize("seed", range(3))
    async def test_it_does_what_the_books_do(self, bench: Bench, seed: int) -> None:
        """Random operations, allowed and refused, against `domain.ledger.Books`, the reference."""
        rng, now, counted = random.Random(seed), 0, 0  # noqa: S311 - a test must be repeatable
        books = Books(rules=l.Found(public_key="", unbonding=UNBONDING, cap=CAP))
        begin = [l.Mint(to=name, amount=1_000) for name in NAMES]
        for i in range(120):
            if rng.random() < 0.1:
                await bench.later(UNBONDING + 1)
                now += 1000 * (UNBONDING + 1)
            operation = begin.pop() if begin else random_operation(rng)
            try:
                postings = books.decide(operation, now)
            except UserError as refusal:
                with pytest.raises(type(refusal)):
                    await bench.ledger.post(Order(f"r{i}", operation))
            else:
                books.apply(operation, postings, now)
                await bench.ledger.post(Order(f"r{i}", operation))
                counted += 1
            assert await bench.ledger.totals() == books.totals(), (seed, i, operation)
            for name in NAMES:
                assert await bench.ledger.account(name) == books.account(name), (seed, i, operation)
        assert books.totals().conserved
        assert counted > 30

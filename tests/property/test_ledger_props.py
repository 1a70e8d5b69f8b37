"""The books under random operations: nothing is made, lost or overdrawn, after every single step."""

import random
from hashlib import sha256

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tutti.adapters.identities.ed25519 import Ed25519Key, verify
from tutti.core import merkle
from tutti.core.errors import UserError
from tutti.domain import ledger as l
from tutti.domain.ledger.books import MINTED
from tutti.domain.ledger.chain import START
from tutti.testing.ledgers import NAMES, random_operation

KEY = Ed25519Key(b"p" * 32)


class LedgerMachine(RuleBasedStateMachine):
    """Anything may be asked at any time; what is allowed is booked and sealed."""

    def __init__(self) -> None:
        super().__init__()
        self.books, self.entries, self.now = l.Books(), [], 0
        self.paid: set[str] = set()
        self.book(l.Found(public_key=KEY.public, unbonding=10, cap=5_000))

    def book(self, operation: l.AnyOperation) -> None:
        before = dict(self.books.balances)
        try:
            postings = self.books.decide(operation, self.now)
        except UserError:
            assert self.books.balances == before
            return
        assert sum(postings.values()) == 0
        if isinstance(operation, l.Reward | l.Refund):
            assert operation.escrow not in self.paid
            self.paid.add(operation.escrow)
        self.books.apply(operation, postings, self.now)
        previous = self.entries[-1].hash if self.entries else START
        entry = l.Entry(
            seq=len(self.entries),
            at=self.now,
            key=f"k{len(self.entries)}",
            operation=operation,
            postings=postings,
            previous=previous,
        )
        self.entries.append(l.seal(entry, KEY.sign))

    @rule(seed=st.integers(0, 2**32))
    def anything(self, seed: int) -> None:
        self.book(random_operation(random.Random(seed)))

    @rule(name=st.sampled_from(NAMES), amount=st.integers(1, 2_000))
    def mint(self, name: str, amount: int) -> None:
        self.book(l.Mint(to=name, amount=amount))

    @rule(seconds=st.integers(0, 20))
    def wait(self, seconds: int) -> None:
        self.now += 1000 * seconds

    @invariant()
    def conserved(self) -> None:
        totals = self.books.totals()
        assert totals.conserved
        assert totals.minted <= 5_000
        assert sum(self.books.balances.values()) == 0

    @invariant()
    def nothing_is_overdrawn(self) -> None:
        assert all(amount > 0 for bucket, amount in self.books.balances.items() if bucket != MINTED)

    def teardown(self) -> None:
        replayed = l.verify_chain(self.entries, verify, KEY.public)
        assert replayed.balances == self.books.balances


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.binary(max_size=8), max_size=40))
def test_every_leaf_is_proved_and_no_other(records):
    leaves = [merkle.leaf(record) for record in records]
    root = merkle.root(leaves)
    for index, start in enumerate(leaves):
        steps = merkle.proof(leaves, index)
        assert len(steps) <= max(1, len(leaves) - 1).bit_length()
        assert merkle.follow(start, steps) == root
        assert merkle.follow(merkle.leaf(b"not among them"), steps) != root


def test_a_root_by_hand():
    a, b, c = (merkle.leaf(x) for x in (b"a", b"b", b"c"))
    assert a == sha256(sha256(b"a").digest()).digest()
    ab = sha256(min(a, b) + max(a, b)).digest()
    assert merkle.root([a, b, c]) == sha256(min(ab, c) + max(ab, c)).digest()
    assert merkle.root([a]) == a
    assert merkle.root([]) == merkle.EMPTY
    assert merkle.proof([a, b, c], 2) == [ab]

"""Commit and reveal, as values: who is asked when, what a copied commitment is worth, and what a deadline does."""

from itertools import permutations

import pytest

from tutti.core.errors import Conflict
from tutti.core.registry import Choice
from tutti.domain.market import events as e
from tutti.domain.market import jobs as j
from tutti.domain.market import money, sealing
from tutti.domain.market.rules import RULES
from tutti.domain.market.sealing import Phase

NONCE = "ab" * 32
ADA, BOB, CYD = "ada", "bob", "cyd"


class Told:
    """A job that commands are given to."""

    def __init__(self, replicas: int = 2) -> None:
        submitted = e.ComputeSubmitted(
            at=0, job="j", client="c", kind=Choice("kmeans"), data="", rows=9, columns=2, seed=0, reward=20,
            replicas=replicas, seconds=100,
        )  # fmt: skip
        self.job, self.now = j.begin(submitted), 1.0
        self.do(j.Fund())

    def do(self, command: j.Command) -> list[e.ComputeEvent]:
        events = j.decide(self.job, command, RULES, now=self.now)
        for event in events:
            self.job = j.evolve(self.job, event)
        return events

    def assign(self, *workers: str) -> "Told":
        for slot, worker in zip(self.job.open_slots(RULES), workers, strict=False):
            self.do(j.Assign(slot=slot, worker=worker, owner=worker, bond=10))
        return self

    def number(self, worker: str) -> int:
        return next(a.number for a in reversed(self.job.attempts) if a.worker == worker)

    def seal(self, worker: str, result: str = "r", *, as_if: str = "") -> str:
        """Commit; `as_if` takes the commitment that another would make."""
        who = as_if or worker
        number = self.number(who)
        commitment = sealing.commitment_of("j", number, who, result, NONCE)
        self.do(j.Commit(worker=worker, attempt=self.number(worker), commitment=commitment))
        return commitment

    def show(self, worker: str, result: str = "r") -> None:
        self.do(j.Reveal(worker=worker, attempt=self.number(worker), result=result, nonce=NONCE))

    def phases(self) -> list[str]:
        return [sealing.phase(self.job, attempt, RULES) for attempt in self.job.live]


def test_a_commitment_opens_under_its_own_name_job_attempt_result_and_nonce_only():
    parts = ("j", 1, ADA, "r", NONCE)
    other = ("k", 2, BOB, "s", "cd" * 32)
    commitment = sealing.commitment_of(*parts)
    assert len(commitment) == 64
    for at in range(5):
        assert sealing.commitment_of(*parts[:at], other[at], *parts[at + 1 :]) != commitment
    from hashlib import sha256

    assert commitment == sha256(f"tutti market commitment 1\nj\n1\nada\nr\n{NONCE}".encode()).hexdigest()
    assert commitment != sha256(f"j\n1\nada\nr\n{NONCE}".encode()).hexdigest()  # it means nothing elsewhere


def test_the_phases_of_a_set_of_two():
    told = Told().assign(ADA)
    told.seal(ADA)
    assert told.phases() == [Phase.SEALED]  # a slot still wants a worker
    told.assign(BOB)
    assert told.phases() == [Phase.SEALED, Phase.WORKING]
    with pytest.raises(Conflict, match="once all workers have committed"):
        told.show(ADA)
    told.seal(BOB)
    assert told.phases() == [Phase.ASKED, Phase.ASKED]
    told.show(ADA)
    assert told.phases() == [Phase.SHOWN, Phase.ASKED]
    assert sealing.to_judge(told.job, RULES) == []  # nothing is judged before all is shown
    told.show(BOB)
    assert sealing.to_judge(told.job, RULES) == [1, 2]


def test_a_worker_commits_once():
    told = Told().assign(ADA, BOB)
    told.seal(ADA)
    assert told.do(j.Commit(worker=ADA, attempt=1, commitment=told.job.attempt(1).commitment)) == []
    with pytest.raises(Conflict, match="commits to one result"):
        told.seal(ADA, "another")
    with pytest.raises(Conflict, match="bob has no attempt 1"):
        told.do(j.Commit(worker=BOB, attempt=1, commitment="x"))


@pytest.mark.parametrize("order", list(permutations((ADA, BOB))))
def test_whoever_is_first_a_copied_commitment_is_wrong_once_its_own_is_opened(order):
    """Also where the copy comes in before the original: then who was quicker would be believed, and ada robbed."""
    told = Told().assign(ADA, BOB)
    for worker in order:
        told.seal(worker, as_if=ADA)
    assert sealing.copied(told.job) == {}  # as long as neither is opened nobody knows whose it is
    told.show(ADA)
    assert sealing.copied(told.job) == {2: 1}  # bob need not show anything
    told.do(j.Judge(attempt=2, holds=False, reason="a copy"))
    penalty = money.bond_end(told.job, told.job.attempt(2))
    assert penalty is not None
    assert penalty.key == "market/j/penalty/2"
    assert told.job.open_slots(RULES) == [1]
    assert told.job.attempt(1).live


def test_a_copy_can_be_judged_wrong_only():
    told = Told().assign(ADA, BOB)
    told.seal(ADA), told.seal(BOB, as_if=ADA)
    told.show(ADA)
    assert told.do(j.Judge(attempt=2, holds=True)) == []
    assert told.do(j.Judge(attempt=1, holds=True)) == []  # the set is not shown yet


def test_what_is_shown_is_opened_or_not():
    told = Told().assign(ADA, BOB)
    told.seal(ADA), told.seal(BOB)
    told.show(ADA, "another"), told.show(BOB)
    assert [sealing.opened(told.job, a) for a in told.job.attempts] == [False, True]


def test_at_the_deadline_a_set_goes_on_with_those_that_have_committed():
    told = Told(replicas=3).assign(ADA, BOB)
    told.seal(ADA)
    told.now = 100.0
    assert [type(event) for event in told.do(j.Seal())] == [e.ComputeSealed]
    assert told.do(j.Seal()) == []
    assert told.job.open_slots(RULES) == []
    with pytest.raises(Conflict, match="takes no further commitment"):
        told.seal(BOB)
    told.do(j.Release(attempt=2, reason="no result in time"))
    assert told.phases() == [Phase.ASKED]
    assert told.do(j.Conclude()) == []
    told.show(ADA)
    assert sealing.doubtful(told.job)  # two replicas are missing, so this one is replayed in full
    told.do(j.Judge(attempt=1, holds=True, replayed=True))
    told.do(j.Conclude())
    assert told.job.status is j.Status.VERIFIED
    told.do(j.Settle())
    ends = [type(order.operation).__name__ for order in money.settlement(told.job)]
    assert ends == ["Reward", "Refund", "Refund"]


def test_a_set_of_which_nobody_has_committed_fails_at_its_deadline():
    told = Told().assign(ADA)
    told.now = 100.0
    told.do(j.Seal())
    told.do(j.Release(attempt=1, reason="late"))
    told.do(j.Conclude())
    assert told.job.failed == "no result within 100 s"


def test_who_shows_nothing_does_not_get_its_accomplice_judged_alone():
    """Else one of a pair stays silent, so that the other's result is compared with nobody's."""
    told = Told().assign(ADA, BOB)
    told.seal(ADA), told.seal(BOB)
    told.show(ADA)
    told.do(j.Release(attempt=2, reason="not shown"))
    assert sealing.to_judge(told.job, RULES) == []
    told.assign(CYD)
    told.seal(CYD, "honest")
    told.show(CYD, "honest")
    assert sealing.to_judge(told.job, RULES) == [1, 3]
    assert sealing.doubtful(told.job)


def test_equal_results_have_one_verdict():
    told = Told().assign(ADA, BOB)
    told.seal(ADA), told.seal(BOB)
    told.show(ADA), told.show(BOB)
    assert sealing.twin(told.job, told.job.attempt(2)) is None
    told.do(j.Judge(attempt=1, holds=False, reason="no optimum"))
    twin = sealing.twin(told.job, told.job.attempt(2))
    assert twin is not None
    assert twin.number == 1

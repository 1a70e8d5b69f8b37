"""Which orders to the ledger follow from where a compute job stands. Each has a key of its own, so it is done once.

Rewards lie in one escrow for each slot. A wrong result costs the bond: the client gets what the slot was worth for its
lost time (its reward it has back anyway, or a good result for it), the rest is burned; nothing goes to who decides.
"""

from collections.abc import Iterator

from tutti.domain.ledger import Escrow, Order, Refund, Reward, Slash
from tutti.domain.market.jobs import ComputeJob


def worker_account(worker: str) -> str:
    """A node's account, into which its contributions to training are paid too."""
    return f"node:{worker}"


def client_account(client: str) -> str:
    return f"client:{client}"


def escrow_of(job: str, slot: int) -> str:
    return f"{job}/{slot}"


def funding(job: ComputeJob) -> list[Order]:
    """The reward, and after a dispute what the further worker gets, out of the client's account."""
    payer = client_account(job.submitted.client)
    return [
        Order(
            f"market/{job.id}/escrow/{slot}",
            Escrow(escrow=escrow_of(job.id, slot), payer=payer, amount=job.share(slot)),
        )
        for slot in job.slots
        if job.share(slot)
    ]


def penalties(job: ComputeJob) -> list[Order]:
    """A bond for each wrong result."""
    victim = client_account(job.submitted.client)
    return [
        Order(
            f"market/{job.id}/slash/{attempt.number}",
            Slash(
                account=worker_account(attempt.worker),
                amount=attempt.bond,
                reason=f"compute job {job.id}: {attempt.reason}"[:500],
                victim=victim,
                compensation=min(attempt.bond, job.share(attempt.slot)),
            ),
        )
        for attempt in job.attempts
        if attempt.holds is False
    ]


def settlement(job: ComputeJob) -> list[Order]:
    """Where every escrow of a job that is over goes: to the worker whose result held, or back."""
    return list(_settlement(job))


def _settlement(job: ComputeJob) -> Iterator[Order]:
    for slot in job.slots:
        if not job.share(slot):
            continue
        escrow, attempt = escrow_of(job.id, slot), job.at(slot)
        paid = job.verified is not None and attempt is not None and attempt.holds
        operation = (
            Reward(escrow=escrow, to=worker_account(attempt.worker)) if paid and attempt else Refund(escrow=escrow)
        )
        yield Order(f"market/{job.id}/end/{slot}", operation)

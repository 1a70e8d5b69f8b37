"""What becomes of a submission: questions about a job's state, without a side effect."""

from tutti.core.errors import Conflict
from tutti.domain import commands, jobs
from tutti.domain import events as e
from tutti.domain.events import NodeId
from tutti.domain.jobs import Job
from tutti.domain.signing import Domain, Signed, Verify, digest_of
from tutti.wire.messages import Submission
from tutti.wire.updates import Examined


def command_of(node: NodeId, said: Submission, seen: Examined, signed: Signed | None = None) -> commands.SubmitUpdate:
    """The wish to count an update, of which `seen` is what came of looking at it."""
    return commands.SubmitUpdate(
        round=said.round,
        attempt=said.attempt,
        node=node,
        digest=said.digest,
        weight=said.weight,
        facts=said.facts,
        metrics=said.metrics,
        seconds=said.seconds,
        received=said.received,
        bytes=seen.size,
        codec=seen.codec,
        fault=seen.fault,
        signed=signed,
    )


def signed_by(key: str, task: e.RoundOpened, said: Submission, domain: Domain) -> Signed | None:
    """The signature under an update, with all that was signed; None of a node that has no key."""
    if not key:
        return None
    return Signed(
        key=key,
        round=task.round,
        base=task.fetched,
        samples=max(0, said.weight),
        nonce=said.nonce,
        signature=said.signature,
        domain=domain,
    )


def signature_fault(said: Submission, signed: Signed | None, verify: Verify) -> str | None:
    """Why the signature is not one of the node's under this update; None if it is, or if it has no key."""
    if signed is None:
        return None
    if not signed.signature:
        return "the update is not signed, and its node has named a key"
    if not said.digest or not verify(signed.key, digest_of(said.job, said.digest, signed), _bytes(signed.signature)):
        return "the signature is not one by the node's key, under this update of this round"
    return None


def equivocation(job: Job, node: NodeId, said: Submission, verify: Verify, now: float) -> e.NodeEquivocated | None:
    """The proof, if what a node says here and what it has said in this round before are signed under one number."""
    member = job.round.members.get(node) if job.round else None
    if member is None or job.round is None or member.update is None or member.update.signed is None:
        return None
    first, digest = member.update.signed, member.update.digest
    second = signed_by(first.key, job.round.task_of(node), said, first.domain)
    if second is None or (second.round, second.nonce) != (first.round, first.nonce) or said.digest == digest:
        return None
    if signature_fault(said, second, verify) is not None:
        return None
    return e.NodeEquivocated(at=now, node=node, job=job.id, digests=(digest, said.digest), signed=(first, second))


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text)


def would_count(job: Job, node: NodeId, said: Submission, now: float) -> bool:
    """Whether the update is wanted at all, before its bytes are looked at."""
    try:
        events = jobs.decide(job, command_of(node, said, Examined()), now=now)
    except Conflict:
        return False
    return any(isinstance(event, e.UpdateAccepted) for event in events)


def counts(job: Job, node: NodeId, said: Submission) -> bool:
    """Whether this very update is in already: its first answer was lost, and the node asks again."""
    member = job.round.members.get(node) if job.round else None
    return member is not None and member.update is not None and member.update.digest == said.digest


def still_owed(job: Job, node: NodeId, said: Submission) -> bool:
    """Whether the node owes just this update, as for the next of overlapping rounds: it should not forget it."""
    task = job.task_of(node)
    return task is not None and (task.round, task.attempt) == (said.round, said.attempt)

"""Before a member votes for a record, it does the leader's work again: the sum is exact, so it comes out the same.

It looks at the signatures under the updates, too: a leader cannot write down one that no member made.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from tutti.core.errors import NotFound, StorageError, TuttiError
from tutti.core.registry import BadOption, UnknownName
from tutti.domain import events as e
from tutti.domain import jobs, signers
from tutti.domain.events import AnyEvent, Digest, NodeId
from tutti.domain.jobs import Job
from tutti.domain.signers import Keys
from tutti.domain.signing import PublicKey, Verify
from tutti.ports import BlobStore
from tutti.ring.record import majority
from tutti.services.aggregation import Aggregation, UnreadableUpdate

log = logging.getLogger(__name__)

UNABLE = (NotFound, UnreadableUpdate, StorageError, UnknownName, BadOption)
"""What is the matter here, not with the record: blobs that cannot be had, a full disk, a plug-in that is missing."""

OTHERS_FIRST = 10.0
"""Seconds for which a member leaves a vote to those who were given the updates, if they are enough."""

SILENT = 2.0
"""Seconds without an answer after which one of them is not counted on. A process that is gone is noticed at once."""


def enough_without(me: str, committee: Sequence[str], given: Mapping[str, bool]) -> bool:
    """Whether a majority of the committee will vote without this member.

    `given`: of the others who can be counted on, whether they were given updates. If those are too few, the first ones
    of the rest fetch them.
    """
    before = committee[: committee.index(me)]
    return sum(has or other in before for other, has in given.items()) >= majority(committee)


class Verifier:
    """Verifies the events of a record against the jobs as they were agreed on before it.

    Args:
        blobs: Gets what is not here from other members.
        obtain: Has an update here from now on, until its round is closed; raises NotFound.
        here: Whether a blob is here already.
        jobs: Those jobs, by id.
        others_do: Whether enough others vote for a record with these updates (`enough_without`), so many seconds after
            this member was asked to.
        keys: With which the members sign, as agreed on before it.
        own: The name of this member, and its key.
        verify: Checks a signature.
    """

    def __init__(
        self,
        blobs: BlobStore,
        obtain: Callable[[Digest], Awaitable[object]],
        here: Callable[[Digest], bool],
        jobs: Callable[[], dict[str, Job]],
        others_do: Callable[[Sequence[Digest], float], Awaitable[bool]],
        *,
        keys: Callable[[], Keys],
        own: tuple[NodeId, PublicKey],
        verify: Verify,
    ) -> None:
        self._blobs, self._obtain = blobs, obtain
        self._here, self._jobs, self._others_do = here, jobs, others_do
        self._keys, self._own, self._verify = keys, own, verify
        self._unable = ""

    async def fault(self, events: Sequence[tuple[str, AnyEvent]], *, asked_for: float = OTHERS_FIRST) -> str | None:
        """Why the events are wrong; empty if they are right, None if that cannot be found out now.

        A member that was given none of the updates leaves it to those who were while they are enough, until it has been
        `asked_for` so long.
        """
        updates = [event.digest for _, event in events if isinstance(event, e.UpdateAccepted)]
        given = not updates or any(map(self._here, updates))
        if not given and asked_for < OTHERS_FIRST and await self._others_do(updates, asked_for):
            return None
        after, keys = dict(self._jobs()), self._keys()
        try:
            for stream, event in events:
                if fault := signers.key_fault(keys, event, self._own):
                    return fault
                keys = signers.after(keys, event)
                if not stream.startswith("job:") or isinstance(event, e.JobSubmitted):
                    if isinstance(event, e.JobSubmitted):
                        after[event.job] = jobs.begin(event)
                    continue
                job = after[stream.removeprefix("job:")]
                if fault := signers.update_fault(keys, job, event, self._verify) or await self._fault(job, event):
                    return fault
                after[job.id] = jobs.evolve(job, event)  # type: ignore[arg-type]  # of a job's stream
        except UNABLE as error:
            if str(error) != self._unable:
                log.warning("cannot find out whether a record is right: %s", error)
            self._unable = str(error)
            return None
        except (KeyError, AssertionError, TuttiError) as error:  # events that cannot be, in this order or at all
            return f"{type(error).__name__}: {error}"
        self._unable = ""
        return ""

    async def _fault(self, job: Job, event: AnyEvent) -> str:
        match event:
            case e.JobInitialised(model=model, state=state):
                await self._have(model, state)
            case e.UpdateAccepted(node=node) if job.round is not None and job.round.members[node].update is not None:
                return f"round {event.round} takes two updates of {node}"
            case e.RoundClosed() if job.round is not None and job.round.opened.task == "train":
                return await self._compute(job, job.round.accepted, job.round.opened, event)
        return ""

    async def _compute(
        self, job: Job, accepted: Sequence[e.UpdateAccepted], opened: e.RoundOpened, closed: e.RoundClosed
    ) -> str:
        """The models that this round makes are stored here too, by the way."""
        if job.spec.trusted is not None:  # part of it was learnt from the leader's own rows
            await self._have(closed.model, closed.state)
            return ""
        sums = Aggregation(job.spec, self._blobs)
        await sums.restore(job.model, job.state, job.rounds_done)
        fold = sums.begin((opened.round, opened.attempt), len(opened.cohort))
        for update in accepted:
            await self._obtain(update.digest)
        await sums.add(fold, accepted)
        result = await sums.finish(fold, opened.candidates)
        if result.counted != closed.counted:
            return f"round {opened.round} counts {closed.counted}, accepted were {result.counted}"
        if (result.model, result.state, result.step) != (closed.model, closed.state, closed.step):
            return f"round {opened.round} makes model {result.model[:12]}, not {closed.model[:12]}"
        await sums.store(result, sync=False)  # the leader has synced it, and here it survives the process
        return ""

    async def _have(self, *digests: Digest) -> None:
        """Have these blobs here; raises NotFound."""
        for digest in digests:
            await self._blobs.read(digest)

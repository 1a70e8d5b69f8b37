"""Has sessions and rounds recorded by a notary, behind the back of the rounds themselves.

A projection of the event log, as `services.rewards` is: `observe` only notes what is to be recorded, `run` works it
off. The notary carries out each call once, so all of it may happen again after a crash.
"""

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType
from typing import Any

import msgspec

from tutti.core.errors import NotFound, TuttiError
from tutti.domain import events as e
from tutti.domain.contributions import Contribution, root_of
from tutti.domain.history import is_in
from tutti.domain.jobs import Job
from tutti.ports import Recorded
from tutti.ports.notary import Notary
from tutti.services.journal import Journal

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0

_encoder = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True, slots=True)
class Round:
    """What is recorded of a round."""

    contributions: Sequence[Contribution]
    model: str


@dataclass(slots=True, eq=False)
class Session:
    """What is known of one job. `scored`: its contributions are; `settled`: all of them are by now."""

    scored: bool
    accepted: dict[str, e.UpdateAccepted] = field(default_factory=dict)
    training: bool = False
    rounds: dict[int, Round] = field(default_factory=dict)
    opened: bool = False
    recorded: set[int] = field(default_factory=set)
    over: bool = False
    model: str | None = None
    settled: bool = False
    closed: bool = False


class NotaryDesk:
    """Made before the journal is loaded, so that it sees every event from the first on."""

    def __init__(self, journal: Journal, notary: Notary) -> None:
        self.trouble = ""
        self._journal, self._notary = journal, notary
        self._sessions: dict[str, Session] = {}
        self._accused: list[e.NodeEquivocated] = []
        self._changed = asyncio.Event()
        journal.projections.append(self.observe)

    @property
    def sessions(self) -> Mapping[str, Session]:
        """By job."""
        return MappingProxyType(self._sessions)

    @property
    def waiting(self) -> int:
        """Calls that are still to be made."""
        return len(self._accused) + sum(
            (not one.opened) + len(one.rounds) - len(one.recorded) + (one.over and not one.closed)
            for one in self._sessions.values()
        )

    def round(self, job: str, number: int) -> Round:
        """Raises NotFound."""
        found = self._sessions[job].rounds.get(number) if job in self._sessions else None
        if found is None:
            raise NotFound(f"round {number} of job {job!r} has made no model, or its updates have not been scored")
        return found

    def observe(self, recorded: Recorded) -> None:
        event = recorded.event
        if isinstance(event, e.NodeEquivocated):
            self._accused.append(event)
            self._changed.set()
            return
        if isinstance(event, e.JobSubmitted):
            self._sessions[event.job] = Session(scored=event.spec.rewards is not None)
            self._changed.set()
            return
        job = recorded.stream.partition(":")[2]
        session = self._sessions.get(job)
        if session is None or recorded.stream == "nodes":
            return
        match event:
            case e.RoundOpened():
                session.training, session.accepted = event.task == "train", {}
            case e.UpdateAccepted(node=node):
                session.accepted[node] = event
            case e.UpdateLost(node=node) | e.NodeDropped(node=node):
                session.accepted.pop(node, None)
            case e.RoundClosed(counted=counted) if counted and session.training and not session.scored:
                session.rounds[event.round] = Round(_contributions(job, session, event), event.model)
            case e.ContributionsScored():
                session.rounds[event.round] = Round(event.contributions, event.model)
            case e.RewardsSettled():
                session.settled = True
            case e.JobCompleted(model=model):
                session.over, session.model = True, model
            case e.JobStopped() | e.JobFailed():
                session.over = True
            case _:
                return
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled. Trouble is told in `trouble` and waited out; that of one session stops no other."""
        while True:
            self._changed.clear()
            troubles = []
            for job, session in list(self._sessions.items()):
                troubles.append(await self._tried(self._record(self._journal.jobs[job], session)))
            for accused in list(self._accused):
                trouble = await self._tried(self._notary.accuse(accused))
                troubles.append(trouble)
                if not trouble:
                    self._accused.remove(accused)
            self.trouble = next(filter(None, troubles), "")
            if self.trouble:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await self._changed.wait()

    async def _tried(self, call: Coroutine[Any, Any, None]) -> str:
        """What went wrong, if something did."""
        try:
            await call
        except (TuttiError, OSError) as error:
            log.error("the notary waits: %s", error)
            return str(error)
        return ""

    async def _record(self, job: Job, session: Session) -> None:
        if session.closed:
            return
        if not session.opened:
            spec, data = _hash(job.spec), _hash(job.data)
            await self._notary.open_session(job.id, spec, data, job.spec.rounds)
            session.opened = True
        for number in sorted(session.rounds.keys() - session.recorded):
            found = session.rounds[number]
            root = root_of(found.contributions)
            await self._notary.record_round(job.id, number, root, len(found.contributions), found.model)
            session.recorded.add(number)
        if session.over and (session.settled or not session.scored):  # else rounds are still to be scored
            await self._notary.close_session(job.id, session.model)
            session.closed = True


def _contributions(job: str, session: Session, closed: e.RoundClosed) -> list[Contribution]:
    """The updates that are in the model, in the order of their nodes' names."""
    return [
        Contribution(
            job=job,
            round=closed.round,
            node=node,
            digest=update.digest,
            weight=update.weight,
            signed=update.signed,
        )
        for node, update in sorted(session.accepted.items())
        if node in closed.counted and is_in(closed.shares, node)
    ]


def _hash(value: object) -> str:
    return sha256(_encoder.encode(value)).hexdigest()

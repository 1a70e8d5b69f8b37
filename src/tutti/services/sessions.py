"""Sessions on the coordinator: parts for peers that wait, a job on what they then hold, and the peers free again.

Everything is in the log, so a coordinator that is killed goes on: a peer that returns is told again what it holds.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from msgspec.structs import replace as with_fields

from tutti.core.errors import NotFound, TuttiError, UserError
from tutti.domain.events import Digest, NodeId
from tutti.domain.history import RoundSummary
from tutti.domain.jobs import Job, Status
from tutti.domain.sessions import (
    IDLE,
    PREFIX,
    ColumnReport,
    PeerPart,
    PeerTraining,
    SessionEnded,
    SessionEvent,
    SessionStarted,
    dataset_of,
)
from tutti.domain.spec import DataSchema, JobSpec
from tutti.ports import Arrived, Data, Examples, FabricEvent, Recorded
from tutti.services.coordinator import Coordinator
from tutti.services.history import attempts_of
from tutti.wire import parts, tensors
from tutti.wire.messages import Assign, Dismiss, Registration

log = logging.getLogger(__name__)

Seal = Callable[[str, bytes], bytes]
HELD_OUT = 0.2
WAIT_SECONDS = 600.0
"""How long a session waits for peers that are away, before its first round and between rounds."""

SessionStatus = Literal["RUNNING", "COMPLETED", "STOPPED", "FAILED"]
_ENDED: dict[Status, Literal["COMPLETED", "STOPPED", "FAILED"]] = {
    Status.COMPLETED: "COMPLETED",
    Status.STOPPED: "STOPPED",
    Status.FAILED: "FAILED",
}


class NotEnoughPeers(UserError):
    """Too few peers wait for a part now."""


@dataclass(frozen=True, slots=True)
class Session:
    """One session as far as it has come; `job` is None until the peers hold their parts."""

    started: SessionStarted
    ended: SessionEnded | None
    job: Job | None

    @property
    def status(self) -> SessionStatus:
        return self.ended.status if self.ended else "RUNNING"


class Sessions:
    """Errands of the coordinator's nodes. Give it to `Coordinator.lend` before `start`, and `resume` after."""

    def __init__(self, core: Coordinator, seal: Seal) -> None:
        self._core, self._seal = core, seal
        self._started: dict[str, SessionStarted] = {}
        self._ended: dict[str, SessionEnded] = {}
        self._turn = asyncio.Lock()  # of who chooses peers, submits a session's job, or stops before there is one
        core.journal.projections.append(self._evolve)

    def _evolve(self, recorded: Recorded) -> None:
        match recorded.event:
            case SessionStarted() as started:
                self._started[started.session] = started
            case SessionEnded() as ended:
                self._ended[ended.session] = ended

    def resume(self) -> None:
        """Go on with the sessions that are in the log."""
        for session in self._started.keys() - self._ended.keys():
            self._core.background.spawn(self._run(session))

    # -- what people ask -----------------------------------------------------------------------------------

    async def start(
        self,
        by: str,
        table: tuple[Examples, DataSchema, tuple[ColumnReport, ...], int],
        spec: JobSpec,
        peers: int,
        training: list[PeerTraining],
    ) -> Session:
        """Lock so many peers, give each a part of the rows, and train; raises NotEnoughPeers."""
        rows, schema, report, dropped = table
        if len(rows) < 2 * peers:
            raise UserError(f"expected at least two rows for each of {peers} peers, came {len(rows)}")
        if len(training) > peers:
            raise UserError(f"hyper-parameters are given for {len(training)} peers, and {peers} take part")
        session = secrets.token_hex(8)
        training = training + [PeerTraining()] * (peers - len(training))
        async with self._turn:  # who is chosen is locked before another session looks who waits
            chosen = self._waiting()[:peers]
            if len(chosen) < peers:
                raise NotEnoughPeers(f"not enough peers: {peers} are asked for, {len(chosen)} wait")
            packed = await asyncio.to_thread(self._packed, session, chosen, rows, schema, training, spec.seed)
            given = {node: part for node, (part, _) in packed.items()}
            spec = with_fields(
                spec,
                dataset=dataset_of(session),
                name=f"session-{session}",
                cohort=with_fields(spec.cohort, min_nodes=peers, wait=WAIT_SECONDS),
            )
            started = SessionStarted(
                at=self._core.clock(),
                session=session,
                by=by,
                peers=given,
                spec=spec,
                report=report,
                rows=len(rows),
                dropped=dropped,
            )
            with self._core.keeper.pinned(part.sealed for part in given.values()):
                for _, box in packed.values():
                    await self._core.blobs.put(box)
                await self._record(started)
        self._core.background.spawn(self._run(session))
        return self.session(session)

    def session(self, session: str) -> Session:
        if session not in self._started:
            raise NotFound(f"there is no session {session!r}")
        started = self._started[session]
        return Session(started, self._ended.get(session), self._job_of(started))

    def all(self) -> list[Session]:
        """Newest first."""
        return [self.session(session) for session in reversed(self._started)]

    async def attempts(self, session: str) -> list[RoundSummary]:
        """The rounds of a session, with what its peers told."""
        job = self.session(session).job
        if job is None:
            return []
        return await attempts_of(self._core.journal, self._core.blobs, job, range(1, job.rounds_done + 1))

    async def stop(self, session: str, by: str) -> Session:
        """End a session now; one that has ended stays as it is."""
        it = self.session(session)
        if it.job is None:
            async with self._turn:
                it = self.session(session)
                if it.ended is None and it.job is None:
                    await self._end(session, "STOPPED", f"stopped by {by} before the peers were ready")
        if it.ended is None and it.job is not None and not it.job.final:
            await self._core.stop_job(it.job.id, by=by)
        return self.session(session)

    def _packed(
        self,
        session: str,
        peers: list[tuple[NodeId, str]],
        rows: Examples,
        schema: DataSchema,
        training: list[PeerTraining],
        seed: int,
    ) -> dict[NodeId, tuple[PeerPart, bytes]]:
        """What each peer is given, and its sealed bytes; takes a while."""
        packed = {}
        split = _split(dataset_of(session), rows, schema, len(peers), seed)
        for (node, key), data, own in zip(peers, split, training, strict=True):
            box = self._seal(key, _part(data, own))
            part = PeerPart(tensors.digest(box), len(data.train) + len(data.held_out), data.digest(), own)
            packed[node] = part, box
        return packed

    # -- Errands -------------------------------------------------------------------------------------------

    def on(self, event: FabricEvent) -> None:
        if isinstance(event, Arrived):
            self._greet(event.node, event.registration)

    def may_read(self, node: NodeId, digest: Digest) -> bool:
        return any(it.peers[node].sealed == digest for it in self._active() if node in it.peers)

    def update_limit(self, node: NodeId) -> int:
        return 0

    def retained(self) -> set[Digest]:
        """Parts that peers may still have to fetch."""
        return {part.sealed for it in self._active() for part in it.peers.values()}

    # -- within --------------------------------------------------------------------------------------------

    def _active(self) -> list[SessionStarted]:
        return [it for session, it in self._started.items() if session not in self._ended]

    def _waiting(self) -> list[tuple[NodeId, str]]:
        """Peers that are free, with their public keys, by name."""
        locked = {node for it in self._active() for node in it.peers}
        here = self._core.presence.connected().items()
        free = [(node, seen.registration) for node, seen in here if node not in locked]
        return sorted((node, it.sealing) for node, it in free if it and it.sealing and it.data.name == IDLE)

    def _greet(self, node: NodeId, registration: Registration) -> None:
        """Tell a peer what it should hold, if that is something else; send away who holds what it was not given."""
        held = registration.data.name
        mine = next((it for it in self._active() if node in it.peers), None)
        if held.startswith(PREFIX):
            session = held.removeprefix(PREFIX)
            if mine is not None and mine.session == session:
                if registration.data.digest != mine.peers[node].data:
                    self._core.fabric.disconnect(node, "its rows are not those of the part that it was given")
                    if self._job_of(mine) is None:
                        reason = f"peer {node} holds other rows than those that it was given"
                        self._core.background.spawn(self._end(session, "FAILED", reason))
            elif session in self._started and session not in self._ended:
                self._core.fabric.disconnect(node, "it was given no part of this session")
            else:
                self._core.fabric.send(node, Dismiss(session=session))
        elif mine is not None and registration.sealing:
            self._core.fabric.send(node, Assign(session=mine.session, part=mine.peers[node].sealed))

    async def _run(self, session: str) -> None:
        it = self._started[session]
        for node in it.peers:
            if (seen := self._core.presence.get(node)) is not None and seen.connected and seen.registration is not None:
                self._greet(node, seen.registration)
        try:
            held = await self._core.until_held(it.spec.dataset, len(it.peers), WAIT_SECONDS)
            async with self._turn:
                if session in self._ended:  # meanwhile
                    return
                if missing := sorted(it.peers.keys() - held):
                    absent = ", ".join(missing)
                    raise UserError(f"peers that did not take their parts within {WAIT_SECONDS:g} s: {absent}")
                job = await self._core.submit(it.spec, by=it.by, key=session)
            job = await self._core.wait_final(job.id)
            await self._end(session, _ENDED[job.status], job.outcome)
        except TuttiError as error:
            await self._end(session, "FAILED", str(error))

    async def _end(self, session: str, status: Literal["COMPLETED", "STOPPED", "FAILED"], reason: str) -> None:
        if session in self._ended:
            return
        await self._record(SessionEnded(at=self._core.clock(), session=session, status=status, reason=reason[:1000]))
        for node in self._started[session].peers:
            self._core.fabric.send(node, Dismiss(session=session))

    async def _record(self, event: SessionEvent) -> None:
        await self._core.journal.session(event)

    def _job_of(self, started: SessionStarted) -> Job | None:
        return next((job for job in self._core.jobs.values() if job.spec.dataset == started.spec.dataset), None)


def _split(name: str, rows: Examples, schema: DataSchema, peers: int, seed: int) -> list[Data]:
    """Shuffled parts of the same size, each with rows of its own to measure on."""
    order = np.random.default_rng(seed).permutation(len(rows))
    split = []
    for chosen in np.array_split(order, peers):
        held = max(1, int(len(chosen) * HELD_OUT))
        train, held_out = chosen[held:], chosen[:held]
        split.append(
            Data(name, schema, Examples(rows.x[train], rows.y[train]), Examples(rows.x[held_out], rows.y[held_out]))
        )
    return split


def _part(data: Data, training: PeerTraining) -> bytes:
    return parts.encode(
        parts.Part(
            name=data.name,
            data=data.schema,
            x=parts.Array.of(data.train.x),
            y=parts.Array.of(data.train.y),
            held_out_x=parts.Array.of(data.held_out.x),
            held_out_y=parts.Array.of(data.held_out.y),
            training=training,
        )
    )

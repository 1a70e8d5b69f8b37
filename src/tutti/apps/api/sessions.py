"""Sessions: upload a table, and peers train on its parts. The documented calls of training over a message broker."""

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Query, Request
from msgspec import Meta
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from tutti.adapters.uploads import inferred
from tutti.apps.api.schema import Answer, Api
from tutti.core.errors import NotFound
from tutti.core.registry import Choice
from tutti.domain.events import Digest
from tutti.domain.sessions import ColumnReport, PeerTraining
from tutti.domain.spec import JobSpec, Metrics, Positive, Training
from tutti.services.accounts import Accounts
from tutti.services.sessions import Session, Sessions, SessionStatus
from tutti.services.views import View

TAG = "documented: peer training"
MAX_TABLE = 64 << 20
"""Bytes of an uploaded table."""


class SessionWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of the form beside `file`; numbers may be written as text.

    Attributes:
        peers: How many take part.
        target: The column to predict; the last one if it is left out.
        layers: Widths of SimpleDNN's hidden layers, such as `[64, 32]`.
        per_peer: Hyper-parameters of single peers, in the order of their names.
        user: Whose session it is, if not the caller's.
    """

    peers: Positive
    target: str = ""
    task: Literal["auto", "classification", "regression"] = "auto"
    layers: Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=16)] = (64,)
    rounds: Annotated[int, Meta(ge=1, le=10_000)] = 5
    epochs: Positive = 1
    batch_size: Positive = 32
    lr: Annotated[float, Meta(gt=0, le=1000)] = 0.05
    seed: Annotated[int, Meta(ge=0)] = 0
    per_peer: list[PeerTraining] = []
    user: str = ""


class TrainingSessionView(View, frozen=True, kw_only=True):
    """A session; `report` says what was inferred of each column, `job` is empty until the peers are ready."""

    session_id: str
    status: SessionStatus
    reason: str
    by: str
    started_at: float
    peers: dict[str, int]
    rows: int
    dropped: int
    report: tuple[ColumnReport, ...]
    job: str
    rounds: int
    rounds_done: int


class PeerResult(View, frozen=True, kw_only=True):
    """What a peer told with its newest update that counted; `training` where it differs from the session's."""

    rows: int
    round: int
    metrics: Metrics
    training: PeerTraining


class SessionResults(View, frozen=True, kw_only=True):
    """By peer, and of the aggregated model."""

    session_id: str
    status: SessionStatus
    rounds_done: int
    peers: dict[str, PeerResult]
    aggregated: Metrics
    model: Digest


class SessionRoutes:
    def __init__(self, sessions: Sessions, accounts: Accounts) -> None:
        self._sessions, self._accounts = sessions, accounts

    async def start(self, request: Request) -> Answer[TrainingSessionView]:
        """Upload a CSV table as `file` and train on it: multipart/form-data, other fields as in SessionWish.

        404: the user is unknown. 400: not enough peers wait. 422: the table cannot be learnt from.
        """
        async with request.form(max_files=1, max_fields=32, max_part_size=1 << 16) as form:
            wish, body = _read(form), await _table(form)
        user = self._accounts.account(wish.user).name if wish.user else request.state.identity.name
        table = await asyncio.to_thread(inferred, body, wish.target, wish.task)
        spec = JobSpec(
            dataset="session",
            model=Choice("mlp", {"hidden": list(wish.layers)}),
            rounds=wish.rounds,
            seed=wish.seed,
            training=Training(epochs=wish.epochs, batch_size=wish.batch_size, lr=wish.lr),
        )
        rows = (table.rows, table.schema, table.report, table.dropped)
        session = await self._sessions.start(user, rows, spec, wish.peers, wish.per_peer)
        started = session.started.session
        return Answer(_view(session), 201, {"location": f"/sessions/{started}"})

    async def status(self, session_id: Annotated[str, Query(max_length=64)] = "") -> Answer[TrainingSessionView]:
        """RUNNING, COMPLETED, STOPPED or FAILED: of the newest session, or of one."""
        if session_id:
            return Answer(_view(self._sessions.session(session_id)))
        if not (sessions := self._sessions.all()):
            raise NotFound("there is no session yet")
        return Answer(_view(sessions[0]))

    async def show(self, session: str) -> Answer[TrainingSessionView]:
        """One session."""
        return Answer(_view(self._sessions.session(session)))

    async def results(self, session: str) -> Answer[SessionResults]:
        """What each peer measured, and what the aggregated model does."""
        it = self._sessions.session(session)
        job, peers = it.job, dict[str, PeerResult]()
        for attempt in await self._sessions.attempts(session):
            for update in attempt.round.accepted if attempt.succeeded else ():
                part = it.started.peers[update.node]
                peers[update.node] = PeerResult(
                    rows=part.rows, round=update.round, metrics=update.metrics, training=part.training
                )
        latest = job.evaluations.get(job.rounds_done, {}) if job else {}
        return Answer(
            SessionResults(
                session_id=session,
                status=it.status,
                rounds_done=job.rounds_done if job else 0,
                peers=peers,
                aggregated=next(iter(latest.values()), {}),
                model=job.model if job else "",
            )
        )

    async def stop(self, request: Request, session: str) -> Answer[TrainingSessionView]:
        """End it; the peers are free again."""
        return Answer(_view(await self._sessions.stop(session, request.state.identity.name)))


def _view(session: Session) -> TrainingSessionView:
    started, job = session.started, session.job
    return TrainingSessionView(
        session_id=started.session,
        status=session.status,
        reason=session.ended.reason if session.ended else "",
        by=started.by,
        started_at=started.at,
        peers={node: part.rows for node, part in started.peers.items()},
        rows=started.rows,
        dropped=started.dropped,
        report=started.report,
        job=job.id if job else "",
        rounds=started.spec.rounds,
        rounds_done=job.rounds_done if job else 0,
    )


_STRUCTURED = ("layers", "per_peer")


def _read(form: FormData) -> SessionWish:
    """The fields of the form; `hyperparameters` may hold several of them as JSON. Raises 422 naming the field."""
    plain: dict[str, Any] = {}
    try:
        for name, value in form.items():
            if isinstance(value, str) and name == "hyperparameters":
                plain |= msgspec.json.decode(value, type=dict[str, Any])
            elif isinstance(value, str):
                plain[name] = msgspec.json.decode(value) if name in _STRUCTURED else value
        return msgspec.convert(plain, SessionWish, strict=False)
    except msgspec.MsgspecError as error:
        raise HTTPException(422, f"the form: {error}") from None


async def _table(form: FormData) -> bytes:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise HTTPException(422, "expected a CSV table in the field `file` of multipart/form-data")
    body = await file.read(MAX_TABLE + 1)
    if len(body) > MAX_TABLE:
        raise HTTPException(413, f"a table may have {MAX_TABLE} bytes")
    return body


def add_routes(api: Api, its: SessionRoutes) -> None:
    api.add("POST", "/sessions/start", its.start, TAG, 201)
    api.add("GET", "/sessions/training-status", its.status, TAG)
    api.add("GET", "/sessions/{session}", its.show, TAG)
    api.add("GET", "/sessions/{session}/results", its.results, TAG)
    api.add("POST", "/sessions/{session}/stop", its.stop, TAG)

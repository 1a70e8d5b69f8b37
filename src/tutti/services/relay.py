"""A replica that does not own the log: it has nodes, and passes on what they say, and are told (wire.relay)."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from tutti.core.errors import Forbidden, NotFound, TuttiError, Unavailable, Unproven
from tutti.domain.events import Digest, NodeId
from tutti.domain.spec import DataSchema
from tutti.ports import Arrived, Fabric, FabricEvent, Left, Recorded, Said
from tutti.ports.log import Owner
from tutti.ports.post import Post, PostLost
from tutti.services.audit import BROWSER
from tutti.services.members import fingerprint
from tutti.services.outbox import BEAT_SECONDS, RETRY_SECONDS, SILENT_BEATS, Outbox, Remembered
from tutti.services.proofs import is_public
from tutti.services.summing import RelaySums
from tutti.wire.messages import Refusal, Start, Submission, decode_from_coordinator, encode
from tutti.wire.relay import (
    BadEnvelope,
    Came,
    Drop,
    FromOwner,
    FromRelay,
    Gone,
    Heard,
    Hello,
    Knock,
    Leave,
    Lost,
    News,
    Open,
    Sum,
    Summed,
    Tell,
    ToOwner,
    ToRelay,
    Welcome,
    opened_by_relay,
    sealed,
)

log = logging.getLogger(__name__)

ENTRY_SECONDS = 8.0
"""How long somebody who wants in waits for the owner's answer."""

AWAY_SECONDS = 5.0

LOOKS = 16
"""Updates that are examined at the same time; whoever comes with one more waits."""


class RelayOver(Unavailable):
    """This replica works for nobody else any more."""


class _Session:
    """With one owner."""

    def __init__(self, number: int, owner: str, outbox: Outbox[ToOwner]) -> None:
        self.number, self.owner, self.outbox = number, owner, outbox
        self.expected = self.silent = 0
        self.welcomed, self.over = asyncio.Event(), asyncio.Event()
        self.sums: dict[asyncio.Task[None], str] = {}
        """Those that the owner waits for, each with its job."""

    def call_off(self, job: str | None = None) -> None:
        """No sums of this job, or of any, are waited for any more."""
        for task, its in list(self.sums.items()):
            if job in (None, its):
                task.cancel()


class Relay:
    """Serves the nodes of `fabric` in the owner's name.

    Args:
        name: Of this replica, another one each time that it starts.
        news: Told of every event that the owner has written, in order, but perhaps not of all.

    `sums`, if it is set, keeps updates of these nodes and adds them up.
    """

    def __init__(
        self, name: str, fabric: Fabric, post: Post, news: Callable[[Recorded], None] = lambda _: None
    ) -> None:
        self.name = name
        self.sums: RelaySums | None = None
        self.owner: Owner | None = None
        self._fabric, self._post, self._news = fabric, post, news
        self._known = asyncio.Event()
        self._numbers = itertools.count(1)
        self._session: _Session | None = None
        self._linked = asyncio.Event()
        self._unlinked_at = asyncio.get_running_loop().time()
        self._links: dict[NodeId, int] = {}
        self._shown: dict[NodeId, str] = {}  # by those who are about to connect: the hash of a secret
        self._secrets: dict[NodeId, str] = {}
        self._knocks: dict[int, asyncio.Future[Open]] = {}
        self._over = False
        self._told: dict[NodeId, frozenset[Digest]] = {}
        self._audited: set[NodeId] = set()  # whose updates the owner may want to compute again
        self._works: asyncio.TaskGroup | None = None
        self._models = Remembered[Digest, bytes]()
        self._schemas = Remembered[str, DataSchema]()

    @property
    def linked(self) -> bool:
        """Whether the owner hears this relay."""
        return self._linked.is_set()

    async def until_owned(self) -> Owner:
        """Whoever owns the log, once somebody does."""
        await self._known.wait()
        assert self.owner is not None
        return self.owner

    async def until_linked(self, seconds: float) -> None:
        """Wait for that, for so long after it was lost at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._unlinked_at + seconds):
                await self._linked.wait()

    @property
    def nodes(self) -> int:
        return len(self._links)

    def follow(self, owner: Owner) -> None:
        """Work for this owner from now on."""
        if self.owner is None or owner.name != self.owner.name:
            self.owner = owner
            self._known.set()
            if self._session is not None:
                self._session.over.set()

    async def run(self) -> None:
        """For ever."""
        try:
            async with asyncio.TaskGroup() as self._works:
                self._works.create_task(self._read())
                self._works.create_task(self._speak())
                if self.sums is not None:
                    self._works.create_task(self.sums.tidy())
        finally:
            self._linked.clear()
            self._over = True
            for answer in self._knocks.values():
                if not answer.done():
                    answer.set_exception(RelayOver("this replica is in charge itself now"))

    # -- who may come in, and what they may have -------------------------------------------------------------

    async def authenticate(self, node: NodeId, shown: str) -> None:
        """Ask the owner; raises Forbidden, Unavailable without an answer, or RelayOver."""
        if self._over:
            raise RelayOver("this replica is in charge itself now")
        number = next(self._numbers)
        secret = "" if is_public(shown) else fingerprint(shown)
        answer = self._knocks[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(ENTRY_SECONDS):
                while not answer.done():
                    if (session := self._session) is not None and self.linked:
                        session.outbox.put(Knock(number, node, secret, "" if secret else shown))
                        await _either(answer, session.over)
                    else:
                        await _either(answer, self._linked)
                said = answer.result()
        except TimeoutError:
            raise Unavailable("the coordinator that could let you in does not answer: try again in a moment") from None
        finally:
            self._knocks.pop(number, None)
        if said.refusal:
            raise (Unproven if said.again else Forbidden)(said.refusal)
        self._shown[node] = secret

    def may_read(self, node: NodeId, secret: str, digest: Digest) -> bool:
        """Whether this node is connected here by this secret, and was told to fetch the blob."""
        return self._is(node, secret) and digest in self._told.get(node, ())

    async def keeps_update_of(self, node: NodeId, secret: str) -> bool:
        """Whether this node is connected here by this secret, and what it uploads now is to be kept here."""
        if self.sums is None or node in self._audited or not self._is(node, secret):
            return False
        return await self.sums.keeps(node)

    def check_secret(self, node: NodeId, secret: str) -> None:
        """Raises Forbidden for who is not connected here by this secret."""
        if not self._is(node, secret):
            raise Forbidden(f"{node} is not connected here")

    def _is(self, node: NodeId, secret: str) -> bool:
        kept = self._secrets.get(node, "")
        return node in self._links and kept != "" and kept == fingerprint(secret)

    # -- to the owner ----------------------------------------------------------------------------------------

    async def _speak(self) -> None:
        """One session after another."""
        while True:
            name, number = (await self.until_owned()).name, next(self._numbers)
            outbox = Outbox[ToOwner](
                self._post,
                name,
                lambda n, letters, number=number: sealed(FromRelay(self.name, number, n, letters)),  # type: ignore[misc]
            )
            session = self._session = _Session(number, name, outbox)
            self._models.clear()
            self._schemas.clear()
            outbox.put(Hello())
            why = await self._until_over(session)
            if self._linked.is_set():
                log.warning("this replica has lost the owner %s: %s", name, why)
                self._unlinked_at = asyncio.get_running_loop().time()
            self._linked.clear()
            self._session = None
            session.over.set()
            session.call_off()
            self._send_away()
            await asyncio.sleep(RETRY_SECONDS)

    def _send_away(self) -> None:
        """Nodes that are not heard here for so long had better go to another replica, if the owner is to be had."""
        late = asyncio.get_running_loop().time() - self._unlinked_at > AWAY_SECONDS
        if late and self._post.trouble:
            for node in list(self._links):
                self._fabric.disconnect(node, self._post.trouble)
            self._links.clear()

    async def _until_over(self, session: _Session) -> str:
        try:
            await _first(session.outbox.run(), self._forward(session), self._silence_of(session), session.over.wait())
        except PostLost as lost:
            return str(lost)
        return "letters were lost, or it is another's turn" if session.over.is_set() else "it is silent"

    async def _forward(self, session: _Session) -> None:
        """Once this is an owner's relay: who is here, and all that happens from then on."""
        await session.welcomed.wait()
        self._linked.set()
        log.info("this replica works for the owner %s", session.owner)
        looks = asyncio.Semaphore(LOOKS)
        async with asyncio.TaskGroup() as group:
            async for event in self._fabric.events():
                if (said := self._uploaded(event)) is not None:
                    await looks.acquire()
                    group.create_task(self._hand_in(session, event.node, said, looks))
                else:
                    session.outbox.put(self._letter(event))
                await session.outbox.room()

    def _uploaded(self, event: FabricEvent) -> Submission | None:
        """A submission whose update may be kept here."""
        if self.sums is None or not isinstance(event, Said) or event.blob or event.node in self._audited:
            return None
        return event.message if isinstance(event.message, Submission) else None

    async def _hand_in(self, session: _Session, node: NodeId, said: Submission, looks: asyncio.Semaphore) -> None:
        """Pass a submission on, with what there is to be said of an update that is kept here."""
        assert self.sums is not None
        seen, link = None, self._links.get(node, 0)
        try:
            seen = await self.sums.examine(node, said)
        except Exception:
            log.exception("the update of %s cannot be examined here", node)
        finally:
            looks.release()
        if seen is None:
            self.sums.send_on(node, said)
        session.outbox.put(Heard(node, link, encode(said), b"", seen))

    def _letter(self, event: FabricEvent) -> ToOwner:
        node = event.node
        match event:
            case Arrived(registration=registration, age=age):
                link = self._links[node] = next(self._numbers)
                self._audited.discard(node)
                if BROWSER in registration.capabilities.trainers:
                    self._audited.add(node)
                if node in self._shown:
                    self._secrets[node] = self._shown.pop(node)
                return Came(node, link, encode(registration), age)
            case Left(reason=reason, took_leave=took_leave):
                self._secrets.pop(node, None)
                self._told.pop(node, None)
                self._audited.discard(node)
                return Gone(node, self._links.pop(node, 0), reason, took_leave)
            case Said(message=message, blob=blob):
                return Heard(node, self._links.get(node, 0), encode(message), blob)

    async def _silence_of(self, session: _Session) -> None:
        while session.silent < SILENT_BEATS:
            await asyncio.sleep(BEAT_SECONDS)
            session.silent += 1

    # -- from the owner --------------------------------------------------------------------------------------

    async def _read(self) -> None:
        async for data in self._post.letters(self.name):
            try:
                envelope = opened_by_relay(data)
            except BadEnvelope as error:
                log.error("%s", error)
                continue
            session = self._session
            if session is not None and (envelope.sender, envelope.session) == (session.owner, session.number):
                self._take(session, envelope)

    def _take(self, session: _Session, envelope: FromOwner) -> None:
        if any(isinstance(letter, Lost) for letter in envelope.letters) or envelope.number > session.expected:
            session.over.set()
        if envelope.number != session.expected:
            return
        session.expected += 1
        session.silent = 0
        for letter in envelope.letters:
            self._obey(session, letter)

    def _obey(self, session: _Session, letter: ToRelay) -> None:
        match letter:
            case Welcome():
                session.welcomed.set()
            case Open(id=number):
                if (answer := self._knocks.get(number)) is not None and not answer.done():
                    answer.set_result(letter)
            case Tell():
                self._tell(letter)
            case Sum():
                assert self._works is not None
                task = self._works.create_task(self._sum(session, letter))
                session.sums[task] = letter.job
                task.add_done_callback(session.sums.pop)
            case Leave(job=job):
                session.call_off(job)
                if self.sums is not None:
                    self.sums.leave(job, "its sums do not come")
            case Drop(node=node, link=link, reason=reason, fatal=fatal):
                if self._links.get(node) == link:
                    if fatal:
                        self._fabric.send(node, Refusal(code="replaced", detail=reason, fatal=True))
                    self._fabric.disconnect(node, reason)
            case News(offset=offset, stream=stream, version=version, event=event):
                if self.sums is not None:
                    self.sums.heard(offset)
                self._news(Recorded(offset, stream, version, event))
            case Lost():
                pass

    async def _sum(self, session: _Session, wanted: Sum) -> None:
        partial, trouble = "", ""
        try:
            if self.sums is None:
                raise NotFound("no updates are kept here")
            partial = await self.sums.sum_of(wanted)
        except TuttiError as error:
            trouble = str(error)
        except Exception as error:
            log.exception("updates of job %s cannot be added up here", wanted.job)
            trouble = repr(error)
        session.outbox.put(Summed(wanted.id, partial, trouble))

    def _tell(self, letter: Tell) -> None:
        message, blob = decode_from_coordinator(letter.message), letter.blob
        if isinstance(message, Start):
            if blob:
                self._models.add(message.weights, blob)
            if letter.data is not None:
                self._schemas.add(message.job, letter.data)
            blob = self._models.get(message.weights, b"")
            message = replace(message, data=self._schemas[message.job])
        if self._links.get(letter.node) != letter.link:
            return  # what came with it may be for others, too
        if isinstance(message, Start):
            self._told[letter.node] = frozenset((message.weights, *(step.digest for step in message.steps)))
        self._fabric.send(letter.node, message, blob)


async def _either(answer: "asyncio.Future[Open]", event: asyncio.Event) -> None:
    """Wait for an answer or an event."""
    ended = asyncio.ensure_future(event.wait())
    works: list[asyncio.Future[Any]] = [answer, ended]
    try:
        await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()


async def _first(*works: Coroutine[Any, Any, object]) -> None:
    """Wait for the first of them to end, and end the others; raises what it raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            if not task.done():
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

"""A replica that does not own the log: it has nodes, and passes on what they say, and are told (wire.relay)."""

import asyncio
import itertools
import logging
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

from tutti.core.errors import Forbidden, Unavailable, Unproven
from tutti.domain.events import Digest, NodeId
from tutti.ports import Arrived, Fabric, FabricEvent, Left, Recorded, Said
from tutti.ports.log import Owner
from tutti.ports.post import Post, PostLost
from tutti.services.members import fingerprint
from tutti.services.proofs import is_public
from tutti.wire.messages import Refusal, Start, decode_from_coordinator, encode
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
    Lost,
    News,
    Open,
    Tell,
    ToOwner,
    ToRelay,
    Welcome,
    opened_by_relay,
    sealed,
    weight,
)

log = logging.getLogger(__name__)

BEAT_SECONDS = 0.5
SILENT_BEATS = 6
"""After so many of one's own without a word the other side is gone; who stood still has counted only one of them."""

SILENCE_SECONDS = SILENT_BEATS * BEAT_SECONDS

RETRY_SECONDS = 0.2
ENTRY_SECONDS = 8.0
"""How long somebody who wants in waits for the owner's answer."""

AWAY_SECONDS = 5.0

LETTERS, BYTES = 64, 1 << 19
"""Of one envelope."""

MOST_LETTERS, MOST_BYTES = 8192, 64 << 20
"""That wait for one receiver."""

MODELS = 8
"""Small models that a relay remembers, so that each travels once."""


class RelayOver(Unavailable):
    """This replica works for nobody else any more."""


L = TypeVar("L", bound=ToOwner | ToRelay)


class Outbox(Generic[L]):
    """Letters on their way to one receiver, in the envelopes of one session."""

    def __init__(self, post: Post, to: str, seal: Callable[[int, tuple[L, ...]], bytes]) -> None:
        self._post, self._to, self._seal = post, to, seal
        self._waiting: deque[L] = deque()
        self.told: Counter[NodeId] = Counter()
        """How many messages wait for each node."""
        self._bytes, self._number = 0, 0
        self._more, self._room = asyncio.Event(), asyncio.Event()

    def put(self, letter: L) -> None:
        self._waiting.append(letter)
        self._bytes += weight(letter)
        if isinstance(letter, Tell):
            self.told[letter.node] += 1
        self._more.set()

    @property
    def full(self) -> bool:
        return len(self._waiting) >= MOST_LETTERS or self._bytes >= MOST_BYTES

    async def room(self) -> None:
        """Wait while it is full."""
        while self.full:
            self._room.clear()
            await self._room.wait()

    async def run(self) -> None:
        """Send, for ever; raises PostLost if an envelope could not be sent for SILENCE_SECONDS."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._more.wait()
            await self._send(self._seal(self._number, self._take()))
            self._number += 1

    def _take(self) -> tuple[L, ...]:
        taken, size = list[L](), 0
        while self._waiting and len(taken) < LETTERS and size < BYTES:
            taken.append(self._waiting.popleft())
            size += weight(taken[-1])
        self.told -= Counter(letter.node for letter in taken if isinstance(letter, Tell))
        self._bytes -= size
        if not self._waiting:
            self._more.clear()
        self._room.set()
        return tuple(taken)

    async def _send(self, envelope: bytes) -> None:
        """Whoever gets it twice knows by its number."""
        loop = asyncio.get_running_loop()
        until = loop.time() + SILENCE_SECONDS
        while True:
            try:
                await self._post.send(self._to, envelope)
                return
            except PostLost:
                if loop.time() > until:
                    raise
            await asyncio.sleep(RETRY_SECONDS)


class _Session:
    """With one owner."""

    def __init__(self, number: int, owner: str, outbox: Outbox[ToOwner]) -> None:
        self.number, self.owner, self.outbox = number, owner, outbox
        self.expected = self.silent = 0
        self.welcomed, self.over = asyncio.Event(), asyncio.Event()


class Relay:
    """Serves the nodes of `fabric` in the owner's name.

    Args:
        name: Of this replica, another one each time that it starts.
        news: Told of every event that the owner has written, in order, but perhaps not of all.
    """

    def __init__(
        self, name: str, fabric: Fabric, post: Post, news: Callable[[Recorded], None] = lambda _: None
    ) -> None:
        self.name = name
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
        self._models: dict[Digest, bytes] = {}

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
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read())
                group.create_task(self._speak())
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
            outbox.put(Hello())
            why = await self._until_over(session)
            if self._linked.is_set():
                log.warning("this replica has lost the owner %s: %s", name, why)
                self._unlinked_at = asyncio.get_running_loop().time()
            self._linked.clear()
            self._session = None
            session.over.set()
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
        async for event in self._fabric.events():
            session.outbox.put(self._letter(event))
            await session.outbox.room()

    def _letter(self, event: FabricEvent) -> ToOwner:
        node = event.node
        match event:
            case Arrived(registration=registration, age=age):
                link = self._links[node] = next(self._numbers)
                if node in self._shown:
                    self._secrets[node] = self._shown.pop(node)
                return Came(node, link, encode(registration), age)
            case Left(reason=reason, took_leave=took_leave):
                self._secrets.pop(node, None)
                self._told.pop(node, None)
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
            case Tell(node=node, link=link):
                if self._links.get(node) == link:
                    self._tell(letter)
            case Drop(node=node, link=link, reason=reason, fatal=fatal):
                if self._links.get(node) == link:
                    if fatal:
                        self._fabric.send(node, Refusal(code="replaced", detail=reason, fatal=True))
                    self._fabric.disconnect(node, reason)
            case News(offset=offset, stream=stream, version=version, event=event):
                self._news(Recorded(offset, stream, version, event))
            case Lost():
                pass

    def _tell(self, letter: Tell) -> None:
        message, blob = decode_from_coordinator(letter.message), letter.blob
        if isinstance(message, Start):
            self._told[letter.node] = frozenset((message.weights, *(step.digest for step in message.steps)))
            if blob:
                self._models[message.weights] = blob
                if len(self._models) > MODELS:
                    del self._models[next(iter(self._models))]
            blob = self._models.get(message.weights, b"")
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

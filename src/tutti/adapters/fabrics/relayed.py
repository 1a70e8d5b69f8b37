"""Nodes that are connected to other replicas, as a Fabric of the one that owns the log (wire.relay, services.relay)."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec.structs import replace

from tutti.adapters.fabrics.places import ELSEWHERE, Places
from tutti.core.errors import Forbidden, Unavailable, Unproven
from tutti.domain.events import Digest, NodeId, UpdateAccepted
from tutti.domain.spec import DataSchema
from tutti.ports import Arrived, FabricEvent, Kept, Left, NoSum, Recorded, Said
from tutti.ports.blobs import Buffer
from tutti.ports.post import Post, PostLost
from tutti.services.outbox import BEAT_SECONDS, SILENT_BEATS, Outbox, Remembered
from tutti.wire.messages import BadMessage, CoordinatorMessage, Registration, Start, decode_from_node, encode
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
    opened_by_owner,
    sealed,
)

log = logging.getLogger(__name__)

EVENTS = 4096
"""That wait for the coordinator; more than this, and nothing further is read."""

SUM_SECONDS, SUM_BYTES_PER_SECOND = 60.0, 20e6
"""How long a relay, which is there, may take to add up what it keeps: for itself, and for what it has to read."""

OUTGOING = 256
"""Messages that wait for one node."""


class Doorkeeper(Protocol):
    """Knows the nodes; services.members.Members is one."""

    def check_secret(self, node: NodeId, secret: str) -> None:
        """Raises Forbidden if this is not the fingerprint of the node's secret."""
        ...

    def authenticate(self, node: NodeId, shown: str) -> None:
        """Raises Forbidden."""
        ...

    def is_member(self, node: NodeId) -> bool: ...

    async def turn_away(self, node: str, reason: str) -> None:
        """Record that somebody was refused."""
        ...


@dataclass(slots=True, eq=False)
class _Relay:
    """A session with a relay, and the nodes that it has."""

    name: str
    session: int
    outbox: Outbox[ToRelay]
    expected: int = 0
    silent: int = 0  # beats
    nodes: dict[NodeId, int] = field(default_factory=dict)
    models: Remembered[Digest, None] = field(default_factory=Remembered)
    schemas: Remembered[str, None] = field(default_factory=Remembered)
    sums: dict[int, "asyncio.Future[Summed]"] = field(default_factory=dict)
    sending: "asyncio.Task[None] | None" = None


class RelayedFabric:
    """A Fabric, and Summing: relays keep updates of their nodes. Keep `run` running beside it."""

    def __init__(self, name: str, post: Post, door: Callable[[], Doorkeeper]) -> None:
        self._name, self._post, self._door = name, post, door
        self._relays: dict[str, _Relay] = {}
        self._places = Places[tuple[_Relay, int]]()
        self._events: asyncio.Queue[FabricEvent] = asyncio.Queue()
        self._room = asyncio.Event()
        self._room.set()
        self._watchers: list[Callable[[], None]] = []
        self._numbers = itertools.count(1)
        self._said_lost: dict[str, float] = {}
        self._group: asyncio.TaskGroup | None = None

    # -- the port --------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[FabricEvent]:
        while True:
            event = await self._events.get()
            if self._events.qsize() < EVENTS:
                self._room.set()
            yield event

    def send(self, node: NodeId, message: CoordinatorMessage, blob: Buffer = b"") -> bool:
        found = self._places.get(node)
        if found is None:
            return False
        relay, link = found
        if relay.outbox.told[node] >= OUTGOING:
            self.disconnect(node, f"does not read: {OUTGOING} messages wait for it")
            return False
        if relay.outbox.stuck:
            self._end(relay, "it does not take what it is told")
            return False
        relay.outbox.put(_tell(relay, node, link, message, blob))
        return True

    def disconnect(self, node: NodeId, reason: str) -> None:
        if (found := self._places.get(node)) is not None:
            self._drop(node, *found, reason)
            self._left(node, *found, Left(node, reason))

    # -- updates that relays keep ----------------------------------------------------------------------------

    def keeps(self, place: str) -> bool:
        return place in self._relays

    def watch(self, gone: Callable[[], None]) -> None:
        self._watchers.append(gone)

    async def sum_of(
        self, place: str, job: str, attempt: tuple[int, int], updates: Sequence[UpdateAccepted], size: int
    ) -> Digest:
        if (relay := self._relays.get(place)) is None:
            raise Unavailable("it is not there any more")
        number = next(self._numbers)
        answer: asyncio.Future[Summed] = asyncio.get_running_loop().create_future()
        relay.sums[number] = answer
        wanted = tuple((update.node, update.digest, update.weight) for update in updates)
        relay.outbox.put(Sum(number, job, *attempt, wanted))
        seconds = SUM_SECONDS + size / SUM_BYTES_PER_SECOND
        try:
            async with asyncio.timeout(seconds):
                summed = await answer
        except TimeoutError:
            raise NoSum(f"it has not added them up within {seconds:.0f} s") from None
        finally:
            relay.sums.pop(number, None)
        if summed.trouble:
            raise NoSum(summed.trouble)
        return summed.partial

    def leave(self, place: str, job: str) -> None:
        if (relay := self._relays.get(place)) is not None:
            relay.outbox.put(Leave(job))

    # -- for whoever puts it together ------------------------------------------------------------------------

    @property
    def relays(self) -> dict[str, int]:
        """How many nodes each relay has that speaks with us."""
        return {name: len(relay.nodes) for name, relay in self._relays.items()}

    def tell_news(self, recorded: Recorded) -> None:
        """Let all relays know what is in the log now; one that misses it reads the log."""
        news = News(recorded.offset, recorded.stream, recorded.version, recorded.event)
        for relay in self._relays.values():
            if not relay.outbox.full:
                relay.outbox.put(news)

    async def run(self) -> None:
        """Hear relays, for ever."""
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self._read())
            self._group.create_task(self._watch())

    # -- sessions --------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        async for data in self._post.letters(self._name):
            try:
                self._take(opened_by_owner(data))
            except BadEnvelope as error:
                log.error("%s", error)
            if self._events.qsize() >= EVENTS:
                self._room.clear()
            await self._room.wait()

    def _take(self, envelope: FromRelay) -> None:
        relay = self._relays.get(envelope.sender)
        if envelope.number == 0 and (relay is None or envelope.session > relay.session):
            relay = self._begin(envelope.sender, envelope.session)
        elif relay is not None and (envelope.session, envelope.number) < (relay.session, relay.expected):
            return  # it has come before
        elif relay is None or (envelope.session, envelope.number) > (relay.session, relay.expected):
            if relay is not None:
                self._end(relay, "letters were lost")
            self._spawn(self._say_lost(envelope.sender, envelope.session))
            return
        relay.expected += 1
        relay.silent = 0
        for letter in envelope.letters:
            self._deal(relay, letter)

    def _begin(self, name: str, session: int) -> _Relay:
        if (before := self._relays.get(name)) is not None:
            self._end(before, "it begins anew")
        outbox = Outbox[ToRelay](
            self._post, name, lambda number, letters: sealed(FromOwner(self._name, session, number, letters))
        )
        relay = self._relays[name] = _Relay(name, session, outbox)
        relay.sending = self._spawn(self._send_to(relay))
        return relay

    async def _send_to(self, relay: _Relay) -> None:
        try:
            await relay.outbox.run()
        except PostLost as lost:
            self._end(relay, str(lost))

    def _end(self, relay: _Relay, why: str) -> None:
        """Its nodes are gone, as far as anybody can tell."""
        if self._relays.get(relay.name) is not relay:
            return
        log.warning("the relay %s, with %d nodes: %s", relay.name, len(relay.nodes), why)
        del self._relays[relay.name]
        if relay.sending is not None:
            relay.sending.cancel()
        for answer in relay.sums.values():
            if not answer.done():
                answer.set_exception(Unavailable(why))
        for node, link in list(relay.nodes.items()):
            self._left(node, relay, link, Left(node, f"of its replica nothing is heard: {why}"))
        for gone in self._watchers:
            gone()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            await self._room.wait()  # else it is we who do not listen
            for relay in list(self._relays.values()):
                relay.silent += 1
                if relay.silent > SILENT_BEATS:
                    self._end(relay, "it is silent")

    async def _say_lost(self, name: str, session: int) -> None:
        """Now and then, for each letter of a session that is over would be answered."""
        now = asyncio.get_running_loop().time()
        self._said_lost = {each: at for each, at in self._said_lost.items() if now - at < BEAT_SECONDS}
        if name in self._said_lost:
            return
        self._said_lost[name] = now
        try:
            await self._post.send(name, sealed(FromOwner(self._name, session, -1, (Lost(),))))
        except PostLost as lost:
            log.warning("%s", lost)

    def _spawn(self, work: "Awaitable[None]") -> "asyncio.Task[None]":
        assert self._group is not None
        return self._group.create_task(work)  # type: ignore[arg-type]

    # -- letters ---------------------------------------------------------------------------------------------

    def _deal(self, relay: _Relay, letter: ToOwner) -> None:
        match letter:
            case Hello():
                relay.outbox.put(Welcome())
            case Knock():
                self._answer(relay, letter)
            case Came():
                self._on_came(relay, letter)
            case Gone(node=node, link=link, reason=reason, took_leave=took_leave):
                self._left(node, relay, link, Left(node, reason, took_leave))
            case Summed(id=number):
                if (answer := relay.sums.get(number)) is not None and not answer.done():
                    answer.set_result(letter)
            case Heard(node=node, link=link, message=message, blob=blob, seen=seen):
                if self._places.get(node) == (relay, link):
                    kept = None if seen is None else Kept(relay.name, seen)
                    try:
                        self._events.put_nowait(Said(node, decode_from_node(message), blob, kept))
                    except BadMessage as error:
                        log.error("%s: %s", node, error)

    def _answer(self, relay: _Relay, knock: Knock) -> None:
        door, node = self._door(), knock.node
        try:
            if knock.proof:
                door.authenticate(node, knock.proof)
            else:
                door.check_secret(node, knock.secret)
        except Forbidden as error:
            self._spawn(door.turn_away(node, str(error)))
            relay.outbox.put(Open(knock.id, str(error), isinstance(error, Unproven)))
        else:
            relay.outbox.put(Open(knock.id, "", False))

    def _on_came(self, relay: _Relay, came: Came) -> None:
        node, here = came.node, (relay, came.link)
        try:
            registration = decode_from_node(came.registration)
        except BadMessage as error:
            log.error("%s: %s", node, error)
            return
        if not isinstance(registration, Registration) or not self._door().is_member(node):
            self._drop(node, *here, "it was removed")
            return
        loser = self._places.arrived(node, here, came.age)
        if loser is not None:
            self._drop(node, *loser.where, loser.reason(node), fatal=loser.fatal)
            if loser.where == here:
                return
            loser.where[0].nodes.pop(node, None)
            self._events.put_nowait(Left(node, ELSEWHERE))
        relay.nodes[node] = came.link
        self._events.put_nowait(Arrived(node, registration, came.age))

    def _left(self, node: NodeId, relay: _Relay, link: int, left: Left) -> None:
        if self._places.left(node, (relay, link)):
            relay.nodes.pop(node, None)
            self._events.put_nowait(left)

    def _drop(self, node: NodeId, relay: _Relay, link: int, reason: str, *, fatal: bool = False) -> None:
        relay.outbox.put(Drop(node, link, reason, fatal))


def _tell(relay: _Relay, node: NodeId, link: int, message: CoordinatorMessage, blob: Buffer) -> Tell:
    """Without what the relay has got in this session: the model, and what is long in a wide table's schema."""
    if not isinstance(message, Start):
        return Tell(node, link, encode(message), b"")
    data = None if message.job in relay.schemas else message.data
    if data is not None:
        relay.schemas.add(message.job, None)
    if message.weights in relay.models:
        blob = b""
    elif blob:
        relay.models.add(message.weights, None)
    brief = replace(message, data=DataSchema(message.data.task, message.data.shape, message.data.outputs))
    return Tell(node, link, encode(brief), bytes(blob), data)

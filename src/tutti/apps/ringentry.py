"""How a ring is entered: supernodes, those who enrol with them, and whom a member has met before."""

import asyncio
import contextlib
import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tutti.adapters.blobs.sink import sync_directory
from tutti.adapters.thrift.client import Channel, UnknownCall, Unreachable
from tutti.adapters.thrift.idl import PROTOCOL, compute_node, peer_from, peer_struct, supernode
from tutti.adapters.thrift.node import ThriftPeers, apart, peer_at
from tutti.adapters.thrift.server import Server
from tutti.adapters.thrift.supernode import Supernode
from tutti.adapters.thrift.tls import client_context, server_context
from tutti.core.errors import Conflict, StorageError
from tutti.ring.identifiers import Peer
from tutti.services.ring import RingMember

log = logging.getLogger(__name__)

WITHIN = 2.0
"""Seconds for one call; a member that takes longer counts as dead."""

ENROL_EVERY, JOIN_EVERY = 5.0, 1.0
"""Seconds after which a member tells its supernodes again that it is there: one that was restarted knows nobody. And
those after which a process that has not joined yet asks again through whom it can."""

SUPERNODE_PATIENCE = 10.0
"""Seconds in which a supernode that is started with its members must come up."""

LOOK_EVERY = 0.25
REMEMBERED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files for TLS: a certificate of one's own, its key, and the authority that signs everybody's."""

    certificate: Path
    key: Path
    authority: Path


def contexts(tls: Tls | None) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """For a server that only members may call, and for its calls to others."""
    if tls is None:
        return None, None
    server = server_context(tls.certificate, tls.key, clients=tls.authority)
    return server, client_context(tls.authority, certificate=tls.certificate, key=tls.key)


# -- the supernode's side ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SupernodeSettings:
    host: str = "127.0.0.1"
    port: int = 9091
    members: tuple[str, ...] = ()
    tls: Tls | None = None
    on_ready: Callable[[str], None] | None = None


async def serve_supernode(settings: SupernodeSettings) -> None:
    """Run a supernode until cancelled; raises PortTaken."""
    server_tls, tls = contexts(settings.tls)
    peers = ThriftPeers(within=WITHIN, tls=tls)
    server = Server(supernode.Supernode, Supernode(peers, time.monotonic, settings.members), tls=server_tls)
    port = await server.start(settings.host, settings.port)
    try:
        if settings.on_ready is not None:
            settings.on_ready(f"{settings.host}:{port}")
        await asyncio.Event().wait()
    finally:
        await server.close()
        await peers.close()


async def members_of(address: str, tls: ssl.SSLContext | None) -> tuple[Peer, ...]:
    """The members that a supernode knows; raises Unreachable, UnknownCall, and Conflict if it refuses to say."""
    found = await _ask(address, tls, "members", PROTOCOL)
    return tuple(map(peer_from, found))


async def _ask(address: str, tls: ssl.SSLContext | None, name: str, *arguments: object) -> Iterable[object]:
    host, _, port = address.rpartition(":")
    channel = Channel(supernode.Supernode, host, int(port), tls=tls)
    try:
        answer: list[object] = await channel.call(name, *arguments, within=3 * WITHIN)
        return answer
    except compute_node.Refused as refused:
        raise Conflict(f"the supernode {address} refuses: {refused.reason}") from None
    finally:
        await channel.close()


# -- a member's side -----------------------------------------------------------------------------------------


class Remembered(msgspec.Struct, frozen=True):
    """What a member keeps beside its chain: which life this is, and whom it has met.

    Lives are counted from the time of the first one, so that one without a memory is later than any before it.
    """

    incarnation: int = 0
    peers: tuple[str, ...] = ()


class Entry:
    """A member's way into its ring. Raises StorageError.

    Attributes:
        me: What it is called in this life, also after it has been taken for dead.
    """

    def __init__(
        self, file: Path, address: str, supernodes: tuple[str, ...], peers: ThriftPeers, tls: ssl.SSLContext | None
    ) -> None:
        self._file, self._supernodes, self._peers, self._tls = file, supernodes, peers, tls
        self.apart: tuple[str, ...] = ()
        """Members of another ring in use, which the supernodes know too."""
        self._remembered = _recall(file)
        self.live_on(peer_at(address, self._remembered.incarnation + 1))

    def live_on(self, me: Peer) -> None:
        """Begin this life, once it is on disk: it must be later than any that anybody has been told of."""
        self._write(Remembered(me.incarnation, self._remembered.peers))
        self.me = me

    async def contacts(self) -> tuple[tuple[Peer, ...], bool]:
        """Members to join through, and whether this one begins the ring; waits a moment for a supernode to come.

        Raises Unreachable, and Conflict if it is refused, or if the supernodes know only another ring, or two.
        """
        known = tuple(peer_at(address) for address in self._remembered.peers if address != self.me.address)
        deadline, said = time.monotonic() + (0.0 if known else SUPERNODE_PATIENCE), False
        while True:
            try:
                found, first = await self._found()
                return (known, True) if first else (found, False)
            except Unreachable as error:
                if known:
                    log.warning("%s; joining through members of before", error)
                    await self._be_welcome(known)
                    return known, False
                if time.monotonic() > deadline:
                    raise
                if not said:
                    log.warning("%s; asks again for %g s", error, SUPERNODE_PATIENCE)
                said = True
            await asyncio.sleep(LOOK_EVERY)

    async def stay(self, ring: RingMember, found: Callable[[], Awaitable[None]]) -> None:
        """Tell the supernodes again and again that this member is there, and remember whom it knows.

        Whom they know too it meets: there may be two rings that have not heard of one another. `found`: begin one.
        """
        while True:
            await asyncio.sleep(ENROL_EVERY if ring.member.joined else JOIN_EVERY)
            self._remember(peer.address for peer in ring.member.roster.alive)
            with contextlib.suppress(Unreachable, UnknownCall, Conflict):
                known = ring.member.roster.alive
                try:
                    contacts, first = await self._found(known)
                except Unreachable:  # then those who remember one another may begin without any
                    contacts, first = (), not ring.member.joined and await self._comes_first_of_the_remembered()
                ring.meet(*contacts)
                if first and not ring.member.joined:
                    await found()

    async def _found(self, known: Sequence[Peer] = ()) -> tuple[tuple[Peer, ...], bool]:
        """Members of one ring, or who may begin it, as the supernodes say; and whether this one begins it.

        Each supernode names the one that it heard of first; where they differ, those whom they name settle it.
        """
        contacts, chosen = await self._enrol_everywhere()
        found = await self._of_one_ring(contacts, known)
        return found, chosen and await self._comes_first(found)

    async def _comes_first_of_the_remembered(self) -> bool:
        """Also if everybody was killed, and no supernode is there: somebody begins."""
        others = [peer_at(address) for address in self._remembered.peers if address != self.me.address]
        return bool(others) and await self._comes_first(others)

    async def _comes_first(self, others: Sequence[Peer]) -> bool:
        """Whether none of them is in a ring, and none that waits for one as this member does has a smaller address."""
        words = await asyncio.gather(*map(self._peers.is_member, others))
        waiting = [peer.address for peer, word in zip(others, words, strict=True) if word is False]
        return not any(words) and self.me.address == min((self.me.address, *waiting))

    async def _of_one_ring(self, contacts: Sequence[Peer], known: Sequence[Peer] = ()) -> tuple[Peer, ...]:
        """Those that are not of another ring; raises Conflict if none is left, or there are two to choose from."""
        unknown = [peer for peer in contacts if peer not in known]
        views = await asyncio.gather(*(self._peers.view(peer, peer.id) for peer in unknown))
        answers = {peer: view for peer, view in zip(unknown, views, strict=True) if view is not None}
        chains, mine = {peer: view.chain for peer, view in answers.items() if view.chain}, self._peers.chain()
        if not mine and len({*chains.values()}) > 1:
            raise Conflict(f"the supernodes know two rings, which never become one: {_said(chains)}; name those of one")
        others = {peer: chain for peer, chain in chains.items() if apart(chain, mine)}
        before, self.apart = self.apart, tuple(sorted(peer.address for peer in others))
        if others and len(others) == len(contacts):
            raise Conflict(
                f"this member is of a ring that began with record {mine[:12]}, those that the supernodes know are of "
                f"another: {_said(others)}. Two rings that were both used never become one. To join that one, and "
                f"leave what this one has agreed on, give another --state-dir or remove {self._file.parent}; to stay "
                "in this one, name supernodes that know its members"
            )
        if others and self.apart != before:
            log.error("the supernodes know another ring too, which stays apart: %s", _said(others))
        return tuple(peer for peer in contacts if peer not in others)

    async def _enrol_everywhere(self) -> tuple[tuple[Peer, ...], bool]:
        """Whom the supernodes name that answer, and whether one of them names nobody: this one shall begin.

        Raises Unreachable, or Conflict if one refuses this member.
        """
        answers = await asyncio.gather(*map(self._enrol, self._supernodes), return_exceptions=True)
        found, chosen = dict[str, Peer](), False
        for answer in answers:
            if isinstance(answer, BaseException):
                if not isinstance(answer, Unreachable):
                    raise answer
            else:
                found |= {peer.address: peer for peer in answer}
                chosen = chosen or not answer
        if all(isinstance(answer, Unreachable) for answer in answers):
            reasons = "; ".join(map(str, answers))
            raise Unreachable(f"no supernode answers, and no member is known from before: {reasons}")
        return tuple(found.values()), chosen

    async def _enrol(self, address: str) -> tuple[Peer, ...]:
        return tuple(map(peer_from, await _ask(address, self._tls, "enrol", PROTOCOL, peer_struct(self.me))))

    async def _be_welcome(self, known: Iterable[Peer]) -> None:
        """Raises Conflict if somebody answers, and all who do refuse."""
        refusals = await asyncio.gather(*map(self._peers.refusal, known))
        reasons = [reason for reason in refusals if reason is not None]
        if reasons and all(reasons):
            raise Conflict(f"the ring refuses {self.me.address}: {reasons[0]}")

    def _remember(self, known: Iterable[str]) -> None:
        """The cache of peers: who is known now, and who was."""
        peers = tuple(dict.fromkeys((*known, *self._remembered.peers)))[:REMEMBERED]
        if peers != self._remembered.peers:
            self._write(Remembered(self._remembered.incarnation, peers))

    def _write(self, remembered: Remembered) -> None:
        partial = self._file.with_suffix(".tmp")
        try:
            with partial.open("wb") as file:
                file.write(msgspec.json.encode(remembered))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._file)
            sync_directory(self._file.parent)
        except OSError as error:
            raise StorageError(f"cannot write {self._file}: {error.strerror or error}") from None
        self._remembered = remembered


def _said(chains: Mapping[Peer, str]) -> str:
    return ", ".join(f"{peer.address} (began with record {chain[:12]})" for peer, chain in chains.items())


def _recall(file: Path) -> Remembered:
    try:
        if not file.exists():
            return Remembered(int(time.time()))
        return msgspec.json.decode(file.read_bytes(), type=Remembered)
    except (OSError, msgspec.MsgspecError) as error:
        raise StorageError(f"cannot read {file}: {error}; remove it, and the member joins anew") from None

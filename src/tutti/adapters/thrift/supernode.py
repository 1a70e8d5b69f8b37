"""The Supernode service: a well-known address where a ring is joined. It may die, and start again knowing nothing."""

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tutti.adapters.thrift.idl import compute_node, peer_struct
from tutti.adapters.thrift.node import peer_at, reachable, require_version
from tutti.core.errors import UserError
from tutti.ports.ring import Peers
from tutti.ring.identifiers import Peer
from tutti.ring.member import View

CONTACTS = 8
MAX_ASKED = 64
GRACE = 10.0
"""Seconds since it last enrolled in which a process that does not answer yet is not taken for dead."""

FRESH = 1.0
"""Seconds for which what the members answered is shared: a host that is silent costs each look as long as a call may
take."""


class BadMembers(UserError):
    """The members file cannot be read as one; the message names the line."""


def parse_members(text: str) -> tuple[str, ...]:
    """The addresses of a members file: `host:port` or `host port` a line, `#` begins a comment; raises BadMembers."""
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not (entry := line.partition("#")[0].strip()):
            continue
        match = re.fullmatch(r"(\S+?)(?::|[\s,]+)(\d{1,5})", entry)
        if match is None or not 0 < int(match[2]) < 65536:
            raise BadMembers(f"members file, line {number}: expected an address such as 127.0.0.1:5001, came {entry!r}")
        address = f"{match[1]}:{int(match[2])}"
        if address in found:
            raise BadMembers(f"members file, line {number}: {address} stands on line {found[address]} already")
        found[address] = number
    if not found:
        raise BadMembers("members file: it names nobody; leave --members out if any may join")
    return tuple(found)


class Supernode:
    """The handler of the service.

    It knows the latest MAX_ASKED addresses that may be members; the members know the others. While none of them is in a
    ring, the one that came first and still asks begins it.

    Args:
        now: Seconds, of a clock that does not go back.
        members: Addresses that may join; empty if any may. Those of them that answer are found after a restart.
    """

    def __init__(self, peers: Peers, now: Callable[[], float], members: tuple[str, ...] = ()) -> None:
        self._peers, self._now, self._members = peers, now, members
        self._enrolled: dict[str, tuple[Peer, float]] = {}
        self._look: asyncio.Task[list[View]] | None = None
        self._looked_at = 0.0

    async def enrol(self, protocol: int | None, peer: Any) -> list[Any]:
        require_version(protocol)
        newcomer = reachable(peer, self._members)
        views = await self._shared()
        if _has_another(newcomer, views):  # the other may have been killed since
            views = await self._anew()
            if _has_another(newcomer, views):
                raise compute_node.Refused(f"another live process has {newcomer.address}: choose another port")
        return [peer_struct(contact) for contact in self._contacts(newcomer, views)]

    def _contacts(self, newcomer: Peer, views: Sequence[View]) -> list[Peer]:
        """Through whom it can join, itself in the line. Waits for nothing: of two first ones, one is first."""
        address = newcomer.address
        if self._enrolled.get(address, (None, 0.0))[0] != newcomer:
            self._enrolled.pop(address, None)  # another life is at the end of the line
        self._enrolled[address] = (newcomer, self._now())
        line = [known for known, heard in self._enrolled.values() if self._now() - heard < GRACE]
        contacts = _each_once([view.peer for view in views]) or line[:1]
        return [contact for contact in contacts if contact.address != address][:CONTACTS]

    async def members(self, protocol: int | None) -> list[Any]:
        require_version(protocol)
        views = await self._anew()
        alive = _each_once([view.peer for view in views], *(view.roster.alive for view in views))
        return [peer_struct(peer) for peer in sorted(alive)]

    async def _shared(self) -> list[View]:
        """What those answer who may be members; asked once for all who want to know within a moment."""
        look = self._look
        if look is None or (look.done() and self._now() - self._looked_at >= FRESH):
            return await self._anew()
        return await asyncio.shield(look)

    async def _anew(self) -> list[View]:
        self._look = asyncio.create_task(self._views())
        return await asyncio.shield(self._look)  # others may wait for it too

    async def _views(self) -> list[View]:
        """What those answer who may be members; who does not, and is not new, is forgotten."""
        asked = {address: peer_at(address) for address in self._members}
        asked |= {address: peer for address, (peer, _) in self._enrolled.items()}
        peers = list(asked.values())[-MAX_ASKED:]
        answers = await asyncio.gather(*(self._peers.ask(peer, peer.id, None) for peer in peers))
        self._looked_at = self._now()
        answered = {peer.address for peer, answer in zip(peers, answers, strict=True) if answer is not None}
        self._enrolled = {
            address: (peer, heard)
            for address, (peer, heard) in list(self._enrolled.items())[-MAX_ASKED:]
            if address in answered or self._now() - heard < GRACE
        }
        return [answer for answer in answers if answer is not None]


def _has_another(newcomer: Peer, views: Iterable[View]) -> bool:
    """Whether a process in another life has its address."""
    address, life = newcomer.address, newcomer.incarnation
    return any(view.peer.address == address and view.peer.incarnation != life for view in views)


def _each_once(*groups: Iterable[Peer]) -> list[Peer]:
    return list({peer.address: peer for group in groups for peer in group}.values())

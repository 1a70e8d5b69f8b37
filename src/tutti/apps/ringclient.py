"""A client of a ring: places data, submits jobs and fetches results, through any of its members."""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from tutti.adapters.blobs.ring import collect
from tutti.adapters.datasets import parts
from tutti.adapters.thrift.client import UnknownCall, Unreachable
from tutti.adapters.thrift.idl import compute_node, training_node
from tutti.adapters.thrift.node import ThriftPeers, peer_at
from tutti.apps.ringentry import ENROL_EVERY, Tls, contexts, members_of
from tutti.core.errors import Conflict, NotFound
from tutti.domain.spec import JobSpec
from tutti.ports.ring import Placement
from tutti.ports.training import Data
from tutti.ring.identifiers import Peer
from tutti.services.views import JobView, RoundView
from tutti.services.views.ring import RingView

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_EVERY = 0.2
PATIENCE = 60.0
"""Seconds in which a ring that is between two leaders, or whose nodes load their data, must become ready."""

SAID_AFTER = 3.0
"""Seconds without a leader after which a client says that it waits: after a death there is another leader sooner."""

AT_ONCE = 8
"""Parts that are sent to one member at a time."""

FAILED_FOR = 60.0
"""Seconds for which a member that failed is asked after all others: one that is frozen takes ten for each answer."""

SAME = 10
"""Looks at a job that shows nothing new, after which another member is asked: the one that was may be cut off."""

FAILED = (Unreachable, UnknownCall)
OVER = ("completed", "stopped", "failed")
"""A job with one of these changes no more."""


class RingClient:
    """`address` is that of a supernode or of any member. Close it."""

    def __init__(self, address: str, tls: Tls | None = None) -> None:
        self._address, self._tls = address, contexts(tls)[1]
        self._peers = ThriftPeers(within=10.0, tls=self._tls)
        self._members: tuple[Peer, ...] = ()
        self._turns: dict[str, float] = {}  # by address, when it was put last, or for how long it is
        self.note = ""
        """What is not as usual, though the ring can be asked."""

    async def close(self) -> None:
        await self._peers.close()

    async def members(self) -> tuple[Peer, ...]:
        """Who is in the ring now, by identifier; raises Unreachable, NotFound for a ring without members.

        A supernode that has just started knows nobody: members tell it in a moment.
        """
        deadline = asyncio.get_running_loop().time() + ENROL_EVERY + 1.0
        while not (found := await self._ask_for_members() or self._members):
            if asyncio.get_running_loop().time() > deadline:
                raise NotFound(f"the ring at {self._address} has no members yet: start some with `tutti ring node`")
            await asyncio.sleep(LOOK_EVERY)
        self._members = tuple(sorted(found))
        return self._members

    async def _ask_for_members(self) -> tuple[Peer, ...]:
        """Of the address that this client was given, or, if that is away, of the members that it has met since."""
        try:
            found = await self._members_at(self._address)
        except Unreachable:
            if not self._members:
                raise
            self.note = f"{self._address} does not answer; the members that were there are asked"
            return await self._members_by_others()
        self.note = ""
        return found

    async def _members_at(self, address: str) -> tuple[Peer, ...]:
        try:
            return await members_of(address, self._tls)
        except UnknownCall:  # a member, then
            view = await self._view(peer_at(address))
            return tuple(map(peer_at, {address, *view.known}))

    async def _members_by_others(self) -> tuple[Peer, ...]:
        for peer in self._in_turn(self._members):
            try:
                return await self._members_at(peer.address)
            except Unreachable:
                self._put_last(peer, FAILED_FOR)
        return ()

    async def views(self) -> list[RingView]:
        """Every member that answers, around the ring."""
        found = await asyncio.gather(*map(self._view, await self.members()), return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException) and not isinstance(error, Unreachable):
                raise error
        return [view for view in found if isinstance(view, RingView)]

    async def watch(self) -> AsyncIterator[list[RingView]]:
        """The members' views, again and again."""
        while True:
            yield await self.views()
            await asyncio.sleep(LOOK_EVERY)

    async def _view(self, peer: Peer) -> RingView:
        with _refused(f"{peer.address} refuses: "):
            return msgspec.json.decode(await self._peers.show(peer), type=RingView)

    async def place(self, data: Data, *, replace: bool = False) -> Mapping[str, int]:
        """Divide the training rows among the members by consistent hashing; how many rows each got, by address.

        The members copy them. What was placed on this ring before is given up. Raises Unreachable, and Conflict, also
        if a job that is not over trains on other data, unless `replace`.
        """
        if not replace:
            await self._need_nobody_else(data.name)
        cut = await asyncio.to_thread(parts.cut, data)
        placement = Placement(data.name, parts.content(cut), time.time_ns() // 1000)
        owned = parts.owners(cut, await self.members())
        await asyncio.gather(*(self._place(peer, placement, mine) for peer, mine in owned.items()))
        return {peer.address: sum(len(part.rows) for part in mine) for peer, mine in owned.items()}

    async def _need_nobody_else(self, dataset: str) -> None:
        newest = max(await self.views(), key=lambda view: (view.generation, view.height), default=None)
        for job in newest.jobs if newest else ():
            if job.status not in OVER and job.dataset != dataset:
                raise Conflict(
                    f"the job {job.id} is not over and trains on {job.dataset!r}, which the members would give up for "
                    f"{dataset!r}: wait until it is over, or say --replace"
                )

    async def _place(self, owner: Peer, placement: Placement, mine: Sequence[parts.Cut]) -> None:
        """Who owns nothing is told too, so that it gives up what it has."""
        blobs = {part.digest: part.blob for part in mine}
        with _refused():
            lacking = iter(await self._peers.keep(owner, placement, [*blobs]))

            async def send() -> None:
                for digest in lacking:
                    await self._peers.store(owner, bytes.fromhex(digest), blobs[digest])

            await asyncio.gather(*(send() for _ in range(AT_ONCE)))
            await self._peers.keep(owner, placement, [*blobs])

    async def until_held(self, dataset: str, nodes: int) -> None:
        """Wait until so many nodes with these data are connected to the leader, and every part has its copies.

        Raises Conflict after a while.
        """
        held = uncopied = 0
        try:
            async with asyncio.timeout(PATIENCE):
                async for views in self.watch():
                    held = max((view.holders.get(dataset, 0) for view in views), default=0)
                    uncopied = sum(view.parts_uncopied for view in views)
                    if held >= nodes and not uncopied:
                        return
        except TimeoutError:
            raise Conflict(
                f"{held} nodes that hold {dataset!r} are connected, {nodes} were expected; "
                f"{uncopied} parts wait for a copy"
            ) from None

    async def submit(self, spec: JobSpec) -> str:
        """The job's id. All members are asked, again and again, until one takes it; the job is made once."""
        key, job = secrets.token_hex(16), msgspec.json.encode(spec)
        now = asyncio.get_running_loop().time
        began, said, reason = now(), False, "no member answers"

        async def ask(peer: Peer) -> str:
            nonlocal reason
            try:
                return await self._peers.submit(peer, key, job)
            except training_node.NotNow as later:
                reason = f"{peer.address}: {later.reason}"
                raise

        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    with suppress(training_node.NotNow), _refused("the ring refuses the job: "):
                        return await self._any(ask, passing=(training_node.NotNow,))
                    if not said and now() - began > SAID_AFTER:
                        log.warning("nobody leads the ring at the moment; asking for %g s more", PATIENCE - SAID_AFTER)
                        said = True
                    await asyncio.sleep(LOOK_EVERY)
        except TimeoutError:
            raise Unreachable(f"the ring took no job within {PATIENCE:g} s: {reason}") from None

    async def progress(self, job: str) -> tuple[JobView, list[RoundView]]:
        """Raises NotFound if no member knows the job."""
        with _refused():
            found, rounds = await self._any(lambda peer: self._peers.progress(peer, job), passing=(NotFound,))
        return msgspec.json.decode(found, type=JobView), msgspec.json.decode(rounds, type=list[RoundView])

    async def follow(self, job: str) -> AsyncIterator[tuple[JobView, list[RoundView]]]:
        """The job as it changes, to its end; whichever members die meanwhile, or are cut off from the others."""
        before, reached, same = None, (False, 0, False), 0
        while True:
            view, rounds = await self.progress(job)
            if view != before and (far := _reached(view, rounds)) >= reached:
                before, reached, same = view, far, 0
                yield view, rounds
            else:
                same += 1
                if same % SAME == 0:
                    self._put_last(self._in_turn(self._members)[0])
            if view.status in OVER:
                return
            await asyncio.sleep(LOOK_EVERY)

    async def model(self, digest: str) -> memoryview:
        """A model's bytes, from whoever has it; raises NotFound, CorruptBlob."""
        return await collect(self._peers, [peer.address for peer in await self.members()], digest)

    async def reform(self) -> None:
        """Make the member with the longest chain go on without a majority.

        Raises Conflict if there is a leader, NotFound if there is no such member.
        """
        best = max(await self.views(), key=lambda view: (view.generation, view.height), default=None)
        if best is None:
            raise NotFound(f"no member of the ring at {self._address} answers: start one, and force the ring then")
        with _refused():
            await self._peers.reform(peer_at(best.address))

    async def _any(self, ask: Callable[[Peer], Awaitable[T]], passing: tuple[type[Exception], ...] = ()) -> T:
        """What the first member answers that can be reached, of those known before or else of those there now.

        Others are asked after what is in `passing` too; it is raised if nobody has a better answer.
        """
        passed: Exception | None = None
        failed: Exception = NotFound(f"the ring at {self._address} has no members")
        asked = set[Peer]()
        for anew in (False, True):
            try:
                members = await self.members() if anew else self._members
            except (*FAILED, NotFound) as error:
                failed = error
                break
            for peer in self._in_turn(members):
                if peer in asked and passed is not None:  # the ring is there: who failed will not do better at once
                    continue
                asked.add(peer)
                try:
                    return await ask(peer)
                except passing as error:
                    self._put_last(peer)
                    passed = error
                except FAILED as error:
                    self._put_last(peer, FAILED_FOR)
                    failed = error
        raise passed or failed

    def _in_turn(self, members: Sequence[Peer]) -> list[Peer]:
        return sorted(members, key=lambda peer: self._turns.get(peer.address, 0.0))

    def _put_last(self, peer: Peer, seconds: float = 0.0) -> None:
        """Ask this member after the others, and for so long also after those that are put last meanwhile."""
        self._turns[peer.address] = asyncio.get_running_loop().time() + seconds


def _reached(view: JobView, rounds: Sequence[RoundView]) -> tuple[bool, int, bool]:
    """How far the job is in this view: of two members', the one that shows less is older."""
    return view.status in OVER, len(rounds), bool(rounds) and rounds[-1].status != "open"


@contextmanager
def _refused(what: str = "") -> Iterator[None]:
    """A member's refusal, as Conflict."""
    try:
        yield
    except compute_node.Refused as refused:
        raise Conflict(f"{what}{refused.reason}") from None


def named(host: str, port: int) -> str:
    """An address as one word; IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def address_towards(address: str) -> str:
    """This machine's own address on the way to another, under which that one can call back."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        family, *_, target = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise Unreachable(f"there is no way to {address}: {error.strerror or error}") from None


def default_state(address: str) -> Path:
    """Where a member keeps its state: by address, so that several on one machine have their own."""
    root = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return root / "tutti" / "ring" / address.replace(":", "_").replace("[", "").replace("]", "")

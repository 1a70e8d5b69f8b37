"""The composition root of a ring: a member that keeps its place, agrees, trains and, when it is its turn, leads."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.blobs.handover import Handover
from tutti.adapters.blobs.held import HeldBlobs
from tutti.adapters.blobs.ring import RingBlobs
from tutti.adapters.chains.sqlite import SqliteChain
from tutti.adapters.datasets import known_schema
from tutti.adapters.fabrics.ring import RingFabric, RingLink, node_of
from tutti.adapters.identities.secp256k1 import Secp256k1Key, verify
from tutti.adapters.logs.chain import Agreed, ChainLog, events_of
from tutti.adapters.machine import Machine, apply_limits, keep_freed_memory
from tutti.adapters.thrift.client import UnknownCall, Unreachable
from tutti.adapters.thrift.idl import compute_node, training_node
from tutti.adapters.thrift.node import ThriftPeers, peer_at
from tutti.adapters.thrift.server import Server
from tutti.adapters.thrift.training import ThriftVoices, TrainingNode
from tutti.adapters.workbench import Bench, OwnProcess
from tutti.apps.bootstrap import steady_clock
from tutti.apps.nodes import read_policy, sole_use, trainers
from tutti.apps.ringdata import MemberData
from tutti.apps.ringentry import LOOK_EVERY, WITHIN, Entry, Tls, contexts
from tutti.core.errors import Conflict, NotFound, UserError
from tutti.core.registry import Choice
from tutti.domain.events import Digest, NodeId
from tutti.domain.policy import Policy
from tutti.domain.signing import PublicKey, address_of
from tutti.domain.spec import DataSchema, JobSpec, Training
from tutti.ports.fabric import LinkLost
from tutti.ports.ring import Placement
from tutti.ports.training import Data, Examples, Task, models
from tutti.ring.consensus import AnyMessage, Found
from tutti.ring.identifiers import Peer
from tutti.ring.member import Member, View
from tutti.ring.record import Record, Seat
from tutti.services.chain import BadRecord, ChainMember, LostLead
from tutti.services.coordinator import Coordinator
from tutti.services.leftovers import Leftovers
from tutti.services.node import NodeRuntime
from tutti.services.ring import RingMember
from tutti.services.seats import Seats
from tutti.services.verify import SILENT, Verifier, enough_without
from tutti.services.views import job_view, round_views
from tutti.services.views.ring import RingView, ring_view

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RingNodeSettings:
    """What `tutti ring node` needs to know. `host` is the address under which the others reach this member.

    `data`: what it trains on; None for what clients place here. `members`: addresses that may be members; empty if any
    may.
    """

    port: int
    supernodes: tuple[str, ...]
    state_dir: Path
    host: str = "127.0.0.1"
    data: Choice | None = None
    members: tuple[str, ...] = ()
    policy: Path | None = None
    allow_modules: tuple[str, ...] = ()
    tls: Tls | None = None
    on_ready: Callable[[str], None] | None = None


async def run_ring_node(settings: RingNodeSettings) -> None:
    """Run a member until cancelled; raises UserError, StorageError or Unreachable if it cannot be one."""
    with sole_use(settings.state_dir):
        policy = read_policy(settings.policy)
        policy = msgspec.structs.replace(policy, allow_modules=(*policy.allow_modules, *settings.allow_modules))
        apply_limits(policy)
        keep_freed_memory()
        node = RingNode(settings, policy)
        try:
            await node.run()
        finally:
            await node.close()


class RingNode:
    """One member: host of the Thrift calls (adapters.thrift.training.Host), and everything behind them."""

    def __init__(self, settings: RingNodeSettings, policy: Policy) -> None:
        self._settings, self._policy, folder = settings, policy, settings.state_dir
        self.ring: RingMember | None = None
        self.address = f"{settings.host}:{settings.port}"
        self._key = Secp256k1Key.at(folder / "signing-key")
        server_tls, tls = contexts(settings.tls)
        self._peers = ThriftPeers(within=WITHIN, tls=tls)
        self._here = HeldBlobs(DirectoryBlobs(folder / "blobs"))
        self._handover = Handover(self.address, self._here)
        self._blobs = RingBlobs(self.address, self._here, self._peers, self._holders)
        members = frozenset(settings.members)
        handler = TrainingNode(self, self._here, members=members)
        self._server = Server(training_node.TrainingNode, handler, tls=server_tls)
        self._store = SqliteChain(folder / "chain.sqlite")
        self._entry = Entry(folder / "ring.json", self.address, settings.supernodes, self._peers, tls)
        self.voices = ThriftVoices(self.me, self._peers)
        self.voices.lost = self._on_lost
        self._seats = Seats(self._peers, time.monotonic, members)
        self.chain = ChainMember(
            Seat(self.address, self.me.incarnation),
            self._store,
            self.voices,
            verify=self._verify,
            roster=self._roster,
            clock=time.monotonic,
        )
        self._peers.chain = lambda: self.chain.origin
        self.agreed = Agreed(self.chain)
        self.agreed.forgotten = self._forget
        self._verifier = Verifier(
            self._blobs,
            self._blobs.obtain_update,
            self._here.has,
            lambda: self.agreed.jobs,
            self._others_do,
            keys=lambda: self.agreed.keys,
            own=(node_of(self.address), self._key.public),
            verify=verify,
        )
        self._link = RingLink(self.address, self.chain, self._peers, self._blobs, time.monotonic)
        self.core: Coordinator | None = None
        self._fabric: RingFabric | None = None
        self._node: NodeRuntime | None = None
        self._placed = MemberData(
            folder, settings.data, self._here, self._peers, lambda: self._node is not None and self._node.busy
        )
        self._leftovers = Leftovers(
            self._here.digests, self._needed, lambda: self.agreed.jobs, self._placed.delete_unwanted
        )
        self._tidying: set[asyncio.Task[None]] = set()

    # -- life ----------------------------------------------------------------------------------------------

    @property
    def me(self) -> Peer:
        return self._entry.me

    def _live_on(self, me: Peer) -> None:
        self._entry.live_on(me)
        self.voices.me, self.chain.seat = me, Seat(me.address, me.incarnation)

    async def run(self) -> None:
        await self._placed.load()
        await self.chain.load()
        await asyncio.to_thread(_warm_up)
        await self._server.start(self._settings.host, self._settings.port)
        self._handover.start()
        contacts, first = await self._entry.contacts()
        if contacts and not first:
            self.chain.let_go()
        self.ring = RingMember(self.me, self._peers, contacts, founds=first)
        self.ring.on_life = self._live_on
        self._placed.join(self.ring)
        chain = asyncio.create_task(self.chain.run(founds=first and not contacts))
        ring = asyncio.create_task(self.ring.run())
        works = (
            self._lead(),
            self._train(),
            self._placed.run(),
            self._leftovers.sweep(),
            self._entry.stay(self.ring, self._begin),
            self._seats.run(self.ring),
        )
        others = [asyncio.create_task(work) for work in works]
        try:
            if self._settings.on_ready is not None:
                self._settings.on_ready(self.address)
            done, _ = await asyncio.wait((chain, ring, *others), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # none of them ends but by an error
        except BaseExceptionGroup as failed:  # the first failure ended it, the others followed
            raise _first_of(failed) from None
        finally:
            for tasks in (others, (chain, ring)):  # a leader resigns while its chain still runs
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    async def close(self) -> None:
        await self._server.close()
        await self._handover.close()
        await self._link.close()
        await self._peers.close()
        self._store.close()

    async def _begin(self) -> None:
        """Begin a ring, and a chain unless there is one: nobody is there through whom to join."""
        assert self.ring is not None
        await self.ring.found()
        await self.chain.tell(Found(self.chain.seat))

    def _roster(self) -> tuple[Seat, ...]:
        tip = self.chain.replica.tip
        return self._seats.of(
            Member(self.me) if self.ring is None else self.ring.member, () if tip is None else tip.roster
        )

    def _holders(self) -> list[str]:
        """Who may have a blob: the leader, its committee, then everybody."""
        tip = self.chain.replica.tip
        everybody = (self.chain.leader, *self.chain.replica.order, *(() if tip is None else tip.addresses))
        return [address for address in dict.fromkeys(everybody) if address and address != self.address]

    async def _verify(self, record: Record, asked_for: float) -> str | None:
        try:
            return await self._verifier.fault(events_of(record), asked_for=asked_for)
        except BadRecord as error:
            return str(error)

    async def _others_do(self, updates: Sequence[Digest], asked_for: float) -> bool:
        committee = self.chain.replica.order
        if self.address not in committee:  # it has changed meanwhile
            return True
        others = [address for address in committee if address != self.address]
        given = await self._blobs.given(others, updates, silent=SILENT - asked_for)
        return enough_without(self.address, committee, given)

    def _needed(self) -> set[Digest]:
        """What the jobs need, to which a leader has added what waits to be agreed on, and what clients have placed."""
        leading = set() if self.core is None else self.core.keeper.needed()
        return self.agreed.needed() | leading | self._placed.wanted

    def _forget(self, digests: set[Digest]) -> None:
        if digests:
            task = asyncio.create_task(self._here.delete(*digests))
            self._tidying.add(task)
            task.add_done_callback(self._tidying.discard)

    def _on_lost(self, address: str) -> None:
        if self._fabric is not None:
            self._fabric.lost(address)

    # -- leading -------------------------------------------------------------------------------------------

    async def _lead(self) -> None:
        while True:
            await self.chain.until(lambda chain: chain.leading)
            async with self._leading() as (core, log_of_chain, term):
                await self._until_deposed(core, log_of_chain, term)

    @asynccontextmanager
    async def _leading(self) -> AsyncIterator[tuple[Coordinator, ChainLog, int]]:
        """An ordinary coordinator, on the ring's log, blobs and fabric."""
        term, log_of_chain = self.chain.term, ChainLog(self.chain, self.agreed)
        fabric = RingFabric(self._peers, self.address, lambda node, key: _admit(core, node, key))
        core = Coordinator(
            event_log=log_of_chain,
            blobs=self._blobs,
            fabric=fabric,
            workbench=Bench(OwnProcess(), self._policy.allow_modules),
            known_schema=known_schema,
            clock=steady_clock(),
            verify=verify,
        )
        try:
            await core.start()
            self.core, self._fabric = core, fabric
            yield core, log_of_chain, term
        finally:
            self.core = self._fabric = None
            log_of_chain.give_up(LostLead("this member does not lead any more"))
            fabric.close()
            await core.stop()

    async def _until_deposed(self, core: Coordinator, log_of_chain: ChainLog, term: int) -> None:
        """Look after the sessions and the roster until another leads.

        Raises StorageError, with which this process ends: who cannot record anything must let another lead.
        """
        fabric = self._fabric
        assert fabric is not None
        while self.chain.leading and self.chain.term == term and log_of_chain.lost is None:
            if core.background.failed.done():
                raise core.background.failed.result()
            fabric.end_silent()
            tip = self.chain.replica.tip
            between = all(job.round is None for job in core.jobs.values() if not job.final)
            if tip is not None and between and not log_of_chain.busy and tip.roster != self._roster():
                with contextlib.suppress(LostLead):
                    await log_of_chain.flush()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self.chain.until(lambda chain: not chain.leading or chain.term != term)
        if log_of_chain.lost is not None and not isinstance(log_of_chain.lost, LostLead):
            raise log_of_chain.lost

    # -- training ------------------------------------------------------------------------------------------

    async def _train(self) -> None:
        """The ordinary node runtime, on the data that are here; anew when they are others."""
        while True:
            await self._placed.changed.wait()
            self._placed.changed.clear()
            if self._placed.data is None:
                continue
            self._node = self._runtime(self._placed.data)
            runtime = asyncio.create_task(self._node.run())
            changed = asyncio.create_task(self._placed.changed.wait())
            try:
                await asyncio.wait((runtime, changed), return_when=asyncio.FIRST_COMPLETED)
                if runtime.done():
                    runtime.result()
            finally:
                self._node = None
                for task in (runtime, changed):
                    task.cancel()
                await asyncio.wait((runtime, changed))

    def _runtime(self, data: Data) -> NodeRuntime:
        return NodeRuntime(
            name=node_of(self.address),
            token="",
            link=self._link,
            data=data,
            policy=self._policy,
            machine=Machine(),
            workdir=self._settings.state_dir / "work",
            trainer_for=trainers(self._policy),
            key=self._key,
        )

    # -- calls of others (adapters.thrift.training.Host) ---------------------------------------------------

    async def asked(self, key: int, asker: Peer | None) -> View | None:
        view = None if self.ring is None else await self.ring.asked(key, asker)
        return None if view is None else replace(view, chain=self.chain.origin)

    async def told(self, peer: Peer) -> None:
        if self.ring is not None:
            await self.ring.told(peer)

    async def agree(self, message: AnyMessage) -> None:
        await self.chain.heard(message)

    async def attach(self, address: str, session: int, frame: bytes) -> None:
        if self._fabric is None:
            raise LinkLost(f"{self.address} does not lead")
        await self._fabric.attach(address, session, frame)

    async def say(self, session: int, frame: bytes) -> None:
        if self._fabric is None:
            raise LinkLost(f"{self.address} does not lead any more")
        await self._fabric.say(session, frame)

    def leave(self, session: int) -> None:
        if self._fabric is not None:
            self._fabric.leave(session)

    def hear(self, leader: str, session: int, frame: bytes) -> None:
        self._link.hear(leader, session, frame)

    def over(self, leader: str, session: int, reason: str, *, replaced: bool) -> None:
        self._link.over(leader, session, reason, replaced=replaced)

    async def keep(self, placement: Placement, digests: list[Digest]) -> list[Digest]:
        return await self._placed.keep(placement, digests)

    async def kept(self, placement: Placement, digests: list[Digest]) -> tuple[list[Digest], tuple[Peer, ...]]:
        return await self._placed.kept(digests)

    async def submit(self, key: str, job: bytes) -> str:
        """At the leader, or through it."""
        spec = _job_from(job)
        if self.core is not None:
            return (await self.core.submit(spec, key=key, by="ring")).id
        leader = self.chain.leader
        if not leader or leader == self.address:
            raise LinkLost("nobody leads the ring at the moment")
        try:
            return await self._peers.submit(peer_at(leader), key, job)
        except compute_node.Refused as refused:
            raise Conflict(refused.reason) from None
        except training_node.NotNow as later:
            raise LinkLost(later.reason) from None
        except (Unreachable, UnknownCall) as error:
            raise LinkLost(f"the leader cannot be reached: {error}") from None

    async def progress(self, job: str) -> tuple[bytes, bytes]:
        found = self.agreed.jobs.get(job)
        if found is None:
            raise NotFound(f"there is no job {job!r} in this ring, as far as {self.address} knows")
        return msgspec.json.encode(job_view(found)), msgspec.json.encode(round_views(found))

    def show(self) -> bytes:
        return msgspec.json.encode(self.view())

    def view(self) -> RingView:
        return ring_view(
            self.me,
            None if self.ring is None else self.ring.member,
            self.chain,
            self.agreed.jobs,
            {} if self.core is None else self.core.offers(),
            (self._blobs.sent, self._blobs.resent),
            self._placed.keeper,
            self._entry.apart,
            address_of(self._key.public),
        )

    async def reform(self) -> None:
        if not self.chain.fault:
            raise Conflict(f"the ring is led by {self.chain.leader}: there is nothing to force")
        await self.chain.reform()


def _first_of(failed: BaseException) -> BaseException:
    return _first_of(failed.exceptions[0]) if isinstance(failed, BaseExceptionGroup) else failed


def _warm_up() -> None:
    """Load the framework before anybody counts on this process: for seconds it answers nobody."""
    schema = DataSchema("classification", (1,), 2)
    rows = Examples(np.zeros((1, 1), np.float32), np.zeros(1, np.int64))
    with contextlib.suppress(UserError):  # it is not installed; a job that needs it will say so
        trainer = models.build(Choice("linear"), data=schema)
        trainer.train(trainer.init(0), rows, Task(Training(), 0, 1, 0.1), lambda *_: None)


def _job_from(job: bytes) -> JobSpec:
    """Raises UserError."""
    try:
        return msgspec.json.decode(job, type=JobSpec)
    except msgspec.DecodeError as error:
        raise UserError(f"not a job: {error}") from None


async def _admit(core: Coordinator, node: NodeId, key: PublicKey) -> None:
    """Members of the ring need no invitation. One that has lost its key joins anew, for all to see."""
    if key and core.register.keys.get(node, key) != key:
        await core.remove_node(node, "it comes with another key: it has lost its state folder")
    if node not in core.register.nodes:
        await core.members.admit(
            await core.members.invite(uses=1, seconds=60.0, by="ring"), node, secrets.token_urlsafe(32)
        )

"""Who belongs to a coordinator: invitations, joining, proof of identity, and what the log keeps of all that."""

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from hmac import compare_digest
from itertools import islice

from blake3 import blake3

from tutti.core.errors import Forbidden, NotFound, StorageError
from tutti.domain import events as e
from tutti.domain import nodes
from tutti.domain.events import NodeEvent, NodeId
from tutti.domain.quotas import Kind
from tutti.services.journal import Journal
from tutti.services.presence import Presence
from tutti.services.proofs import CONNECTING, Proofs, key_of
from tutti.services.scheduling import Busy
from tutti.wire.messages import Heartbeat, Progress, Registration

log = logging.getLogger(__name__)

NOTED_BURST, NOTED_EVERY = 10.0, 10.0
"""How often a node's coming is logged: so many times at once, and then once in so many seconds."""

TURNED_AWAY_EVERY = 10.0
TURNED_AWAY_BURST = 20.0


def fingerprint(secret: str) -> str:
    """What is kept of a token: its hash. Tokens are random 192 bits or more, so no salt is needed."""
    return blake3(secret.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """One registered node, as people want to see it. Times are seconds since the epoch."""

    node: NodeId
    connected: bool
    joined_at: float
    last_seen: float | None = None
    registration: Registration | None = None
    heartbeat: Heartbeat | None = None
    progress: Progress | None = None
    task: str = ""
    drained: bool = False
    key: str = ""


@dataclass(slots=True)
class Door:
    """How much of the log strangers may fill: an event in ten seconds for each name, one a second for all."""

    tokens: float = TURNED_AWAY_BURST
    at: float = 0.0
    noted: dict[str, float] = field(default_factory=dict)

    def may_note(self, name: str, now: float) -> bool:
        self.tokens = min(TURNED_AWAY_BURST, self.tokens + max(0.0, now - self.at))
        self.at = now
        self.noted = {known: at for known, at in self.noted.items() if now - at < TURNED_AWAY_EVERY}
        if name in self.noted or self.tokens < 1:
            return False
        self.tokens -= 1
        self.noted[name] = now
        return True


class Members:
    """The register of nodes, as its journal has it."""

    def __init__(self, journal: Journal, presence: Presence, proofs: Proofs) -> None:
        self._journal = journal
        self._presence = presence
        self.proofs = proofs
        self._door = Door()
        self._noted: dict[NodeId, tuple[float, float]] = {}
        self.admits: Callable[[str, Kind], None] = lambda by, one_more: None
        """Called before a node is taken in that somebody has invited; raises a TuttiError if it is one too many."""

    async def invite(self, *, uses: int = 1, seconds: float = 86_400.0, by: str = "") -> str:
        """Issue a join token for so many joins within so many seconds; only its hash is kept."""
        token = secrets.token_urlsafe(24)
        expires = self._journal.clock() + seconds
        await self._journal.nodes(nodes.IssueInvite(token=fingerprint(token), uses=uses, expires=expires, by=by))
        return token

    def check_invite(self, token: str) -> None:
        """Raises Forbidden, as `admit` would, if this token lets nobody in; does not use it up."""
        join = nodes.Join(invite=fingerprint(token), node="", secret="")
        nodes.decide(self._journal.register, join, now=self._journal.clock())

    async def admit(self, token: str, node: NodeId, secret: str | None = None) -> str:
        """Take a node in; returns the secret it shows from now on (its own choice, if it made one).

        With a public key in the secret's place, the node signs its updates with that key, too, and with no other. A
        node that chose its secret may ask again after a lost answer, and is let in once.
        """
        secret = secret or secrets.token_urlsafe(32)
        key = key_of(secret)
        known = self._journal.register.nodes.get(node)
        if known is not None and compare_digest(known, fingerprint(secret)):
            return secret
        wish = nodes.Join(invite=fingerprint(token), node=node, secret=fingerprint(secret), key=key)
        await self._journal.nodes(wish, lambda: self._check_quota(wish.invite))
        return secret

    def _check_quota(self, invite: str) -> None:
        if (issued := self._journal.register.invites.get(invite)) is not None:
            self.admits(issued.by, "node")

    def authenticate(self, node: NodeId, shown: str, use: str = CONNECTING) -> None:
        """Raises Forbidden for a node that has not joined, and for a wrong secret or a proof of it (`Proofs.check`)."""
        self.check_secret(node, fingerprint(self.proofs.stands_for(shown)))
        self.proofs.check(node, shown, use)

    def is_member(self, node: NodeId) -> bool:
        return node in self._journal.register.nodes

    def check_secret(self, node: NodeId, secret: str) -> None:
        """Raises Forbidden if this is not the fingerprint of the node's secret."""
        known = self._journal.register.nodes.get(node)
        if known is None:
            raise Forbidden(f"no node {node!r} has joined here, or it was removed: join again with a new link")
        if not compare_digest(known, secret):
            raise Forbidden(f"the token is not that of node {node!r}")

    async def turn_away(self, node: str, reason: str) -> None:
        """Record that somebody was refused at the door, as far as strangers may fill the log."""
        now = self._journal.clock()
        if self._door.may_note(node, now):
            await self._journal.note(e.NodeTurnedAway(at=now, node=node[:64], reason=reason[:200]))

    def may_note(self, node: NodeId, now: float) -> bool:
        """Whether its coming is logged: a node that comes and goes all the time must not fill the log."""
        left, at = self._noted.get(node, (NOTED_BURST, now))
        left = min(NOTED_BURST, left + (now - at) / NOTED_EVERY)
        self._noted[node] = (left - 1 if left >= 1 else left, now)
        return left >= 1

    async def note(self, event: NodeEvent) -> None:
        """Record a coming or going, if the log takes it: nothing depends on it."""
        try:
            await self._journal.note(event)
        except StorageError as error:
            log.error("not recorded: %s: %s", type(event).__name__, error)

    def statuses(self, busy: Busy) -> list[NodeStatus]:
        """All registered nodes, by name; `busy` tells who works on what."""
        return [self.status(node, busy.get(node)) for node in sorted(self._journal.register.nodes)]

    def status(self, node: NodeId, task: tuple[str, int] | None) -> NodeStatus:
        """A registered node, and the job and round that it works on; raises NotFound."""
        if node not in self._journal.register.nodes:
            raise NotFound(f"there is no node {node!r}")
        seen, register = self._presence.get(node), self._journal.register
        joined, drained, key = self._journal.joined_at[node], node in register.drained, register.keys.get(node, "")
        if seen is None:
            return NodeStatus(node=node, connected=False, joined_at=joined, drained=drained, key=key)
        return NodeStatus(
            node=node,
            drained=drained,
            key=key,
            connected=seen.connected,
            joined_at=joined,
            last_seen=seen.heard_at,
            registration=seen.registration,
            heartbeat=seen.heartbeat,
            progress=seen.progress,
            task=f"{task[0]}/{task[1]}" if task else "",
        )


def arrival(node: NodeId, registration: Registration, now: float) -> e.NodeConnected:
    """What the log keeps of a node's coming."""
    machine = registration.capabilities
    return e.NodeConnected(
        at=now,
        node=node,
        cpus=machine.cpus,
        memory=machine.memory,
        gpus=len(machine.gpus),
        examples=registration.data.examples,
        dataset=registration.data.name,
        version=machine.versions.get("tutti", "")[:32],
        held_out=registration.data.held_out,
        digest=registration.data.digest[:64],
        source=registration.data.source[:500],
        versions={name[:32]: version[:32] for name, version in islice(machine.versions.items(), 20)},
    )

"""Which nodes are here now, what they last said, and who has been silent for too long. Nothing here is logged."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from tutti.domain.events import NodeId
from tutti.domain.nodes import DataSummary, Terms
from tutti.domain.spec import CohortRules
from tutti.wire.messages import Heartbeat, Progress, Registration

Owed = tuple[str, int, int]
"""A task: job, round, attempt."""


Offer = tuple[DataSummary, Terms]
"""What decides whether a node may be asked to work on a job; of thousands of nodes most offer the same."""


def offer_of(registration: Registration) -> Offer:
    data = registration.data
    return DataSummary(data.name, data.data, min(data.examples, 1)), registration.terms


@dataclass(slots=True)
class Seen:
    """One node: `since` is when it came or, if it is away, when it left."""

    connected: bool
    since: float
    registration: Registration | None = None
    heard_at: float = 0.0
    heartbeat: Heartbeat | None = None
    progress: Progress | None = None
    took_leave: bool = False
    told: dict[Owed, float] = field(default_factory=dict)  # tasks sent over this connection, with the last sign of work


class Presence:
    """All nodes seen since the coordinator started; a node not seen yet counts as gone since then."""

    def __init__(self, started: float) -> None:
        self.started = started
        self._seen: dict[NodeId, Seen] = {}
        self._holding: dict[str, set[NodeId]] = {}  # the connected ones by data set: nobody looks through thousands
        self._offers: Counter[Offer] = Counter()
        self.here = 0  # how many are connected

    def get(self, node: NodeId) -> Seen | None:
        return self._seen.get(node)

    def connected(self) -> dict[NodeId, Seen]:
        return {node: seen for node, seen in self._seen.items() if seen.connected}

    def holding(self, dataset: str) -> Iterator[NodeId]:
        """The connected nodes that hold this data set, in no order."""
        return iter(self._holding.get(dataset, ()))

    def offers(self, but: Iterable[NodeId] = ()) -> Counter[Offer]:
        """What the connected nodes offer, but for some of them, and how many offer the same."""
        found = self._offers.copy()
        for node in but:
            seen = self._seen.get(node)
            if seen is not None and seen.connected and seen.registration is not None:
                found[offer_of(seen.registration)] -= 1
        return found

    def arrived(self, node: NodeId, registration: Registration, now: float) -> None:
        self.forget(node)
        self._seen[node] = Seen(True, now, registration, now)
        self._holding.setdefault(registration.data.name, set()).add(node)
        self._offers[offer_of(registration)] += 1
        self.here += 1

    def left(self, node: NodeId, now: float, *, took_leave: bool) -> None:
        if (gone := self._seen.get(node)) is not None:
            self._count_out(node, gone)
            self._seen[node] = Seen(False, now, gone.registration, gone.heard_at, gone.heartbeat, took_leave=took_leave)

    def forget(self, node: NodeId) -> None:
        if (gone := self._seen.pop(node, None)) is not None:
            self._count_out(node, gone)

    def _count_out(self, node: NodeId, gone: Seen) -> None:
        if not gone.connected or gone.registration is None:
            return
        self.here -= 1
        dataset = gone.registration.data.name
        self._holding[dataset].discard(node)
        if not self._holding[dataset]:
            del self._holding[dataset]
        self._withdraw(offer_of(gone.registration))

    def _withdraw(self, offer: Offer) -> None:
        self._offers[offer] -= 1
        if not self._offers[offer]:
            del self._offers[offer]

    def heard(self, node: NodeId, message: object, now: float) -> bool:
        """Note a sign of life; True if its owner has just let the node work again."""
        seen = self._seen.get(node)
        if seen is None:
            return False
        seen.heard_at = now
        if isinstance(message, Heartbeat):
            seen.heartbeat = message
            return self._turn(seen, message.open) and message.open
        elif isinstance(message, Progress):
            seen.progress = message
            owed = (message.job, message.round, message.attempt)
            if owed in seen.told:
                seen.told[owed] = now
        return False

    def _turn(self, seen: Seen, opened: bool) -> bool:
        """Keep in the node's terms what its heartbeat says of them; False if that is no news."""
        its = seen.registration
        if its is None or not seen.connected or its.terms.open == opened:
            return False
        self._withdraw(offer_of(its))
        its = seen.registration = msgspec.structs.replace(its, terms=msgspec.structs.replace(its.terms, open=opened))
        self._offers[offer_of(its)] += 1
        return True

    def tell(self, node: NodeId, owed: Owed, now: float) -> None:
        """Note that the node was sent this task; the lease runs from now."""
        seen = self._seen[node]
        seen.told = {owed: now}
        seen.progress = None

    def was_told(self, node: NodeId, owed: Owed) -> bool:
        seen = self._seen.get(node)
        return seen is not None and seen.connected and owed in seen.told

    def untell(self, node: NodeId, owed: Owed) -> None:
        if (seen := self._seen.get(node)) is not None:
            seen.told.pop(owed, None)

    def back_by(self, node: NodeId, grace: float) -> float | None:
        """Until when an absent node is expected back; None for one that is here or took its leave."""
        seen = self._seen.get(node)
        if seen is None:
            return self.started + grace
        return None if seen.connected or seen.took_leave else seen.since + grace

    def expiry(self, node: NodeId, owed: Owed, rules: CohortRules, opened: float) -> tuple[float, str]:
        """When a round opened at `opened` gives a node up if nothing is heard, and the reason it will then record."""
        seen = self._seen.get(node)
        if seen is not None and seen.took_leave:
            return seen.since, "took its leave"
        if seen is None or not seen.connected:
            since = seen.since if seen else self.started
            return since + rules.grace, f"disconnected for {rules.grace:g} s"
        return seen.told.get(owed, max(seen.since, opened)) + rules.lease, f"no progress for {rules.lease:g} s"

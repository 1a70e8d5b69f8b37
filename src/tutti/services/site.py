"""What the jobs of one coordinator share."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tutti.domain import events as e
from tutti.domain.events import NodeId
from tutti.domain.signing import Domain, Verify
from tutti.ports import Fabric, Summing, Workbench
from tutti.services.audit import Auditor
from tutti.services.background import Background
from tutti.services.journal import Journal
from tutti.services.keeping import BlobKeeper
from tutti.services.presence import Presence
from tutti.services.scheduling import Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A coordinator, as the drivers of its jobs see it. Nodes' signatures hold in `domain`; `verify` checks them."""

    journal: Journal
    keeper: BlobKeeper
    fabric: Fabric
    presence: Presence
    scheduler: Scheduler
    workbench: Workbench
    background: Background
    auditor: Auditor
    domain: Domain
    verify: Verify
    accuse: Callable[[e.NodeEquivocated], Awaitable[None]]
    summing: Summing | None

    def key_of(self, node: NodeId) -> str:
        """With which a node signs; empty if it has named no key. The one in its first registration counts."""
        seen = self.presence.get(node)
        said = seen.registration.key if seen and seen.registration else ""
        return self.journal.register.keys.get(node, said)

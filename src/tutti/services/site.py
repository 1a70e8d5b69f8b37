"""What the jobs of one coordinator share."""

from dataclasses import dataclass

from tutti.ports import Fabric, Workbench
from tutti.services.audit import Auditor
from tutti.services.background import Background
from tutti.services.journal import Journal
from tutti.services.keeping import BlobKeeper
from tutti.services.presence import Presence
from tutti.services.scheduling import Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A coordinator, as the drivers of its jobs see it."""

    journal: Journal
    keeper: BlobKeeper
    fabric: Fabric
    presence: Presence
    scheduler: Scheduler
    workbench: Workbench
    background: Background
    auditor: Auditor

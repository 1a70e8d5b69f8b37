"""What the services need from the world: Protocols of one to four methods, nothing else."""

from tutti.ports.blobs import BlobStore
from tutti.ports.fabric import (
    Arrived,
    Fabric,
    FabricEvent,
    Kept,
    Left,
    Link,
    LinkBusy,
    LinkLost,
    LinkRefused,
    NoSum,
    Said,
    Summing,
)
from tutti.ports.log import EventLog, LogLost, Recorded, VersionConflict
from tutti.ports.training import Cancelled, Data, Examples, NodeData, Report, Task, Trainer, Work
from tutti.ports.workbench import Workbench

__all__ = [
    "Arrived",
    "BlobStore",
    "Cancelled",
    "Data",
    "EventLog",
    "Examples",
    "Fabric",
    "FabricEvent",
    "Kept",
    "Left",
    "Link",
    "LinkBusy",
    "LinkLost",
    "LinkRefused",
    "LogLost",
    "NoSum",
    "NodeData",
    "Recorded",
    "Report",
    "Said",
    "Summing",
    "Task",
    "Trainer",
    "VersionConflict",
    "Work",
    "Workbench",
]

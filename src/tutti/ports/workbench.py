"""Where the coordinator has models made and measured, so that it need not load a deep-learning framework itself."""

from pathlib import Path
from typing import Protocol

from tutti.core.registry import Choice
from tutti.domain.events import Digest
from tutti.domain.nodes import DataSummary
from tutti.domain.spec import DataSchema, Metrics
from tutti.ports.training import Task


class Workbench(Protocol):
    def check(self, model: Choice) -> None:
        """Raise a UserError, at once, if this machine's owner does not let jobs use such a model here."""
        ...

    async def initial(self, model: Choice, data: DataSchema, seed: int, into: Path) -> None:
        """Draw a model's initial parameters and write them as safetensors; raises UserError if it cannot be built."""
        ...

    async def evaluate(self, model: Choice, data: DataSchema, source: Choice, weights: Path) -> Metrics:
        """Measure stored parameters on every row of a data source; raises UserError if they do not fit together."""
        ...

    async def train(
        self, model: Choice, data: DataSchema, source: Choice, task: Task, weights: Path, into: Path
    ) -> Digest:
        """Train stored parameters on a data source, and write by how much they changed; gives `Data.digest`.

        Every epoch is over all rows, in batches drawn by the task's seed. Raises UserError if they do not fit together.
        """
        ...

    async def assign(self, source: Choice, into: Path) -> DataSummary:
        """Write the rows of a part of a bundled set, for a node that has none of its own, as float32 tensors.

        They are called train.x, train.y, held_out.x and held_out.y; the file's note `summary` is what is given back.
        """
        ...

    async def audit(
        self, model: Choice, data: DataSchema, claimed: DataSummary, task: Task, weights: Path, update: Path
    ) -> str | None:
        """Compute a browser's update again from the rows that it claims to have; says what differs, None if nothing."""
        ...

    async def close(self) -> None: ...

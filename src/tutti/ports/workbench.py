"""Where the coordinator has models made and measured, so that it need not load a deep-learning framework itself."""

from pathlib import Path
from typing import Protocol

from tutti.core.registry import Choice
from tutti.domain.spec import DataSchema, Metrics


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

    async def close(self) -> None: ...

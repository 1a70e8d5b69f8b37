"""What a coordinator has done since its process started, for the metrics page."""

from collections import deque
from dataclasses import dataclass, field

from tutti.domain import events as e
from tutti.domain.events import JobEvent


@dataclass(slots=True)
class Stats:
    """Counters since this process started."""

    rounds_completed: int = 0
    updates_accepted: int = 0
    updates_refused: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    zstd_in: int = 0  # of bytes_in, those that came compressed
    zstd_out: int = 0
    aggregation_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    training_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    aggregation_total: float = 0.0
    training_total: float = 0.0

    def count(self, event: JobEvent, *, training: bool) -> None:
        """Evaluation rounds are not training, and nothing is aggregated in them."""
        if not training:
            return
        match event:
            case e.UpdateAccepted(seconds=seconds):
                self.updates_accepted += 1
                self.training_seconds.append(seconds)
                self.training_total += seconds
            case e.UpdateRefused():
                self.updates_refused += 1
            case e.RoundClosed(aggregation_seconds=seconds):
                self.rounds_completed += 1
                self.aggregation_seconds.append(seconds)
                self.aggregation_total += seconds
            case _:
                pass

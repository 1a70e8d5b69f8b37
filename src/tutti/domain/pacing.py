"""How much of a round's local work a node is asked for, by how fast it was: slow ones do fewer steps, not later.

The coordinator decides, and the log says what it decided; partial work is what FedProx allows for (Li et al. 2020,
section 3.2, https://arxiv.org/abs/1812.06127), and what FedNova corrects for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from tutti.domain.events import NodeId

LEAST = 0.1
"""Share of the work that everybody does, however slow."""

LEAST_BATCH = 0.5
"""Share of a batch that everybody keeps: a step costs something beside its rows, so that smaller batches save less and
less time, and at last none. What is still too much is taken off the steps, to which time is proportional."""

SLOWER = 1.2
"""By how much a node may be slower than the middle of the cohort and still do all of it."""


@dataclass(frozen=True, slots=True)
class Tempo:
    """What a node's newest update took, in seconds: of computing, and of waiting for it; and of which share of work."""

    seconds: float
    waited: float
    share: float = 1.0

    @property
    def all_of_it(self) -> float:
        """Seconds of computing for the whole work."""
        return self.seconds / self.share

    @property
    def beside(self) -> float:
        """Seconds for all but computing, which no share shortens."""
        return max(0.0, self.waited - self.seconds)


def less_work(cohort: Iterable[NodeId], known: Mapping[NodeId, Tempo]) -> dict[NodeId, float]:
    """The share of the work with which each node that is too slow would be done with the middle of the cohort.

    Nodes that are not in it do all of it, as do those of which nothing is known.
    """
    tempos = {node: known[node] for node in cohort if node in known}
    if len(tempos) < 2:
        return {}
    middle = median(tempo.beside + tempo.all_of_it for tempo in tempos.values())
    found: dict[NodeId, float] = {}
    for node, tempo in tempos.items():
        if tempo.all_of_it > 0 and tempo.beside + tempo.all_of_it > SLOWER * middle:
            found[node] = round(max(LEAST, (middle - tempo.beside) / tempo.all_of_it), 3)
    return found


def of_batch_and_steps(share: float) -> tuple[float, float]:
    """What share of the rows in each batch, and of the steps, makes this share of the work, batches first.

    Below LEAST_BATCH seconds are proportional to the share; above, `less_work` asks for too little of whom each step
    costs beside its rows, and less so each time: m / (a/s + b) has its fixed point where a + b s = m.
    """
    batch = max(LEAST_BATCH, share)
    return batch, share / batch

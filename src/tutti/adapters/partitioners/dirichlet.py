"""Label skew from a Dirichlet distribution.

Hsu, Qi & Brown 2019, https://arxiv.org/abs/1909.06335, in the form that uses every row once (Yurochkin et al.
2019, https://arxiv.org/abs/1905.12022, section 4): each class is divided over the nodes by its own draw.
"""

from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from tutti.adapters.partitioners import CannotPartition, Labels, Partitioner, check, partitioners
from tutti.domain.spec import Positive


@partitioners.register("dirichlet")
def dirichlet(alpha: Annotated[float, Meta(gt=0, le=1e6)] = 0.5, minimum: Positive = 10) -> Partitioner:
    """Classes are divided unevenly: the smaller alpha, the fewer classes a node sees (100 is nearly even).

    No node gets fewer than `minimum` rows, or an even share where that is less.
    """

    def partition(labels: Labels, nodes: int, seed: int) -> list[NDArray[np.int64]]:
        check(labels, nodes)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise CannotPartition("partition 'dirichlet' divides by class, and these targets are no classes; use 'iid'")
        rng = np.random.Generator(np.random.PCG64(seed))
        owner = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(nodes, alpha))
            owner[rows] = np.searchsorted(np.cumsum(shares)[:-1], (np.arange(len(rows)) + 0.5) / len(rows))
        _top_up(owner, nodes, min(minimum, len(labels) // nodes), rng)
        return [np.flatnonzero(owner == node) for node in range(nodes)]

    return partition


def _top_up(owner: NDArray[np.int64], nodes: int, minimum: int, rng: np.random.Generator) -> None:
    """Let the largest node give random rows to the smallest until every node has `minimum`."""
    counts = np.bincount(owner, minlength=nodes)
    while counts.min() < minimum:
        poor, rich = int(counts.argmin()), int(counts.argmax())
        given = min(minimum - counts[poor], counts[rich] - minimum)
        owner[rng.choice(np.flatnonzero(owner == rich), size=given, replace=False)] = poor
        counts[poor] += given
        counts[rich] -= given

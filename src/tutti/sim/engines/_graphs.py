"""Gradients whose launches are recorded once, and replayed: a step of many small kernels otherwise waits for Python.

A CUDA graph has fixed sizes and fixed places. Batches of a size that keeps coming back are copied to such places, and
what comes out is copied away; other sizes are computed as they are.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from tutti.sim.engines._gradients import Batch, Descent, Gradients, Judged

RECURRING = 3
"""How often batches of one size come before they are recorded."""

MOST = 4
"""Sizes that are recorded, each of which holds parameters and gradients once more."""

Size: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Recording:
    graph: torch.cuda.CUDAGraph
    weights: Tensor
    batch: Batch
    gradient: Tensor
    judged: Judged


class Recorded:
    """Gradients on a GPU."""

    def __init__(self, inner: Gradients) -> None:
        self._inner = inner
        self._seen: Counter[Size] = Counter()
        self._recordings: dict[Size, _Recording] = {}

    def into(self, weights: Tensor, batch: Batch, gradient: Tensor) -> Judged:
        size = tuple(batch.x.shape)
        recording = self._recordings.get(size)
        if recording is None:
            self._seen[size] += 1
            if self._seen[size] < RECURRING or len(self._recordings) == MOST:
                return self._inner.into(weights, batch, gradient)
            recording = self._recordings[size] = self._record(weights, batch)
        recording.weights.copy_(weights)
        recording.batch.x.copy_(batch.x)
        recording.batch.y.copy_(batch.y)
        recording.batch.shares.copy_(batch.shares)
        recording.graph.replay()
        gradient.copy_(recording.gradient)
        return recording.judged

    def descent(self, weights: Tensor) -> Descent | None:
        return self._inner.descent(weights)

    def _record(self, weights: Tensor, batch: Batch) -> _Recording:
        own = Batch(batch.x.clone(), batch.y.clone(), batch.shares.clone())
        at, gradient, graph = weights.clone(), torch.empty_like(weights), torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose their algorithms and make room before anything is recorded
            self._inner.into(at, own, gradient)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph):
            judged = self._inner.into(at, own, gradient)
        return _Recording(graph, at, own, gradient, judged)

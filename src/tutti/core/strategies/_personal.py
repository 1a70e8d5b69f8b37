"""What strategies share whose nodes keep a part of the model to themselves."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tutti.core.local import Demand, Handed, Local, Plan, Request, Trained
from tutti.core.params import Layout, Params

Part = Callable[[Layout], Sequence[str]]
"""The names of the entries that stay at home."""


def layer_of(name: str) -> str:
    """The layer to which an entry belongs: `conv1` for `conv1.weight`."""
    return name.rpartition(".")[0]


def keeping(part: Part) -> Local:
    """The global model with the node's own part is trained and measured; what is handed in leaves the part out."""

    def own(request: Request) -> Params:
        kept = request.memory.get("own")
        if kept is None:
            return request.model
        return Params(request.model.layout, np.where(mask_of(request.model.layout, part), kept, request.model.buffer))

    def plan(request: Request) -> tuple[Plan, ...]:
        return (Plan(own(request)),)

    def report(request: Request, trained: Sequence[Trained]) -> Handed:
        layout, delta = request.model.layout, trained[0].delta.buffer
        mask = mask_of(layout, part)
        kept = np.where(mask, own(request).buffer + delta, np.float32(0))
        return Handed(Params(layout, np.where(mask, np.float32(0), delta)), memory={"own": kept})

    return Local(plan, report, personal=own, demand=Demand.ANY)


def mask_of(layout: Layout, part: Part) -> NDArray[np.bool_]:
    """True at the values that stay at home."""
    mask = np.zeros(layout.size, np.bool_)
    for name in part(layout):
        mask[layout.spans[name]] = True
    return mask

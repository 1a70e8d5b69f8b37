"""What the strategies of this package share: how a folded delta moves the model, role by role."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tutti.core.fixedpoint import blocks_of
from tutti.core.params import Params, Role
from tutti.core.strategy import Folded, ServerState

Block: TypeAlias = NDArray[np.float64]
Rule: TypeAlias = Callable[[Block, Mapping[str, Block]], tuple[Block, Mapping[str, Block]]]
"""(delta, slots) -> (step, next slots), element by element; only + - * / and sqrt, so alike on all machines."""


def start(params: Params, **slots: float) -> ServerState:
    """The state before round 1, each slot filled with its initial value."""
    return ServerState(params, {name: np.full(params.layout.size, value, np.float32) for name, value in slots.items()})


def add(state: ServerState, update: Folded) -> ServerState:
    """x + delta for every role: weights and buffers move by their mean change, counters by the largest."""
    params = Params(state.params.layout, state.params.buffer + update.delta.buffer)
    return replace(state, params=params, steps=state.steps + 1)


def optimise(state: ServerState, update: Folded, rule: Rule) -> ServerState:
    """Move the weights by a rule, everything else by its delta. Computed in float64, kept in float32."""
    moved, delta = add(state, update), update.delta
    slots = {name: slot.copy() for name, slot in state.slots.items()}
    for begin, end in blocks_of(delta.layout.spans_of(Role.WEIGHT)).tolist():
        before = {name: slot[begin:end].astype(np.float64) for name, slot in state.slots.items()}
        step, after = rule(delta.buffer[begin:end].astype(np.float64), before)
        moved.params.buffer[begin:end] = state.params.buffer[begin:end] + step
        for name, values in after.items():
            slots[name][begin:end] = values
    return replace(moved, slots=slots)

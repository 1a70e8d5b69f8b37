"""Models as steps from one to the next, in a codec: a node that holds the one before fetches the step alone.

The next model *is* where the decoded step leads, so whoever went step by step and whoever fetched it whole have the
same bits. What a codec leaves out the server keeps, and adds to its next step (error feedback, as `core.codec` has it
for updates; for both directions Philippenko and Dieuleveut 2020, https://arxiv.org/abs/2006.14591). A lossless codec
gets the bits in which the two models differ, and leads to the very model that the strategy made.
"""

from dataclasses import replace

import numpy as np

from tutti.core.codec import Codec, decode, encode
from tutti.core.params import Params
from tutti.core.strategy import Folded, ServerState, Strategy

LEFT = "model_codec:left"
"""The slot of what the codec has left out so far."""


def in_steps(strategy: Strategy, codec: Codec) -> Strategy:
    """The same strategy, whose models are where the codec's steps lead."""

    def init(params: Params) -> ServerState:
        state = strategy.init(params)
        return state if codec.exact else replace(state, slots={**state.slots, LEFT: np.zeros_like(params.buffer)})

    def finish(before: ServerState, folded: Folded) -> ServerState:
        slots = {name: slot for name, slot in before.slots.items() if name != LEFT}
        after = strategy.finish(replace(before, slots=slots), folded)
        layout = after.params.layout
        if codec.exact:
            code = encode(codec, Params(layout, _differing(before.params, after.params)))
            return replace(after, step=code)
        wanted = after.params.buffer - before.params.buffer + before.slots[LEFT]
        code = encode(codec, Params(layout, wanted))
        came = decode(codec, layout, code)
        left = {**after.slots, LEFT: wanted - came.buffer}
        return replace(after, params=applied(codec, before.params, came), slots=left, step=code)

    return replace(strategy, init=init, finish=finish)


def applied(codec: Codec, before: Params, step: Params) -> Params:
    """The next model, from the one before and the decoded step."""
    if codec.exact:
        return Params(before.layout, _differing(before, step))
    return Params(before.layout, before.buffer + step.buffer)


def _differing(one: Params, other: Params) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """The bits in which they differ; of a model and its difference to another, that other one."""
    return (one.buffer.view(np.uint32) ^ other.buffer.view(np.uint32)).view(np.float32)

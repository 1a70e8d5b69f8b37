"""Models in steps: where they lead, what is left out, and that nothing gets lost for good."""

import numpy as np
import pytest

from tutti.core.codec import codecs, decode
from tutti.core.params import Params
from tutti.core.registry import Choice
from tutti.core.steps import LEFT, applied, in_steps
from tutti.core.strategy import Folded, compose
from tutti.wire import tensors, updates
from tutti.wire.updates import BadCode

FEDAVG = compose(Choice("fedavg"), Choice("mean"))
START = Params.from_arrays({"w": np.array([1.0, -2.0, 0.25, 1e-3], np.float32)})


def deltas(count: int) -> list[Params]:
    rng = np.random.default_rng(7)
    return [Params(START.layout, (rng.standard_normal(4) * 1e-2).astype(np.float32)) for _ in range(count)]


@pytest.mark.parametrize("name", ["none", "shuffle"])
def test_a_lossless_step_leads_to_the_very_model(name: str) -> None:
    codec = codecs.build(Choice(name))
    plain, stepped = FEDAVG, in_steps(FEDAVG, codec)
    one, other = plain.init(START), stepped.init(START)
    for delta in deltas(5):
        before, one, other = one.params, plain.finish(one, Folded(delta)), stepped.finish(other, Folded(delta))
        assert other.params.buffer.tobytes() == one.params.buffer.tobytes()
        assert not other.slots
        there = applied(codec, before, decode(codec, START.layout, other.step))
        assert there.buffer.tobytes() == one.params.buffer.tobytes()


@pytest.mark.parametrize("name", ["fp16", "int8", "int4", "topk:0.25"])
def test_what_a_step_leaves_out_comes_with_a_later_one(name: str) -> None:
    """Model and what is left come to what a job without a codec has; each step leads where the server says."""
    codec = codecs.build(Choice.parse(name))
    stepped = in_steps(FEDAVG, codec)
    state, wanted = stepped.init(START), START.buffer.astype(np.float64)
    for delta in deltas(40):
        before, state, wanted = state.params, stepped.finish(state, Folded(delta)), wanted + delta.buffer
        there = applied(codec, before, decode(codec, START.layout, state.step))
        assert there.buffer.tobytes() == state.params.buffer.tobytes()
        np.testing.assert_allclose(state.params.buffer + state.slots[LEFT], wanted, atol=1e-5)
    assert np.abs(state.slots[LEFT]).max() < 0.1


def test_a_step_without_a_codec_is_none() -> None:
    model = tensors.encode(START)
    with pytest.raises(BadCode, match="expected a step by codec"):
        updates.applied(model, model)

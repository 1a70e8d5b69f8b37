"""Every registered strategy keeps the same promises; each paper's rule is checked against numbers computed by hand."""

from math import sqrt

import numpy as np
import pytest

from tutti.core.params import Layout, Params, Role
from tutti.core.reduce import Update, fold
from tutti.core.registry import BadOption, Choice
from tutti.core.strategy import ServerState, Strategy, strategies
from tutti.wire.tensors import decode_state, encode_state

ROLES = {"bn.mean": Role.BUFFER, "bn.seen": Role.COUNTER}
ALL = list(strategies)


def model(seed: int, scale: float = 1.0) -> Params:
    rng = np.random.default_rng(seed)
    arrays = {
        "conv": rng.standard_normal((3, 5)) * scale,
        "bn.mean": rng.standard_normal(5) * scale,
        "bn.seen": np.array(float(rng.integers(1, 9))),
        "dense": rng.standard_normal((70, 300)) * scale,
    }
    return Params.from_arrays(arrays, ROLES)


def scalar(x: float) -> Params:
    return Params.from_arrays({"x": np.array([x])})


def build(text: str) -> Strategy:
    return strategies.build(Choice.parse(text))


def vectors(state: ServerState) -> list[bytes]:
    return [state.params.buffer.tobytes(), *(state.slots[name].tobytes() for name in sorted(state.slots))]


def after(text: str, *deltas: float, x: float = 1.0) -> ServerState:
    strategy = build(text)
    state = strategy.init(scalar(x))
    for delta in deltas:
        state = strategy.finish(state, scalar(delta))
    return state


def test_the_strategies_of_this_package() -> None:
    assert {"fedavg", "fedavgm", "fedprox", "fedadagrad", "fedadam", "fedyogi"} <= set(ALL)


# -- what every strategy promises --------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
class TestEveryStrategy:
    def test_init_keeps_the_model_and_starts_at_step_0(self, name: str) -> None:
        state = build(name).init(model(0))
        assert state.params.buffer.tobytes() == model(0).buffer.tobytes()
        assert state.steps == 0
        assert all(slot.shape == state.params.buffer.shape for slot in state.slots.values())
        assert all(slot.dtype == np.float32 for slot in state.slots.values())

    def test_finish_is_pure_and_deterministic(self, name: str) -> None:
        strategy = build(name)
        state, delta = strategy.init(model(0)), model(1, 0.1)
        before = vectors(state), delta.buffer.tobytes()
        first, second = strategy.finish(state, delta), strategy.finish(state, delta)
        assert vectors(first) == vectors(second)
        assert (vectors(state), delta.buffer.tobytes()) == before
        assert first.steps == 1
        assert not np.shares_memory(first.params.buffer, delta.buffer)

    def test_a_restored_checkpoint_goes_on_as_if_nothing_had_happened(self, name: str) -> None:
        strategy = build(name)
        state = strategy.init(model(0))
        for seed in (1, 2):
            state = strategy.finish(state, model(seed, 0.1))
        restored = decode_state(bytes(encode_state(state)))
        assert strategy.configure(restored) == strategy.configure(state)
        straight, resumed = (strategy.finish(s, model(3, 0.1)) for s in (state, restored))
        assert vectors(straight) == vectors(resumed)
        assert straight.steps == resumed.steps == 3

    def test_buffers_and_counters_take_the_delta_and_weights_move(self, name: str) -> None:
        strategy, delta = build(name), model(1, 0.1)
        state = strategy.finish(strategy.init(model(0)), delta)
        for entry in ("bn.mean", "bn.seen"):
            assert state.params[entry].tobytes() == (model(0)[entry] + delta[entry]).tobytes()
        for entry in ("conv", "dense"):
            moved = state.params[entry] - model(0)[entry]
            assert (np.sign(moved) == np.sign(delta[entry])).all()
        for slot in state.slots.values():
            untouched = strategy.init(model(0)).slots
            for span in delta.layout.spans_of(Role.BUFFER) + delta.layout.spans_of(Role.COUNTER):
                assert any((slot[span] == first[span]).all() for first in untouched.values())

    def test_no_change_is_a_fixed_point_at_the_start(self, name: str) -> None:
        strategy = build(name)
        state = strategy.finish(strategy.init(model(0)), Params.zeros(model(0).layout))
        assert state.params.buffer.tobytes() == model(0).buffer.tobytes()

    def test_nodes_that_agree_count_as_one(self, name: str) -> None:
        """For any weights the mean of equal deltas is that delta: exactly, where the format holds it."""
        delta = model(1, 0.1)
        delta.buffer[:] = np.round(delta.buffer * 2**12) / 2**12
        updates = [Update(delta, weight) for weight in (1, 5, 200, 31)]
        mean = fold(build(name).reducer, updates, delta.layout, 200)
        np.testing.assert_array_equal(mean.buffer, delta.buffer)

    def test_settings_are_plain_numbers(self, name: str) -> None:
        strategy = build(name)
        settings = strategy.configure(strategy.init(model(0)))
        assert all(isinstance(key, str) and isinstance(value, float) for key, value in settings.items())

    def test_an_empty_model(self, name: str) -> None:
        strategy, nothing = build(name), Params.zeros(Layout(()))
        assert strategy.finish(strategy.init(nothing), nothing).params.buffer.size == 0

    def test_every_option_has_a_default_and_the_schema_says_what_it_does(self, name: str) -> None:
        schema = strategies.schema(name)
        assert schema["description"]
        assert not schema.get("required")


# -- hand-computed numbers ---------------------------------------------------------------------------


def test_fedavg_adds_the_mean_delta() -> None:
    updates = [Update(scalar(1.0), 1), Update(scalar(2.0), 3)]
    strategy = build("fedavg")
    mean = fold(strategy.reducer, updates, updates[0].delta.layout, 3)
    assert strategy.finish(strategy.init(scalar(10.0)), mean).params["x"].tolist() == [11.75]


def test_fedprox_is_fedavg_with_a_setting_for_the_trainers() -> None:
    assert dict(build("fedprox:mu=0.1").configure(ServerState(scalar(0)))) == {"proximal_mu": 0.1}
    assert dict(build("fedavg").configure(ServerState(scalar(0)))) == {}
    assert after("fedprox:mu=0.1", 0.25, 0.5).params["x"] == [1.75]


def test_fedavgm() -> None:
    # v: 4, then 0.5*4 - 1 = 1;  x: 1 + 0.25*4 = 2, then 2 + 0.25*1 = 2.25
    state = after("fedavgm:momentum=0.5,server_lr=0.25", 4.0, -1.0)
    assert state.params["x"] == [2.25]
    assert state.slots["v"].tolist() == [1.0]


def test_fedavgm_without_momentum_is_fedavg() -> None:
    assert vectors(after("fedavgm:momentum=0.0", 0.3, 0.7))[0] == vectors(after("fedavg", 0.3, 0.7))[0]


def test_fedadagrad() -> None:
    # v: 9, then 9 + 16 = 25, then 25 + 144 = 169;  x: 1 + 4/(5+3) = 1.5, then 1.5 + 12/(13+3) = 2.25
    state = after("fedadagrad:server_lr=1.0,tau=3.0", 4.0, 12.0)
    assert state.params["x"] == [2.25]
    assert state.slots["v"].tolist() == [169.0]


def test_fedadam() -> None:
    # m: 3.5, then 1.75 + 0.5 = 2.25;  v: 0.5 + 24.5 = 25, then 12.5 + 0.5 = 13
    options = "server_lr=1.2,beta1=0.5,beta2=0.5,tau=1.0"
    assert after(f"fedadam:{options}", 7.0).params["x"] == pytest.approx([1 + 1.2 * 3.5 / 6], rel=1e-7)
    state = after(f"fedadam:{options}", 7.0, 1.0)
    assert state.params["x"] == pytest.approx([1.7 + 1.2 * 2.25 / (sqrt(13) + 1)], rel=1e-6)
    assert state.slots["m"].tolist() == [2.25]
    assert state.slots["v"].tolist() == [13.0]


def test_fedyogi() -> None:
    # v: 1 < 16, so 1 + 0.5*16 = 9; then 9 > 4, so 9 - 0.5*4 = 7.  m: 2, then 1 + 1 = 2
    options = "server_lr=1.0,beta1=0.5,beta2=0.5,tau=1.0"
    assert after(f"fedyogi:{options}", 4.0).params["x"] == [1.5]
    state = after(f"fedyogi:{options}", 4.0, 2.0)
    assert state.params["x"] == pytest.approx([1.5 + 2 / (sqrt(7) + 1)], rel=1e-6)
    assert state.slots["v"].tolist() == [7.0]


def test_the_second_moment_starts_at_tau_squared() -> None:
    assert build("fedadam:tau=0.5").init(scalar(0)).slots["v"].tolist() == [0.25]


@pytest.mark.parametrize(
    "text",
    [
        "fedavgm:momentum=1.0",
        "fedprox:mu=-0.1",
        "fedadam:beta2=1.5",
        "fedyogi:tau=0",
        "fedadagrad:server_lr=0",
        "fedavg:x=1",
    ],
)
def test_options_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(BadOption):
        build(text)

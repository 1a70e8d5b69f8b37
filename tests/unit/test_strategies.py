"""Every registered strategy keeps the same promises; each paper's rule is checked against numbers computed by hand."""

from math import sqrt

import numpy as np
import pytest

from tutti.core.errors import UserError
from tutti.core.local import Demand, Handed, Memory, Request, Trained
from tutti.core.params import Layout, Params, Role
from tutti.core.reduce import Update, fold
from tutti.core.registry import BadOption, Choice
from tutti.core.strategy import Folded, ServerState, Strategy, folded, strategies
from tutti.wire.tensors import decode, decode_state, encode, encode_state

ROLES = {"bn.running_mean": Role.BUFFER, "bn.num_batches_tracked": Role.COUNTER}
ALL = list(strategies)


def model(seed: int, scale: float = 1.0) -> Params:
    rng = np.random.default_rng(seed)
    arrays = {
        "conv.weight": rng.standard_normal((3, 5)) * scale,
        "bn.running_mean": rng.standard_normal(5) * scale,
        "bn.num_batches_tracked": np.array(float(rng.integers(1, 9))),
        "dense.weight": rng.standard_normal((70, 300)) * scale,
    }
    return Params.from_arrays(arrays, ROLES)


def scalar(x: float) -> Params:
    return Params.from_arrays({"x": np.array([x])})


def build(text: str) -> Strategy:
    return strategies.build(Choice.parse(text))


def vectors(state: ServerState) -> list[bytes]:
    return [state.params.buffer.tobytes(), *(state.slots[name].tobytes() for name in sorted(state.slots))]


def of(strategy: Strategy, delta: Params) -> Folded:
    """A round whose folded delta is this, and whose other parts are the least surprising."""
    n = delta.layout.size
    vectors = {name: np.zeros(n, np.float32) for name in strategy.local.vectors}
    return Folded(delta, vectors, {name: max(1.0, least) for name, (least, _) in strategy.local.facts.items()})


def after(text: str, *deltas: float, x: float = 1.0) -> ServerState:
    strategy = build(text)
    state = strategy.init(scalar(x))
    for delta in deltas:
        state = strategy.finish(state, Folded(scalar(delta)))
    return state


def test_the_strategies_of_this_package() -> None:
    mean_only = {"fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "diloco", "one-shot", "cyclic"}
    two_halves = {"fedprox", "scaffold", "fednova", "feddyn", "qfedavg", "fedbn", "fedper", "ditto"}
    assert mean_only | two_halves <= set(ALL)


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
        update = of(strategy, delta)
        before = vectors(state), delta.buffer.tobytes()
        first, second = strategy.finish(state, update), strategy.finish(state, update)
        assert vectors(first) == vectors(second)
        assert (vectors(state), delta.buffer.tobytes()) == before
        assert first.steps == 1
        assert not np.shares_memory(first.params.buffer, delta.buffer)

    def test_a_restored_checkpoint_goes_on_as_if_nothing_had_happened(self, name: str) -> None:
        strategy = build(name)
        state = strategy.init(model(0))
        for seed in (1, 2):
            state = strategy.finish(state, of(strategy, model(seed, 0.1)))
        restored = decode_state(bytes(encode_state(state)))
        assert strategy.configure(restored) == strategy.configure(state)
        straight, resumed = (strategy.finish(s, of(strategy, model(3, 0.1))) for s in (state, restored))
        assert vectors(straight) == vectors(resumed)
        assert straight.steps == resumed.steps == 3

    def test_buffers_and_counters_take_the_delta_and_weights_move(self, name: str) -> None:
        strategy, delta = build(name), model(1, 0.1)
        state = strategy.finish(strategy.init(model(0)), of(strategy, delta))
        for entry in ("bn.running_mean", "bn.num_batches_tracked"):
            assert state.params[entry].tobytes() == (model(0)[entry] + delta[entry]).tobytes()
        for entry in ("conv.weight", "dense.weight"):
            moved = state.params[entry] - model(0)[entry]
            assert (np.sign(moved) == np.sign(delta[entry])).all()
        for slot in state.slots.values():
            untouched = strategy.init(model(0)).slots
            for span in delta.layout.spans_of(Role.BUFFER) + delta.layout.spans_of(Role.COUNTER):
                assert any((slot[span] == first[span]).all() for first in untouched.values())

    def test_no_change_is_a_fixed_point_at_the_start(self, name: str) -> None:
        strategy = build(name)
        state = strategy.finish(strategy.init(model(0)), of(strategy, Params.zeros(model(0).layout)))
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
        try:
            state = strategy.init(nothing)
        except UserError:  # nothing to share, or nothing to keep
            return
        assert strategy.finish(state, of(strategy, nothing)).params.buffer.size == 0

    def test_every_option_has_a_default_and_the_schema_says_what_it_does(self, name: str) -> None:
        schema = strategies.schema(name)
        assert schema["description"]
        assert not schema.get("required")


class Half:
    """A node's half in its second round, with what it kept of the first."""

    def __init__(self, name: str) -> None:
        self.strategy = build(name)
        self.local = self.strategy.local
        self.state = self.strategy.init(model(0))
        self.first = self.request({})
        self.handed = self.report(self.first, 1)
        self.second = self.request(self.handed.memory)

    def request(self, memory: Memory) -> Request:
        slots = self.state.slots if self.strategy.shares_slots else {}
        settings = self.strategy.configure(self.state)
        return Request(self.state.params, slots, settings, memory, lr=0.1, loss=2.0)

    def report(self, request: Request, seed: int) -> Handed:
        return self.local.report(request, [Trained(model(seed, 0.1), 5) for _ in self.local.plan(request)])


@pytest.mark.parametrize("name", ALL)
class TestEveryNodesHalf:
    def test_it_asks_for_no_more_than_it_says(self, name: str) -> None:
        half = Half(name)
        for request in (half.first, half.second):
            plans = half.local.plan(request)
            assert all(plan.start.layout == request.model.layout for plan in plans)
            assert len(plans) == len(half.local.plan(half.first)) > 0
            if half.local.demand is Demand.ANY:
                continue
            (plan,) = plans
            assert plan.start is request.model
            assert plan.correction.anchor is None
            assert half.local.demand is Demand.OFFSET or plan.correction.offset is None

    def test_it_hands_in_what_it_says(self, name: str) -> None:
        half = Half(name)
        layout = model(0).layout
        assert tuple(half.handed.vectors) == half.local.vectors
        assert half.handed.joined().layout == layout.with_vectors(half.local.vectors)
        assert half.local.fault_of(half.handed.facts) is None
        for vector in (*half.handed.vectors.values(), *half.handed.memory.values()):
            assert vector.shape == (layout.size,)
            assert vector.dtype == np.float32
        mean = fold(half.strategy.reducer, [Update(half.handed.joined(), 1)], half.handed.joined().layout, 1)
        update = folded(mean, layout, half.local, [(1, half.handed.facts)], 1)
        assert half.strategy.finish(half.state, update).steps == 1

    def test_buffers_and_counters_are_handed_in_as_they_changed_or_not_at_all(self, name: str) -> None:
        half, changed = Half(name), model(1, 0.1)
        for entry in ("bn.running_mean", "bn.num_batches_tracked"):
            handed = half.handed.delta[entry]
            assert (handed == changed[entry]).all() or (handed == 0).all()
        for vector in half.handed.vectors.values():
            for role in (Role.BUFFER, Role.COUNTER):
                assert all((vector[span] == 0).all() for span in changed.layout.spans_of(role))

    def test_it_is_pure_and_what_it_keeps_can_be_stored(self, name: str) -> None:
        half = Half(name)
        before = [vector.tobytes() for vector in half.handed.memory.values()]
        again = half.report(half.second, 2)
        assert [vector.tobytes() for vector in half.handed.memory.values()] == before
        stored = encode(Params.from_arrays(half.handed.memory))
        restored = {entry.name: values for entry, values in decode(stored).items()}
        resumed = half.report(half.request(restored), 2)
        assert resumed.joined().buffer.tobytes() == again.joined().buffer.tobytes()
        assert resumed.facts == again.facts
        assert {k: v.tobytes() for k, v in resumed.memory.items()} == {k: v.tobytes() for k, v in again.memory.items()}


def test_facts_that_are_not_believed() -> None:
    local = build("fednova").local
    assert local.fault_of({"a": 3.0}) is None
    assert "'a' is 0" in str(local.fault_of({"a": 0.0}))
    assert "nan" in str(local.fault_of({"a": float("nan")}))
    assert "expects the facts ['a'], came ['b']" in str(local.fault_of({"b": 1.0}))
    assert "came ['a']" in str(build("fedavg").local.fault_of({"a": 1.0}))


def test_means_of_facts_do_not_depend_on_order() -> None:
    local, layout = build("fednova").local, scalar(0).layout
    given = [(w, {"a": a}) for w, a in [(3, 0.1), (7, 1e9), (1, 2.7), (2**20, 1e-3), (5, 3.3)]]
    orders = [given, given[::-1], given[2:] + given[:2]]
    assert len({folded(scalar(0), layout, local, order, 5).facts["a"] for order in orders}) == 1


# -- hand-computed numbers ---------------------------------------------------------------------------


def test_fedavg_adds_the_mean_delta() -> None:
    updates = [Update(scalar(1.0), 1), Update(scalar(2.0), 3)]
    strategy = build("fedavg")
    mean = fold(strategy.reducer, updates, updates[0].delta.layout, 3)
    assert strategy.finish(strategy.init(scalar(10.0)), Folded(mean)).params["x"].tolist() == [11.75]


def test_fedprox_is_fedavg_with_a_setting_for_the_trainers() -> None:
    assert dict(build("fedprox:mu=0.1").configure(ServerState(scalar(0)))) == {"mu": 0.1}
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

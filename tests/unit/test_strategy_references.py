"""Each strategy that has a half on the nodes, against its paper's formulas written out slowly, on quadratic losses."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from support.quadratics import Array, Quadratic, Run, nodes, optimum
from tutti.core.errors import UserError
from tutti.core.local import Request, Trained
from tutti.core.params import Params, Role
from tutti.core.registry import Choice
from tutti.core.strategies.fednova import norm_of_a
from tutti.core.strategies.fedprox import adapted
from tutti.core.strategy import Folded, strategies

LR = 0.1
COHORTS = [[0, 1, 2, 3], [1, 3], [0, 2], [0, 1, 2, 3], [3]]


def mean(federation: list[Quadratic], values: dict[int, Array]) -> Array:
    """Weighted mean over the nodes of a cohort."""
    total = sum(federation[i].weight for i in values)
    return np.asarray(sum(federation[i].weight * value for i, value in values.items()) / total)


def compare(run: Run, expected: Callable[[list[int]], Array]) -> None:
    """The run against the reference, round by round, with cohorts of several sizes."""
    for cohort in COHORTS:
        np.testing.assert_allclose(run.round(cohort), expected(cohort), rtol=2e-5, atol=2e-6)


# -- SCAFFOLD ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("server_lr", [1.0, 0.5])
def test_scaffold(server_lr: float) -> None:
    federation = nodes(weights=True)
    x, c, c_i = np.zeros(3), np.zeros(3), [np.zeros(3) for _ in federation]

    def expected(cohort: list[int]) -> Array:
        nonlocal x, c
        dy, dc = {}, {}
        for i in cohort:
            k = federation[i].steps
            y = federation[i].descend(x, LR, lambda w, i=i: c - c_i[i])
            new = c_i[i] - c + (x - y) / (k * LR)
            dy[i], dc[i] = y - x, new - c_i[i]
            c_i[i] = new
        x = x + server_lr * mean(federation, dy)
        c = c + len(cohort) / len(federation) * mean(federation, dc)
        return x

    compare(run := Run(f"scaffold:server_lr={server_lr}", federation), expected)
    np.testing.assert_allclose(run.state.slots["c"], c, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run.memory[2]["c_i"], c_i[2], rtol=1e-4, atol=1e-5)


def test_scaffold_finds_the_optimum_where_fedavg_drifts() -> None:
    federation = nodes(seed=3)
    best = optimum(federation)
    drift = np.abs(Run("fedavg", federation).rounds(300) - best).max()
    assert drift > 0.05
    assert np.abs(Run("scaffold", federation).rounds(300) - best).max() < 1e-3


# -- FedNova -----------------------------------------------------------------------------------------


def test_fednova() -> None:
    federation = nodes(weights=True, steps=True)
    x = np.zeros(3)

    def expected(cohort: list[int]) -> Array:
        nonlocal x
        tau = {i: np.array(float(federation[i].steps)) for i in cohort}
        d = {i: (x - federation[i].descend(x, LR)) / tau[i] for i in cohort}
        x = x - mean(federation, tau) * mean(federation, d)
        return x

    compare(Run("fednova", federation), expected)


def test_fednova_ends_nearer_the_optimum_when_nodes_take_different_numbers_of_steps() -> None:
    federation = nodes(seed=1, steps=True)
    assert len({node.steps for node in federation}) > 1
    best, small = optimum(federation), 0.01  # small steps: what is left of drift is the inconsistency of objectives
    averaged = np.abs(Run("fedavg", federation, small).rounds(800) - best).max()
    normalised = np.abs(Run("fednova", federation, small).rounds(800) - best).max()
    assert normalised < averaged / 5


def test_fednova_of_equal_steps_is_fedavg() -> None:
    federation = nodes(weights=True)
    np.testing.assert_allclose(Run("fednova", federation).rounds(5), Run("fedavg", federation).rounds(5), rtol=1e-6)


def test_what_steps_with_momentum_add_up_to() -> None:
    """After tau steps, a constant gradient of 1 has moved the weights by |a|_1."""
    for tau in (1, 2, 7):
        velocity = moved = 0.0
        for _ in range(tau):
            velocity = 0.9 * velocity + 1
            moved += velocity
        assert norm_of_a(tau, 0.9) == pytest.approx(moved)
        assert norm_of_a(tau, 0.0) == tau


# -- FedDyn ------------------------------------------------------------------------------------------


def test_feddyn() -> None:
    federation, alpha = nodes(), 0.3
    theta, h, g = np.zeros(3), np.zeros(3), [np.zeros(3) for _ in federation]

    def expected(cohort: list[int]) -> Array:
        nonlocal theta, h
        local = {}
        for k in cohort:
            local[k] = federation[k].descend(theta, LR, lambda w, k=k: -g[k] + alpha * (w - theta))
            g[k] = g[k] - alpha * (local[k] - theta)
        h = h - alpha / len(federation) * sum(local[k] - theta for k in cohort)
        theta = sum(local.values()) / len(cohort) - h / alpha
        return theta

    compare(Run(f"feddyn:alpha={alpha}", federation), expected)


def test_feddyn_finds_the_optimum_where_fedavg_drifts() -> None:
    federation = nodes(seed=3)
    best = optimum(federation)
    found = Run("feddyn:alpha=0.5", [Quadratic(n.a, n.b, steps=60) for n in federation]).rounds(100)
    assert np.abs(found - best).max() < 1e-3


# -- q-FedAvg ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0.5, 1.0, 3.0])
def test_qfedavg(q: float) -> None:
    federation = nodes(weights=True)
    w = np.zeros(3)

    def expected(cohort: list[int]) -> Array:
        nonlocal w
        length, up, down = 1 / LR, {}, {}
        for k in cohort:
            loss = federation[k].loss(w)
            dw = length * (w - federation[k].descend(w, LR))
            up[k] = loss**q * dw
            down[k] = np.array(q * loss ** (q - 1) * np.sum(dw**2) + length * loss**q)
        w = w - mean(federation, up) / mean(federation, down)
        return w

    compare(Run(f"qfedavg:q={q}", federation), expected)


@pytest.mark.parametrize("size", [1e-4, 1e3])
def test_qfedavg_moves_where_losses_are_small_or_large(size: float) -> None:
    """A factor on all losses and its inverse on the learning rate change nothing: F^q cancels, and so does L."""
    plain, q = nodes(), 3
    sized = [Quadratic(n.a * size, n.b) for n in plain]
    run, expected = Run(f"qfedavg:q={q}", sized, LR / size), Run(f"qfedavg:q={q}", plain, LR)
    run.state = replace(run.state, scalars={"loss": size})  # as after a round
    for _ in range(5):
        np.testing.assert_allclose(run.round(), expected.round(), rtol=1e-4, atol=1e-5)
    assert np.abs(run.model).max() > 0.1


def test_qfedavg_without_q_is_fedavg_to_the_bit() -> None:
    federation = nodes(weights=True)
    assert Run("qfedavg:q=0", federation).rounds(5).tobytes() == Run("fedavg", federation).rounds(5).tobytes()


def test_qfedavg_helps_the_worst_node() -> None:
    federation = nodes(seed=2, count=6)

    def worst(text: str) -> float:
        model = Run(text, federation, 0.02).rounds(600)
        return max(node.loss(model) for node in federation)

    assert worst("qfedavg:q=2") < worst("fedavg")


# -- FedProx -----------------------------------------------------------------------------------------


def test_fedprox() -> None:
    federation, mu = nodes(weights=True), 0.7
    w = np.zeros(3)

    def expected(cohort: list[int]) -> Array:
        nonlocal w
        w = w + mean(federation, {k: federation[k].descend(w, LR, lambda v: mu * (v - w)) - w for k in cohort})
        return w

    compare(Run(f"fedprox:mu={mu}", federation), expected)


def test_fedprox_adapts_mu() -> None:
    """Up by 0.1 with the loss; down by 0.1 once the loss has fallen five times in a row."""
    scalars, seen = {"mu": 0.5, "falls": 0.0}, []
    for loss in (5, 6, 5, 4, 3, 2, 1, 0.5, 0.4, 0.6):
        scalars = dict(adapted(scalars, float(loss)))
        seen.append(round(scalars["mu"], 3))
    assert seen == [0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.5, 0.5, 0.5, 0.6]


def test_fedprox_tells_nodes_the_adapted_mu() -> None:
    federation = nodes(weights=True)
    run = Run("fedprox:mu=1.0,adaptive=true", federation)
    losses = [node.loss(run.model) for node in federation]
    run.round()
    assert run.facts["loss"] == pytest.approx(np.average(losses, weights=[n.weight for n in federation]), rel=1e-6)
    for _ in range(8):
        run.round()
    assert run.strategy.configure(run.state)["mu"] < 1.0  # the loss has fallen all the time


# -- personal models ---------------------------------------------------------------------------------


def test_ditto() -> None:
    federation, lam = nodes(weights=True), 0.4
    w, v = np.zeros(3), dict.fromkeys(range(4))

    def expected(cohort: list[int]) -> Array:
        nonlocal w
        local = {k: federation[k].descend(w, LR) for k in cohort}
        for k in cohort:
            before = w if v[k] is None else v[k]
            v[k] = federation[k].descend(before, LR, lambda u: lam * (u - w))
        w = w + mean(federation, {k: local[k] - w for k in cohort})
        return w

    compare(run := Run(f"ditto:lam={lam}", federation), expected)
    for k in range(4):
        np.testing.assert_allclose(run.memory[k]["v"], v[k], rtol=1e-5, atol=1e-6)
        assert federation[k].loss(v[k]) < federation[k].loss(w)


LAYERS = {"base.weight": (2, 3), "bn.weight": (2,), "bn.running_mean": (2,), "head.weight": (2,), "head.bias": (1,)}


def layered(value: float) -> Params:
    arrays = {name: np.full(shape, value) for name, shape in LAYERS.items()}
    return Params.from_arrays(arrays, {"bn.running_mean": Role.BUFFER})


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("fedper", {"head.weight", "head.bias"}),
        ("fedper:layers=2", {"bn.weight", "bn.running_mean", "head.weight", "head.bias"}),
        ("fedbn", {"bn.weight", "bn.running_mean"}),
    ],
)
def test_what_stays_at_home(text: str, own: set[str]) -> None:
    strategy = strategies.build(Choice.parse(text))
    local, state = strategy.local, strategy.init(layered(1.0))
    first = Request(state.params)
    assert [plan.start.buffer.tolist() for plan in local.plan(first)] == [state.params.buffer.tolist()]
    handed = local.report(first, [Trained(layered(0.5), 3)])
    for entry, values in handed.delta.items():
        assert (values == (0.0 if entry.name in own else 0.5)).all(), entry.name
    state = strategy.finish(state, Folded(handed.delta))
    later = Request(state.params, memory=handed.memory)
    assert local.personal is not None
    for model in (local.plan(later)[0].start, local.personal(later)):
        assert (model.buffer == 1.5).all()  # what came back from the server, and what had stayed
    for entry, values in state.params.items():
        assert (values == (1.0 if entry.name in own else 1.5)).all(), entry.name


@pytest.mark.parametrize(("text", "why"), [("fedbn", "has none"), ("fedper:layers=1", "nothing to share")])
def test_a_model_that_does_not_fit_is_refused(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        strategies.build(Choice.parse(text)).init(Params.from_arrays({"linear.weight": np.zeros(3)}))


# -- DiLoCo ------------------------------------------------------------------------------------------


def test_diloco_is_torch_nesterov_on_the_outer_gradient() -> None:
    torch = pytest.importorskip("torch", reason="the reference is torch's SGD")
    federation = nodes()
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    outer = torch.optim.SGD([theta], lr=0.7, momentum=0.9, nesterov=True)

    def expected(cohort: list[int]) -> Array:
        x = theta.detach().numpy().copy()
        theta.grad = torch.from_numpy(-mean(federation, {k: federation[k].descend(x, LR) - x for k in cohort}))
        outer.step()
        return theta.detach().numpy()

    compare(Run("diloco", federation), expected)

"""Checks of compute results: against the real thing, against a gallery of cheats, and never against the honest."""

import tracemalloc

import numpy as np
import pytest

from tutti.core.registry import Choice
from tutti.core.workload import BadTable, Table, verify, workloads
from tutti.core.workloads import kmeans

KINDS = ("linear_regression", "pca", "kmeans")


def table(seed: int = 0, n: int = 400, d: int = 6) -> Table:
    """Three lumps of rows, of which a target is a linear function but for noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * np.linspace(3, 0.5, d) + 4 * rng.standard_normal((3, d))[rng.integers(0, 3, n)]
    return Table(x, x @ rng.standard_normal(d) + 0.5 * rng.standard_normal(n) + 7)


def workload(kind: str):
    return workloads.build(Choice(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_honest_results_hold_in_64_bits(kind):
    found = workload(kind)
    for seed in range(20):
        data = table(seed)
        verdict = verify(found, data, found.solve(data, seed), seed, seed + 1)
        assert verdict.holds, verdict


@pytest.mark.parametrize("kind", ["linear_regression", "pca"])
def test_solutions_in_32_bits_hold_too(kind):
    found, data = workload(kind), table()
    result = {name: value.astype(np.float32).astype(np.float64) for name, value in found.solve(data, 0).items()}
    if kind == "linear_regression":  # what follows from the coefficients is computed in 64 bits
        result["intercept"] = np.asarray(np.mean(data.y) - data.x.mean(axis=0) @ result["coefficients"])
        result["mse"] = np.mean((data.x @ result["coefficients"] + result["intercept"] - data.y) ** 2, keepdims=True)[0]
        result["mse"] = np.asarray(result["mse"])
    else:  # so is the covariance, which the proof rests on
        result["covariance"] = found.solve(data, 0)["covariance"]
    verdict = verify(found, data, result, 0, 1)
    assert verdict.holds, verdict


def test_against_scikit_learn():
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge

    data, found = table(), workload("linear_regression")
    z = (data.x - data.x.mean(axis=0)) / data.x.std(axis=0)
    peer = Ridge(alpha=1e-3 * len(z)).fit(z, data.y)
    ours = found.solve(data, 0)
    assert ours["coefficients"] * data.x.std(axis=0) == pytest.approx(peer.coef_)
    peer = PCA(2, svd_solver="full").fit(data.x)
    ours = workload("pca").solve(data, 0)
    assert ours["explained_variance"] == pytest.approx(peer.explained_variance_)
    assert np.abs((ours["components"] * peer.components_).sum(axis=1)) == pytest.approx([1, 1])
    theirs = {
        "components": peer.components_.copy(),
        "explained_variance": peer.explained_variance_.copy(),
        "covariance": np.cov(data.x.T),
    }
    assert verify(workload("pca"), data, theirs, 0, 3).holds


def test_kmeans_finds_the_lumps_by_hand():
    rows = np.array([[0.0], [1.0], [10.0], [11.0]])
    found = workloads.build(Choice("kmeans", {"clusters": 2}))
    result = found.solve(Table(rows), 3)
    assert sorted(result["centers"][:, 0]) == [0.5, 10.5]
    assert float(result["inertia"]) == 1.0


# -- the gallery -------------------------------------------------------------------------------------


def test_kmeans_in_blocks_is_kmeans_and_needs_no_memory_for_all_distances(monkeypatch):
    few = workloads.build(Choice("kmeans", {"clusters": 7, "iterations": 9}))
    whole = few.solve(table(), 1)
    monkeypatch.setattr(kmeans, "BLOCK", 100)  # 14 of 400 rows at a time
    parts = few.solve(table(), 1)
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, rtol=1e-12)
    assert verify(few, table(), whole, 1, 2, replay=True).holds
    monkeypatch.setattr(kmeans, "BLOCK", 1 << 16)
    many, data = workloads.build(Choice("kmeans", {"clusters": 500, "iterations": 2})), table(n=10_000, d=2)
    tracemalloc.start()
    try:
        assert verify(many, data, many.solve(data, 1), 1, 2, replay=True).holds
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 500 * 10_000 / 4  # a quarter of one table of distances


@pytest.mark.parametrize("clusters", [2, 3, 4, 5])
def test_a_forged_step_over_rows_that_tie_is_found(clusters):
    """On a grid many rows lie as near to one centre as to another; that hid a step that was off by a hundredth."""
    grid = Table(np.stack(np.meshgrid(np.arange(40.0), np.arange(40.0)), -1).reshape(-1, 2))
    found = workloads.build(Choice("kmeans", {"clusters": clusters, "iterations": 60}))
    for seed in range(20):
        honest = found.solve(grid, seed)
        assert verify(found, grid, honest, seed, 1, replay=True).holds, seed
        forged = forged_from(grid.x, honest["history"][0], off=0.3)
        assert not verify(found, grid, forged, seed, 1, replay=True).holds, seed


def forged_from(x, start, off):
    """A run that is honest but for its first step."""
    history = [start, kmeans._step(x, start)[0] + off]
    while not np.array_equal(history[-1], history[-2]):
        history.append(kmeans._step(x, history[-1])[0])
    _, labels, inertia = kmeans._step(x, history[-1])
    return {
        "history": np.array(history),
        "centers": history[-1],
        "labels": labels.astype(np.float64),
        "inertia": np.asarray(inertia),
    }


@pytest.mark.parametrize("far", [0.0, 1e6])
def test_rows_that_tie_go_to_the_first_centre_however_a_machine_rounds(far):
    """The same run of the same rows in another order of columns, which sums otherwise, though far from zero."""
    rng = np.random.Generator(np.random.PCG64(5))
    x = rng.integers(0, 5, (3000, 7)) / 10 + far
    found = workloads.build(Choice("kmeans", {"clusters": 6, "iterations": 40}))
    start = x[rng.choice(len(x), 6, replace=False)]
    columns = rng.permutation(7)
    moved, labels, _ = kmeans._step(x, start)
    again, others, _ = kmeans._step(x[:, columns], start[:, columns])
    np.testing.assert_array_equal(labels, others)
    np.testing.assert_allclose(moved[:, columns], again, rtol=1e-12)
    assert len(set(labels)) == 6
    assert verify(found, Table(x), found.solve(Table(x), 3), 3, 4, replay=True).holds


def noisy(result, seed):
    """Every number a little off."""
    rng = np.random.default_rng(seed)
    return {name: value * (1 + 1e-3 * rng.standard_normal(value.shape)) for name, value in result.items()}


def first_rows(data, share=10):
    return Table(data.x[: len(data.x) // share], None if data.y is None else data.y[: len(data.x) // share])


def with_own_end(kind, data, result):
    """What follows cheaply from a wrong result, made to fit it: the cleverer cheats do that."""
    if kind == "linear_regression":
        intercept = np.asarray(np.mean(data.y) - data.x.mean(axis=0) @ result["coefficients"])
        error = np.asarray(np.mean((data.x @ result["coefficients"] + intercept - data.y) ** 2))
        return {"coefficients": result["coefficients"], "intercept": intercept, "mse": error}
    if kind == "kmeans":
        distances = ((data.x[:, None] - result["centers"]) ** 2).sum(axis=2)
        return {
            **result,
            "labels": distances.argmin(axis=1).astype(np.float64),
            "inertia": np.asarray(distances.min(axis=1).sum()),
        }
    return result


CHEATS = {
    "random": lambda kind, w, data, rng: {k: rng.standard_normal(v.shape) for k, v in w.solve(data, 0).items()},
    "zeros": lambda kind, w, data, rng: {k: np.zeros_like(v) for k, v in w.solve(data, 0).items()},
    "lazy, a tenth of the rows": lambda kind, w, data, rng: with_own_end(
        kind, data, dict(w.solve(first_rows(data), 0))
    ),
    "copied from another job": lambda kind, w, data, rng: with_own_end(kind, data, dict(w.solve(table(99), 0))),
    "a thousandth off": lambda kind, w, data, rng: noisy(w.solve(data, 0), 1),
    "a thousandth off, ends adjusted": lambda kind, w, data, rng: with_own_end(kind, data, noisy(w.solve(data, 0), 1)),
    "not a number": lambda kind, w, data, rng: {k: np.full_like(v, np.nan) for k, v in w.solve(data, 0).items()},
    "nothing": lambda kind, w, data, rng: {},
    "whatever": lambda kind, w, data, rng: {"model": "whatever"},
    "other shapes": lambda kind, w, data, rng: {k: np.zeros((3, 3, 3, 3)) for k in w.solve(data, 0)},
    "32 bits": lambda kind, w, data, rng: {k: v.astype(np.float32) for k, v in w.solve(data, 0).items()},
}


@pytest.mark.parametrize("cheat", CHEATS)
@pytest.mark.parametrize("kind", KINDS)
def test_cheats_are_caught_whatever_the_seed(kind, cheat):
    found, rng = workload(kind), np.random.default_rng(0)
    for seed in range(10):
        data = table(seed)
        if kind == "kmeans" and "lazy" in cheat:
            lazy = dict(found.solve(first_rows(data), seed))
            wrong = with_own_end(kind, data, lazy)
        else:
            wrong = CHEATS[cheat](kind, found, data, rng)
        verdict = verify(found, data, wrong, seed + 1 if kind == "kmeans" and "lazy" not in cheat else seed, seed)
        assert not verdict.holds
        assert verdict.reason


@pytest.mark.parametrize("scale", [1e90, 1e160, 1e300])
@pytest.mark.parametrize("kind", [*KINDS, "training"])
def test_numbers_that_overflow_in_the_check_convince_nobody(kind, scale):
    """Infinity is not more than infinity: of residuals that cancel, too."""
    found, rows = workload(kind), np.array([[1.0, 2.0], [-1.0, -2.0], [3.0, 1.0], [-3.0, -1.0]])
    data = Table(rows, rows[:, 0].copy())
    for sign in (1, -1):
        huge = {name: np.full_like(value, sign * scale) for name, value in found.solve(data, 0).items()}
        for name in ("intercept", "labels", "components"):
            if name in huge:
                huge[name] = found.solve(data, 0)[name]
        assert not verify(found, data, huge, 0, 1).holds


def test_a_lied_error_variance_or_inertia_is_caught():
    data = table()
    for kind, name in (("linear_regression", "mse"), ("pca", "explained_variance"), ("kmeans", "inertia")):
        found = workload(kind)
        result = dict(found.solve(data, 0))
        result[name] = result[name] * 0.99
        assert not verify(found, data, result, 0, 1).holds, kind


@pytest.mark.parametrize("seed", range(20))
def test_a_component_that_is_skipped_is_found(seed):
    data = table(seed, n=1000, d=12)
    every = workloads.build(Choice("pca", {"components": 12})).solve(data, 0)
    kept = [0, 1, 3]
    result = {name: every[name][kept] for name in ("components", "explained_variance")}
    result["covariance"] = every["covariance"]
    verdict = verify(workloads.build(Choice("pca", {"components": 3})), data, result, 0, seed)
    skipped, last = every["explained_variance"][[2, 3]]
    assert verdict.holds == (skipped < 1.02 * last), verdict
    assert verdict.holds or "left out" in verdict.reason


def test_a_rotation_within_the_right_subspace_is_not_the_components():
    data = table()
    result = dict(workload("pca").solve(data, 0))
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    result["components"] = turn @ result["components"]
    assert "not eigenvectors" in verify(workload("pca"), data, result, 0, 1).reason


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("shape", [(2000, 4), (300, 200)])
def test_a_covariance_that_is_another_is_found_whichever_way_it_is_off(size, shape):
    """The components are those of the covariance that is handed in: that it is another shows in the rows only."""
    rng, found, data = np.random.default_rng(4), workload("pca"), table(5, *shape)
    largest = float(found.solve(data, 0)["explained_variance"][0])
    for seed in range(40):
        ways = rng.standard_normal((2, shape[1])) if seed % 2 else np.eye(shape[1])[rng.integers(0, shape[1], 2)]
        error = np.outer(*ways) + np.outer(*ways[::-1])
        error -= np.eye(shape[1]) * np.trace(error) / shape[1]
        covariance = np.cov(data.x.T) + size * largest * error / np.abs(error).max()
        values, vectors = np.linalg.eigh(covariance)
        forged = {
            "components": vectors.T[::-1][:2].copy(),
            "explained_variance": values[::-1][:2].copy(),
            "covariance": covariance,
        }
        assert "not that of the table" in verify(found, data, forged, 0, seed).reason


class TestKMeansRuns:
    """What a fixed point and its inertia alone would let pass."""

    def setup_method(self):
        self.kind, self.data = workloads.build(Choice("kmeans", {"clusters": 5, "iterations": 100})), table(3, n=600)
        self.honest = dict(self.kind.solve(self.data, 7))

    def verdict(self, result, check_seed=0):
        return verify(self.kind, self.data, result, 7, check_seed)

    def test_another_start_is_caught(self):
        assert "seed" in self.verdict(self.kind.solve(self.data, 8)).reason

    def test_stopping_early_is_caught(self):
        few = workloads.build(Choice("kmeans", {"clusters": 5, "iterations": 2})).solve(self.data, 7)
        assert "stopped" in self.verdict(few).reason

    def test_a_jump_to_another_fixed_point_is_caught_at_the_first_step(self):
        other = self.kind.solve(self.data, 8)
        forged = {**other, "history": np.concatenate([self.honest["history"][:1], other["history"][-2:]])}
        assert "step 1" in self.verdict(forged).reason

    def test_a_jump_in_the_middle_is_caught_as_often_as_is_said(self):
        other, history = self.kind.solve(self.data, 8), self.honest["history"]
        forged = {**other, "history": np.concatenate([history[:4], other["history"][-4:]])}
        steps = len(forged["history"]) - 1
        caught = sum(not self.verdict(forged, seed).holds for seed in range(300))
        assert caught / 300 > 2 / steps - 0.1

    def test_wrong_labels_are_caught(self):
        labels = self.honest["labels"].copy()
        labels[:3] = (labels[:3] + 1) % 5
        assert "3 labels" in self.verdict({**self.honest, "labels": labels}).reason
        assert "whole numbers" in self.verdict({**self.honest, "labels": labels - 9}).reason


# -- the honest --------------------------------------------------------------------------------------


def random_job(rng: np.random.Generator):
    """A job as odd as they come: few rows, constant or equal columns, equal rows, huge or tiny scales, ties."""
    n, d = int(rng.integers(2, 60)), int(rng.integers(1, 6))
    x = rng.standard_normal((n, d)) * 10.0 ** rng.uniform(-6, 6)
    if rng.random() < 0.2:
        x = np.round(x / np.abs(x).max() * 3)  # many ties
    if rng.random() < 0.2:
        x[:, rng.integers(d)] = rng.choice([0.0, 1.0, -5e5])
    if rng.random() < 0.2:
        x[:, 0] = 2 * x[:, -1]
    if rng.random() < 0.1:
        x[:] = x[0]
    if rng.random() < 0.2:
        x += 10.0 ** rng.uniform(0, 6)
    y = x @ rng.standard_normal(d) * float(rng.random() < 0.8) + 10.0 ** rng.uniform(-6, 3) * rng.standard_normal(n)
    kind = rng.choice(KINDS)
    options = {
        "linear_regression": {"ridge": float(10 ** rng.uniform(-4, 0))},
        "pca": {"components": int(rng.integers(1, max(2, min(d, n - 1) + 1)))},
        "kmeans": {"clusters": int(rng.integers(1, min(n, 8) + 1)), "iterations": int(rng.integers(1, 30))},
    }[kind]
    return Choice(str(kind), options), Table(x, y)


@pytest.mark.parametrize("part", range(10))
def test_the_honest_are_never_refused_in_ten_thousand_random_jobs(part):
    """Solved on rows in another memory order and with another thread's rounding: as on another machine."""
    rng = np.random.default_rng([2026, part])
    for i in range(1000):
        choice, data = random_job(rng)
        found = workloads.build(choice)
        found.admit(data)
        elsewhere = Table(np.asfortranarray(data.x), data.y)
        verdict = verify(found, data, found.solve(elsewhere, i), i, i + 1)
        assert verdict.holds, (part, i, choice, data.x.shape, verdict)


@pytest.mark.parametrize(
    ("choice", "data", "said"),
    [
        (Choice("linear_regression"), Table(np.ones((5, 2))), "target"),
        (Choice("linear_regression"), Table(np.ones((1, 2)), np.ones(1)), "2 rows"),
        (Choice("linear_regression"), Table(np.ones((5, 2)), np.ones(4)), "each of 5 rows"),
        (Choice("linear_regression"), Table(np.full((5, 2), np.nan), np.ones(5)), "finite"),
        (Choice("pca", {"components": 3}), Table(np.ones((5, 2))), "fewer"),
        (Choice("kmeans", {"clusters": 6}), Table(np.ones((5, 2))), "fewer"),
    ],
)
def test_data_that_cannot_be_used_are_named(choice, data, said):
    with pytest.raises(BadTable, match=said):
        workloads.build(choice).admit(data)

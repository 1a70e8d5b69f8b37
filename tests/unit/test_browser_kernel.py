"""The browser's kernel in wasmtime, beside PyTorch, numpy and BLAKE3 as they are."""

import re
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from tutti.adapters.browser.kernel import Kernel, KernelOutOfMemory, NotForBrowsers, Shape, Step, shape_of
from tutti.adapters.trainers.batches import batches
from tutti.core.local import Correction, Demand
from tutti.core.params import Params
from tutti.core.registry import Choice
from tutti.core.strategy import strategies
from tutti.domain.spec import DataSchema, Training
from tutti.ports.training import Examples, Task, models

pytest.importorskip("torch", reason="needs torch")

CLASSES = DataSchema("classification", (13,), 5)
TARGETS = DataSchema("regression", (13,), 2)
IMAGES = DataSchema("classification", (1, 28, 28), 10)
SMALL_IMAGES = DataSchema("classification", (3, 9, 14), 4)  # odd sizes: the maxima leave a row out
PLAIN, HEAVY, DECAYED = {}, {"momentum": 0.9}, {"weight_decay": 0.01, "momentum": 0.5}
CASES = {
    "linear": ("linear", CLASSES, PLAIN, 0.0),
    "linear regression": ("linear", TARGETS, HEAVY, 0.0),
    "mlp": ("mlp:hidden=7", CLASSES, PLAIN, 0.0),
    "mlp with momentum": ("mlp:hidden=40x30", CLASSES, HEAVY, 0.0),
    "mlp pulled back": ("mlp:hidden=40", CLASSES, DECAYED, 0.3),
    "mlp for targets": ("mlp:hidden=9x8x7", TARGETS, DECAYED, 0.0),
    "2nn": ("2nn", CLASSES, PLAIN, 0.0),
    "cnn": ("cnn", IMAGES, PLAIN, 0.0),
    "cnn of odd sizes": ("cnn", SMALL_IMAGES, DECAYED, 0.2),
}


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return Kernel()


def rows(schema: DataSchema, n: int) -> Examples:
    rng = np.random.default_rng(n)
    x = rng.random((n, *schema.shape), dtype=np.float32)
    if schema.task == "regression":
        return Examples(x, rng.random((n, schema.outputs), dtype=np.float32))
    return Examples(x, rng.integers(0, schema.outputs, n))


@pytest.mark.parametrize("case", CASES)
def test_it_trains_as_torch_does(kernel, case):
    model, schema, training, pull = CASES[case]
    trainer, examples = models.build(Choice.parse(model), data=schema), rows(schema, 37)
    task = Task(Training(epochs=2, batch_size=16, **training), 7, 16, 0.1, Correction(pull=pull))
    params = trainer.init(3)
    expected = trainer.train(params, examples, task, lambda *report: None)
    work = batches(len(examples), task)
    step = Step(0.1, training.get("momentum", 0.0), training.get("weight_decay", 0.0), pull)
    shape = shape_of(Choice.parse(model), schema)
    found = kernel.train(shape, step, params, examples, [chosen for _, chosen in work], len(work) // 2)
    change = expected.params.buffer - params.buffer
    assert np.abs(found.delta - change).max() <= 1e-3 * np.abs(change).max()
    assert found.loss / len(examples) == pytest.approx(expected.metrics["loss"], rel=1e-4)
    if schema.task == "classification":
        assert found.hits == round(expected.metrics["accuracy"] * len(examples))
    predicted = kernel.predict(shape, expected.params, examples.x)
    assert np.allclose(predicted, trainer.predict(expected.params, examples.x), rtol=1e-4, atol=1e-5)


def test_the_same_work_gives_the_same_bits_in_another_instance(kernel):
    shape, examples = shape_of(Choice.parse("mlp"), CLASSES), rows(CLASSES, 40)
    params = models.build(Choice.parse("mlp"), data=CLASSES).init(1)
    work = [np.arange(20), np.arange(20, 40)]
    first, second = (each.train(shape, Step(0.1), params, examples, work, 0) for each in (kernel, Kernel()))
    assert first.delta.tobytes() == second.delta.tobytes()
    assert first.loss == second.loss


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32, 2**40 + 7, 2**63 - 1])
@pytest.mark.parametrize("n", [1, 2, 3, 17, 1000])
def test_it_shuffles_as_numpy_does(kernel, seed, n):
    for epoch in (1, 2):
        expected = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)
        assert kernel.shuffle(seed, epoch, n).tolist() == expected.tolist()


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1023, 1024, 1025, 2048, 3000, 5000, 100_000])
def test_it_hashes_as_blake3_does(kernel, size):
    data = np.random.default_rng(size).bytes(size)
    assert kernel.blake3(data) == blake3(data).digest()


def test_what_does_not_fit_its_memory_is_refused_and_it_goes_on(kernel):
    shape, params = Shape((2**20, 2**10)), Params.from_arrays({"w": np.zeros(1, np.float32)})
    with pytest.raises(KernelOutOfMemory, match="smaller"):  # 4 GB of weights
        kernel.predict(shape, params, np.zeros((1, 2**20), np.float32))
    assert kernel.blake3(b"") == blake3(b"").digest()


@pytest.mark.parametrize(
    "model", ["mlp:activation=tanh", "mlp:dropout=0.5", "lenet", "mlp:hidden=" + "x".join("2" * 17)]
)
def test_other_models_are_refused_by_name(model):
    with pytest.raises(NotForBrowsers, match=r"have no .*linear, 2nn, cnn"):
        shape_of(Choice.parse(model), CLASSES)


def test_the_strategies_that_browsers_offer_ask_no_more_of_nodes_than_they_can():
    source = Path(__file__).parents[2] / "web" / "src" / "node" / "work.ts"
    listed = re.search(r"STRATEGIES = \[(.*)\]", source.read_text())
    assert listed is not None
    for name in re.findall(r'"([a-z-]+)"', listed[1]):
        local = strategies.build(Choice(name)).local
        assert local.demand is Demand.PULL
        assert not any((local.vectors, local.facts, local.loss_first, local.personal))


def test_parameters_lie_as_the_layout_says(kernel):
    """One layer, one row: the change of weight (o, i) is -lr * d[o] * x[i]."""
    data = DataSchema("regression", (3,), 2)
    params = Params.from_arrays({"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)})
    examples = Examples(np.array([[1, 2, 3]], np.float32), np.array([[4, 8]], np.float32))
    shape = shape_of(Choice.parse("linear"), data)
    delta = kernel.train(shape, Step(0.5), params, examples, [np.array([0])], 0).delta
    assert delta.tolist() == [2, 4, 6, 4, 8, 12, 2, 4]

"""What browsers compute, in JavaScript's own engine: the kernel and its plain stand-in, to the bit."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.scripts import ask, bundled
from tutti.adapters.browser.kernel import Kernel, Shape, Step, shape_of
from tutti.adapters.trainers.batches import batches
from tutti.core.local import Correction
from tutti.core.params import Params
from tutti.core.registry import Choice
from tutti.core.schedules import schedules
from tutti.domain.spec import DataSchema, Training
from tutti.ports.training import Examples, Task, models
from tutti.wire import tensors

pytestmark = pytest.mark.xdist_group("node")

CLASSES = DataSchema("classification", (13,), 5)
TARGETS = DataSchema("regression", (13,), 2)
IMAGES = DataSchema("classification", (1, 12, 12), 4)
N, SEED = 41, 2**40 + 3
ODD_IMAGES = DataSchema("classification", (3, 9, 14), 4)  # the maxima leave a row out


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    return bundled(tmp_path_factory.mktemp("script"))


def text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, np.float32).tobytes()).decode()


def floats(said: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(said), np.float32)


def rows_of(schema: DataSchema) -> Examples:
    rng = np.random.default_rng(5)
    x = rng.random((N, *schema.shape), dtype=np.float32)
    y = rng.random((N, 2), dtype=np.float32) if schema.task == "regression" else rng.integers(0, schema.outputs, N)
    return Examples(x, y)


def drawn(shape: Shape) -> Params:
    size = sum((a + 1) * b for a, b in zip(shape.widths, shape.widths[1:], strict=False))
    size += (25 * shape.image[0] + 1) * 32 + (25 * 32 + 1) * 64 if shape.image[0] else 0
    return Params.from_arrays({"all": np.random.default_rng(6).normal(0, 0.1, size).astype(np.float32)})


def vector(
    model: str, schema: DataSchema, params: Params | None = None, **step: float
) -> tuple[dict[str, Any], Any, np.ndarray]:
    """A case, what wasmtime makes of it, and what it predicts."""
    shape, examples = shape_of(Choice.parse(model), schema), rows_of(schema)
    params = params or drawn(shape)
    work = [chosen for _, chosen in batches(N, Task(Training(epochs=2), SEED, 8, 0.1))]
    its = {"lr": 0.1, "momentum": 0.0, "decay": 0.0, "mu": 0.0, **step}
    kernel = Kernel()
    expected = kernel.train(shape, Step(**its), params, examples, work, len(work) // 2)
    case = {
        "what": "train",
        "model": model,
        "shape": schema.shape,
        "outputs": schema.outputs,
        "x": text(examples.x),
        "y": text(examples.y),
    }
    case |= {"regression": schema.task == "regression", "count": N, "seed": str(SEED), "epochs": 2, "batch": 8}
    case |= {"step": its, "tallied": len(work) // 2, "params": text(params.buffer)}
    return case, expected, kernel.predict(shape, params, examples.x).ravel()


VECTORS = {
    "linear": ("linear", CLASSES, {}),
    "mlp": ("mlp:hidden=9x8", CLASSES, {"momentum": 0.9, "decay": 0.01}),
    "mlp pulled back": ("mlp:hidden=9", TARGETS, {"mu": 0.5}),
    "linear for targets": ("linear", TARGETS, {"momentum": 0.5, "mu": 0.1}),
    "mlp decayed": ("mlp:hidden=9x3", CLASSES, {"decay": 0.1, "lr": 2.0}),
    "cnn": ("cnn", IMAGES, {"momentum": 0.5}),
    "cnn of odd sizes, pulled back": ("cnn", ODD_IMAGES, {"mu": 0.2, "decay": 0.01}),
}


@pytest.mark.parametrize("kind", ["kernel", "plain"])
@pytest.mark.parametrize("name", VECTORS)
def test_browsers_give_the_bits_that_wasmtime_gives(script, kind, name):
    model, schema, step = VECTORS[name]
    case, expected, predicted = vector(model, schema, **step)
    (said,) = ask(script, {**case, "kind": kind})
    answer = said["answer"]
    assert floats(answer["delta"]).tobytes() == expected.delta.tobytes()
    assert (answer["loss"], answer["hits"]) == (expected.loss, expected.hits)
    assert floats(answer["predicted"]).tobytes() == predicted.tobytes()


@pytest.mark.parametrize("kind", ["kernel", "plain"])
@pytest.mark.parametrize("name", VECTORS)
def test_browsers_train_as_torch_does(script, kind, name):
    """From its initial weights, in the same batches, to within a thousandth of the largest change."""
    pytest.importorskip("torch", reason="needs torch")
    model, schema, step = VECTORS[name]
    trainer = models.build(Choice.parse(model), data=schema)
    params = trainer.init(3)
    case, _, _ = vector(model, schema, params, **step)
    its = {"weight_decay": step.get("decay", 0.0), "momentum": step.get("momentum", 0.0)}
    correction = Correction(pull=step.get("mu", 0.0))
    task = Task(Training(epochs=2, **its), SEED, 8, step.get("lr", 0.1), correction)
    expected = trainer.train(params, rows_of(schema), task, lambda *report: None)
    change = expected.params.buffer - params.buffer
    (said,) = ask(script, {**case, "kind": kind})
    assert np.abs(floats(said["answer"]["delta"]) - change).max() <= 1e-3 * np.abs(change).max()


@pytest.mark.parametrize("kind", ["kernel", "plain"])
def test_both_shuffle_as_numpy_does(script, kind):
    cases = [(seed, epoch, n) for seed in (0, 2**32, 2**63 - 1) for epoch in (1, 2) for n in (1, 2, 17, 300)]
    said = ask(script, *({"what": "shuffle", "kind": kind, "seed": str(s), "epoch": e, "n": n} for s, e, n in cases))
    for (seed, epoch, n), each in zip(cases, said, strict=True):
        assert each["answer"] == np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n).tolist()


@pytest.mark.parametrize("kind", ["kernel", "plain"])
def test_both_hash_as_the_coordinator_does(script, kind):
    blobs = [np.random.default_rng(n).bytes(n) for n in (0, 1, 64, 65, 1024, 1025, 3000, 9000)]
    said = ask(script, *({"what": "blake3", "kind": kind, "data": base64.b64encode(b).decode()} for b in blobs))
    assert [each["answer"] for each in said] == [tensors.digest(blob) for blob in blobs]


def test_learning_rates_follow_the_same_schedules(script):
    names = [
        "constant",
        "step",
        "step:every=3,gamma=0.5",
        "exponential:gamma=0.9",
        "cosine",
        "cosine:floor=0.1",
        "warmup",
    ]
    cases = [(name, round) for name in (*names, "warmup:length=3") for round in (1, 2, 7, 20)]
    said = ask(script, *({"what": "scheduled", "schedule": name, "round": r, "rounds": 20} for name, r in cases))
    for (name, round), each in zip(cases, said, strict=True):
        assert each["answer"] == pytest.approx(schedules.build(Choice.parse(name))(round, 20))


def test_a_device_that_holds_out_no_rows_measures_nothing(script):
    case, _, _ = vector("linear", CLASSES)
    params = Params.from_arrays({"weight": np.zeros((5, 13), np.float32), "bias": np.zeros(5, np.float32)})
    schema = {"task": "classification", "shape": [13], "outputs": 5}
    start = {"task": "evaluate", "model": "linear", "data": schema, "training": {}, "seed": "0"}
    model = base64.b64encode(bytes(tensors.encode(params))).decode()
    asked = {**case, "what": "carry out", "kind": "kernel", "start": start, "model": model}
    (said,) = ask(script, asked)
    assert said["error"] == "this device holds out no rows to measure a model on"


def test_files_are_written_as_they_are_read(script):
    params = Params.from_arrays({"b.weight": np.ones((2, 3), np.float32), "a": np.zeros(5, np.float32)})
    blob = bytes(tensors.encode(params, {"note": "kept"}))
    (said,) = ask(script, {"what": "file", "data": base64.b64encode(blob).decode()})
    again = base64.b64decode(said["answer"])
    assert tensors.decode(again).layout == params.layout
    assert tensors.decode(again).buffer.tobytes() == params.buffer.tobytes()
    assert tensors.metadata(again) == tensors.metadata(blob)


def test_tables_are_read_as_on_other_nodes(script, tmp_path):
    from tutti.apps.nodes import load_data

    table = "weight,age,died\n1.5,40,0\n2,50,1\n3,60,0\n4,70,2\n"
    (tmp_path / "mine.csv").write_text(table)
    data = load_data(Choice.parse(f"csv:path={tmp_path / 'mine.csv'},target=died,held_out=0"))
    (said,) = ask(script, {"what": "csv", "text": table, "target": "died"})
    kept = said["answer"]
    schema = kept["summary"]["data"]
    assert schema == {"task": "classification", "shape": [2], "outputs": 3, "features": ["age", "weight"]}
    assert (schema["features"], schema["outputs"]) == (list(data.schema.features), data.schema.outputs)
    assert kept["data"]["train"]["x"] == data.train.x.ravel().tolist()
    assert kept["data"]["train"]["y"] == data.train.y.tolist()


BAD_TABLES = {
    "ragged": ("a,b\n1,2\n3\n", "b", "row 3: expected 2 columns, came 1"),
    "words": ("a,b\nx,1\n", "b", "row 2, column “a”: expected a number, came “x”"),
    "the same column twice": ("a,a,b\n1,2,3\n", "b", "the header names the column “a” twice"),
    "too many rows": ("a,b\n" + "1,2\n" * 130_000, "b", "expected at most 50000 rows, came 130000"),
    "empty": ("", "b", "expected a header"),
    "no target": ("a,b\n1,2\n", "c", "there is no column “c”; the columns are: a, b"),
    "open quote": ('a,b\n"1,2\n', "b", "never closed"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_are_refused_with_the_row(script, name):
    table, target, wanted = BAD_TABLES[name]
    (said,) = ask(script, {"what": "csv", "text": table, "target": target})
    assert wanted in said["error"]


def test_a_table_must_fit_the_job(script):
    schema = {"task": "classification", "shape": [1], "outputs": 2, "features": ["age"], "classes": ["no", "yes"]}
    ask_it = {"what": "csv", "target": "died", "schema": schema}
    fits, other, strange = ask(
        script,
        {**ask_it, "text": "age,died\n40,yes\n"},
        {**ask_it, "text": "size,died\n40,yes\n"},
        {**ask_it, "text": "age,died\n40,maybe\n"},
    )
    assert fits["answer"]["data"]["train"]["y"] == [1]
    assert "the job is on the columns age; this file has size" in other["error"]
    assert "“maybe” is none of the classes no, yes" in strange["error"]


def test_quotes_and_semicolons_are_understood(script):
    (said,) = ask(script, {"what": "cells", "text": '\ufeff"a;1";b\r\n"say ""hi""";2\r\n\r\n'})
    assert said["answer"] == [["a;1", "b"], ['say "hi"', "2"]]


def test_every_fifth_row_of_ones_own_is_held_out(script):
    schema = {"task": "classification", "shape": [1], "outputs": 2}
    rows = [[float(row)] for row in range(11)]
    labels = [row % 2 for row in range(11)]
    whole, few = ask(script, *({"what": "own", "schema": schema, "x": rows[:n], "y": labels[:n]} for n in (11, 4)))
    assert whole["answer"]["data"]["heldOut"]["x"] == [4, 9]
    assert whole["answer"]["summary"]["examples"] == 9
    assert whole["answer"]["given"] == {"x": rows, "y": labels}  # to which more are added
    assert few["answer"]["given"] == {"x": rows[:4], "y": labels[:4]}

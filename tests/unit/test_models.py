"""Every registered model: its size, what it takes, and what it refuses."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tutti.adapters._imports import BadEntry, MissingExtra, extra, importable
from tutti.adapters.models._build import UnsuitableData
from tutti.core.errors import UserError
from tutti.core.params import Role
from tutti.core.registry import BadOption, Choice, describe
from tutti.domain.spec import DataSchema, Training
from tutti.ports.training import Examples, Task, Trainer, models

pytest.importorskip("torch", reason="most models need pip install 'tutti[torch]'")
pytest.importorskip("sklearn", reason="sgd-linear needs pip install 'tutti[data]'")

DIGIT = DataSchema("classification", (1, 28, 28), 10)
COLOUR = DataSchema("classification", (3, 32, 32), 10)
TABLE = DataSchema("classification", (5,), 3)
TARGETS = DataSchema("regression", (5,), 2)


def build(model: str, data: DataSchema) -> Trainer:
    return models.build(Choice.parse(model), data=data)


@pytest.mark.parametrize(
    ("model", "data", "weights"),
    [
        ("cnn", DIGIT, 1_663_370),  # McMahan et al. 2017, section 3
        ("2nn", DIGIT, 199_210),  # likewise
        ("lenet", DIGIT, 61_706),
        ("lenet", COLOUR, 62_006),
        ("resnet", COLOUR, 269_722),  # 0.27 million, He et al. 2016, table 6
        ("resnet18-gn", COLOUR, 11_173_962),  # ResNet-18 as used on CIFAR-10
        ("resnet18-gn", DataSchema("classification", (3, 224, 224), 1000), 11_689_512),  # He et al. 2016, ResNet-18
        ("char-lstm", DataSchema("classification", (80,), 90), 820_522),  # 720+271360+525312+23130
        ("char-lstm", DataSchema("classification", (80,), 80), 817_872),  # LEAF: 80 characters
        ("linear", DIGIT, 7_850),
        ("mlp", TABLE, 5 * 64 + 64 + 64 * 3 + 3),
        ("mlp:hidden=4x6", TARGETS, 5 * 4 + 4 + 4 * 6 + 6 + 6 * 2 + 2),
        ("sgd-linear", TABLE, 18),
        ("sgd-linear", DataSchema("classification", (5,), 2), 6),
    ],
)
def test_number_of_weights(model: str, data: DataSchema, weights: int) -> None:
    layout = build(model, data).init(0).layout
    assert sum(entry.size for entry in layout.entries if entry.role is Role.WEIGHT) == weights


@pytest.mark.parametrize("model", ["cnn", "2nn", "lenet", "resnet:depth=8", "linear", "mlp", "sgd-linear"])
@pytest.mark.parametrize("shape", [(1, 16, 20), (3, 32, 32)])
def test_takes_images_of_any_usual_size(model: str, shape: tuple[int, ...]) -> None:
    data = DataSchema("classification", shape, 4)
    rows = Examples(np.random.default_rng(0).random((6, *shape), np.float32), np.arange(6) % 4)
    trainer = build(model, data)
    assert trainer.evaluate(trainer.init(0), rows)["loss"] > 0


@pytest.mark.parametrize("model", ["cnn", "lenet", "resnet", "resnet18-gn"])
def test_image_models_refuse_tables(model: str) -> None:
    with pytest.raises(UnsuitableData, match=rf"{model}.*takes images.*this data has shape \(5,\)"):
        build(model, TABLE)


def test_too_small_images_are_refused() -> None:
    with pytest.raises(UnsuitableData, match=r"at least 12x12.*has shape \(1, 8, 8\)"):
        build("lenet", DataSchema("classification", (1, 8, 8), 10))


def test_sgd_linear_refuses_two_targets_and_one_class() -> None:
    with pytest.raises(UnsuitableData, match="one target, this data has 2"):
        build("sgd-linear", TARGETS)
    with pytest.raises(UnsuitableData, match="at least two classes"):
        build("sgd-linear", DataSchema("classification", (5,), 1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mlp:hidden=0", "hidden"),
        ("mlp:activation=sigmoid", "activation"),
        ("mlp:dropout=1.0", "dropout"),
        ("mlp:width=3", "width.*options: hidden, activation, dropout"),
        ("resnet:depth=18", "6n \\+ 2.*came 18"),
        ("linear:3", "takes no options"),
    ],
)
def test_bad_options_are_refused(model: str, message: str) -> None:
    with pytest.raises(BadOption, match=message):
        build(model, DIGIT)


def test_char_lstm_learns_a_rhyme_and_refuses_what_is_no_text() -> None:
    text = np.array([0, 1, 2, 3] * 30)
    x = np.stack([text[i : i + 6] for i in range(60)]).astype(np.float32)
    rows = Examples(x, text[6:66])
    data = DataSchema("classification", (6,), 4)
    trainer = build("char-lstm:hidden=16", data)
    task = Task(Training(epochs=15, optimizer="adam"), seed=0, batch_size=10, lr=0.02)
    start = trainer.init(0)
    trained = trainer.train(start, rows, task, lambda share, epoch, loss: None).params
    assert trainer.evaluate(trained, rows)["accuracy"] == 1.0
    assert trained["lstm.bias_hh_l0"].tolist() == start["lstm.bias_hh_l0"].tolist() == [0.0] * 64
    with pytest.raises(UserError, match="expected characters 0 to 3, came 0 to 9"):
        trainer.predict(trained, np.array([[0, 9, 0, 0, 0, 0]], np.float32))
    with pytest.raises(UnsuitableData, match=r"takes texts.*shape \(1, 28, 28\)"):
        build("char-lstm", DIGIT)


def test_resnet18_on_small_images() -> None:
    data = DataSchema("classification", (1, 16, 20), 4)
    rows = Examples(np.random.default_rng(0).random((2, 1, 16, 20), np.float32), np.arange(2))
    trainer = build("resnet18-gn:groups=32", data)
    assert trainer.evaluate(trainer.init(0), rows)["loss"] > 0
    with pytest.raises(BadOption, match="into 3 groups"):
        build("resnet18-gn:groups=3", data)


def test_initial_models_follow_the_seed() -> None:
    trainer = build("mlp", TABLE)
    first, second = trainer.init(1), trainer.init(2)
    assert first.buffer.tobytes() != second.buffer.tobytes()
    assert first.buffer.tobytes() == build("mlp", TABLE).init(1).buffer.tobytes()


MODULES = """
import math, os
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.fixed = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("scale", torch.full((1,), 2.0))
        self.register_buffer("unsaved", torch.ones(1), persistent=False)
        self.tied = self.layer
    def forward(self, x):
        self.scale = self.scale * 1.0  # replaces the buffer, as some modules do
        return self.layer(x) * self.scale + self.fixed

def sized(data) -> nn.Module:
    return nn.Linear(math.prod(data.shape), data.outputs)

def too_wide() -> nn.Module:
    return nn.Linear(5, 7)

def wants_more(data) -> nn.Module:
    return nn.Linear(9, 3)

class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.phase = nn.Parameter(torch.ones(1, dtype=torch.complex64))
    def forward(self, x):
        return self.layer(x)

def unmarked(data):
    raise SystemExit("called")

number = 3
"""


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An importable module of the user's own, which jobs may name."""
    name = f"house_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULES))
    monkeypatch.syspath_prepend(str(tmp_path))
    with importable([name]):
        yield name


def test_module_by_entry_point(house: str) -> None:
    start = build(f"module:entry={house}:Plain", TABLE).init(0)
    roles = {entry.name: entry.role for entry in start.layout.entries}
    assert roles == {
        "layer.weight": Role.WEIGHT,
        "layer.bias": Role.WEIGHT,
        "fixed": Role.BUFFER,
        "scale": Role.BUFFER,
    }
    assert start["scale"] == 2.0
    assert build(f"module:entry={house}:sized", TABLE).init(0).layout.size == 18


def test_a_buffer_that_is_replaced_is_still_exchanged(house: str) -> None:
    trainer = build(f"module:entry={house}:Plain", TABLE)
    params = trainer.init(0)
    rows = Examples(np.ones((2, 5), np.float32), np.array([0, 1]))
    before = trainer.evaluate(params, rows)
    params["scale"][:] = 5.0
    assert trainer.evaluate(params, rows) != before


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ("too_wide", UserError, r"shape \(2, 3\) for two examples, the model gave \(2, 7\)"),
        ("wants_more", UserError, r"cannot take examples of shape \(5,\)"),
        ("Complex", UserError, "'phase' is complex"),
        ("unmarked", BadEntry, "annotated '-> nn.Module'"),
        ("os", BadEntry, "has a module, not a callable, named 'os'"),
        ("number", BadEntry, "has a int, not a callable"),
        ("absent", BadEntry, "has no 'absent'"),
    ],
)
def test_bad_modules_are_refused_with_the_reason(house: str, entry: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(f"module:entry={house}:{entry}", TABLE).init(0)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("os:abort", "expected an nn.Module class"),
        ("shutil:rmtree", "expected an nn.Module class"),
        ("nowhere.at_all:Net", "no module 'nowhere' here"),
        ("torch.nn", "expected entry=package.module:name"),
    ],
)
def test_entries_that_are_no_modules_are_not_called(entry: str, message: str) -> None:
    with importable(["*"]), pytest.raises(BadEntry, match=message):
        build(f"module:entry={entry}", TABLE)


def test_a_module_that_nobody_listed_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"trap_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for listed in ([], ["elsewhere"], [name[:-1]], [f"{name}.*"]):
        with importable(listed), pytest.raises(BadEntry, match=f"nobody has listed module '{name}' here"):
            build(f"module:entry={name}:Net", TABLE)
    with importable([name]), pytest.raises(SystemExit, match="imported"):
        build(f"module:entry={name}:Net", TABLE)


def test_registry_is_found_without_heavy_imports() -> None:
    """Names, options and schemas of models and data sets, in a process that must not import a framework."""
    script = """
        import sys
        from tutti.adapters.datasets import known_schema
        from tutti.core.registry import Choice, describe
        from tutti.ports.training import datasets, models
        assert {"linear", "mlp", "2nn", "cnn", "lenet", "resnet", "module", "sgd-linear"} <= set(describe(models))
        assert {"digits", "mnist", "csv", "parquet", "npz", "idx", "images", "python"} <= set(describe(datasets))
        assert known_schema(Choice("digits")).outputs == 10
        heavy = {"torch", "sklearn", "pyarrow", "PIL", "scipy"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)


def test_missing_framework_says_what_to_install() -> None:
    script = """
        import sys
        sys.modules["torch"] = None
        from tutti.core.registry import Choice
        from tutti.domain.spec import DataSchema, Training
        from tutti.ports.training import models
        try:
            models.build(Choice("mlp"), data=DataSchema("classification", (4,), 2))
        except Exception as error:
            print(type(error).__name__, error)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60, capture_output=True, text=True
    )
    assert run.stdout.startswith("MissingExtra")
    assert "pip install '.[torch]' in Tutti's sources" in run.stdout


def test_our_own_missing_modules_are_our_fault() -> None:
    with pytest.raises(MissingExtra, match="needs not_there"), extra("data", "this"):
        import not_there  # type: ignore[import-not-found]  # noqa: F401
    with pytest.raises(ModuleNotFoundError), extra("data", "this"):
        import tutti.not_there  # type: ignore[import-not-found]  # noqa: F401


def test_every_model_describes_itself() -> None:
    for name, schema in describe(models).items():
        assert schema["description"], name

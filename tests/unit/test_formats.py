"""Sets that come in formats of others: LEAF's JSON, Hugging Face's Arrow folders, CIFAR-10 in all its forms."""

import hashlib
import io
import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.shared_data import SHARED, needs, serving
from tutti.adapters.datasets import BadData, cifar10, known_schema
from tutti.adapters.datasets.cifar10 import CLASSES
from tutti.core.errors import UserError
from tutti.core.registry import Choice, Option
from tutti.domain.spec import DataSchema
from tutti.ports.training import Data, datasets

pyarrow = pytest.importorskip("pyarrow", reason="Arrow files need pip install 'tutti[data]'")
Image = pytest.importorskip("PIL.Image", reason="images need pip install 'tutti[data]'")


def load(text: str, **options: Option) -> Data:
    choice = Choice.parse(text)
    return datasets.build(Choice(choice.name, {**choice.options, **options})).load()


# LEAF


def write_leaf(folder: Path, users: dict[str, tuple[list[object], list[object]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "users": list(users),
        "num_samples": [len(y) for _, y in users.values()],
        "user_data": {user: {"x": x, "y": y} for user, (x, y) in users.items()},
    }
    (folder / "all_data.json").write_text(json.dumps(content))


def test_leaf_folders_by_user(tmp_path: Path) -> None:
    pixels = [[0.0] * 784, [0.5] * 784, [1.0] * 784]
    write_leaf(tmp_path / "train", {"ann": (pixels[:2], [61, 0]), "bob": (pixels[2:], [3])})
    write_leaf(tmp_path / "test", {"ann": (pixels[:1], [5])})
    ann = load("femnist:part=0/2,partition=natural-id,held_out=0", path=str(tmp_path))
    assert (ann.name, ann.schema) == ("femnist", known_schema(Choice("femnist")))
    assert ann.train.y.tolist() == [61, 0]
    assert ann.train.x[1].max() == 0.5
    assert load("femnist:part=1/2,partition=natural-id", path=str(tmp_path)).train.y.tolist() == [3]
    assert load("femnist:split=test", path=str(tmp_path)).held_out.y.tolist() == [5]
    flat = load("leaf:shape=28x28,classes=62,name=letters", path=str(tmp_path))
    assert (flat.name, flat.schema.shape) == ("letters", (28, 28))


def test_leaf_texts_are_numbered_characters(tmp_path: Path) -> None:
    write_leaf(tmp_path, {"HAMLET": (["To be", "o be "], [" ", "o"])})
    text = load("leaf:shape=5,classes=80,held_out=0,name=plays", path=str(tmp_path))
    assert text.train.x[0].tolist() == [44, 67, 1, 54, 57]
    assert text.train.y.tolist() == [1, 67]


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ({"a": ([[1.0, 2.0]], [9])}, r"user 'a': expected finite values and classes 0 to 2, came 9 to 9"),
        ({"a": ([[1.0, float("nan")]], [1])}, "expected finite values"),
        ({"a": ([[1.0, 2.0, 3.0]], [1])}, r"1 rows of 3 values and 1 classes do not fit shape=\(2,\)"),
        ({"a": ([[1.0, 2.0]], [1, 2])}, "1 rows of 2 values and 2 classes"),
        ({"a": ([[1.0, 2.0], [1.0]], [1, 2])}, "expected lists x and y of equal rows"),
        ({"a": ([], [])}, "has no rows; leave the user out"),
        ({"a": (["é!"], ["x"])}, "is none of LEAF's 80"),
    ],
)
def test_leaf_refuses_with_file_and_user(
    tmp_path: Path, users: dict[str, tuple[list[object], list[object]]], message: str
) -> None:
    write_leaf(tmp_path, users)
    with pytest.raises(UserError, match=message):
        load("leaf:shape=2,classes=3", path=str(tmp_path))


def test_leaf_refuses_other_folders(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="expected LEAF's JSON files here"):
        load("leaf:shape=2,classes=3", path=str(tmp_path))
    (tmp_path / "x.json").write_text("[1, 2")
    with pytest.raises(BadData, match=r"x\.json: not a JSON file of LEAF"):
        load("leaf:shape=2,classes=3", path=str(tmp_path))
    with pytest.raises(BadData, match=r"femnist: expected the folder train .*preprocess\.sh"):
        load("femnist", path=str(tmp_path))


# Hugging Face


def save_to_disk(folder: Path, parts: list[dict[str, list[object]]]) -> str:
    """The layout of datasets' Dataset.save_to_disk."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{len(parts):05}.arrow" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        table = pyarrow.table(part)
        with pyarrow.OSFile(str(folder / name), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return str(folder)


def test_huggingface_table_in_several_files(tmp_path: Path) -> None:
    parts = [{"age": [1.0, 2.0], "label": [0, 1], "site": ["a", "b"]}, {"age": [3.0], "label": [1], "site": ["b"]}]
    path = save_to_disk(tmp_path / "clinic", parts)
    data = load("huggingface:id=site,part=1/2,partition=natural-id,held_out=0", path=path)
    assert (data.name, data.schema) == ("clinic", DataSchema("classification", (1,), 2, ("age",)))
    assert data.train.x.tolist() == [[2], [3]]
    with pytest.raises(UserError, match="no column 'outcome'; its columns are: age, label, site"):
        load("huggingface:y=outcome", path=path)


def test_huggingface_images_and_splits(tmp_path: Path) -> None:
    def png(value: int) -> dict[str, object]:
        buffer = io.BytesIO()
        Image.new("L", (3, 2), value).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    save_to_disk(tmp_path / "train", [{"image": [png(0), png(255)], "label": [0, 4]}])
    save_to_disk(tmp_path / "test", [{"image": [png(51)], "label": [2]}])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    data = load("huggingface:x=image,classes=5,held_out=0,name=tiles", path=str(tmp_path))
    assert (data.name, data.schema) == ("tiles", DataSchema("classification", (1, 2, 3), 5))
    assert data.train.x.max(axis=(1, 2, 3)).tolist() == [0, 1]
    test = load("huggingface:x=image,classes=5,split=test,name=tiles", path=str(tmp_path)).held_out
    assert (test.y.tolist(), test.x.max()) == ([2], np.float32(0.2))
    with pytest.raises(UserError, match="no column 'picture'; it has: image, label"):
        load("huggingface:x=picture", path=str(tmp_path))


def test_huggingface_lists_and_refusals(tmp_path: Path) -> None:
    path = save_to_disk(tmp_path / "lists", [{"v": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]}])
    assert load("huggingface:x=v,held_out=0", path=path).train.x.tolist() == [[1, 2], [3, 4]]
    ragged = save_to_disk(tmp_path / "ragged", [{"v": [[1.0, 2.0], [3.0]], "label": [0, 1]}])
    with pytest.raises(BadData, match=r"row 2, column 'v': expected \(2,\) as in the first row, came \(1,\)"):
        load("huggingface:x=v", path=ragged)
    with pytest.raises(BadData, match=r"dataset_dict\.json: cannot be read.*save_to_disk"):
        load("huggingface", path=str(tmp_path))
    (tmp_path / "ragged" / "data-00000-of-00001.arrow").write_bytes(b"no arrow")
    with pytest.raises(BadData, match="cannot be read as Arrow streams"):
        load("huggingface:x=v", path=ragged)


# CIFAR-10


@pytest.fixture
def images() -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(0)
    return chance.integers(0, 256, (60, 3, 32, 32), np.uint8), np.arange(60) % 10


def check(data: Data, x: np.ndarray, y: np.ndarray) -> None:
    assert data.schema == DataSchema("classification", (3, 32, 32), 10, classes=CLASSES)
    assert data.train.y.tolist() == y[:50].tolist()
    assert data.train.x == pytest.approx(x[:50] / 255)


def test_cifar10_binary_and_python_batches(tmp_path: Path, images: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = images
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name, rows in zip(names, np.split(np.arange(60), 6), strict=True):
        flat = x[rows].reshape(10, -1)
        (tmp_path / f"{name}.bin").write_bytes(np.column_stack([y[rows].astype(np.uint8), flat]).tobytes())
        batch = {b"data": flat, b"labels": y[rows].tolist(), b"batch_label": b"one"}
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=2))
    for form in ("binary", "python"):
        check(load(f"cifar10:held_out=0,form={form}", path=str(tmp_path)), x, y)
        assert load(f"cifar10:split=test,form={form}", path=str(tmp_path)).held_out.y.tolist() == y[50:].tolist()


def test_cifar10_is_downloaded_once_and_read_from_its_archive(
    tmp_path: Path, images: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official archive's form and name, from a server of our own: with another digest, it is refused."""
    x, y = images
    (tmp_path / "kriz").mkdir()
    archive = tmp_path / "kriz" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, rows in zip(cifar10._BATCHES, np.split(np.arange(60), 6), strict=True):
            content = pickle.dumps({b"data": x[rows].reshape(10, -1), b"labels": y[rows].tolist()}, protocol=2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setenv("TUTTI_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with serving(tmp_path / "kriz") as url:
        monkeypatch.setattr(cifar10, "_ARCHIVE", replace(cifar10._ARCHIVE, url=f"{url}/{archive.name}"))
        with pytest.raises(BadData, match=r"expected md5:c58f30108f718f92721af3b95e74349a, came md5:"):
            load("cifar10:download=true")
        assert not list((tmp_path / "home" / "cifar10").iterdir())
        found = f"md5:{hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()}"
        monkeypatch.setattr(cifar10, "_ARCHIVE", replace(cifar10._ARCHIVE, digest=found))
        check(load("cifar10:held_out=0,download=true"), x, y)
    check(load("cifar10:held_out=0"), x, y)
    (tmp_path / "home" / "cifar10" / archive.name).write_bytes(b"no archive")
    monkeypatch.setattr(cifar10, "_ARCHIVE", replace(cifar10._ARCHIVE, digest=""))
    with pytest.raises(BadData, match="cannot be read as the archive"):
        load("cifar10:form=archive")


def test_cifar10_runs_no_program_out_of_a_pickle(tmp_path: Path) -> None:
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'echo harm'\ntR.")
    with pytest.raises(BadData, match=r"not a batch of CIFAR-10 for Python: it asks for os\.system"):
        load("cifar10", path=str(tmp_path))


def test_cifar10_image_folders(tmp_path: Path, images: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = images
    for i, (pixels, label) in enumerate(zip(x, y, strict=True)):
        folder = tmp_path / ("train" if i < 50 else "test") / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{i:04}.png")
    order = np.argsort(y[:50], kind="stable")
    check(load("cifar10:held_out=0", path=str(tmp_path)), x[order], y[order])
    (tmp_path / "train" / "cat" / "broken.png").write_bytes(b"no image")
    with pytest.raises(BadData, match=r"broken\.png: cannot be read as an image"):
        load("cifar10", path=str(tmp_path))


def test_cifar10_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(
        BadData, match=r"form python or archive or binary or .* or png in one of .*cifar-10-python.*download=true"
    ):
        load("cifar10", path=str(tmp_path))


@needs("cifar10")
def test_cifar10_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTTI_DATA_DIR", str(SHARED))
    data = load("cifar10:held_out=0,form=png")
    assert len(data.train) == 3000
    assert data.train.y[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]  # those of data_batch_1
    assert len(load("cifar10:split=test,form=png").held_out) == 1000

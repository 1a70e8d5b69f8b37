"""Data sources: what they read, how it is carved into parts, and how they refuse what they cannot read."""

import gzip
import os
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tutti.adapters._imports import BadEntry
from tutti.adapters.datasets import BadData, known_schema
from tutti.core.errors import UserError
from tutti.core.registry import BadOption, Choice, Option
from tutti.domain.spec import DataSchema
from tutti.ports.training import Data, datasets

pytest.importorskip("sklearn", reason="bundled sets need pip install 'tutti[data]'")
pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pip install 'tutti[data]'")
Image = pytest.importorskip("PIL.Image", reason="images need pip install 'tutti[data]'")

SHARED = Path(os.environ.get("TUTTI_DATA_DIR") or Path(__file__).parents[2] / "../shared/data")
MNIST = SHARED / "mnist"
needs_mnist = pytest.mark.skipif(
    not MNIST.is_dir(), reason="needs the four MNIST files in TUTTI_DATA_DIR/mnist or ../shared/data/mnist"
)
BUNDLED = ["digits", "digits:image=true", "breast-cancer", "diabetes"]


def load(text: str, **options: Option) -> Data:
    choice = Choice.parse(text)
    return datasets.build(Choice(choice.name, {**choice.options, **options})).load()


def fingerprints(data: Data) -> list[bytes]:
    return [row.tobytes() for part in (data.train, data.held_out) for row in part.x]


@pytest.mark.parametrize("source", BUNDLED)
def test_bundled_sets_have_the_schema_they_announce(source: str) -> None:
    data = load(source)
    assert data.schema == known_schema(Choice.parse(source))
    assert data.name == source.partition(":")[0]
    for part in (data.train, data.held_out):
        assert part.x.dtype == np.float32
        assert part.x.shape[1:] == data.schema.shape
        if data.schema.task == "classification":
            assert part.y.dtype == np.int64
            assert set(part.y) == set(range(data.schema.outputs))
        else:
            assert part.y.dtype == np.float32
            assert part.y.shape == (len(part), data.schema.outputs)


def test_ranges_of_bundled_sets() -> None:
    digits = load("digits:held_out=0").train.x
    assert digits.min() == 0.0
    assert digits.max() == 1.0
    for name in ("breast-cancer", "diabetes"):
        whole = np.concatenate([load(f"{name}:held_out=0").train.x, load(f"{name}:split=test").held_out.x])
        assert np.abs(whole.mean(axis=0)).max() < 1e-5
        assert np.abs(whole.std(axis=0) - 1).max() < 1e-5


@pytest.mark.parametrize("source", ["digits", "breast-cancer", "diabetes"])
@pytest.mark.parametrize("seed", [0, 3])
def test_parts_and_test_rows_are_disjoint_and_together_everything(source: str, seed: int) -> None:
    parts = [load(source, part=f"{i}/3", seed=seed) for i in range(3)]
    test = load(source, split="test", seed=seed)
    assert len(test.train) == 0
    sizes = [len(part.train) + len(part.held_out) for part in parts]
    total = {"digits": 1797, "breast-cancer": 569, "diabetes": 442}[source]
    assert len(test.held_out) == round(total / 5)
    assert sum(sizes) + len(test.held_out) == total
    rows = [row for data in (*parts, test) for row in fingerprints(data)]
    assert len(set(rows)) == len(set(fingerprints(load(source))) | set(fingerprints(test)))
    assert max(sizes) - min(sizes) <= 1


def test_test_rows_do_not_depend_on_options_but_parts_do() -> None:
    assert fingerprints(load("digits:split=test")) == fingerprints(load("digits:split=test,seed=5"))
    one, again = load("digits:part=1/4,seed=1"), load("digits:part=1/4,seed=1")
    assert fingerprints(one) == fingerprints(again)
    assert fingerprints(one) != fingerprints(load("digits:part=1/4,seed=2"))


def test_held_out_rows() -> None:
    for share, expected in ((0.0, 0), (0.25, 90), (0.9999, 359), (1, 360)):
        data = load("digits:part=0/4", held_out=share)
        assert (len(data.train), len(data.held_out)) == (360 - expected, expected)


def test_partition_is_a_choice_within_the_choice() -> None:
    skewed = [load(f"digits:part={i}/4,partition=dirichlet:0.1") for i in range(4)]
    named = load("digits:part=0/4,partition=dirichlet:alpha=0.1;minimum=10")
    assert fingerprints(named) == fingerprints(skewed[0])
    shards = load("digits:part=0/5,partition=shard:2,held_out=0")
    assert len(np.unique(shards.train.y)) <= 4
    even = load("digits:part=0/4").train
    assert max(np.bincount(skewed[0].train.y, minlength=10)) > 1.5 * max(np.bincount(even.y))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digits:part=4/4", "part=k/n with k from 0 to n-1.*came part=4/4"),
        ("digits:part=one", "part=k/n"),
        ("digits:part=0/9999", "need at least 9999 rows, there are 1438"),
        ("digits:partition=dirichlet:0", "alpha"),
        ("digits:partition=zipf", "no partitioner 'zipf'; choose from: .*dirichlet, .*iid, .*shard"),
        ("diabetes:part=0/2,partition=dirichlet", "divides by class"),
        ("digits:held_out=1.5", "held_out"),
        ("digits:split=validation", "split"),
        ("digits:split=test,part=0/4", "same for everybody"),
        ("digits:colour=true", "colour.*options: part, partition, held_out, split, seed, standardize, missing, image"),
    ],
)
def test_bad_common_options_are_refused(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(source)


def test_known_schema_knows_only_what_is_the_same_everywhere() -> None:
    assert known_schema(Choice("mnist")) == DataSchema("classification", (1, 28, 28), 10)
    assert known_schema(Choice("csv")) is None
    assert known_schema(Choice("patients")) is None
    with pytest.raises(BadOption, match="colour"):
        known_schema(Choice("digits", {"colour": True}))


# CSV and Parquet


def write(path: Path, text: str) -> str:
    path.write_text(textwrap.dedent(text).lstrip())
    return str(path)


@pytest.fixture
def patients(tmp_path: Path) -> str:
    return write(
        tmp_path / "patients.csv",
        """
        weight,age,colour,died
        70.5,40,red,0
        81,50,green,1
        60,33,red,1
        75,61,blue,0
        """,
    )


def test_csv_columns_are_ordered_by_name(patients: str) -> None:
    data = load("csv:target=died,drop=colour,held_out=0", path=patients)
    assert data.name == "patients"
    assert data.schema == DataSchema("classification", (2,), 2, ("age", "weight"))
    assert data.train.x.tolist() == [[40, 70.5], [50, 81], [33, 60], [61, 75]]
    assert data.train.y.tolist() == [0, 1, 1, 0]


def test_csv_one_hot_and_classes_by_word(patients: str) -> None:
    data = load("csv:target=colour,classes=blue|green|red,held_out=0,name=colours", path=patients)
    assert data.name == "colours"
    assert data.schema.outputs == 3
    assert data.train.y.tolist() == [2, 1, 2, 0]
    data = load("csv:target=died,drop=age|weight,one_hot=colour:red|green|blue,held_out=0", path=patients)
    assert data.train.x.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_csv_tasks(patients: str) -> None:
    regression = load("csv:target=weight,drop=colour,held_out=0", path=patients)
    assert regression.schema == DataSchema("regression", (2,), 1, ("age", "died"))
    assert regression.train.y.tolist() == [[70.5], [81], [60], [75]]
    assert load("csv:target=age,drop=colour,task=regression", path=patients).schema.task == "regression"
    assert load("csv:target=age,drop=colour,classes=62", path=patients).schema.outputs == 62
    assert load("csv:target=died,drop=colour,classes=5", path=patients).schema.outputs == 5


def test_csv_without_header_and_standardised(tmp_path: Path) -> None:
    path = write(tmp_path / "plain.csv", "1,5,7\n2,5,9\n\n3,5,11\n")
    data = load("csv:target=c2,task=regression,header=false,held_out=0,standardize=true", path=path)
    assert data.train.x[:, 0] == pytest.approx([-1.2247449, 0, 1.2247449])
    assert data.train.x[:, 1].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,y\n1,0\n?,1\n", "", r"t\.csv, row 3, column 'a': the value is missing.*drop=a"),
        ("a,y\n1,0\n,1\n", "", r"row 3, column 'a': the value is missing"),
        ("a,y\n1,0\nNaN,1\n", "", r"row 3, column 'a': the value is missing"),
        ("a,y\n1,0\ninf,1\n", "", r"row 3, column 'a': expected a finite number, .*came inf"),
        ("a,y\n1,0\n2,\n", "", r"row 3, column 'y': the value is missing"),
        ("a,y\n1,0\n\nred,1\n", "", r"row 4, column 'a': expected a number, came 'red'.*one_hot=a:"),
        ("a,y\n1,0\n2\n", "", r"row 3: expected 2 columns, came 1"),
        ("a,y\n1,0\n2,3,4\n", "", r"row 3: expected 2 columns, came 3"),
        ('a,y\n1,0\n"2,3\n', "", r"cannot be read as CSV"),
        ("a,a,y\n1,2,3\n", "", r"names column 'a' twice"),
        ("a,,y\n1,2,3\n", "", r"column 2 has no name"),
        ("", "", r"the file is empty"),
        ("a,y\n", "", r"has a header and no rows"),
        ("y\n1\n", "", r"no column is left"),
        ("a,b\n1,0\n", "", r"no column 'y'; its columns are: a, b"),
        ("a,y\n1,0\n", ",drop=z", r"no column 'z'; its columns are: a, y"),
        ("a,y\n1,no\n2,yes\n", "", r"column 'y': the classes are words.*classes=no\|yes"),
        ("a,y\n1,no\n2,maybe\n", ",classes=no|yes", r"row 3, column 'y': 'maybe' is none of no\|yes"),
        ("a,y\n1,0\n2,3\n", ",classes=2", r"row 3, column 'y': expected a class 0 to 1, came 3"),
        ("a,y\n1,0\n2,1.5\n", ",task=classification", r"row 3, column 'y': expected a class 0, 1, 2 …, came 1.5"),
        ("a,y\n1,0\n3,1\n", ",one_hot=a:1|2", r"row 3, column 'a': '3' is none of 1\|2"),
        ("a,y\n1,0\n", ",one_hot=a", r"expected one_hot=column:category"),
        ("a,y\n1,1\n2,2\n", "", r"column 'y': expected classes 0, 1, 2 …, came 1, 2; name all.*classes=1\|2"),
        ("a,y\n1,0\n2,0\n", "", r"expected classes 0, 1, 2 …, came 0; name all.*classes=0\|another"),
        ("a,y\n" + "1,0\n" * 20 + "1,0.5\n", "", r"row 22, column 'y': 0.5 is no class.*task=regression"),
        ("a,y\n1,0\n1e39,1\n", "", r"row 3, column 'a': expected a finite number, 3.4e\+38 at most, came 1e39"),
        ("a;y\n1,5;0\n", "", r"separated by semicolons: give 'separator=;'"),
        ("a;y\n1,5;0\n2,5;1\n", ",separator=;", r"row 2, column 'a': .*'1,5'; write decimal points"),
        ("a,y\n1,0\n2,1\n", ",split=test", r"no common test rows"),
        ("a,y\n1,0\n2,1\n", ",name=no/name", r"'no/name' cannot be the name"),
    ],
)
def test_csv_refuses_with_file_row_and_column(tmp_path: Path, text: str, options: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load(f"csv:target=y{options}", path=str(path))


def test_csv_that_is_no_text_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"a,y\n\xff\xfe,1\n")
    for name, message in (("binary.csv", "cannot be read as CSV in UTF-8"), ("absent.csv", "no such file$")):
        with pytest.raises(BadData, match=f"{name}: {message}"):
            load("csv:target=y", path=str(tmp_path / name))


def test_csv_with_other_separators(tmp_path: Path) -> None:
    for separator, cell in ((";", ";"), ("tab", "\t")):
        path = write(tmp_path / "t.csv", "a;y\n1.5;0\n2.5;1\n".replace(";", cell))
        assert load("csv:target=y,held_out=0", path=path, separator=separator).train.x.tolist() == [[1.5], [2.5]]


def write_parquet(path: Path, **columns: list[object]) -> str:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def test_parquet_is_read_as_csv_is(tmp_path: Path, patients: str) -> None:
    path = write_parquet(
        tmp_path / "patients.parquet",
        died=[0, 1, 1, 0],
        weight=[70.5, 81.0, 60.0, 75.0],
        colour=["red", "green", "red", "blue"],
        age=[40, 50, 33, 61],
    )
    options = "target=died,one_hot=colour:red|green|blue"
    one, two = load(f"csv:{options}", path=patients), load(f"parquet:{options}", path=path)
    assert (
        one.schema
        == two.schema
        == DataSchema("classification", (5,), 2, ("age", "colour=red", "colour=green", "colour=blue", "weight"))
    )
    assert one.train.x.tobytes() == two.train.x.tobytes()
    assert one.train.y.tobytes() == two.train.y.tobytes()


def test_parquet_refusals(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", a=[1.0, None], b=["x", "y"], y=[0, 1])
    with pytest.raises(BadData, match=r"t\.parquet, row 2, column 'a': the value is missing"):
        load("parquet:target=y,drop=b", path=path)
    with pytest.raises(BadData, match=r"row 1, column 'b': expected a number, came 'x'"):
        load("parquet:target=y,drop=a", path=path)
    (tmp_path / "no.parquet").write_text("a,b\n1,2\n")
    with pytest.raises(BadData, match=r"absent\.parquet: no such file$"):
        load("parquet:target=y", path=str(tmp_path / "absent.parquet"))
    with pytest.raises(BadData, match=r"no\.parquet: cannot be read as Parquet"):
        load("parquet:target=y", path=str(tmp_path / "no.parquet"))


# Arrays


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    x, y = np.random.default_rng(0).random((6, 3, 2)), np.array([0, 2, 1, 0, 1, 2])
    np.savez(path, x=x, y=y, pixels=np.full((6, 4), 255, np.uint8), prices=y * 1.5)
    data = load("npz:held_out=0", path=str(path))
    assert data.name == "arrays"
    assert data.schema == DataSchema("classification", (3, 2), 3)
    assert data.train.x == pytest.approx(x)
    assert (load("npz:x=pixels,held_out=0", path=str(path)).train.x == 1.0).all()
    assert load("npz:y=prices", path=str(path)).schema == DataSchema("regression", (3, 2), 1)
    assert load("npz:classes=7", path=str(path)).schema.outputs == 7
    assert load("npz:task=regression", path=str(path)).schema.task == "regression"


def test_npz_refusals(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    good = np.ones((3, 2))
    for arrays, message in [
        ({"x": good}, "has no array 'y'; it has: x"),
        ({"x": good, "y": np.zeros(2)}, r"as many rows, came \(3, 2\) and \(2,\)"),
        ({"x": np.array([[1.0, np.nan]]), "y": np.zeros(1)}, "x has a missing or infinite value.* in row 0"),
        ({"x": good, "y": np.array([object()] * 3)}, "cannot be read as .npz of plain arrays"),
        ({"x": good, "y": np.array([0, 1, -1])}, "expected classes 0 to 1, came -1 to 1"),
        ({"x": good, "y": np.array([1, 2, 1])}, r"expected classes 0, 1, 2 …, came 1 to 2; number them from 0"),
        ({"x": good * 1e39, "y": np.zeros(3)}, "beyond 3.4e\\+38, in row 0"),
        ({"x": np.array(["a", "b"]), "y": np.zeros(2)}, "x should be a non-empty array of numbers"),
    ]:
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with pytest.raises(BadData, match=message):
            load("npz", path=str(path))
    for content in (b"no zip", b""):
        path.write_bytes(content)
        with pytest.raises(BadData, match=r"bad\.npz: cannot be read") as refused:
            load("npz", path=str(path))
        assert "pickle" not in str(refused.value)
    np.save(tmp_path / "single.npy", good)
    with pytest.raises(BadData, match="came a single array"):
        load("npz", path=str(tmp_path / "single.npy"))


def test_python_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"own_{tmp_path.name}"
    source = """
        import numpy as np
        def arrays():
            return np.ones((10, 4)), np.arange(10) % 2
        def one():
            return 1
    """
    write(tmp_path / f"{name}.py", source)
    data = load("python:part=0/2", entry=f"{name}:arrays")
    assert data.name == "arrays"
    assert data.schema == DataSchema("classification", (4,), 2)
    assert (len(data.train), len(data.held_out)) == (4, 1)
    with pytest.raises(BadEntry, match=r"expected it to return two arrays \(x, y\), came int"):
        load("python", entry=f"{name}:one")


# Images


def test_image_folders(tmp_path: Path) -> None:
    for label, value in (("cat", 0), ("dog", 255)):
        (tmp_path / label).mkdir()
        for i in range(3):
            Image.new("RGB", (9, 7), (value, 0, 0)).save(tmp_path / label / f"{i}.png")
    (tmp_path / "eel").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    data = load("images:size=8,held_out=0,name=pets", path=str(tmp_path))
    assert data.name == "pets"
    assert data.schema == DataSchema("classification", (3, 8, 8), 3, classes=("cat", "dog", "eel"))
    assert data.train.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.x[:, 0].max(axis=(1, 2)).tolist() == [0, 0, 0, 1, 1, 1]
    grey = load("images:size=4,grey=true,classes=dog|cat,held_out=0", path=str(tmp_path))
    assert grey.schema == DataSchema("classification", (1, 4, 4), 2, classes=("dog", "cat"))
    assert grey.train.x[0, 0, 0, 0] == pytest.approx(76 / 255)
    (tmp_path / "dog" / "3.png").write_bytes(b"no png")
    with pytest.raises(BadData, match=r"3\.png: cannot be read as an image"):
        load("images", path=str(tmp_path))
    with pytest.raises(BadData, match="no such folder; make an empty one"):
        load("images:classes=cow", path=str(tmp_path))
    with pytest.raises(BadData, match="no images in its subfolders"):
        load("images:classes=eel", path=str(tmp_path))
    with pytest.raises(BadData, match="one subfolder per class"):
        load("images", path=str(tmp_path / "eel"))
    with pytest.raises(BadData, match="cannot be read"):
        load("images", path=str(tmp_path / "absent"))


# IDX and MNIST


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def test_idx_pairs(tmp_path: Path) -> None:
    images = np.arange(5 * 2 * 3).reshape(5, 2, 3) * 8
    (tmp_path / "i.gz").write_bytes(gzip.compress(idx_bytes(images)))
    (tmp_path / "l").write_bytes(idx_bytes(np.array([0, 1, 2, 1, 0])))
    data = load("idx:classes=3,held_out=0", images=str(tmp_path / "i.gz"), labels=str(tmp_path / "l"))
    assert data.name == "idx"
    assert data.schema == DataSchema("classification", (1, 2, 3), 3)
    assert data.train.x == pytest.approx(images[:, None] / 255)
    assert data.train.y.tolist() == [0, 1, 2, 1, 0]


def test_idx_refusals(tmp_path: Path) -> None:
    good = idx_bytes(np.zeros((2, 3, 3)))
    labels = tmp_path / "labels"
    labels.write_bytes(idx_bytes(np.array([0, 1])))
    cases = [
        (b"PNG!", "not an IDX file.*starts with 50 4e 47 21"),
        (b"", "starts with nothing"),
        (good[:9], "header announces .* cannot be right"),
        (good[:-1], r"announces \(2, 3, 3\), 18 bytes; the file holds 17"),
        (good + b"x", "the file holds 19 or more"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12, "cannot be right"),
        (idx_bytes(np.zeros((3, 3, 3))), r"holds \(3, 3, 3\), .*labels holds \(2,\)"),
    ]
    for i, (content, message) in enumerate(cases):
        images = tmp_path / f"images-{i}"
        images.write_bytes(content)
        with pytest.raises(BadData, match=message):
            load("idx", images=str(images), labels=str(labels))
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(good)[:-9])
    with pytest.raises(BadData, match="cannot be read"):
        load("idx", images=str(broken), labels=str(labels))
    (tmp_path / "fine").write_bytes(good)
    with pytest.raises(BadData, match="label 1 in row 2, expected 0 to 0"):
        load("idx:classes=1", images=str(tmp_path / "fine"), labels=str(labels))


@needs_mnist
def test_mnist_parts_and_official_test_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTTI_DATA_DIR", str(SHARED))
    test = load("mnist:split=test")
    assert test.schema == known_schema(Choice("mnist"))
    assert test.held_out.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(test.held_out.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    part = load("mnist:part=7/100,partition=shard", path=str(MNIST))
    assert len(part.train) + len(part.held_out) == 600
    assert len(np.unique(part.train.y)) <= 4
    assert part.train.x.shape[1:] == (1, 28, 28)
    assert part.train.x.max() == 1.0


def test_mnist_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"train-images-idx3-ubyte\.gz.*nothing-here.*set TUTTI_DATA_DIR"):
        load("mnist", path=str(tmp_path / "nothing-here"))


def test_every_source_describes_itself() -> None:
    for name in datasets:
        if not datasets.factory(name).__module__.startswith("tutti."):
            continue  # registered by another test
        assert datasets.schema(name)["description"], name
        assert {"part", "partition", "held_out"} <= datasets.schema(name)["properties"].keys()

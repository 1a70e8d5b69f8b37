"""Known data sets: checked files, the rows and features of the literature, and what is said when they are not there."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.shared_data import SHARED, needs, serving
from tutti.adapters.datasets import BadData, known_schema
from tutti.adapters.datasets._download import download
from tutti.adapters.datasets._files import File, locate
from tutti.adapters.datasets.shakespeare import ALPHABET
from tutti.core.errors import UserError
from tutti.core.registry import Choice, Option
from tutti.ports.training import Data, datasets

pytest.importorskip("sklearn", reason="the split of heart-disease needs pip install 'tutti[data]'")


CONTENT = b"1,2\n" * 1000


@pytest.fixture(autouse=True)
def data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTTI_DATA_DIR", str(SHARED))


def load(text: str, **options: Option) -> Data:
    choice = Choice.parse(text)
    data = datasets.build(Choice(choice.name, {**choice.options, **options})).load()
    assert data.schema == known_schema(choice)
    return data


@needs("heart-disease")
def test_heart_disease_has_the_rows_of_flamby() -> None:
    """https://arxiv.org/abs/2210.04620, table 1: train 199, 172, 85, 30 rows and test 104, 89, 45, 16."""
    hospitals = [load(f"heart-disease:part={k}/4,partition=natural-id,held_out=0").train for k in range(4)]
    assert [len(each) for each in hospitals] == [199, 172, 85, 30]
    test = load("heart-disease:split=test").held_out
    assert len(test) == 254
    assert [round(float(each.y.mean()), 3) for each in hospitals] == [0.457, 0.378, 0.776, 1.0]
    x = np.concatenate([each.x for each in hospitals])
    assert np.abs(x.mean(axis=0)).max() < 1e-5
    assert np.abs(x.std(axis=0) - 1).max() < 1e-5


@needs("letter")
def test_letter() -> None:
    train, test = load("letter:held_out=0").train, load("letter:split=test").held_out
    assert (len(train), len(test)) == (16_000, 4000)
    assert "".join(chr(ord("A") + label) for label in train.y[:6]) == "TIDNGS"  # as in the file
    assert np.abs(train.x.std(axis=0) - 1).max() < 1e-4


@needs("credit-default")
def test_credit_default_by_pseudo_bank() -> None:
    banks = [load(f"credit-default:part={k}/4,partition=natural-id,held_out=0").train for k in range(4)]
    test = load("credit-default:split=test").held_out
    assert sum(map(len, banks)) == 24_000
    assert len(test) == 6000
    assert np.mean(test.y == 0) == pytest.approx(0.779, abs=1e-3)  # what the majority class alone gives
    sizes = [len(bank) for bank in banks]
    assert sizes.index(max(sizes)) == 3  # university
    assert sizes.index(min(sizes)) == 2  # other


@needs("shakespeare")
def test_shakespeare_by_role() -> None:
    role = load("shakespeare:part=0/299,partition=natural-id,held_out=0,context=20,stride=7")
    assert role.schema.shape == (20,)
    assert (role.train.x[0] == 0).all()  # nothing was said before the first word
    big = load("shakespeare:part=0/141,partition=natural-id,held_out=0,smallest=1000")
    text = "".join(ALPHABET[int(code)] for code in big.train.x[200])
    assert text.endswith("".join(ALPHABET[code] for code in big.train.y[120:200]))
    with pytest.raises(UserError, match=r"there are 299 ids.*for 4 parts; make 299 parts, or use 'grouped"):
        load("shakespeare:part=0/4,partition=natural-id")
    with pytest.raises(BadData, match="no role has 99999999 characters"):
        load("shakespeare:smallest=99999999")


@needs("letter")
def test_vertical_parts_have_a_name_of_their_own() -> None:
    choice = Choice.parse("letter:part=1/4,partition=vertical,held_out=0")
    data = datasets.build(choice).load()
    assert data.name == "letter.features-1-of-4"
    assert data.schema.shape == (4,)
    assert data.train.x.shape == (16_000, 4)


@needs("letter")
def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    shutil.copy(SHARED / "letter" / "letter-recognition.data", tmp_path)
    assert load("letter", path=str(tmp_path)).name == "letter"
    (tmp_path / "letter-recognition.data").chmod(0o600)
    with (tmp_path / "letter-recognition.data").open("a") as file:
        file.write("A,1\n")
    with pytest.raises(BadData, match=r"letter-recognition\.data: expected sha256:2b89f.*damaged or another version"):
        load("letter", path=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("heart-disease", r"processed\.cleveland\.data, .* in one of .*absent.*download=true.*archive\.ics\.uci\.edu"),
        ("letter", r"letter-recognition\.data in one of"),
        ("credit-default", "UCI repository, data set 350"),
        ("shakespeare", "tinyshakespeare"),
        ("mnist", "train-images-idx3-ubyte.gz"),
        ("fashion-mnist", "train-images-idx3-ubyte.gz.*download=true"),
    ],
)
def test_absent_files_are_named_with_where_to_get_them(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(BadData, match=message):
        load(name, path=str(tmp_path / "absent"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves the folder tmp_path/there."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.csv").write_bytes(CONTENT)
    with serving(tmp_path / "there") as url:
        yield url


def test_download_is_checked_and_done_once(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    file = File("a.csv", f"sha256:{digest}", f"{server}/a.csv")
    home = tmp_path / "home"
    monkeypatch.setenv("TUTTI_DATA_DIR", str(home))
    (found,) = locate("toy", [file], "", download=True)
    assert found == home / "toy" / "a.csv"
    (tmp_path / "there" / "a.csv").unlink()
    assert locate("toy", [file], "", download=True) == [found]
    assert locate("toy", [file], "") == [found]
    assert [each.name for each in found.parent.iterdir()] == ["a.csv"]


def test_failed_downloads_leave_nothing_behind(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "home" / "a.csv"
    with pytest.raises(BadData, match=r"expected md5:00, came md5:.*damaged or was replaced"):
        download(f"{server}/a.csv", target, "md5:00")
    with pytest.raises(BadData, match=r"cannot be downloaded: .*404.*fetch it by hand into"):
        download(f"{server}/b.csv", target, "md5:00")
    with pytest.raises(BadData, match="cannot be downloaded"):
        download("http://127.0.0.1:9/a.csv", target, "md5:00")
    assert list(target.parent.iterdir()) == []
    monkeypatch.delenv("TUTTI_DATA_DIR")
    with pytest.raises(UserError, match="needs TUTTI_DATA_DIR"):
        locate("toy", [File("a.csv", "md5:00", f"{server}/a.csv")], str(tmp_path / "absent"), download=True)

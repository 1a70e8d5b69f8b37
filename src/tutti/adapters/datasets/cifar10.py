"""CIFAR-10 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf), in any of its forms."""

import io
import pickle
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from tutti.adapters._imports import extra
from tutti.adapters.datasets._common import BadData, Rows, source
from tutti.adapters.datasets._files import File, folders, locate
from tutti.domain.spec import DataSchema

Pixels: TypeAlias = NDArray[np.uint8]
Half: TypeAlias = tuple[Pixels, NDArray[np.int64]]
Form: TypeAlias = Literal["auto", "python", "archive", "binary", "folders", "jpeg", "png"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_ARCHIVE = File(
    "cifar-10-python.tar.gz",
    "md5:c58f30108f718f92721af3b95e74349a",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
_JPEG = File("cifar10-jpeg.tar.xz", "sha256:e82212b8f8580e3e79f41a32c7db0e6a5b8fb10188d1723b706e150379c98be9")
_SHEETS = [
    File("cifar10_batch_0.png", "sha256:0614720d69293a033786d5fe2924c4e9a9b48874f19ca4627c4662a864ee9f2d"),
    File("cifar10_batch_1.png", "sha256:2927e26ea68602e34a7424826b76b7336ce36b8f6bcc2e9fce0c05568ff6b4c1"),
    File("cifar10_batch_2.png", "sha256:0b2759e307bb405bb1a6531f8a0f557eaec46d7546050612fdb836f0fa60eae0"),
    File("cifar10_batch_3.png", "sha256:a4530ff15c83886058a97c352f53f38be07d191de8f410e998e91786b5900a26"),
    File("cifar10_batch_labels.txt", "sha256:12324eb5b8a5d1c2c91dcf12bfdc7b4f6e7171439db5d64483e932c80c5822d5"),
]
_SHEET_TEST = 1000


def _schema() -> DataSchema:
    return DataSchema("classification", (3, 32, 32), 10, classes=CLASSES)


@source("cifar10", _schema)
def cifar10(path: str = "", form: Form = "auto", download: bool = False) -> Rows:
    """60000 colour images of 3x32x32, 10 classes; the official 10000 are split=test.

    Looked for in `path`, or else in the folders $TUTTI_DATA_DIR and ../shared/data, in this order unless form= says
    which: the official batches (python, binary, unpacked), the official cifar-10-python.tar.gz as it is (archive),
    folders train/<class> and test/<class> of images, an archive of those as JPEG (lossy, so no match for published
    accuracies), and 4000 training images on PNG sheets, the last 1000 of them for test. download=true fetches the
    official archive if none of these is there.
    """
    forms = tuple(_FORMS) if form == "auto" else (form,)
    found = next((halves for each in forms if (halves := _FORMS[each](path)) is not None), None)
    if found is None and download:
        found = _unpacked(*locate("cifar10", [_ARCHIVE], path, download=True))
    if found is not None:
        (x, y), (test_x, test_y) = found
        test = np.arange(len(x), len(x) + len(test_x))
        return Rows(np.concatenate([x, test_x]), np.concatenate([y, test_y]), _schema(), test)
    searched = ", ".join(map(str, folders("cifar10", path)))
    raise BadData(
        f"cifar10: expected it in the form {' or '.join(forms)} in one of {searched}; "
        f"put {_ARCHIVE.name} of {_HOME} there, give path=…, set TUTTI_DATA_DIR to the folder that has it, or "
        "download=true"
    )


def _find(path: str, subfolder: str, names: tuple[str, ...]) -> Path | None:
    """The first folder, or `subfolder` of one, that has all these files or folders."""
    candidates = [each for folder in folders("cifar10", path) for each in (folder, folder / subfolder)]
    return next((folder for folder in candidates if all((folder / name).exists() for name in names)), None)


def _python(path: str) -> tuple[Half, Half] | None:
    if (folder := _find(path, "cifar-10-batches-py", _BATCHES)) is None:
        return None
    *train, test = (_unpickled((folder / name).open("rb"), str(folder / name)) for name in _BATCHES)
    return _joined(train), test


def _archive(path: str) -> tuple[Half, Half] | None:
    if _find(path, "cifar10", (_ARCHIVE.name,)) is None:
        return None
    return _unpacked(*locate("cifar10", [_ARCHIVE], path))


def _unpacked(archive: Path) -> tuple[Half, Half]:
    """The batches in the official archive, of which nothing is written to the disk."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            batches = ((name, tar.extractfile(f"cifar-10-batches-py/{name}")) for name in _BATCHES)
            *train, test = (_unpickled(cast(IO[bytes], batch), f"{archive}, {name}") for name, batch in batches)
    except (tarfile.TarError, KeyError, OSError) as error:
        raise BadData(f"{archive}: cannot be read as the archive of CIFAR-10 for Python: {error}") from error
    return _joined(train), test


class _ArraysOnly(pickle.Unpickler):
    """Refuses whatever is no array: a pickle could otherwise run any program."""

    def find_class(self, module: str, name: str) -> Any:
        allowed: Mapping[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return allowed[module, name]


def _reconstruct(kind: type[NDArray[Any]], shape: tuple[int, ...], typecode: bytes) -> NDArray[Any]:
    return np.ndarray.__new__(np.ndarray, shape, np.dtype(typecode.decode()))


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


def _unpickled(batch: IO[bytes], file: str) -> Half:
    try:
        with batch as stream:
            content = _ArraysOnly(stream, encoding="bytes").load()
        data, labels = content[b"data"], content[b"labels"]
        return _checked(np.asarray(data, np.uint8).reshape(-1, 3, 32, 32), np.array(labels, np.int64), file)
    except (OSError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadData(f"{file}: not a batch of CIFAR-10 for Python: {error}") from error


def _binary(path: str) -> tuple[Half, Half] | None:
    names = tuple(f"{name}.bin" for name in _BATCHES)
    if (folder := _find(path, "cifar-10-batches-bin", names)) is None:
        return None
    *train, test = (_records(folder / name) for name in names)
    return _joined(train), test


def _records(file: Path) -> Half:
    content = np.fromfile(file, np.uint8)
    if len(content) == 0 or len(content) % 3073:
        raise BadData(f"{file}: expected records of 3073 bytes, came {len(content)} bytes")
    records = content.reshape(-1, 3073)
    return _checked(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64), file)


def _folders(path: str) -> tuple[Half, Half] | None:
    wanted = tuple(f"{half}/{name}" for half in ("train", "test") for name in CLASSES)
    if (folder := _find(path, "cifar10", wanted)) is None:
        return None
    files = ((file.relative_to(folder).as_posix(), file.open("rb")) for file in sorted(folder.glob("t*/*/*")))
    return _halves(files, folder)


def _jpeg(path: str) -> tuple[Half, Half] | None:
    if _find(path, "cifar10", (_JPEG.name,)) is None:
        return None
    (archive,) = locate("cifar10", [_JPEG], path)
    try:
        with tarfile.open(archive, "r:xz") as tar:
            members = ((member.name, cast(IO[bytes], tar.extractfile(member))) for member in tar if member.isfile())
            return _halves(members, archive)
    except tarfile.TarError as error:
        raise BadData(f"{archive}: cannot be read as an archive: {error}") from error


def _halves(files: Iterator[tuple[str, IO[bytes]]], where: Path) -> tuple[Half, Half]:
    """Images by name …/train|test/<class>/<file>."""
    found: dict[str, list[tuple[Pixels, int]]] = {"train": [], "test": []}
    for name, stream in files:
        half, label = name.split("/")[-3:-1] if name.count("/") >= 2 else ("", "")
        with stream:
            if half in found and label in CLASSES:
                found[half].append((_image(stream.read(), f"{where}, {name}", (32, 32)), CLASSES.index(label)))
    for half, images in found.items():
        if not images:
            raise BadData(f"{where}: has no images in {half}/<class>")
    train, test = (
        (np.stack([pixels for pixels, _ in images]).transpose(0, 3, 1, 2), np.array([label for _, label in images]))
        for images in found.values()
    )
    return train, test


def _png(path: str) -> tuple[Half, Half] | None:
    if _find(path, "cifar10", tuple(file.name for file in _SHEETS)) is None:
        return None
    *sheets, labels = locate("cifar10", _SHEETS, path)
    pixels = np.concatenate([_image(sheet.read_bytes(), str(sheet), (1000, 1024)) for sheet in sheets])
    x = pixels.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
    y = np.array(labels.read_text("ascii").split(), np.int64)
    _checked(x, y, labels)
    return (x[:-_SHEET_TEST], y[:-_SHEET_TEST]), (x[-_SHEET_TEST:], y[-_SHEET_TEST:])


def _image(content: bytes, where: str, shape: tuple[int, int]) -> Pixels:
    """uint8 (height, width, 3)."""
    with extra("data", "data set 'cifar10' as images"):
        from PIL import Image
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image.convert("RGB"), np.uint8)
    except (OSError, ValueError) as error:
        raise BadData(f"{where}: cannot be read as an image: {error}") from error
    if pixels.shape[:2] != shape:
        raise BadData(f"{where}: expected {shape[0]} rows of {shape[1]} pixels, came {pixels.shape[:2]}")
    return pixels


def _joined(halves: list[Half]) -> Half:
    return np.concatenate([x for x, _ in halves]), np.concatenate([y for _, y in halves])


def _checked(x: Pixels, y: NDArray[np.int64], file: Path | str) -> Half:
    if len(x) != len(y) or len(y) == 0 or y.min() < 0 or y.max() >= len(CLASSES):
        raise BadData(f"{file}: {len(x)} images and {len(y)} labels, expected as many of both, and classes 0 to 9")
    return x, y


_FORMS: Mapping[str, Callable[[str], tuple[Half, Half] | None]] = {
    "python": _python,
    "archive": _archive,
    "binary": _binary,
    "folders": _folders,
    "jpeg": _jpeg,
    "png": _png,
}

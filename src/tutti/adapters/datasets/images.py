"""Folders of images, one subfolder per class."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutti.adapters._imports import extra
from tutti.adapters.datasets._columns import schema_names
from tutti.adapters.datasets._common import BadData, Rows, source
from tutti.domain.spec import DataSchema, Positive

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


@source("images")
def images(path: str, size: Positive = 32, grey: bool = False, classes: str = "", name: str = "") -> Rows:
    """Images in one subfolder per class, resized to size x size, 3 channels or 1 if grey.

    Classes are the subfolders in alphabetical order: an empty one stands for a class this node has none of.
    Or write them out, such as classes=cat|dog, the same on every node.
    """
    folder = Path(path)
    names = classes.split("|") if classes else _subfolders(folder)
    files = [(file, label) for label, each in enumerate(names) for file in _images(folder / each)]
    if not files:
        raise BadData(f"{folder}: no images in its subfolders {', '.join(names)} ({', '.join(sorted(_SUFFIXES))})")
    shape = (1 if grey else 3, size, size)
    x = np.empty((len(files), *shape), np.uint8)
    for row, (file, _) in enumerate(files):
        x[row] = _pixels(file, size, grey)
    y = np.array([label for _, label in files], np.int64)
    return Rows(
        x,
        y,
        DataSchema("classification", shape, len(names), classes=schema_names(names)),
        name=name or folder.resolve().name,
    )


def _subfolders(folder: Path) -> list[str]:
    try:
        names = sorted(each.name for each in folder.iterdir() if each.is_dir())
    except OSError as error:
        raise BadData(f"{folder}: cannot be read: {error}") from error
    if not names:
        raise BadData(f"{folder}: expected one subfolder per class, there is none")
    return names


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise BadData(f"{folder}: there is no such folder; make an empty one if this node has no such images")
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)


def _pixels(file: Path, size: int, grey: bool) -> NDArray[np.uint8]:
    """uint8 (channels, size, size)."""
    with extra("data", "data source 'images'"):
        from PIL import Image
    try:
        with Image.open(file) as image:
            fitted = image.convert("L" if grey else "RGB").resize((size, size), Image.Resampling.BILINEAR)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadData(f"{file}: cannot be read as an image: {error}") from error
    pixels = np.asarray(fitted, np.uint8)
    return pixels[None] if grey else pixels.transpose(2, 0, 1)

"""Letter recognition (Frey & Slate 1991, https://doi.org/10.1007/BF00114162; UCI, CC BY 4.0)."""

from string import ascii_uppercase

import numpy as np

from tutti.adapters.datasets._common import Rows, source
from tutti.adapters.datasets._files import File, locate
from tutti.adapters.datasets._scaling import standardized
from tutti.adapters.datasets.tables import read_csv
from tutti.domain.spec import DataSchema

_FILE = File(
    "letter-recognition.data",
    "sha256:2b89f3602cf768d3c8355267d2f13f2417809e101fc2b5ceee10db19a60de6e2",
    "https://archive.ics.uci.edu/ml/machine-learning-databases/letter-recognition/letter-recognition.data",
)
_TRAIN = 16_000  # the usual split: the last 4000 are for test


def _schema() -> DataSchema:
    return DataSchema("classification", (16,), 26, classes=tuple(ascii_uppercase))


@source("letter", _schema)
def letter(path: str = "", download: bool = False) -> Rows:
    """20000 printed letters: 16 standardised features, 26 classes; the last 4000 are split=test.

    The UCI file is looked for in `path`, or else in the folders $TUTTI_DATA_DIR and ../shared/data; download=true
    fetches it.
    """
    (file,) = locate("letter", [_FILE], path, download=download)
    label, *features = read_csv(str(file), header=False).cells.values()
    y = np.array([ord(cell) - ord("A") for cell in label], np.int64)
    test = np.arange(_TRAIN, len(y))
    return Rows(standardized(np.array(features, np.float64).T, test), y, _schema(), test)

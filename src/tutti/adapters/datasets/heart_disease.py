"""Heart disease in four hospitals (Detrano et al. 1989; https://doi.org/10.24432/C52P4X, CC BY 4.0).

Rows, features and test set are those of FLamby (Ogier du Terrail et al. 2022, https://arxiv.org/abs/2210.04620,
section 3): slope, ca and thal are dropped, then rows with a missing value, and a third of each hospital's rows is
for test. Which third is fixed by FLamby's own draw, a stratified split with random state 43.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutti.adapters._imports import extra
from tutti.adapters.datasets._common import Rows, source
from tutti.adapters.datasets._files import File, locate
from tutti.adapters.datasets._scaling import standardized
from tutti.adapters.datasets.tables import read_csv
from tutti.domain.spec import DataSchema

_HOME = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/"
_HOSPITALS = {
    "cleveland": ("cleveland", "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8"),
    "hungary": ("hungarian", "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796"),
    "long-beach": ("va", "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f"),
    "switzerland": ("switzerland", "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314"),
}
_FILES = [
    File(f"processed.{name}.data", f"sha256:{sha}", f"{_HOME}processed.{name}.data")
    for name, sha in _HOSPITALS.values()
]
_DROPPED = 3  # slope, ca, thal: the last three columns before the diagnosis
_CP, _RESTECG = 2, 6
_FEATURES = (
    *("age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak"),
    *("cp=2", "cp=3", "cp=4", "restecg=1", "restecg=2"),
)


def _schema() -> DataSchema:
    return DataSchema("classification", (13,), 2, _FEATURES, ("healthy", "diseased"))


@source("heart-disease", _schema)
def heart_disease(path: str = "", download: bool = False) -> Rows:
    """740 patients of four hospitals: 13 standardised features; no heart disease (0) or some (1).

    The four UCI files are looked for in `path`, or else in the folders $TUTTI_DATA_DIR and ../shared/data;
    download=true fetches them. partition=natural-id makes a node of each hospital: cleveland, hungary, long-beach,
    switzerland.
    """
    hospitals = [_patients(file) for file in locate("heart-disease", _FILES, path, download=download)]
    y = np.concatenate([table[:, -1] > 0 for table in hospitals]).astype(np.int64)
    ids = np.repeat(list(_HOSPITALS), [len(table) for table in hospitals])
    x = _features(np.concatenate(hospitals)[:, :-1])
    test = np.concatenate([_third(np.flatnonzero(ids == name), y) for name in _HOSPITALS])
    return Rows(standardized(x, test), y, _schema(), test, ids=ids)


def _patients(file: Path) -> NDArray[np.float64]:
    """float64 (patients, 11): ten features and the diagnosis, of those whose row is complete."""
    columns = read_csv(str(file), header=False)
    names = [f"c{i}" for i in range(len(columns.cells)) if i < 10 or i >= 10 + _DROPPED]
    rows = zip(*(columns.cells[name] for name in names), strict=True)
    return np.array([[float(cell) for cell in row] for row in rows if "?" not in row])


def _features(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Chest pain (1 to 4) and resting ECG (0 to 2) become indicators, each without its first value."""
    pain = table[:, [_CP]] == [2, 3, 4]
    ecg = table[:, [_RESTECG]] == [1, 2]
    return np.hstack([np.delete(table, [_CP, _RESTECG], axis=1), pain, ecg])


def _third(rows: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """FLamby's test rows of one hospital: stratified where each class has more than two rows."""
    with extra("data", "data set 'heart-disease'"):
        from sklearn.model_selection import train_test_split
    strata = y[rows] if np.bincount(y[rows], minlength=2).min() > 2 else None
    split = train_test_split(rows, test_size=1.0 - 0.66, train_size=0.66, random_state=43, stratify=strata)
    return np.sort(split[1])

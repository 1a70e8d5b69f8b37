"""Small sets that come with scikit-learn, each with a fixed fifth of its rows as common test set."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutti.adapters._imports import extra
from tutti.adapters.datasets._common import Rows, reserve, source
from tutti.domain.spec import DataSchema


def _digits_schema(image: bool) -> DataSchema:
    return DataSchema("classification", (1, 8, 8) if image else (64,), 10)


@source("digits", _digits_schema)
def digits(image: bool = False) -> Rows:
    """1797 handwritten digits: 64 features in [0, 1], or images of 1x8x8; ten classes."""
    x, y = _bundled("load_digits")
    schema = _digits_schema(image)
    return Rows((x / 16).astype(np.float32).reshape(-1, *schema.shape), y.astype(np.int64), schema, reserve(len(x)))


def _breast_cancer_schema() -> DataSchema:
    return DataSchema("classification", (30,), 2, classes=("malignant", "benign"))


@source("breast-cancer", _breast_cancer_schema)
def breast_cancer() -> Rows:
    """569 tumours: 30 standardised features; malignant (0) or benign (1)."""
    x, y = _bundled("load_breast_cancer")
    return Rows(_standard(x), y.astype(np.int64), _breast_cancer_schema(), reserve(len(x)))


def _diabetes_schema() -> DataSchema:
    return DataSchema("regression", (10,), 1)


@source("diabetes", _diabetes_schema)
def diabetes() -> Rows:
    """442 patients: 10 standardised features; disease progression after a year, standardised too (77.0 a unit)."""
    x, y = _bundled("load_diabetes", scaled=False)
    return Rows(_standard(x), _standard(y.reshape(-1, 1)), _diabetes_schema(), reserve(len(x)))


def _bundled(loader: str, **options: Any) -> tuple[NDArray[np.float64], NDArray[Any]]:
    with extra("data", "this data set"):
        from sklearn import datasets
    x, y = getattr(datasets, loader)(return_X_y=True, **options)
    return x, y


def _standard(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """With the statistics of the whole set, so that every node's rows mean the same."""
    standardised: NDArray[np.float64] = (values - values.mean(axis=0)) / values.std(axis=0)
    return standardised.astype(np.float32)

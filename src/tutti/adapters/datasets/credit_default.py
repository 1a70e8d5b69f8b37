"""Default of credit card clients (Yeh & Lien 2009, https://doi.org/10.1016/j.eswa.2007.12.020; UCI, CC BY 4.0)."""

import numpy as np

from tutti.adapters.datasets._common import Rows, reserve, source
from tutti.adapters.datasets._files import File, locate
from tutti.adapters.datasets._scaling import standardized
from tutti.adapters.datasets.tables import read_csv
from tutti.domain.spec import DataSchema

_FILE = File("UCI_Credit_Card.csv", "sha256:2d0560932c75d5d727818e77f6082d4eeb36b6a803d7dca2a6a1b23951e716ae")
_SOURCE = "the UCI repository, data set 350, https://doi.org/10.24432/C55S3H, as CSV with one header line"
_BANKS = {"1": "graduate-school", "2": "university", "3": "high-school"}  # 4 is "others"; 0, 5, 6 are undocumented
_FEATURES = (
    *("LIMIT_BAL", "SEX", "EDUCATION", "MARRIAGE", "AGE"),
    *("PAY_0", "PAY_2", "PAY_3", "PAY_4", "PAY_5", "PAY_6"),
    *(f"BILL_AMT{month}" for month in range(1, 7)),
    *(f"PAY_AMT{month}" for month in range(1, 7)),
)


def _schema() -> DataSchema:
    return DataSchema("classification", (23,), 2, _FEATURES, ("paid", "default"))


@source("credit-default", _schema)
def credit_default(path: str = "") -> Rows:
    """30000 card holders: 23 standardised features; paid next month (0) or not (1, 22.1 %).

    UCI_Credit_Card.csv is looked for in `path`, or else in the folders $TUTTI_DATA_DIR and ../shared/data. A fifth of
    each class is split=test. partition=natural-id makes a pseudo-bank of each level of education:
    graduate-school, high-school, other, university.
    """
    (file,) = locate("credit-default", [_FILE], path, source=_SOURCE)
    cells = dict(read_csv(str(file)).cells)
    y = np.array(cells.pop("default_payment_next_month"), np.int64)
    ids = np.array([_BANKS.get(level, "other") for level in cells["EDUCATION"]])
    x = np.array([cells[name] for name in _FEATURES], np.float64).T
    classes = [np.flatnonzero(y == label) for label in (0, 1)]
    test = np.sort(np.concatenate([rows[reserve(len(rows))] for rows in classes]))
    return Rows(standardized(x, test), y, _schema(), test, ids=ids)

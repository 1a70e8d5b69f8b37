"""What it costs to check the result of a compute job, against computing it, at growing sizes.

    python bench/verification.py

One thread, float64; both in the same run on the same rows. `reads` is how often memory could be read meanwhile: a
check of regression or PCA reads a table once, and the work does it two or three times even where it has few columns.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from _common import seconds, show
from tutti.core.registry import Choice
from tutti.core.workload import Table, verify, workloads

TABLES = [(50_000, 10), (800_000, 10), (50_000, 30), (20_000, 100), (80_000, 100), (20_000, 400), (8_000, 1000)]
"""More rows, and more columns: up to 64 MB, which is what the market takes."""

SIZES = {
    "linear_regression": TABLES,
    "pca:components=5": TABLES,
    "kmeans:clusters=20,iterations=100": [(10_000, 20), (30_000, 20), (60_000, 20)],
    "kmeans:clusters=20,iterations=5": [(30_000, 20)],
    "training:epochs=10": [(5_000, 20), (20_000, 20), (20_000, 100)],
}


def rows(n: int, d: int) -> Table:
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((n, 12)) @ rng.standard_normal((12, d)) + 0.5 * rng.standard_normal((n, d))
    return Table(hidden, hidden @ rng.standard_normal(d) + rng.standard_normal(n))


def measure(name: str, n: int, d: int, repeats: int) -> dict[str, object]:
    workload, table = workloads.build(Choice.parse(name)), rows(n, d)
    result = workload.solve(table, 1)
    if not (verdict := verify(workload, table, result, 1, 2)).holds:
        raise SystemExit(f"an honest result was refused: {verdict.reason}")
    solve = seconds(lambda: workload.solve(table, 1), repeats)
    check = seconds(lambda: verify(workload, table, result, 1, 2), repeats)
    read = seconds(lambda: table.x.sum(), repeats)
    return {
        "work": name,
        "rows": n,
        "columns": d,
        "solve s": solve,
        "check s": check,
        "solve / check": solve / check,
        "reads": check / read,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, only to see that it runs")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sizes = {name: [(300, 6)] for name in SIZES} if given.quick else SIZES
    found = [measure(name, n, d, 1 if given.quick else 3) for name, some in sizes.items() for n, d in some]
    show(found, as_json=given.json, notes={"numpy": np.__version__})


if __name__ == "__main__":
    main()

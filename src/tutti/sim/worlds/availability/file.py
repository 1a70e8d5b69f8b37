"""Recorded availability."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tutti.core.errors import UserError
from tutti.sim.worlds.availability import Trace, traces


class BadTrace(UserError):
    """A file of availability that cannot be read as one."""


@traces.register("file")
def file(path: str, repeat: float = 0.0) -> Trace:
    """Windows from a CSV file with the columns node, from, to (number of the node from 1; seconds).

    More nodes than the file knows take its rows in turn. `repeat` starts the file again after so many seconds.
    """
    recorded = _read(Path(path))
    numbers = sorted(recorded)
    last = max(ends for windows in recorded.values() for _, ends in windows)
    if repeat and repeat < last:
        raise BadTrace(f"{path}: a window ends at {last:g} s, after repeat={repeat:g}: choose a longer time")

    def windows(node: int, rng: np.random.Generator) -> Iterator[tuple[float, float]]:
        mine, shift = recorded[numbers[(node - 1) % len(numbers)]], 0.0
        while True:
            for begins, ends in mine:
                yield begins + shift, ends + shift
            if not repeat:
                return
            shift += repeat

    return windows


def _read(path: Path) -> dict[int, list[tuple[float, float]]]:
    found: dict[int, list[tuple[float, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as opened:
            for number, row in enumerate(csv.DictReader(opened), start=2):
                try:
                    node, begins, ends = int(row["node"]), float(row["from"]), float(row["to"])
                except (KeyError, TypeError, ValueError):
                    raise BadTrace(f"{path} line {number}: expected columns node, from, to; came {row}") from None
                mine = found.setdefault(node, [])
                if not (0 <= begins < ends) or (mine and begins < mine[-1][1]):
                    raise BadTrace(
                        f"{path} line {number}: expected windows of a node in order, each with 0 <= from < to, "
                        f"came {begins:g} to {ends:g}"
                    )
                mine.append((begins, ends))
    except (OSError, UnicodeDecodeError) as error:
        raise BadTrace(f"cannot read the availability file {path}: {error}") from None
    if not found:
        raise BadTrace(f"{path} holds no windows: expected lines such as 1,0,3600 under node,from,to")
    return found

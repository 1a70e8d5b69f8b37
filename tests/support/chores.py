"""Functions to be run in other processes, which import them from here."""

import os
import time

from tutti.core.errors import UserError


def add(one: int, other: int) -> int:
    return one + other


def never_end() -> None:
    while True:
        time.sleep(1)


def refuse() -> None:
    raise UserError("no, by name")


def fail() -> None:
    raise RuntimeError("odd")


def take(size: int) -> int:
    return len(bytes(size))


def die() -> None:
    os._exit(9)

"""The formats of the databases: numbered steps in SQL, up and down, for SQLite and PostgreSQL.

A database says which format it has (`PRAGMA user_version`, or a row of the table `tutti_formats`), and is brought to
another one in a single transaction: it has the old format or the new one, whatever happens meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tutti.core.errors import UserError


class FormatTooNew(UserError):
    """The database was written by a later version of this program."""


@dataclass(frozen=True, slots=True)
class Step:
    """SQL scripts that lead from one format to the next, and back."""

    up: str
    down: str


@dataclass(frozen=True, slots=True)
class Format:
    """`name` is what people call the database, such as "event log"; step 1 leads from nothing to format 1."""

    name: str
    steps: Sequence[Step]

    @property
    def newest(self) -> int:
        return len(self.steps)


def scripts(format: Format, present: int, target: int | None = None, where: str = "") -> list[str]:
    """The scripts that lead from one format to another (None: the newest), in order; raises FormatTooNew."""
    target = format.newest if target is None else target
    if max(present, target) > format.newest:
        raise FormatTooNew(
            f"the {format.name} {where} has format {present}, this program knows formats up to {format.newest}: "
            "upgrade it"
        )
    if target < present:
        return [step.down for step in reversed(format.steps[target:present])]
    return [step.up for step in format.steps[present:target]]

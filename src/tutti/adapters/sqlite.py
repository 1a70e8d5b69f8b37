"""What the stores in SQLite files share."""

import sqlite3
from pathlib import Path

from tutti.adapters.migrations import Format, scripts


def migrate(db: sqlite3.Connection, format: Format, path: Path, target: int | None = None) -> None:
    """Bring a file to a format (None: the newest), all of it or nothing; raises FormatTooNew, sqlite3.Error."""
    (present,) = db.execute("PRAGMA user_version").fetchone()
    if not (steps := scripts(format, present, target, str(path))):
        return
    version = format.newest if target is None else target
    try:
        db.executescript(f"BEGIN IMMEDIATE; {' '.join(steps)} PRAGMA user_version = {version}; COMMIT;")
    except sqlite3.Error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise

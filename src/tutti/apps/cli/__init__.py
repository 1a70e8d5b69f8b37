"""The command line: `tutti`. Heavy imports happen inside the commands that need them, so that help stays quick."""

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The console script. Never returns; exit codes are in `tutti.apps.cli.exits`."""
    from tutti.apps.cli.app import run

    sys.exit(run(args))

"""Exit codes, and which error ends in which; docs/cli.md prints this table."""

import errno
from collections.abc import Mapping
from enum import IntEnum

from tutti.core.errors import Conflict, Forbidden, StorageError, TuttiError, Unavailable, UserError


class Exit(IntEnum):
    OK = 0
    BUG = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    JOB_FAILED = 5
    STORAGE = 6
    CONFLICT = 7
    UNAVAILABLE = 8
    INTERRUPTED = 130
    TERMINATED = 143


MEANING: Mapping[Exit, str] = {
    Exit.OK: "done",
    Exit.BUG: "a mistake of Tutti: please report what was printed",
    Exit.USAGE: "an option, file, name or job that cannot be used as given",
    Exit.UNREACHABLE: "no coordinator, supernode or ring answers at that address",
    Exit.REFUSED: "the token is missing, expired, used up, or does not allow this",
    Exit.JOB_FAILED: "the job failed or was stopped",
    Exit.STORAGE: "a disk is full, read-only or corrupt; nothing was recorded",
    Exit.CONFLICT: "not in the present state: port in use, data directory in use, name taken, job over",
    Exit.UNAVAILABLE: "a server that is needed, such as a chain's node, does not answer, or not in time: ask again",
    Exit.INTERRUPTED: "interrupted (ctrl-C) before it was done",
    Exit.TERMINATED: "ended by SIGTERM before it was done",
}

_BY_ERRNO: Mapping[int, Exit] = {
    errno.ENOSPC: Exit.STORAGE,
    errno.EDQUOT: Exit.STORAGE,
    errno.EROFS: Exit.STORAGE,
    errno.EIO: Exit.STORAGE,
    errno.EADDRINUSE: Exit.CONFLICT,
}


class JobNotDone(TuttiError):
    """The job that was waited for failed or was stopped."""


def exit_for(error: Exception) -> Exit:
    """The exit code of an error; BUG for one that is nobody's fault but ours."""
    for kind, code in _codes():
        if isinstance(error, kind):
            return code
    if isinstance(error, OSError) and error.errno is not None:
        return _BY_ERRNO.get(error.errno, Exit.USAGE if error.filename else Exit.BUG)
    return Exit.BUG


def _codes() -> tuple[tuple[type[Exception], Exit], ...]:
    """The first that fits counts."""
    from tutti.adapters.thrift.client import Unreachable as RingUnreachable
    from tutti.apps.client import Unreachable
    from tutti.ports.fabric import LinkLost, LinkRefused

    return (
        (Forbidden, Exit.REFUSED),
        (LinkRefused, Exit.REFUSED),
        (Conflict, Exit.CONFLICT),
        (Unavailable, Exit.UNAVAILABLE),
        (StorageError, Exit.STORAGE),
        (UserError, Exit.USAGE),
        (Unreachable, Exit.UNREACHABLE),
        (RingUnreachable, Exit.UNREACHABLE),
        (LinkLost, Exit.UNREACHABLE),
        (JobNotDone, Exit.JOB_FAILED),
    )

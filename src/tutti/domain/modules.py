"""Python modules that a job names: importing one runs its code, so only those that a machine's owner lists."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from tutti.core.registry import Choice

BY_ENTRY = "module"
"""The model that is another package's: `module:entry=package.module:factory`."""


def unlisted(model: Choice, listed: Sequence[str]) -> str | None:
    """The module that a model would import although no pattern lists it; None where nothing is to be refused."""
    if model.name != BY_ENTRY:
        return None
    entry = model.options.get("entry", model.options.get("", ""))
    module = str(entry).partition(":")[0]
    return None if is_listed(module, listed) else module[:100]


def is_listed(module: str, listed: Sequence[str]) -> bool:
    """Whether one of the glob patterns, such as `hospital.models` or `hospital.*`, names this module."""
    return any(fnmatchcase(module, pattern) for pattern in listed)

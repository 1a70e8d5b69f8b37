"""Optional packages and entry points: what to say when they are not there."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tutti.core.errors import UserError


class MissingExtra(UserError):
    """A part that is installed on request is needed and not installed."""


class BadEntry(UserError):
    """An entry point `package.module:name` leads nowhere, or to something of the wrong kind."""


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Import optional packages inside; a missing one becomes MissingExtra, naming the extra that holds it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "tutti":
            raise
        raise MissingExtra(f"{what} needs {error.name}, which is not installed: pip install 'tutti[{name}]'") from error


def load_entry(entry: str) -> Callable[..., Any]:
    """The callable that `package.module:name` stands for; raises BadEntry."""
    module_name, colon, name = entry.partition(":")
    if not (module_name and colon and name):
        raise BadEntry(f"expected entry=package.module:name, came {entry!r}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise BadEntry(
            f"entry {entry!r}: there is no module {error.name!r} here; install it, or put its folder on PYTHONPATH"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        what = "has no" if found is None else f"has a {type(found).__name__}, not a callable, named"
        raise BadEntry(f"entry {entry!r}: module {module_name!r} {what} {name!r}")
    return found  # type: ignore[no-any-return]

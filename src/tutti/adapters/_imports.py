"""Optional packages and entry points: what to say when they are not there, and who may choose them."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tutti.core.errors import UserError
from tutti.domain.modules import is_listed


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
        raise MissingExtra(
            f"{what} needs {error.name}, which is not installed: pip install '.[{name}]' in Tutti's sources"
        ) from error


_listed: ContextVar[tuple[str, ...]] = ContextVar("_listed", default=())


@contextmanager
def importable(modules: Sequence[str]) -> Iterator[None]:
    """Inside, a job's model may name modules that these glob patterns of the machine's owner list; outside, none."""
    before = _listed.set(tuple(modules))
    try:
        yield
    finally:
        _listed.reset(before)


def listed() -> tuple[str, ...]:
    """What may be named here now, for processes that work on the same job."""
    return _listed.get()


def load_listed_entry(entry: str) -> Callable[..., Any]:
    """As load_entry, for an entry that a job chose: nothing is imported that this machine's owner did not list."""
    module_name, _ = _split(entry)
    if not is_listed(module_name, listed()):
        raise BadEntry(
            f"entry {entry!r}: nobody has listed module {module_name!r} here: its owner can, by allow_modules in a "
            f"node's policy file, or elsewhere by --allow-module {module_name} or TUTTI_ALLOW_MODULES"
        )
    return load_entry(entry)


def load_entry(entry: str) -> Callable[..., Any]:
    """The callable that `package.module:name` stands for; raises BadEntry, and whatever importing it raises."""
    module_name, name = _split(entry)
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


def _split(entry: str) -> tuple[str, str]:
    """(module, name) of an entry point; raises BadEntry."""
    module_name, _, name = entry.partition(":")
    if not (all(part.isidentifier() for part in module_name.split(".")) and name.isidentifier()):
        raise BadEntry(f"expected entry=package.module:name, came {entry!r}")
    return module_name, name

"""What all views have in common."""

from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class View(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Page(View, Generic[T], frozen=True, kw_only=True):
    """A part of a list. `next` is what to pass as `after` for the part that follows; None at the end."""

    items: list[T]
    next: str | None = None

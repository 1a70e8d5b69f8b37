"""What all events have in common: see `tutti.domain.events`."""

from typing import TypeAlias

import msgspec

Digest: TypeAlias = str
NodeId: TypeAlias = str


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True, tag_field="type"):
    """`at` is seconds since the epoch."""

    at: float

"""What the people of an organisation may have of a coordinator, what they have, and what is too much."""

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from tutti.domain.events import NodeId
from tutti.domain.jobs import Job

WINDOW_DAYS = 30
Kind: TypeAlias = Literal["job", "node"]
Whole = Annotated[int, Meta(ge=0, le=2**53)]
Hours = Annotated[float, Meta(ge=0, le=1e9)]


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """The most that an organisation may have; None: any amount.

    Attributes:
        jobs: That go on at once.
        nodes: That have joined by invitations of its people.
        node_hours: Of computing, by any nodes, for its jobs of the last WINDOW_DAYS days.
        stored: Bytes that are kept of its jobs.
    """

    jobs: Whole | None = None
    nodes: Whole | None = None
    node_hours: Hours | None = None
    stored: Whole | None = None


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """What an organisation has, in the terms of its quota."""

    jobs: int
    nodes: int
    node_hours: float
    stored: int


def used(
    theirs: Callable[[str], bool],
    jobs: Iterable[Job],
    invited: Mapping[NodeId, str],
    stored: Callable[[Job], int],
    now: float,
) -> Used:
    """`theirs` tells of a name, as the log has it, whether it is one of them; `invited` by whom each node was."""
    own = [job for job in jobs if theirs(job.by)]
    recent = [job for job in own if job.submitted_at > now - 86_400 * WINDOW_DAYS]
    return Used(
        jobs=sum(not job.final for job in own),
        nodes=sum(map(theirs, invited.values())),
        node_hours=sum(given.seconds for job in recent for given in job.contributions.values()) / 3600,
        stored=sum(map(stored, own)),
    )


def excess(quota: Quota, has: Used, one_more: Kind) -> str | None:
    """Why there may be no further job or node; None if there may."""
    if one_more == "node":
        full = quota.nodes is not None and has.nodes >= quota.nodes
        return f"may have {quota.nodes} nodes and has {has.nodes}: remove one (`tutti nodes rm`)" if full else None
    if quota.jobs is not None and has.jobs >= quota.jobs:
        return f"may have {quota.jobs} jobs at once and has {has.jobs}: wait for one to end, stop one"
    if quota.node_hours is not None and has.node_hours >= quota.node_hours:
        return (
            f"may use {quota.node_hours:g} node hours in {WINDOW_DAYS} days and its jobs of that time took "
            f"{has.node_hours:.1f}: wait"
        )
    if quota.stored is not None and has.stored >= quota.stored:
        return f"may keep {quota.stored:,} bytes of its jobs and keeps {has.stored:,}: keep fewer models of each"
    return None

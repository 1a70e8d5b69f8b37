"""What a member of a ring shows of itself: its place, its fingers, what it has agreed to, and whether all is well."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

from tutti.domain.jobs import Job
from tutti.ring.identifiers import Peer, between, identifier
from tutti.ring.member import Member, list_length, size
from tutti.services.views.base import View
from tutti.services.views.jobs import JobView, job_view

if TYPE_CHECKING:
    from tutti.services.chain import ChainMember
    from tutti.services.placing import Keeper
    from tutti.services.presence import Offer


class FingerView(View, frozen=True, kw_only=True):
    """The owner of the keys from `start` on; one line stands for all fingers that point to one member."""

    first: int
    last: int
    start: str
    owner: str


class Light(View, frozen=True, kw_only=True):
    """One thing that should be so."""

    name: str
    ok: bool
    detail: str


class RingView(View, frozen=True, kw_only=True):
    """One member. Identifiers are in hex; it owns the keys of (`owns_after`, `id`].

    Attributes:
        replicas: Who keeps copies of what it owns.
        parts_owned, parts_copied: Of the data set that was placed on the ring, and kept here for itself and for others.
        parts_uncopied: Those of its own that are not yet at all members that should have them.
        height, generation: Of its newest record; a generation above 0 was forced without a majority.
        sent_bytes, resent_bytes: Of updates, by this process; `resent`: of those that some had been given before.
        holders: At the leader: by data set, how many nodes that hold it are connected.
        signs_as: The address of the key with which it signs its updates.
    """

    id: str
    address: str
    incarnation: int
    joined: bool
    predecessor: str
    successors: tuple[str, ...]
    owns_after: str
    replicas: tuple[str, ...]
    fingers: tuple[FingerView, ...]
    known: tuple[str, ...]
    height: int
    generation: int
    digest: str
    leader: str
    committee: tuple[str, ...]
    roster: tuple[str, ...]
    parts_owned: int
    parts_copied: int
    parts_uncopied: int
    sent_bytes: int
    resent_bytes: int
    holders: dict[str, int]
    jobs: tuple[JobView, ...]
    lights: tuple[Light, ...]
    signs_as: str = ""


def ring_view(
    me: Peer,
    member: Member | None,
    chain: "ChainMember",
    jobs: Mapping[str, Job],
    offers: "Mapping[Offer, int]" = MappingProxyType({}),
    sent: tuple[int, int] = (0, 0),
    keeper: "Keeper | None" = None,
    apart: Sequence[str] = (),
    signs_as: str = "",
) -> RingView:
    """One member's view.

    `offers`: of the nodes connected to it, if it leads. `sent`: bytes, and those again. `apart`: members of another
    ring that the supernodes know.
    """
    member = member or Member(me)
    tip = chain.replica.tip
    before = member.predecessor
    return RingView(
        id=f"{me.id:040x}",
        address=me.address,
        incarnation=me.incarnation,
        joined=member.joined,
        predecessor=before.address if before else "",
        successors=tuple(peer.address for peer in member.successors),
        owns_after=f"{(before or me).id:040x}",
        replicas=tuple(p.address for p in member.successors[: list_length(size(member)) - 1] if p.address),
        fingers=finger_views(member),
        known=tuple(peer.address for peer in member.roster.alive),
        height=chain.height,
        generation=tip.generation if tip else 0,
        digest=tip.digest if tip else "",
        leader=chain.leader,
        committee=chain.replica.order,
        roster=tip.addresses if tip else (),
        parts_owned=len(keeper.owned) if keeper else 0,
        parts_copied=len(keeper.shelf.keys) - len(keeper.owned) if keeper else 0,
        parts_uncopied=keeper.uncopied if keeper else 0,
        sent_bytes=sent[0],
        resent_bytes=sent[1],
        holders=_holders(offers),
        jobs=tuple(job_view(job, offers) for job in jobs.values()),
        lights=lights(member, chain, keeper, apart),
        signs_as=signs_as,
    )


def finger_views(member: Member) -> tuple[FingerView, ...]:
    """The finger table; neighbouring fingers with one owner are one line."""
    lines: list[FingerView] = []
    for exponent, owner in sorted(member.fingers.items()):
        if lines and lines[-1].owner == owner.address and lines[-1].last == exponent - 1:
            lines[-1] = FingerView(first=lines[-1].first, last=exponent, start=lines[-1].start, owner=owner.address)
        else:
            start = (member.me.id + (1 << exponent)) % (1 << member.bits)
            lines.append(FingerView(first=exponent, last=exponent, start=f"{start:040x}", owner=owner.address))
    return tuple(lines)


def lights(
    member: Member, chain: "ChainMember", keeper: "Keeper | None" = None, apart: Sequence[str] = ()
) -> tuple[Light, ...]:
    """The invariants as far as one member can see them; `ring_lights` are those of all."""
    living = [peer for peer in member.successors if peer.address and not member.roster.refuses(peer)]
    alone = not member.roster.alive
    ahead = [member.after(peer.id) for peer in member.successors]
    tip = chain.replica.tip
    degraded = tip is not None and tip.generation > 0
    return (
        Light(name="joined", ok=member.joined, detail="is in a ring" if member.joined else "looks for its place"),
        Light(name="one live successor", ok=bool(living) or alone, detail=f"{len(living)} are believed alive"),
        Light(
            name="ordered successor list",
            ok=ahead == sorted(set(ahead)),
            detail="in order, without duplicates" if ahead == sorted(set(ahead)) else "out of order",
        ),
        Light(name="leader", ok=not chain.fault, detail=chain.fault or chain.leader),
        Light(
            name="parts copied",
            ok=keeper is None or not keeper.uncopied,
            detail=f"{keeper.uncopied if keeper else 0} of {len(keeper.owned) if keeper else 0} wait for a copy",
        ),
        Light(
            name="whole",
            ok=not degraded,
            detail=f"went on without a majority {tip.generation} times" if tip and degraded else "never forced",
        ),
        Light(
            name="no other ring",
            ok=not apart,
            detail=f"{', '.join(apart)} of another that is in use" if apart else "the supernodes know this one only",
        ),
    )


def ring_lights(views: Sequence[RingView]) -> tuple[Light, ...]:
    """The invariants of the whole, which no member can see alone: from the views of all that answer.

    Those of Zave's proof (`tutti.ring.chord`), and that there is one chain and one leader.
    """
    if not views:
        return ()
    there = {view.address: view for view in views}
    after = {view.address: next((a for a in view.successors if a in there), view.address) for view in views}
    cycle, at = list[str](), views[0].address
    while at not in cycle:
        cycle.append(at)
        at = after[at]
    skipped = {a for a, view in there.items() for other in views if _skips(other, int(view.id, 16))}
    needed = min(list_length(len(views)) + 1, len(views))
    leaders = {view.leader for view in views}
    absent = absent_members(views)
    waiting = [
        f"{job.id} on {job.dataset!r} {job.reason}"
        for view in views
        if view.leader == view.address
        for job in view.jobs
        if job.status == "waiting" and job.reason
    ]
    return (
        Light(name="everybody answers", ok=not absent, detail=", ".join(absent) or f"{len(views)} members"),
        Light(
            name="one ring",
            ok=at == cycle[0] and len(cycle) == len(views),
            detail=f"{len(cycle)} of {len(views)} follow one another",
        ),
        Light(
            name="sufficient principals",
            ok=len(views) - len(skipped) >= needed,
            detail=f"{len(views) - len(skipped)} members are skipped by no successor list, {needed} must be",
        ),
        Light(
            name="one chain",
            ok=len({view.digest for view in views}) == 1,
            detail=f"at records {', '.join(sorted({f'{view.height} ({view.digest[:8]})' for view in views}))}",
        ),
        Light(
            name="one leader",
            ok=len(leaders) == 1 and leaders <= there.keys(),
            detail=", ".join(
                (leader or "nobody") + (" (gives no answer)" if leader and leader not in there else "")
                for leader in sorted(leaders)
            ),
        ),
        Light(name="jobs go on", ok=not waiting, detail="; ".join(waiting) or "none waits for nodes"),
    )


def absent_members(views: Sequence[RingView]) -> tuple[str, ...]:
    """Who sits on the roster of the newest record and gives no answer."""
    newest = max(views, key=lambda view: (view.generation, view.height), default=None)
    return tuple(sorted({*newest.roster} - {view.address for view in views})) if newest else ()


def _skips(view: RingView, id: int) -> bool:
    """Whether the member's successor list passes over this identifier."""
    stops = [int(view.id, 16), *map(identifier, view.successors)]
    return any(between(a, id, b) for a, b in pairwise(stops))


def _holders(offers: "Mapping[Offer, int]") -> dict[str, int]:
    held: Counter[str] = Counter()
    for (data, _), count in offers.items():
        held[data.name] += count
    return dict(sorted(held.items()))

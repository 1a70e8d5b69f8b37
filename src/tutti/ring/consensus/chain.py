"""The end of the chain: what is chosen is appended, and who is behind catches up.

**Whom a member believes.** That a record is chosen is the word of whoever sends it: votes are not signed. So a member
takes the next record of one generation from its committee only, and more records from those on its roster, or from whom
its shell has asked for. One without a chain, or with one that nobody has used yet, takes anybody's. Each record must
follow from the one before (`follows`).

**Which of two chains stays.** They part where one side went on without the other's majority, each by a REFORM perhaps.
The one of the greater generation stays; of two with the same generation that whose first own record has the smaller
digest. So all members settle on one, and none goes back to a chain that it has left, where it may have promised
something. The chain of another founder is taken only in place of one that nobody has used yet.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType

from tutti.ring.consensus.messages import AnyMessage, Ballot, Commit, Fetch, Records
from tutti.ring.consensus.replica import (
    Append,
    Following,
    Lead,
    Leading,
    Replica,
    Send,
    Step,
    header,
    remembering,
    resign,
)
from tutti.ring.record import Record, begins, cut, follows


def adopted(state: Replica, records: tuple[Record, ...], now: float, *, by: str = "", more: bool = False) -> Step:
    """With these records at their place in the chain, and as its end; `by` led to them, if that is known.

    `more`: others have more of them, so nobody leads on from here.
    """
    tip, before = records[-1], state.role
    chain = (*state.chain[: records[0].height], *records)
    state = replace(state, chain=chain, verifying=None, wrong=frozenset(), stuck="", staged=())
    leader = state.order[0]
    state = remembering(state, Ballot(0, leader))
    if leader != state.me or more or not state.votes:
        return replace(state, role=Following(by, now)), (Append(records), *resign(before))
    goes_on = isinstance(before, Leading) and before.told and before.proposal == tip
    acks = before.acks if isinstance(before, Leading) else MappingProxyType[str, float]({})
    state = replace(state, role=Leading(Ballot(0, leader), now, acks=acks))
    return state, (Append(records), *(() if goes_on else (*resign(before), Lead())))


def on_commit(state: Replica, message: Commit, now: float) -> Step:
    tip, record = state.tip, message.record
    if tip is None or message.sender not in state.order or record.generation != tip.generation:
        return catch_up(state, message)
    return (
        adopted(state, (record,), now, by=message.sender)
        if follows(tip, record, state.seed)
        else catch_up(state, message)
    )


def on_records(state: Replica, message: Records, now: float) -> Step:
    """Append what follows. Records of another chain are staged until it is known which of the two stays."""
    if not _believed(state, message.sender):
        return state, ()
    last = message.records[-1] if message.records else None
    if last is None or _has(state.chain, last.height, last.digest):  # there are more
        return catch_up(state, message, last)
    new = _joined(state, message.records)
    if not new or not _sound(whole := (*state.chain[: new[0].height], *new), new[0].height):
        return state, ()
    more = message.height > whole[-1].height
    if new[0].height == len(state.chain) or stays(whole, state.chain):
        state, wishes = adopted(state, new, now, more=more)
        return state, (*wishes, fetch(state, message.sender)) if more else wishes
    if more:
        state = replace(state, staged=new)
        return state, (fetch(state, message.sender),)
    common = [(new[0].height - 1, new[0].previous)]
    answer = records_for(state, message.sender, common) if stays(state.chain, whole) else ()
    return replace(state, staged=()), answer


def _joined(state: Replica, records: Sequence[Record]) -> tuple[Record, ...]:
    """What is known of the chain that these are of, from where it parts from the one here; empty if nothing is new."""
    new = tuple(record for record in records if not _has(state.chain, record.height, record.digest))
    if not new or any(record.digest == new[-1].digest for record in state.staged):
        return ()
    before = tuple(record for record in state.staged if record.height < new[0].height)
    if before and before[-1].digest == new[0].previous:
        return (*before, *new)
    joins = new[0].height == 0 or _has(state.chain, new[0].height - 1, new[0].previous)
    return new if joins else ()


def stays(one: Sequence[Record], other: Sequence[Record]) -> bool:
    """Whether the first of two chains that have parted is the one to stay."""
    if one[0] != other[0]:
        return len(other) == 1 and (len(one) > 1 or one[0].digest < other[0].digest)
    if one[-1].generation != other[-1].generation:
        return one[-1].generation > other[-1].generation
    return next((a.digest < b.digest for a, b in zip(one, other, strict=False) if a != b), len(one) > len(other))


def catch_up(state: Replica, message: AnyMessage, common: Record | None = None) -> Step:
    """Of two members whose chains differ, the one behind gets the other's records; both have `common`."""
    mine = (0, -1) if state.tip is None else (state.tip.generation, state.tip.height)
    if (message.generation, message.height) < mine:
        if message.height < 0 or _has(state.chain, message.height, message.tip):
            return state, records_for(state, message.sender, [(message.height, message.tip)])
        return state, (Send(message.sender, Records(**header(state), records=())),)  # it shall say what it has
    if state.tip is None and message.height < 0:
        return state, ()
    if _has(state.chain, message.height, message.tip) or not _believed(state, message.sender):
        return state, ()
    return state, (fetch(state, message.sender, common),)


def seek(state: Replica, peer: str) -> Step:
    state = replace(state, asked=peer)
    return state, (fetch(state, peer),)


def fetch(state: Replica, to: str, common: Record | None = None) -> Send:
    """Ask for what this member lacks; `common` is known to be one that both have."""
    steps = [0, *(2**exponent for exponent in range(len(state.chain).bit_length()))]
    heights = sorted({max(len(state.chain) - 1 - step, 0) for step in steps}, reverse=True) if state.chain else []
    known = [*state.staged[-1:], *([common] if common else []), *(state.chain[height] for height in heights)]
    return Send(to, Fetch(**header(state), known=tuple((record.height, record.digest) for record in known)))


def records_for(state: Replica, to: str, known: Iterable[tuple[int, str]]) -> tuple[Send, ...]:
    """The records after the newest of these that are here, as many as one message holds; nothing if there are none."""
    last = next((height for height, digest in known if _has(state.chain, height, digest)), -1)
    some = next(cut(state.chain[last + 1 :]), ())
    return (Send(to, Records(**header(state), records=some)),) if some else ()


def _has(chain: Sequence[Record], height: int, digest: str) -> bool:
    return 0 <= height < len(chain) and chain[height].digest == digest


def _believed(state: Replica, sender: str) -> bool:
    return len(state.chain) <= 1 or sender in state.chain[-1].addresses or sender == state.asked


def _sound(whole: Sequence[Record], since: int) -> bool:
    """Whether the records from this height on follow from those before."""
    if len(whole) != whole[-1].height + 1 or (since == 0 and not begins(whole[0])):
        return False
    seed = whole[0].digest
    return all(follows(a, b, seed) for a, b in pairwise(whole[max(since - 1, 0) :]))

"""The end of the chain: what is chosen is appended, and who is behind catches up."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType

from tutti.ring.consensus.messages import AnyMessage, Ballot, Commit, Fetch, Records
from tutti.ring.consensus.replica import (
    Append,
    Durable,
    Following,
    Lead,
    Leading,
    Replica,
    Send,
    SendRecords,
    Step,
    header,
    resign,
)
from tutti.ring.record import Record


def adopted(state: Replica, records: tuple[Record, ...], now: float, *, by: str = "", anew: bool = False) -> Step:
    """With these records at the end of the chain, or as the whole of it; `by` led to them, if that is known."""
    tip, before = records[-1], state.role
    seed = records[0].digest if anew else state.seed
    state = replace(state, tip=tip, seed=seed, verifying=None, wrong=frozenset())
    leader = state.order[0]
    state = replace(state, durable=Durable(tip.height, Ballot(0, leader)))
    if leader != state.me:
        return replace(state, role=Following(by, now)), (Append(records, anew), *resign(before))
    goes_on = isinstance(before, Leading) and before.told and before.proposal == tip
    acks = before.acks if isinstance(before, Leading) else MappingProxyType[str, float]({})
    state = replace(state, role=Leading(Ballot(0, leader), now, acks=acks))
    return state, (Append(records, anew), *(() if goes_on else (*resign(before), Lead())))


def on_commit(state: Replica, message: Commit, now: float) -> Step:
    record = message.record
    if state.tip is not None and record.previous == state.tip.digest:
        return adopted(state, (record,), now, by=message.sender)
    return catch_up(state, message)


def on_records(state: Replica, message: Records, now: float) -> Step:
    """Append what follows; take a whole chain if this member has none of consequence, or one of an older generation."""
    records = message.records
    if not records or any(b.previous != a.digest or b.height != a.height + 1 for a, b in pairwise(records)):
        return state, ()
    tip, newest = state.tip, records[-1]
    if tip is not None:
        new = tuple(record for record in records if record.height > tip.height)
        if new and new[0].previous == tip.digest:
            return adopted(state, new, now)
    whole = records[0].height == 0
    if whole and (tip is None or newest.generation > tip.generation or tip.height == 0 < newest.height):
        return adopted(state, records, now, anew=True)
    return state, ()


def catch_up(state: Replica, message: AnyMessage) -> Step:
    """Of two members whose chains differ, the one behind gets the other's records."""
    mine = (0, -1) if state.tip is None else (state.tip.generation, state.tip.height)
    if (message.generation, message.height) < mine:
        return state, (SendRecords(message.sender, message.height, message.tip),)
    if state.tip is not None and message.tip == state.tip.digest:
        return state, ()
    return state, (Send(message.sender, Fetch(**header(state))),)


def lacking(records: Iterable[Record], height: int, tip: str) -> tuple[Record, ...]:
    """What SendRecords asks for, of the whole chain."""
    chain = tuple(records)
    known = 0 <= height < len(chain) and chain[height].digest == tip
    return chain[height + 1 :] if known else chain

"""Whose key signs what, by the records of a ring alone: every member checks it before it votes, anybody may afterwards.

The key that a member names first is the one that it signs with. One that has lost its state folder comes with another:
it is removed and joins again, and both stand in the records. No record gives a member a key that it does not have
while that member votes, for it knows its own.
"""

from collections.abc import Mapping
from typing import TypeAlias

from tutti.domain import events as e
from tutti.domain.events import AnyEvent, NodeId
from tutti.domain.jobs import Job
from tutti.domain.signing import Domain, PublicKey, Verify, digest_of

Keys: TypeAlias = Mapping[NodeId, PublicKey]


def after(keys: Keys, event: AnyEvent) -> Keys:
    """The keys once an event has happened."""
    match event:
        case e.NodeKeyed(node=node, key=key):
            return {**keys, node: key}
        case e.NodeRemoved(node=gone):
            return {node: key for node, key in keys.items() if node != gone}
        case _:
            return keys


def key_fault(keys: Keys, event: AnyEvent, own: tuple[NodeId, PublicKey] = ("", "")) -> str:
    """Why an event cannot be, by what it says of keys; empty if it can. `own`: the name and key of whoever looks."""
    if not isinstance(event, e.NodeKeyed):
        return ""
    if event.node == own[0] and event.key != own[1]:
        return f"{event.node} is said to sign with a key that is not its own"
    if event.node in keys:
        return f"{event.node} is given another key than it has named"
    if event.key in keys.values():
        return f"{event.node} is given the key of another"
    return ""


def update_fault(keys: Keys, job: Job, event: AnyEvent, verify: Verify) -> str:
    """Why an update may not count: it is not signed, by its node's key, for the model that it was given. Else empty.

    Raises KeyError for a node that was not asked.
    """
    if not isinstance(event, e.UpdateAccepted) or job.round is None or job.round.opened.task != "train":
        return ""
    task, its, key = job.round.task_of(event.node), event.signed, keys.get(event.node, "")
    said = f"the update {event.digest[:12]} of {event.node} in round {event.round} of {job.id}"
    if its is None or not key or its.key != key:
        return f"{said} is not signed by the key that its node has named"
    if (its.round, its.base, its.domain) != (task.round, task.fetched, Domain()) or its.samples < event.weight:
        return f"{said} was signed for another round, model or weight"
    if not verify(key, digest_of(job.id, event.digest, its), bytes.fromhex(its.signature)):
        return f"{said} has a signature that does not hold"
    return ""

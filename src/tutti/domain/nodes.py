"""The register of nodes: invitations, who joined, and who may be asked to train what."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TypeAlias, assert_never

import msgspec

from tutti.core.errors import Conflict, Forbidden, NotFound
from tutti.domain import events as e
from tutti.domain.events import NodeEvent, NodeId
from tutti.domain.modules import unlisted
from tutti.domain.spec import BadSpec, DataSchema, JobSpec, Name, mismatch

CLOSED = "paused by its owner, outside its hours, or short of battery"


class Capabilities(msgspec.Struct, frozen=True):
    """What a node says of its machine. Sizes in bytes."""

    cpus: int = 1
    memory: int = 0
    gpus: tuple[str, ...] = ()
    platform: str = ""
    versions: dict[str, str] = {}  # tutti, python, torch, ...
    trainers: tuple[str, ...] = ()  # names of the model registries' back ends that work here


class DataSummary(msgspec.Struct, frozen=True):
    """What a node says of its data: a name, the schema, two counts and the digest of all; never a row.

    `source` is where anybody can have the same rows; empty for data of a node's own.
    """

    name: Name
    data: DataSchema
    examples: int
    held_out: int = 0
    digest: str = ""
    source: str = ""


class Terms(msgspec.Struct, frozen=True):
    """The part of the owner's policy that a coordinator should know, so as not to ask in vain.

    The node itself enforces its policy, whatever the coordinator does with this.
    """

    jobs: tuple[str, ...] = ()  # glob patterns of job names; empty: any
    models: tuple[str, ...] = ()  # glob patterns of model names; empty: any
    min_cohort: int = 1
    open: bool = True  # whether its owner lets it work now
    modules: tuple[str, ...] = ()  # glob patterns of Python modules that jobs may name; empty: none


@dataclass(frozen=True, slots=True)
class Invite:
    uses: int
    expires: float
    by: str = ""


@dataclass(frozen=True, slots=True)
class Register:
    """Invitations by token hash; nodes by name with their secret's hash. Removed nodes are gone.

    `keys` are those with which nodes sign their updates, of those that have one; `invited`, by whom each node was.
    `maintenance` is why nothing new begins, `maintained` by whom and since when.
    """

    invites: Mapping[str, Invite] = field(default_factory=dict)
    nodes: Mapping[NodeId, str] = field(default_factory=dict)
    drained: frozenset[NodeId] = frozenset()
    keys: Mapping[NodeId, str] = field(default_factory=dict)
    maintenance: str = ""
    maintained: tuple[str, float] = ("", 0.0)
    invited: Mapping[NodeId, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueInvite:
    token: str
    uses: int
    expires: float
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """With a `key` if the node proves by it who it is: then it signs its updates with it, too."""

    invite: str
    node: NodeId
    secret: str
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    node: NodeId
    reason: str = "asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """The node says with which key it signs: its first word counts."""

    node: NodeId
    key: str


@dataclass(frozen=True, slots=True)
class Accuse:
    """The node has signed two updates under one number, which no honest node does: it gets no more work."""

    proof: e.NodeEquivocated


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintain:
    """Let nothing new begin, for this reason, or (an empty one) again."""

    reason: str
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Give a node no more work, or (`on` False) give it work again. `forged`: as in NodeDrained."""

    node: NodeId
    on: bool = True
    by: str = ""
    forged: str = ""


Command: TypeAlias = IssueInvite | Join | Remove | Pin | Accuse | Drain | Maintain


def decide(state: Register, command: Command, *, now: float) -> list[NodeEvent]:
    """The facts that follow from a command; raises Forbidden, Conflict or NotFound with the reason."""
    match command:
        case IssueInvite():
            return [
                e.InviteIssued(at=now, token=command.token, uses=command.uses, expires=command.expires, by=command.by)
            ]
        case Join(invite=token, node=node, secret=secret, key=key):
            invite = state.invites.get(token)
            if invite is None:
                raise Forbidden("this join link is not known here: ask for a new one (`tutti invite`)")
            if invite.uses < 1:
                raise Forbidden("this join link has been used up: ask for a new one (`tutti invite`)")
            if now >= invite.expires:
                raise Forbidden("this join link has expired: ask for a new one (`tutti invite`)")
            if node in state.nodes:
                raise Conflict(f"a node named {node!r} has joined already: choose another name")
            if key and key in state.keys.values():
                raise Conflict(
                    "another node signs with this key: join with a new one, as a page does that is loaded again"
                )
            joined = e.NodeJoined(at=now, node=node, invite=token, secret=secret)
            return [joined, e.NodeKeyed(at=now, node=node, key=key)] if key else [joined]
        case Remove(node=node, reason=reason):
            if node not in state.nodes:
                raise NotFound(f"there is no node {node!r}")
            return [e.NodeRemoved(at=now, node=node, reason=reason)]
        case Pin(node=node, key=key):
            if node not in state.nodes or state.keys.get(node, "") == key:
                return []
            if node in state.keys:
                raise Conflict(
                    f"{node} has signed with another key before: start it with the state directory that it had, or "
                    "remove it (`tutti nodes rm`) and let it join anew"
                )
            if key in state.keys.values():
                raise Conflict(
                    f"another node signs with the key of {node}: start it with a state directory of its own, not with "
                    "a copy"
                )
            return [e.NodeKeyed(at=now, node=node, key=key)]
        case Accuse(proof=proof):
            node, job, round = proof.node, proof.job, proof.signed[0].round
            if node not in state.nodes or node in state.drained:
                return []
            fault = f"it has signed two updates under one number, for round {round} of {job}"
            return [proof, e.NodeDrained(at=now, node=node, by="its own signatures", forged=fault)]
        case Drain(node=node, on=on, by=by, forged=forged):
            if node not in state.nodes:
                raise NotFound(f"there is no node {node!r}")
            if on == (node in state.drained):
                return []
            drained = e.NodeDrained(at=now, node=node, by=by, forged=forged[:500])
            return [drained if on else e.NodeUndrained(at=now, node=node, by=by)]
        case Maintain(reason=reason, by=by):
            if reason == state.maintenance:
                return []
            return [e.MaintenanceBegan(at=now, reason=reason, by=by) if reason else e.MaintenanceEnded(at=now, by=by)]
    assert_never(command)


def evolve(state: Register, event: NodeEvent) -> Register:
    match event:
        case e.InviteIssued(token=token, uses=uses, expires=expires, by=by):
            return replace(state, invites={**state.invites, token: Invite(uses, expires, by)})
        case e.NodeJoined(node=node, invite=token, secret=secret):
            invite = state.invites[token]
            invites = {**state.invites, token: replace(invite, uses=invite.uses - 1)}
            invited = {**state.invited, node: invite.by}
            return replace(state, invites=invites, nodes={**state.nodes, node: secret}, invited=invited)
        case e.NodeRemoved(node=gone):
            left = {node: secret for node, secret in state.nodes.items() if node != gone}
            keys = {node: key for node, key in state.keys.items() if node != gone}
            invited = {node: by for node, by in state.invited.items() if node != gone}
            return replace(state, nodes=left, drained=state.drained - {gone}, keys=keys, invited=invited)
        case e.NodeKeyed(node=node, key=key):
            return replace(state, keys={**state.keys, node: key})
        case e.NodeDrained(node=node):
            return replace(state, drained=state.drained | {node})
        case e.MaintenanceBegan(at=at, reason=reason, by=by):
            return replace(state, maintenance=reason, maintained=(by, at))
        case e.MaintenanceEnded():
            return replace(state, maintenance="", maintained=("", 0.0))
        case e.NodeUndrained(node=node):
            return replace(state, drained=state.drained - {node})
        case (
            e.NodeConnected() | e.NodeDisconnected() | e.NodeTurnedAway() | e.NodeEquivocated() | e.CoordinatorStarted()
        ):
            return state
    assert_never(event)


DIFFERING_NAMED = 10
"""Nodes that a message names because their data differ."""


def common_schema(dataset: str, described: Mapping[NodeId, DataSchema]) -> DataSchema:
    """What the data of all these nodes look like; raises BadSpec that names the nodes and columns that differ.

    The kind of most nodes is taken as the right one, of equally many that of the first node by name; one that names
    its columns and classes before one that does not.
    """
    kinds = Counter(described[node] for node in sorted(described))
    named = {kind: bool(kind.features) + bool(kind.classes) for kind in kinds}
    expected = max(kinds, key=lambda kind: (sum(n for k, n in kinds.items() if not mismatch(kind, k)), named[kind]))
    strange = {node: found for node in sorted(described) if (found := mismatch(expected, described[node]))}
    if not strange:
        return expected
    listed = "; ".join(f"{node}: {difference}" for node, difference in list(strange.items())[:DIFFERING_NAMED])
    more = f"; and {len(strange) - DIFFERING_NAMED} more nodes" if len(strange) > DIFFERING_NAMED else ""
    raise BadSpec(f"the connected nodes hold different data under the name {dataset!r}: {listed}{more}")


def why_not(spec: JobSpec, data: DataSchema, summary: DataSummary, terms: Terms, cohort: int) -> str | None:
    """Why a connected node cannot be asked to work on a job; None when it can.

    `cohort` is the number of nodes the job asks for at least.
    """
    if summary.name != spec.dataset:
        return f"holds {summary.name}, the job is on {spec.dataset}"
    if (difference := mismatch(data, summary.data)) is not None:
        return f"its {summary.name} does not fit the job: {difference}"
    if summary.examples < 1:
        return "has no examples to train on"
    if not terms.open:
        return CLOSED
    if terms.jobs and not any(fnmatchcase(spec.name, pattern) for pattern in terms.jobs):
        return f"its owner does not allow job {spec.name!r}"
    if terms.models and not any(fnmatchcase(spec.model.name, pattern) for pattern in terms.models):
        return f"its owner does not allow model {spec.model.name!r}"
    if (module := unlisted(spec.model, terms.modules)) is not None:
        return f"its owner does not let jobs import module {module!r}: allow_modules in its policy file can list it"
    if cohort < terms.min_cohort:
        return f"its owner wants cohorts of {terms.min_cohort} or more, the job starts with {cohort}"
    return None

"""Nodes: who they are, what they hold, and how others join."""

from typing import TYPE_CHECKING

from tutti.domain.events import NodeId
from tutti.domain.nodes import Capabilities, Terms
from tutti.domain.signing import address_of
from tutti.domain.spec import DataSchema
from tutti.services.views.base import View

if TYPE_CHECKING:
    from tutti.services.members import NodeStatus


class NodeView(View, frozen=True, kw_only=True):
    """A node. `task` is `job/round` while it works, `done` its share; `cpu` and `memory_used` are the machine's.

    A `drained` node is given no more work. `signs_as`: the address of the key with which it signs its updates.
    """

    name: NodeId
    connected: bool
    drained: bool
    joined_at: float
    last_seen: float | None
    task: str
    done: float | None
    dataset: str
    examples: int
    held_out: int
    data: DataSchema | None
    machine: Capabilities | None
    terms: Terms | None
    cpu: float | None
    memory_used: float | None
    battery: float | None
    signs_as: str = ""


def node_view(status: "NodeStatus") -> NodeView:
    registration, heartbeat = status.registration, status.heartbeat
    summary = registration.data if registration else None
    return NodeView(
        name=status.node,
        connected=status.connected,
        drained=status.drained,
        joined_at=status.joined_at,
        last_seen=status.last_seen,
        task=status.task,
        done=status.progress.done if status.progress and status.task else None,
        dataset=summary.name if summary else "",
        examples=summary.examples if summary else 0,
        held_out=summary.held_out if summary else 0,
        data=summary.data if summary else None,
        machine=registration.capabilities if registration else None,
        terms=registration.terms if registration else None,
        cpu=heartbeat.cpu if heartbeat else None,
        memory_used=heartbeat.memory if heartbeat else None,
        battery=heartbeat.battery if heartbeat else None,
        signs_as=address_of(status.key),
    )


class Invitation(View, frozen=True, kw_only=True):
    """A join token, shown once; whoever has it can join with `tutti join <link>`."""

    token: str
    link: str
    uses: int
    expires_in: float

"""Nodes: who is here, and how others get in."""

from bisect import bisect_right
from typing import Annotated

import msgspec
from fastapi import Depends, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tutti.apps.api.auth import TOO_MANY, Buckets, client_of
from tutti.apps.api.jobs import Text, caller
from tutti.apps.api.schema import After, Answer, Api, Body, Limit
from tutti.apps.api.settings import is_loopback
from tutti.core.errors import Forbidden
from tutti.domain.spec import Name
from tutti.services.coordinator import Coordinator
from tutti.services.views import Invitation, NodeView, Page, PreflightView, View, node_view, preflight_view


class InviteRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    uses: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1
    seconds: Annotated[float, msgspec.Meta(gt=0, le=366 * 86_400)] = 86_400.0


class JoinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`secret` is what the node will show from now on, if it chose one: then it may repeat this request."""

    node: Name
    token: Annotated[str, msgspec.Meta(max_length=256)] = ""
    secret: Annotated[str, msgspec.Meta(min_length=32, max_length=256)] | None = None


class InviteToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: Annotated[str, msgspec.Meta(max_length=256)]


class Joined(View, frozen=True, kw_only=True):
    node: str
    secret: str


class NodeRoutes:
    def __init__(self, coordinator: Coordinator, failures: Buckets, url: str) -> None:
        self._coordinator, self._failures, self._url = coordinator, failures, url

    async def list_nodes(
        self,
        limit: Limit = 100,
        after: After = "",
        connected: Annotated[bool | None, Query()] = None,
        dataset: Text = "",
    ) -> Answer[Page[NodeView]]:
        """The nodes that have joined, by name."""
        nodes = [
            node
            for node in map(node_view, self._coordinator.node_statuses())
            if (connected is None or node.connected is connected) and (not dataset or node.dataset == dataset)
        ]
        first = bisect_right(nodes, after, key=lambda node: node.name)  # the cursor's node may have gone meanwhile
        found = nodes[first : first + limit]
        return Answer(Page(items=found, next=found[-1].name if len(nodes) > first + limit else None))

    async def show_node(self, node: str) -> Answer[NodeView]:
        return Answer(node_view(self._coordinator.node_status(node)))

    async def remove_node(self, node: str) -> Response:
        """Send a node away for good: its secret is void, its open work is dropped."""
        await self._coordinator.remove_node(node)
        return Response(status_code=204)

    async def drain_node(self, request: Request, node: str) -> Answer[NodeView]:
        """Let a node finish what it does, and give it no more work."""
        await self._coordinator.drain_node(node, by=caller(request))
        return await self.show_node(node)

    async def undrain_node(self, request: Request, node: str) -> Answer[NodeView]:
        """Give a drained node work again."""
        await self._coordinator.drain_node(node, on=False, by=caller(request))
        return await self.show_node(node)

    async def join(self, request: Request, wish: Annotated[JoinRequest, Depends(Body(JoinRequest))]) -> Answer[Joined]:
        """Register a node by a join token. The operator needs none."""
        token = wish.token
        if not token and request.state.operator:
            token = await self._coordinator.members.invite(uses=1, seconds=60.0, by=caller(request))
        try:
            secret = await self._coordinator.members.admit(token, wish.node, wish.secret)
        except Forbidden as error:
            self._count_failure(request)
            await self._coordinator.members.turn_away(wish.node, str(error))
            raise
        return Answer(Joined(node=wish.node, secret=secret), 201, {"location": f"/api/v1/nodes/{wish.node}"})

    async def preflight(self, dataset: str) -> Answer[PreflightView]:
        """Ask the connected nodes for statistics of their data, of no fewer rows than their owners' limits."""
        return Answer(preflight_view(await self._coordinator.describe(dataset)))

    async def check_invite(
        self, request: Request, wish: Annotated[InviteToken, Depends(Body(InviteToken))]
    ) -> Response:
        """Whether a join token would let a node in now; does not use it up."""
        try:
            self._coordinator.members.check_invite(wish.token)
        except Forbidden:
            self._count_failure(request)
            raise
        return Response(status_code=204)

    def _count_failure(self, request: Request) -> None:
        """Raises 429 instead of the reason where there have been too many."""
        client = client_of(request)
        if not self._failures.allows(client):
            raise HTTPException(429, TOO_MANY, {"retry-after": "5"})
        self._failures.count(client)

    async def create_invite(
        self, request: Request, wish: Annotated[InviteRequest, Depends(Body(InviteRequest))]
    ) -> Answer[Invitation]:
        """Make a join link for so many nodes and so many seconds."""
        token = await self._coordinator.members.invite(uses=wish.uses, seconds=wish.seconds, by=caller(request))
        link = f"{self._base(request)}/join#{token}"
        invitation = Invitation(token=token, link=link, uses=wish.uses, expires_in=wish.seconds)
        return Answer(invitation, 201)

    def _base(self, request: Request) -> str:
        """Where nodes find the coordinator: as the caller did, unless that was by a way only this machine has."""
        if self._url and is_loopback(request.url.hostname or ""):
            return self._url
        return f"{request.url.scheme}://{request.url.netloc}"


def add_routes(api: Api, nodes: NodeRoutes) -> None:
    api.add("POST", "/api/v1/datasets/{dataset}/preflight", nodes.preflight, "nodes")
    root = "/api/v1/nodes"
    api.add("GET", root, nodes.list_nodes, "nodes")
    api.add("POST", root, nodes.join, "nodes", 201)
    api.add("GET", root + "/{node}", nodes.show_node, "nodes")
    api.add("DELETE", root + "/{node}", nodes.remove_node, "nodes", 204)
    api.add("POST", root + "/{node}/drain", nodes.drain_node, "nodes")
    api.add("POST", root + "/{node}/undrain", nodes.undrain_node, "nodes")
    api.add("POST", "/api/v1/invites", nodes.create_invite, "nodes", 201)
    api.add("POST", "/api/v1/invites/check", nodes.check_invite, "nodes", 204)

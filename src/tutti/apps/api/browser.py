"""What a node in a browser asks for besides the node protocol: what its proofs are to bear, which data are wanted here,
rows to try out with, and whether the coordinator still hears it, which no page can tell of a WebSocket."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tutti.apps.api.auth import Buckets
from tutti.apps.api.transfer import proven_node
from tutti.core.errors import NotFound, UserError
from tutti.core.registry import Choice
from tutti.domain.events import NodeId
from tutti.domain.jobs import FINAL
from tutti.domain.spec import DataSchema
from tutti.ports.training import datasets
from tutti.services.coordinator import Coordinator

log = logging.getLogger(__name__)

PARTS = 16
"""Parts of a bundled set, of which a node without rows of its own gets one, by its name."""

DEMO = "digits"


class WantedData(msgspec.Struct, frozen=True):
    """A data set that jobs here are on; `assigned`: whoever has none of it can be given a part."""

    name: str
    data: DataSchema | None
    assigned: bool


class Challenge(msgspec.Struct, frozen=True):
    """Of this process; `now` is its time in milliseconds. See `services.proofs`."""

    challenge: str
    now: int


class BrowserRoutes:
    """Each node may ask so often: rows are written anew each time, in the process that makes models too."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._questions, self._rows = Buckets(burst=30.0, rate=1.0), Buckets(burst=4.0, rate=0.1)

    async def challenge(self, request: Request) -> Response:
        """What proofs are to bear that nodes with a key of their own show here; anybody may know it."""
        proofs = self._coordinator.members.proofs
        answer = Challenge(proofs.challenge, proofs.now)
        return Response(msgspec.json.encode(answer), media_type="application/json")

    async def here(self, request: Request) -> Response:
        """204 if this node is connected, 409 if not: it may believe that it is."""
        seen = self._coordinator.presence.get(self._asking(request, self._questions))
        return Response(status_code=204 if seen is not None and seen.connected else 409)

    async def wanted(self, request: Request) -> Response:
        """The data sets of jobs that go on, and one to try out with."""
        self._asking(request, self._questions)
        known = self._wanted()
        items = [WantedData(name, known[name], self._bundled(name)) for name in sorted(known)]
        return Response(msgspec.json.encode({"items": items}), media_type="application/json")

    async def assigned(self, request: Request) -> Response:
        """This node's own part of a bundled set, as tensors; the same every time."""
        node, name = self._asking(request, self._rows), request.path_params["name"]
        if name not in self._wanted() or not self._bundled(name):  # others may have to be downloaded first
            raise NotFound(f"there is no bundled data set {name[:80]!r} to be given out")
        part = Choice(name, {"part": f"{crc32(node.encode()) % PARTS}/{PARTS}"})
        with TemporaryDirectory(prefix="tutti-") as folder:
            file = Path(folder) / "rows.safetensors"
            try:
                await self._coordinator.workbench.assign(part, file)
            except UserError as error:
                log.warning("no part of %s can be given out: %s", name, error)  # the files are the operator's affair
                raise NotFound(f"the coordinator has no rows of {name!r} to give out: take some of your own") from error
            return Response(file.read_bytes(), media_type="application/octet-stream")

    def _asking(self, request: Request, budget: Buckets) -> NodeId:
        """The node that sends this; raises Forbidden, and 429 for one that asks too often."""
        node = proven_node(request, self._coordinator.members)
        if not budget.allows(node):
            raise HTTPException(429, "this node asks too often: wait a moment", {"retry-after": "10"})
        budget.count(node)
        return node

    def _wanted(self) -> dict[str, DataSchema | None]:
        going_on = (job for job in self._coordinator.jobs.values() if job.status not in FINAL)
        of_jobs = {job.spec.dataset: job.data for job in going_on}
        return {DEMO: self._coordinator.known_schema(Choice(DEMO))} | of_jobs

    def _bundled(self, name: str) -> bool:
        return name in datasets and self._coordinator.known_schema(Choice(name)) is not None


def routes(browser: BrowserRoutes) -> list[BaseRoute]:
    return [
        Route("/api/v1/browser/challenge", browser.challenge),
        Route("/api/v1/browser/here", browser.here),
        Route("/api/v1/browser/wanted", browser.wanted),
        Route("/api/v1/browser/assigned/{name}", browser.assigned),
    ]

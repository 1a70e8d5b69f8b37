"""What a node in a browser asks for besides the node protocol: which data are wanted here, and rows to try out with."""

from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tutti.apps.api.transfer import proven_node
from tutti.core.errors import NotFound
from tutti.core.registry import Choice
from tutti.domain.jobs import FINAL
from tutti.domain.spec import DataSchema
from tutti.ports.training import datasets
from tutti.services.coordinator import Coordinator

PARTS = 16
"""Parts of a bundled set, of which a node without rows of its own gets one, by its name."""

DEMO = "digits"


class WantedData(msgspec.Struct, frozen=True):
    """A data set that jobs here are on; `assigned`: whoever has none of it can be given a part."""

    name: str
    data: DataSchema | None
    assigned: bool


class BrowserRoutes:
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def wanted(self, request: Request) -> Response:
        """The data sets of jobs that go on, and one to try out with."""
        proven_node(request, self._coordinator.members)
        known = self._wanted()
        items = [WantedData(name, known[name], self._bundled(name)) for name in sorted(known)]
        return Response(msgspec.json.encode({"items": items}), media_type="application/json")

    async def assigned(self, request: Request) -> Response:
        """This node's own part of a bundled set, as tensors; the same every time."""
        node, name = proven_node(request, self._coordinator.members), request.path_params["name"]
        if name not in self._wanted() or not self._bundled(name):  # others may have to be downloaded first
            raise NotFound(f"there is no bundled data set {name[:80]!r} to be given out")
        part = Choice(name, {"part": f"{crc32(node.encode()) % PARTS}/{PARTS}"})
        with TemporaryDirectory(prefix="tutti-") as folder:
            file = Path(folder) / "rows.safetensors"
            await self._coordinator.workbench.assign(part, file)
            return Response(file.read_bytes(), media_type="application/octet-stream")

    def _wanted(self) -> dict[str, DataSchema | None]:
        going_on = (job for job in self._coordinator.jobs.values() if job.status not in FINAL)
        of_jobs = {job.spec.dataset: job.data for job in going_on}
        return {DEMO: self._coordinator.known_schema(Choice(DEMO))} | of_jobs

    def _bundled(self, name: str) -> bool:
        return name in datasets and self._coordinator.known_schema(Choice(name)) is not None


def routes(browser: BrowserRoutes) -> list[BaseRoute]:
    return [
        Route("/api/v1/browser/wanted", browser.wanted),
        Route("/api/v1/browser/assigned/{name}", browser.assigned),
    ]

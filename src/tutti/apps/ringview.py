"""A page that shows a ring as it lives: one file, and the members' views as JSON beside it."""

from pathlib import Path

import msgspec
from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse, Response

from tutti.apps.ringclient import RingClient
from tutti.core.errors import TuttiError
from tutti.ring.identifiers import identifier
from tutti.services.views.base import View
from tutti.services.views.ring import Light, RingView, absent_members, ring_lights

PAGE = Path(__file__).parent / "ringview.html"


class Absent(View, frozen=True):
    """A member of the roster that gives no answer."""

    id: str
    address: str


class Shown(View, frozen=True, kw_only=True):
    """What the page shows: the members that answer, around the ring; `note` is what is not as usual."""

    members: list[RingView]
    absent: list[Absent]
    lights: tuple[Light, ...]
    note: str


def shown(views: list[RingView], note: str) -> Shown:
    absent = [Absent(f"{identifier(address):040x}", address) for address in absent_members(views)]
    return Shown(members=views, absent=absent, lights=ring_lights(views), note=note)


def create_view(client: RingClient) -> FastAPI:
    """GET / is the page, GET /ring.json what it shows."""

    app = FastAPI(title="Tutti ring", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE, headers={"content-security-policy": POLICY})

    @app.get("/ring.json")
    async def views() -> Response:
        try:
            found = await client.views()
        except TuttiError as error:
            problem = {"title": "the ring cannot be asked", "detail": str(error), "status": 503}
            return JSONResponse(problem, 503, media_type="application/problem+json")
        return Response(msgspec.json.encode(shown(found, client.note)), media_type="application/json")

    return app


POLICY = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


async def serve_view(client: RingClient, host: str, port: int) -> None:
    """Serve the page until cancelled."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(create_view(client), host=host, port=port, log_level="warning"))
    await server.serve()

"""A page that shows a ring as it lives: one file, and the members' views as JSON beside it."""

from pathlib import Path

import msgspec
from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse, Response

from tutti.apps.ringclient import RingClient
from tutti.core.errors import TuttiError

PAGE = Path(__file__).parent / "ringview.html"


def create_view(client: RingClient) -> FastAPI:
    """GET / is the page, GET /ring.json what it shows: a list of RingViews around the ring."""

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
        return Response(msgspec.json.encode(found), media_type="application/json")

    return app


POLICY = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


async def serve_view(client: RingClient, host: str, port: int) -> None:
    """Serve the page until cancelled."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(create_view(client), host=host, port=port, log_level="warning"))
    await server.serve()

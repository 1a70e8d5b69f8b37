"""The files that `web/` builds into this package: the dashboard, one page for all its addresses; the browser node."""

import gzip
import mimetypes
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from blake3 import blake3
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tutti.adapters.browser.kernel import WASM
from tutti.apps.api.problems import problem

FOLDER = Path(__file__).parent.parent / "web"
SMALL = 1024
"""Bytes below which compressing gains nothing."""


@dataclass(frozen=True, slots=True)
class Asset:
    plain: bytes
    packed: bytes | None
    headers: dict[str, str]


KERNEL = "node-kernel.wasm"
WHOLE = ("favicon.svg", "icon-192.png", "icon-512.png", "node.webmanifest", "node-worker.js")
KINDS = {".wasm": "application/wasm", ".webmanifest": "application/manifest+json", ".js": "text/javascript"}


@lru_cache(maxsize=64)
def _asset(name: str) -> Asset:
    data = (WASM if name == KERNEL else FOLDER / name).read_bytes()
    kind = KINDS.get(Path(name).suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    lasting = name.startswith("assets/")  # their names change with their content
    headers = {
        "content-type": f"{kind}; charset=utf-8" if kind.startswith("text/") else kind,
        "etag": f'"{blake3(data).hexdigest()[:32]}"',
        "cache-control": "public, max-age=31536000, immutable" if lasting else "no-cache",
        "vary": "accept-encoding",
    }
    return Asset(data, gzip.compress(data, mtime=0) if len(data) >= SMALL else None, headers)


def _answer(request: Request, name: str) -> Response:
    asset = _asset(name)
    if asset.headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=asset.headers)
    if asset.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.packed, headers=asset.headers | {"content-encoding": "gzip"})
    return Response(asset.plain, headers=asset.headers)


async def page(request: Request) -> Response:
    return _answer(request, "index.html")


async def node(request: Request) -> Response:
    return _answer(request, "node.html")


async def kernel(request: Request) -> Response:
    return _answer(request, KERNEL)


async def whole(request: Request) -> Response:
    return _answer(request, request.url.path[1:])


async def asset(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _names():
        return problem(404, f"there is no asset {name[:80]!r}: load the page again")
    return _answer(request, f"assets/{name}")


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    return frozenset(file.name for file in (FOLDER / "assets").iterdir())


def routes() -> list[BaseRoute]:
    return [
        *(Route(path, page) for path in ("/", "/dashboard", "/dashboard/{rest:path}")),
        *(Route(path, node) for path in ("/join", "/node")),
        *(Route(f"/{name}", whole) for name in WHOLE),
        Route(f"/{KERNEL}", kernel),
        Route("/assets/{name}", asset),
    ]

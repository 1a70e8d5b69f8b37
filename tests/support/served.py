"""The API over a real coordinator: in process, and behind a real uvicorn."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import httpx
import uvicorn
from fastapi import FastAPI

from support.worlds import World
from tutti.adapters.accounts.argon2 import Argon2Passwords
from tutti.adapters.accounts.memory import MemoryAccounts
from tutti.adapters.fabrics.broker import BrokerFabric
from tutti.adapters.fabrics.hub import HubFabric
from tutti.apps.api.app import create_app
from tutti.apps.api.settings import ApiSettings
from tutti.apps.sockets import Sockets
from tutti.services.accounts import Accounts
from tutti.services.members import fingerprint

TOKEN = "the-operators-token"
LOCAL = ApiSettings(host="127.0.0.1")
OPEN_TO_THE_NETWORK = ApiSettings(host="0.0.0.0", token=fingerprint(TOKEN))
BEARER = {"authorization": f"Bearer {TOKEN}"}


def app_of(
    world: World,
    settings: ApiSettings = LOCAL,
    accounts: Accounts | None = None,
    broker: BrokerFabric | None = None,
) -> FastAPI:
    accounts = accounts or Accounts(MemoryAccounts(), Argon2Passwords(), world.core.clock)
    fabric, tokens = HubFabric(world.core.members.authenticate), (world.desk, world.ledger)
    market = (world.market, world.floor)
    world.core.admit_by(lambda by, one_more: accounts.check_quota(by, one_more, world.core.used))
    stores = world.core.blobs, accounts, settings, tokens, market, world.sessions
    return create_app(world.core, fabric, *stores, broker=broker)


def caller(app: FastAPI, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    """An HTTP client that calls the app in process."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=headers)


@asynccontextmanager
async def served(app: FastAPI, port: int = 0) -> AsyncIterator[str]:
    """Serve the app on a port of the system's choice; yields its URL."""
    with closing(socket.create_server(("127.0.0.1", port))) as listener:
        config = uvicorn.Config(
            app,
            log_config=None,
            ws=Sockets,
            ws_per_message_deflate=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        running = asyncio.create_task(server._serve([listener]))  # without uvicorn's signal handlers
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running

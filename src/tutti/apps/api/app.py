"""The REST and WebSocket application over one coordinator."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.fabrics.hub import HubFabric
from tutti.adapters.partitioners import partitioners
from tutti.apps.api import accounts as account_routes
from tutti.apps.api import (
    browser,
    dashboard,
    documented,
    documented_market,
    jobs,
    ledger,
    live,
    market,
    nodes,
    sessions,
    status,
    transfer,
)
from tutti.apps.api import (
    chain as chain_routes,
)
from tutti.apps.api.auth import Buckets, Guard
from tutti.apps.api.identify import Identify
from tutti.apps.api.problems import problem, problem_of, status_of
from tutti.apps.api.prometheus import Exposition
from tutti.apps.api.repeats import Repeats
from tutti.apps.api.schema import WORDS, Api
from tutti.apps.api.settings import ApiSettings
from tutti.core.codec import codecs
from tutti.core.errors import TuttiError
from tutti.core.reduce import reducers
from tutti.core.registry import Registry
from tutti.core.schedules import schedules
from tutti.core.strategy import strategies
from tutti.ports.ledger import Ledger
from tutti.ports.training import datasets, models
from tutti.services.accounts import Accounts
from tutti.services.coordinator import Coordinator
from tutti.services.market.desk import MarketDesk
from tutti.services.market.floor import MarketFloor
from tutti.services.rewards import RewardDesk
from tutti.services.sessions import Sessions
from tutti.version import __version__

if TYPE_CHECKING:
    from tutti.adapters.fabrics.broker import BrokerFabric
    from tutti.adapters.fabrics.relayed import RelayedFabric

log = logging.getLogger(__name__)

REGISTRIES: Mapping[str, Registry[Any]] = {
    "strategies": strategies,
    "reducers": reducers,
    "codecs": codecs,
    "models": models,
    "datasets": datasets,
    "schedules": schedules,
    "partitioners": partitioners,
}

DESCRIPTION = """
Train one model together, with nobody's data leaving home.

Lists answer `{"items": […], "next": …}`; pass `next` as `after` for what follows. Errors are
[problem details](https://www.rfc-editor.org/rfc/rfc9457). Answers to GET have an `ETag`; `If-None-Match` asks only for
what changed. A POST with an `Idempotency-Key` is done once, however often it is sent. Live events come over the
WebSocket `/ws`: every message is an event as in `/api/v1/events`, and `?after=<offset>` resumes where a client left
off.
"""

TAGS = [
    {"name": "jobs", "description": "Ask for training and steer it."},
    {"name": "rounds", "description": "What happened in a job, round by round, and why."},
    {"name": "models", "description": "Models with their lineage, and their files."},
    {"name": "nodes", "description": "Who takes part, and how others join."},
    {"name": "ledger", "description": "Tokens, what they were paid for, and the proofs."},
    {"name": market.TAG, "description": "Compute jobs, who does them, who pays, and what came out."},
    {"name": "blockchain", "description": "What stands on the chain, where a coordinator uses one."},
    {"name": "coordinator", "description": "Health, status, events, metrics, and what there is to choose from."},
    {"name": account_routes.TAG, "description": "Who may do what, and who did."},
    {"name": documented.TRAINING, "description": "Aliases for the calls of a training dashboard."},
    {"name": documented.FLEET, "description": "Aliases for the calls of a device-fleet client."},
    {"name": sessions.TAG, "description": "Upload a table, and peers train on its parts."},
    {"name": documented_market.MARKET, "description": "Aliases for the calls of a compute market."},
]


def create_app(
    coordinator: Coordinator,
    fabric: HubFabric,
    blobs: DirectoryBlobs,
    accounts: Accounts,
    settings: ApiSettings,
    tokens: tuple[RewardDesk, Ledger],
    compute: tuple[MarketDesk, MarketFloor],
    uploads: Sessions,
    registries: Mapping[str, Registry[Any]] = REGISTRIES,
    chain: chain_routes.OnChain | None = None,
    broker: "BrokerFabric | None" = None,
    relayed: "RelayedFabric | None" = None,
) -> FastAPI:
    """The caller starts and stops the coordinator, loads and closes the accounts, and closes the ledger."""
    app = FastAPIOffline(  # its assets come from here: hospitals have machines without internet
        title="Tutti",
        version=__version__,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        redoc_url=None,
    )
    failures = Buckets()
    app.state.identify = identify = Identify(settings, accounts)
    app.add_middleware(Repeats)
    app.add_middleware(Guard, identify=identify, accounts=accounts, failures=failures, host=settings.host)
    _handle_errors(app)
    api = Api(app, transfer.OPENAPI_PATHS)
    its_jobs = jobs.JobRoutes(coordinator, compute[0])
    exposition = Exposition(coordinator, fabric, broker, relayed)
    _add_routes(api, coordinator, its_jobs, settings, identify, registries, failures, exposition)
    account_routes.add_routes(api, account_routes.AccountRoutes(accounts, identify, failures, coordinator.used))
    ledger.add_routes(api, ledger.LedgerRoutes(*tokens, compute[1]))
    its_market = market.MarketRoutes(*compute)
    market.add_routes(api, its_market)
    documented_market.add_routes(api, its_market)
    chain_routes.add_routes(api, chain_routes.ChainRoutes(chain))
    sessions.add_routes(api, sessions.SessionRoutes(uploads, accounts))
    live.add_routes(app, live.LiveRoutes(coordinator))
    app.router.routes += [*dashboard.routes(), *browser.routes(browser.BrowserRoutes(coordinator))]
    # Every round waits for these, and routes are tried in order: they come first.
    app.router.routes[:0] = transfer.routes(
        fabric,
        coordinator.members,
        coordinator.access,
        coordinator.stats,
        blobs,
        lambda request: request.state.operator,
    )
    return app


def _add_routes(
    api: Api,
    coordinator: Coordinator,
    its_jobs: jobs.JobRoutes,
    settings: ApiSettings,
    identify: Identify,
    registries: Mapping[str, Registry[Any]],
    failures: Buckets,
    exposition: Exposition,
) -> None:
    its_nodes = nodes.NodeRoutes(coordinator, failures, settings.url)
    its_status = status.StatusRoutes(coordinator, settings, identify, registries, exposition)
    aliases = documented.DocumentedRoutes(coordinator, its_jobs, its_nodes, registries)
    jobs.add_routes(api, its_jobs)
    nodes.add_routes(api, its_nodes)
    status.add_routes(api, its_status)
    documented.add_routes(api, aliases, its_jobs, its_nodes, its_status)


def _handle_errors(app: FastAPI) -> None:
    app.add_exception_handler(TuttiError, _on_tutti_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_bad_parameters)
    app.add_exception_handler(Exception, _on_our_mistake)


async def _on_tutti_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TuttiError)
    if status_of(error) >= 500:
        log.error("%s %s: %s", request.method, request.url.path, error)
    return problem_of(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if error.status_code == 404 and detail == "Not Found":
        detail = f"there is nothing at {request.url.path}; /docs lists what there is"
    if error.status_code == 405:
        detail = f"{request.method} does not work on {request.url.path}"
    return problem(error.status_code, detail, headers=error.headers)


async def _on_bad_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = []
    for found in error.errors():
        words = WORDS.get(found.get("ctx", {}).get("pattern", ""))
        said = f"expected {words}, came {str(found['input'])[:100]!r}" if words else found["msg"]
        details.append(f"{found['loc'][-1]}: {said}")
    return problem(422, "; ".join(details))


async def _on_our_mistake(request: Request, error: Exception) -> Response:
    """The server logs the traceback; whoever called learns only that it was not their fault."""
    return problem(500, "something went wrong here; the coordinator's log has the details")

"""The documented calls of a compute market, on the same handlers: aliases, without any logic of their own.

`GET /health` and `GET /` are canonical here anyway.
"""

from tutti.apps.api.market import MarketRoutes
from tutti.apps.api.schema import Api

MARKET = "documented: compute market"


def add_routes(api: Api, its: MarketRoutes) -> None:
    api.add("POST", "/worker/register", its.register_worker, MARKET, 201)
    api.add("GET", "/worker/{worker}/status", its.show_worker, MARKET)
    api.add("GET", "/workers", its.list_workers, MARKET)
    api.add("POST", "/client/register", its.register_client, MARKET, 201)
    api.add("GET", "/client/{client}/balance", its.show_client, MARKET)
    api.add("GET", "/clients", its.list_clients, MARKET)
    api.add("POST", "/job/submit", its.submit, MARKET, 201)
    api.add("GET", "/job/{job}/status", its.show_job, MARKET)
    api.add("GET", "/jobs", its.list_jobs, MARKET)
    api.add("GET", "/jobs/pending", its.list_pending, MARKET)
    api.add("GET", "/network/stats", its.show, MARKET)
    api.add("POST", "/network/coordination/start", its.start, MARKET)
    api.add("POST", "/network/coordination/stop", its.stop, MARKET)
    api.add("POST", "/network/coordination/trigger", its.trigger, MARKET)

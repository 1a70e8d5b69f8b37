"""The compute market from Python, as `client.market`: the REST API with the same types as the server's.

with tutti.Client() as client:
    market = client.market
    market.register_client("alice", balance=1000)
    table = market.upload(Path("rows.csv").read_bytes(), target="price")
    job = market.wait(market.submit("alice", "linear_regression", 50, data=table.data).job_id)
    print(market.result(job.job_id).values)
"""

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, repeat
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from tutti.services.views.ledger import BalanceView
from tutti.services.views.market import (
    ClientView,
    ComputeJobView,
    MarketView,
    ResultView,
    TableView,
    WorkerView,
)

T = TypeVar("T")

POLL_SECONDS = (0.05, 0.1, 0.2, 0.5)


class Call(Protocol):
    """Of one path of `/api/v1`: its answer as a value of `type`."""

    def __call__(
        self,
        method: str,
        path: str,
        type: type[T],
        *,
        body: object = None,
        headers: Mapping[str, str] = ...,
        query: Mapping[str, object] = ...,
        raw: bytes | None = None,
    ) -> T: ...


class Pages(Protocol):
    """Of one list: all its items."""

    def __call__(self, path: str, type: type[T], /, **query: Any) -> Iterator[T]: ...


class MarketClient:
    """Made by `Client.market`; `call` and `pages` are those of its client."""

    def __init__(self, call: Call, pages: Pages) -> None:
        self._call, self._pages = call, pages

    def show(self) -> MarketView:
        return self._call("GET", "/market", MarketView)

    def workers(self) -> Iterator[WorkerView]:
        """By name."""
        return self._pages("/market/workers", WorkerView)

    def worker(self, name: str) -> WorkerView:
        return self._call("GET", f"/market/workers/{quote(name)}", WorkerView)

    def unstake(self, name: str, amount: int, *, key: str) -> WorkerView:
        """Take stake back, as far as it is not at risk with work that goes on."""
        path, headers = f"/market/workers/{quote(name)}/unstake", {"idempotency-key": key}
        return self._call("POST", path, WorkerView, body={"amount": amount}, headers=headers)

    def withdraw(self, name: str, *, key: str) -> BalanceView:
        """Take the stake that has unbonded."""
        path, headers = f"/market/workers/{quote(name)}/withdraw", {"idempotency-key": key}
        return self._call("POST", path, BalanceView, headers=headers)

    def clients(self) -> Iterator[ClientView]:
        """By name."""
        return self._pages("/market/clients", ClientView)

    def client(self, name: str) -> ClientView:
        return self._call("GET", f"/market/clients/{quote(name)}", ClientView)

    def register_client(self, name: str, balance: int = 0) -> ClientView:
        """An admin may give it a first balance, which is made once."""
        body = {"client_address": name, "initial_balance": balance}
        return self._call("POST", "/market/clients", ClientView, body=body)

    def upload(self, table: bytes, target: str = "") -> TableView:
        """A table for jobs to come: CSV with a line of names, or NPZ with the arrays `x` and perhaps `y`."""
        return self._call("POST", "/market/tables", TableView, raw=table, query={"target": target})

    def submit(
        self,
        client: str,
        kind: str,
        reward: int,
        *,
        options: Mapping[str, Any] = {},
        data: str = "",
        key: str = "",
        **wish: object,
    ) -> ComputeJobView:
        """Ask for work; see ComputeRequest in the API for what else can be wished. The same key is the same job."""
        body = {
            "client_address": client,
            "model_type": kind,
            "reward": reward,
            "options": options,
            "data": data,
            **wish,
        }
        headers = {"idempotency-key": key} if key else {}
        return self._call("POST", "/market/jobs", ComputeJobView, body=body, headers=headers)

    def jobs(self, **filters: str) -> Iterator[ComputeJobView]:
        """Newest first; filter by status or client."""
        return self._pages("/market/jobs", ComputeJobView, **filters)

    def job(self, job: str) -> ComputeJobView:
        return self._call("GET", f"/market/jobs/{quote(job)}", ComputeJobView)

    def wait(self, job: str, told: Callable[[ComputeJobView], None] = lambda _: None) -> ComputeJobView:
        """The job, once it has been verified or has failed, and everything is paid; `told` of each change till then."""
        before, pauses = None, chain(POLL_SECONDS, repeat(POLL_SECONDS[-1]))
        while not (found := self.job(job)).settled:
            if found != before:
                told(found)
            before = found
            time.sleep(next(pauses))
        return found

    def result(self, job: str) -> ResultView:
        return self._call("GET", f"/market/jobs/{quote(job)}/result", ResultView)

    def dispute(self, job: str, reason: str = "") -> ComputeJobView:
        """Have a result made again by a further worker, and replayed in full."""
        path = f"/market/jobs/{quote(job)}/dispute"
        return self._call("POST", path, ComputeJobView, body={"reason": reason})

    def coordinate(self, on: bool) -> None:
        """Assign jobs, or stop doing so."""
        self._call("POST", f"/market/coordination/{'start' if on else 'stop'}", dict[str, Any])

"""The compute market: workers and their stakes, clients and their balances, compute jobs and their results."""

import asyncio
from bisect import bisect_right
from typing import Annotated, Any

import msgspec
import numpy as np
from fastapi import Depends, Query, Request
from msgspec import Meta
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tutti.apps.api.jobs import Key, Text, caller, order_key, person
from tutti.apps.api.schema import After, Answer, Api, Body, Limit, OrderKey
from tutti.core.errors import NotFound
from tutti.core.registry import Choice, Option
from tutti.core.workload import workloads
from tutti.domain.ledger.operations import Amount
from tutti.domain.market.events import WorkerRegistered
from tutti.domain.market.jobs import ComputeJob, Status
from tutti.domain.market.money import ClientName, TableDigest, client_account, worker_account
from tutti.domain.market.standing import Market
from tutti.domain.spec import Name
from tutti.services.market.desk import MarketDesk, Wish
from tutti.services.market.floor import MarketFloor
from tutti.services.market.tables import LARGEST, read_table
from tutti.services.views.base import Page, View
from tutti.services.views.ledger import BalanceView, balance_view
from tutti.services.views.market import (
    ClientView,
    ComputeJobView,
    KindView,
    MarketView,
    ResultView,
    TableView,
    WorkerView,
    job_view,
    market_view,
    worker_view,
)
from tutti.wire.tables import decode, encode_table

TAG = "market"

GPUS = {
    "NVIDIA H100": 67_000.0,
    "NVIDIA A100": 19_500.0,
    "NVIDIA V100": 15_700.0,
    "NVIDIA T4": 8_100.0,
    "RTX 4090": 82_600.0,
    "RTX 4080": 48_700.0,
    "RTX 3090": 35_600.0,
    "RTX 3080": 29_800.0,
    "RTX 3060": 12_700.0,
    "AMD MI300X": 163_400.0,
    "Apple M3 Max": 14_200.0,
    "CPU only": 100.0,
}
"""GFLOP/s (float32) that makers state, to fill in forms with; what counts is what is measured."""

MOST_NUMBERS = 10_000


class WorkerRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Registers a worker; it works once the node of this name joins with `--worker`.

    `gpu_type` and `compute_capacity` (GFLOP/s) are claims: shown, measured, and called unverified if that says less.
    """

    worker_id: Name
    stake_amount: Amount
    gpu_type: Annotated[str, Meta(max_length=100)] = ""
    compute_capacity: Annotated[float, Meta(ge=0, le=1e12)] = 0.0
    price: Amount = 1
    kinds: tuple[str, ...] = ()
    owner: Annotated[str, Meta(max_length=100)] = ""


class ClientRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Registers a client; only an admin gives it a first balance."""

    client_address: ClientName
    initial_balance: Annotated[int, Meta(ge=0, le=2**53)] = 0


class ComputeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for work. `data`: the digest of an uploaded table; without, a bundled sample is used.

    `gpu`: only workers whose GPU was measured. `replicas` workers of different owners share the reward. The job fails
    after `seconds` without a result; one that was verified can be disputed for `window` seconds, and is paid then.
    """

    client_address: ClientName
    model_type: str
    reward: Amount
    options: dict[str, Option] = {}
    data: TableDigest = ""
    seed: Annotated[int, Meta(ge=0, le=2**48)] = 0
    replicas: Annotated[int, Meta(ge=1, le=9)] = 1
    gpu: bool = False
    seconds: Annotated[float, Meta(ge=1, le=30 * 86_400)] = 3600.0
    window: Annotated[float, Meta(ge=0, le=30 * 86_400)] = 0.0


class DisputeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: Annotated[str, Meta(max_length=500)] = ""


class UnstakeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    amount: Amount


class CoordinationView(View, frozen=True, kw_only=True):
    """`assigned`: jobs that this very request gave to workers."""

    status: str
    coordinating: bool
    assigned: int = 0


class MarketRoutes:
    def __init__(self, desk: MarketDesk, floor: MarketFloor) -> None:
        self._desk, self._floor = desk, floor

    @property
    def _market(self) -> Market:
        return self._desk.market

    async def show(self) -> Answer[MarketView]:
        """The market in one look: what its dashboard shows."""
        active = sum(offered.registration.offer is not None for offered in self._floor.present.values())
        totals = await self._desk.ledger.totals()
        return Answer(market_view(self._market, active, totals, _kinds(), GPUS))

    # -- workers -------------------------------------------------------------------------------------------

    async def list_workers(self, limit: Limit = 100, after: After = "") -> Answer[Page[WorkerView]]:
        """The workers, by name."""
        names = sorted(self._market.workers)
        first = bisect_right(names, after)
        found = [self._worker(name) for name in names[first : first + limit]]
        return Answer(Page(items=found, next=found[-1].worker_id if len(names) > first + limit else None))

    async def show_worker(self, worker: str) -> Answer[WorkerView]:
        self._desk.worker(worker)
        return Answer(self._worker(worker))

    def _worker(self, name: str) -> WorkerView:
        present, known = self._floor.present.get(name), self._market.workers[name]
        staked = self._desk.stakes.get(name, 0)
        note = ""
        if present is None or present.registration.offer is None:
            note = "is not connected as a worker: `tutti join <link> --worker`"
        elif present.lacks:
            note = present.lacks
        elif staked < self._market.rules.min_stake:
            note = f"has {staked} tokens at stake, the least is {self._market.rules.min_stake}"
        elif known.gflops <= 0:
            note = "has not been measured yet"
        else:
            note = "; ".join(known.unsupported(self._market.rules))
        return worker_view(known, self._market, connected=present is not None, staked=staked, note=note)

    async def register_worker(
        self, request: Request, wish: Annotated[WorkerRequest, Depends(Body(WorkerRequest))]
    ) -> Answer[WorkerView]:
        """Register a worker with its stake. An admin may register one that has no tokens yet: they are made."""
        offer = WorkerRegistered(
            at=0,
            worker=wish.worker_id,
            stake=wish.stake_amount,
            owner=wish.owner,
            gpu=wish.gpu_type,
            claimed=wish.compute_capacity,
            price=wish.price,
            kinds=wish.kinds,
        )
        await self._desk.register_worker(offer, person(request), grant=True)
        where = f"/api/v1/market/workers/{wish.worker_id}"
        return Answer(self._worker(wish.worker_id), 201, {"location": where})

    async def unstake(
        self,
        request: Request,
        worker: str,
        wish: Annotated[UnstakeRequest, Depends(Body(UnstakeRequest))],
        key: OrderKey,
    ) -> Answer[WorkerView]:
        """Take stake back, as far as it is not at risk with work that goes on. If it unbonds: `withdraw` it later."""
        await self._desk.unstake(worker, wish.amount, order_key(request, key), person(request))
        return await self.show_worker(worker)

    async def withdraw(self, request: Request, worker: str, key: OrderKey) -> Answer[BalanceView]:
        """Take the stake that has unbonded: all of it, once the ledger's period since the last `unstake` is over."""
        held = await self._desk.withdraw(worker, order_key(request, key), person(request))
        return Answer(balance_view(worker_account(worker), held))

    # -- clients -------------------------------------------------------------------------------------------

    async def list_clients(self, limit: Limit = 100, after: After = "") -> Answer[Page[ClientView]]:
        """The clients, by name."""
        names = sorted(self._market.clients)
        first = bisect_right(names, after)
        found = [await self._client(name) for name in names[first : first + limit]]
        return Answer(Page(items=found, next=found[-1].client_address if len(names) > first + limit else None))

    async def show_client(self, client: str) -> Answer[ClientView]:
        """A client and its balance."""
        self._desk.client(client)
        return Answer(await self._client(client))

    async def _client(self, name: str) -> ClientView:
        jobs = [job for job in self._market.jobs.values() if job.submitted.client == name]
        return ClientView(
            client_address=name,
            balance=(await self._desk.ledger.account(client_account(name))).free,
            escrowed=sum(job.submitted.reward for job in jobs if job.funded and not job.settled),
            jobs=len(jobs),
            by=self._market.clients[name].by,
        )

    async def register_client(
        self, request: Request, wish: Annotated[ClientRequest, Depends(Body(ClientRequest))]
    ) -> Answer[ClientView]:
        """Register a client. An admin may give it a first balance, which is made once."""
        await self._desk.register_client(wish.client_address, wish.initial_balance, person(request))
        where = f"/api/v1/market/clients/{wish.client_address}"
        return Answer(await self._client(wish.client_address), 201, {"location": where})

    # -- jobs ----------------------------------------------------------------------------------------------

    async def upload(self, request: Request, target: Annotated[str, Query(max_length=200)] = "") -> Answer[TableView]:
        """Upload a table for jobs to come: CSV with a line of names, or NPZ with arrays `x` and perhaps `y`, `start`.

        `target` names the CSV column that linear regression is to predict. A table waits a day for its job.
        """
        body = await _read(request)
        table = await asyncio.to_thread(read_table, body, target)
        digest = await self._desk.keep_table(await asyncio.to_thread(encode_table, table), person(request))
        rows, columns = table.x.shape
        return Answer(TableView(data=digest, rows=rows, columns=columns, target=table.y is not None), 201)

    async def submit(
        self, request: Request, wish: Annotated[ComputeRequest, Depends(Body(ComputeRequest))], key: Key = ""
    ) -> Answer[ComputeJobView]:
        """Ask for work; its reward goes into escrow. The same `Idempotency-Key` again gives the same job."""
        asked = Wish(
            client=wish.client_address,
            kind=_kind(wish),
            reward=wish.reward,
            data=wish.data,
            seed=wish.seed,
            replicas=wish.replicas,
            gpu=wish.gpu,
            seconds=wish.seconds,
            window=wish.window,
        )
        job = await self._desk.submit(asked, person(request), key)
        return Answer(self._job(job), 201, {"location": f"/api/v1/market/jobs/{job.id}"})

    async def list_jobs(
        self, limit: Limit = 100, after: After = "", status: Text = "", client: Text = ""
    ) -> Answer[Page[ComputeJobView]]:
        """Compute jobs, the newest first."""
        found, seen = list[ComputeJobView](), not after
        for job in reversed(self._market.jobs.values()):
            if len(found) > limit:
                break
            if seen and (not client or job.submitted.client == client):
                view = self._job(job)
                found += [view] if not status or view.status == status else []
            seen = seen or job.id == after
        return Answer(Page(items=found[:limit], next=found[limit - 1].job_id if len(found) > limit else None))

    async def list_pending(self, limit: Limit = 100, after: After = "") -> Answer[Page[ComputeJobView]]:
        """Compute jobs that wait for a worker."""
        return await self.list_jobs(limit, after, Status.PENDING)

    async def show_job(self, job: str) -> Answer[ComputeJobView]:
        return Answer(self._job(self._desk.job(job)))

    def _job(self, job: ComputeJob) -> ComputeJobView:
        return job_view(job, self._floor.trouble.get(job.id) or self._floor.assigning.why_waiting(job))

    async def result(self, job: str) -> Answer[ResultView]:
        """The verified result of a job."""
        found = self._desk.job(job)
        if found.verified is None:
            raise NotFound(f"compute job {job} is {found.status}: it has no verified result")
        attempt = found.attempt(found.verified)
        arrays = decode(await self._desk.blobs.read(attempt.result))
        cut = [name for name, array in arrays.items() if array.size > MOST_NUMBERS]
        values = {name: _plain(array) for name, array in arrays.items()}
        return Answer(
            ResultView(
                job_id=job,
                model_type=found.submitted.kind.name,
                digest=attempt.result,
                worker_id=attempt.worker,
                values=values,
                cut=cut,
            )
        )

    async def dispute(
        self, request: Request, job: str, wish: Annotated[DisputeRequest, Depends(Body(DisputeRequest))]
    ) -> Answer[ComputeJobView]:
        """Doubt a result, within the job's window: a further worker makes it again, and all of it is replayed."""
        return Answer(self._job(await self._desk.dispute(job, person(request), wish.reason)))

    # -- coordination --------------------------------------------------------------------------------------

    async def start(self, request: Request) -> Answer[CoordinationView]:
        """Assign jobs to workers, as it does from the beginning."""
        await self._desk.coordinate(True, caller(request))
        return Answer(CoordinationView(status="started", coordinating=True))

    async def stop(self, request: Request) -> Answer[CoordinationView]:
        """Assign no further job; what is assigned goes on."""
        await self._desk.coordinate(False, caller(request))
        return Answer(CoordinationView(status="stopped", coordinating=False))

    async def trigger(self) -> Answer[CoordinationView]:
        """Assign now what can be assigned now; there is no need to, for that happens by itself."""
        assigned = await self._floor.assigning.assign()
        return Answer(CoordinationView(status="triggered", coordinating=self._market.coordinating, assigned=assigned))


def _kind(wish: ComputeRequest) -> Choice:
    """The kind with its options, checked; `linear-regression` is as good as `linear_regression`."""
    name = wish.model_type.strip().lower().replace("-", "_").replace(" ", "_")
    choice = Choice({"k_means": "kmeans"}.get(name, name), wish.options)
    workloads.build(choice)
    return choice


def _kinds() -> list[KindView]:
    found = []
    for name in workloads:
        schema = workloads.schema(name)
        options = schema.get("properties", {})
        needs = name in ("linear_regression", "training")
        found.append(KindView(name=name, description=schema["description"], options=options, needs_target=needs))
    return found


def _plain(array: "np.ndarray[Any, np.dtype[np.float64]]") -> Any:
    if array.ndim == 0:
        return float(array)
    row = max(1, array[0].size) if len(array) else 1
    return array[: max(1, MOST_NUMBERS // row)].tolist()


async def _read(request: Request) -> bytes:
    """The bytes of an upload; refuses more than LARGEST (413)."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST:
                raise HTTPException(413, f"a table may have {LARGEST} bytes, this one has more")
    except ClientDisconnect:
        raise HTTPException(400, "the request ended before its body did") from None
    return bytes(body)


def add_routes(api: Api, its: MarketRoutes) -> None:
    root = "/api/v1/market"
    api.add("GET", root, its.show, TAG)
    api.add("GET", root + "/workers", its.list_workers, TAG)
    api.add("POST", root + "/workers", its.register_worker, TAG, 201)
    api.add("GET", root + "/workers/{worker}", its.show_worker, TAG)
    api.add("POST", root + "/workers/{worker}/unstake", its.unstake, TAG)
    api.add("POST", root + "/workers/{worker}/withdraw", its.withdraw, TAG)
    api.add("GET", root + "/clients", its.list_clients, TAG)
    api.add("POST", root + "/clients", its.register_client, TAG, 201)
    api.add("GET", root + "/clients/{client}", its.show_client, TAG)
    api.add("POST", root + "/tables", its.upload, TAG, 201)
    api.add("GET", root + "/jobs", its.list_jobs, TAG)
    api.add("POST", root + "/jobs", its.submit, TAG, 201)
    api.add("GET", root + "/jobs/{job}", its.show_job, TAG)
    api.add("GET", root + "/jobs/{job}/result", its.result, TAG)
    api.add("POST", root + "/jobs/{job}/dispute", its.dispute, TAG)
    api.add("POST", root + "/coordination/start", its.start, TAG)
    api.add("POST", root + "/coordination/stop", its.stop, TAG)
    api.add("POST", root + "/coordination/trigger", its.trigger, TAG)

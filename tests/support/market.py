"""A compute market in one process: real workers over the local fabric, and a client with tokens."""

import asyncio
from pathlib import Path

from support.worlds import World
from tutti.apps.nodes import no_data
from tutti.core.registry import Choice
from tutti.domain.ledger import Account, Mint, Order, Totals
from tutti.domain.market.jobs import ComputeJob
from tutti.domain.market.money import client_account, worker_account
from tutti.ports.machine import Host
from tutti.services.market.desk import Who, Wish
from tutti.services.market.judging import solve
from tutti.services.market.worker import Answer, Solve, Worker
from tutti.wire.messages import Offer

ADMIN = Who(name="admin", admin=True)
DEADLINE = 30.0


class Marketplace(World):
    """A World whose nodes are workers. Spot checks and exploration happen if `chance` says so."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._jobs = 0

    async def open(self, *, clients: int = 1, balance: int = 10_000) -> None:
        await self.up()
        for number in range(clients):
            await self.market.register_client(f"client-{number}", balance, ADMIN)

    async def hire(
        self,
        name: str,
        stake: int = 150,
        *,
        solve: Solve = solve,
        worker: type[Worker] = Worker,
        tokens: int | None = None,
        machine: Host | None = None,
        gpu: Answer | None = None,
        **offer: object,
    ) -> None:
        """Start a worker that has the tokens for its stake, and wait until it can be given work."""
        amount = stake if tokens is None else tokens
        if amount:
            await self.ledger.post(Order(f"hire/{name}", Mint(to=worker_account(name), amount=amount)))
        await self.join(
            name,
            0,
            data=no_data(),
            offer=Offer(stake=stake, **offer),
            solve=solve,
            machine=machine,
            gpu=gpu,
            worker=worker,  # type: ignore[arg-type]
        )
        if tokens is None:
            await self.until_market(lambda: name in self.floor.assigning.free() or name in self.market.market.busy)
            await self.until_market(lambda: self.market.market.workers[name].gflops > 0)

    async def submit(self, kind: str = "linear_regression", reward: int = 10, **wish: object) -> ComputeJob:
        fields = {"client": "client-0", "kind": Choice.parse(kind), "reward": reward, "seed": self._jobs} | wish
        self._jobs += 1
        return await self.market.submit(Wish(**fields), ADMIN)  # type: ignore[arg-type]

    async def until_market(self, condition) -> None:
        """Wait until an event of the market makes `condition()` true."""
        changed, before = asyncio.Event(), self.market.changed

        def told(job: str) -> None:
            before(job)
            changed.set()

        self.market.changed = told
        try:
            async with asyncio.timeout(DEADLINE):
                while not condition():
                    changed.clear()
                    await changed.wait()
        finally:
            self.market.changed = before

    async def settled(self, *jobs: ComputeJob) -> list[ComputeJob]:
        known = self.market.market.jobs
        await self.until_market(lambda: all(known[job.id].settled for job in jobs))
        return [known[job.id] for job in jobs]

    async def worker_holds(self, name: str) -> Account:
        return await self.ledger.account(worker_account(name))

    async def client_holds(self, name: str = "client-0") -> int:
        return (await self.ledger.account(client_account(name))).free

    async def balanced(self) -> Totals:
        """The sums of the ledger, which hold, whatever has happened."""
        totals = await self.ledger.totals()
        assert totals.conserved, totals
        return totals

"""A whole federation in one process: the real coordinator and real nodes over the local fabric, and a toy model.

The toy is linear regression by gradient descent in numpy: fast, deterministic, and different on every node.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from support.faults import SabotagedBlobs, SabotagedLog, Saboteur
from tutti.adapters.apart import Threads
from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.datasets import known_schema
from tutti.adapters.fabrics.local import LocalFabric, LocalLink
from tutti.adapters.identities.ed25519 import Ed25519Key
from tutti.adapters.identities.secp256k1 import verify
from tutti.adapters.identities.x25519 import seal
from tutti.adapters.ledgers.signed import SignedLedger
from tutti.adapters.ledgers.sqlite import SqliteEntries
from tutti.adapters.logs.sqlite import SqliteLog
from tutti.adapters.machine import Machine
from tutti.adapters.workbench import Bench, ThisProcess
from tutti.core.params import Params
from tutti.domain.jobs import Job
from tutti.domain.market.rules import RULES
from tutti.domain.policy import Policy
from tutti.domain.signing import Domain
from tutti.domain.spec import DataSchema, JobSpec, load_spec
from tutti.ports import Data, EventLog, Examples, LinkRefused, Report, Task, Work
from tutti.ports.identity import SigningKey
from tutti.ports.ledger import Ledger
from tutti.ports.machine import Host
from tutti.ports.training import models
from tutti.services.coordinator import Coordinator
from tutti.services.market.desk import MarketDesk
from tutti.services.market.floor import MarketFloor
from tutti.services.market.judging import solve
from tutti.services.market.worker import Answer, Solve, Worker
from tutti.services.node import NodeRuntime
from tutti.services.rewards import RewardDesk
from tutti.services.sessions import Sessions
from tutti.wire.messages import Offer

SCHEMA = DataSchema("regression", (3,), 1)
DEADLINE = 30.0


class ToyTrainer:
    """Linear regression by stochastic gradient descent. Training waits for `gate`, if there is one."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.gate = gate

    def init(self, seed: int) -> Params:
        rng = np.random.default_rng(seed)
        return Params.from_arrays({"w": rng.standard_normal(3).astype(np.float32), "b": np.zeros(1, np.float32)})

    def train(self, params: Params, examples: Examples, task: Task, report: Report) -> Work:
        if self.gate is not None:
            self.gate.wait(DEADLINE)
        local, correction = Params(params.layout, params.buffer.copy()), task.correction
        rng = np.random.default_rng(task.seed)
        for epoch in range(task.training.epochs):
            for i in rng.permutation(len(examples)):
                error = examples.x[i] @ local["w"] + local["b"][0] - examples.y[i, 0]
                added = correction.at(local.buffer, params.buffer) if correction else np.float32(0)
                local["w"][:] -= np.float32(task.lr) * error * examples.x[i]
                local["b"][:] -= np.float32(task.lr) * error
                local.buffer[:] -= np.float32(task.lr) * added
            report((epoch + 1) / task.training.epochs, epoch, None)
        return Work(local, len(examples), self.evaluate(local, examples), task.training.epochs * len(examples))

    def evaluate(self, params: Params, examples: Examples) -> dict[str, float]:
        error = examples.x @ params["w"] + params["b"] - examples.y[:, 0]
        return {"loss": float(np.mean(error**2))}


if "toy" not in models:

    @models.register("toy")
    def toy(*, data: DataSchema) -> ToyTrainer:
        """Linear regression for tests."""
        return ToyTrainer()


def toy_data(part: int) -> Data:
    rng = np.random.default_rng(part)
    x = rng.standard_normal((20, 3)).astype(np.float32) + part
    y = (x @ np.array([1.0, -2.0, 0.5], np.float32) + 0.1 * rng.standard_normal(20)).astype(np.float32)[:, None]
    return Data("toy", SCHEMA, Examples(x[:16], y[:16]), Examples(x[16:], y[16:]))


def toy_spec(nodes: int = 3, **fields: object) -> JobSpec:
    cohort = {"min_nodes": nodes, **dict(fields.pop("cohort", {}))}  # type: ignore[call-overload]
    training = {"lr": 0.01, "epochs": 2, **dict(fields.pop("training", {}))}  # type: ignore[call-overload]
    return load_spec({"dataset": "toy", "model": "toy", "rounds": 4, "cohort": cohort, "training": training, **fields})


class World:
    """Start, kill and restart a coordinator and its nodes; `folder` is what survives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.later = 0.0  # seconds by which the coordinator's clock is ahead of this machine's
        self.links: dict[str, LocalLink] = {}
        self._nodes: dict[str, asyncio.Task[None]] = {}
        self._secrets: dict[str, str] = {}
        self.rules = RULES
        self.domain = Domain()
        self.chance: Callable[[], float] | None = None
        self.open_log: Callable[[], Awaitable[EventLog]] = lambda: SqliteLog.open(folder / "log.sqlite")
        self.core: Coordinator

    async def up(self, saboteur: Saboteur | None = None, *, of: str = "log") -> Coordinator:
        """Start the coordinator; a saboteur sits before its log or its blobs (not before what nodes upload)."""
        self._saboteur, folder = saboteur or Saboteur(), self.folder / "blobs"
        log = await self.open_log()
        self.fabric = LocalFabric(
            lambda node, secret: self.core.members.authenticate(node, secret),
            DirectoryBlobs(folder),
            limit=lambda node: self.core.access.update_limit(node),
        )
        self.core = Coordinator(
            event_log=SabotagedLog(log, self._saboteur if of == "log" else Saboteur()),
            blobs=SabotagedBlobs(folder, self._saboteur if of == "blobs" else Saboteur()),
            fabric=self.fabric,
            workbench=Bench(ThisProcess()),
            known_schema=lambda choice: SCHEMA if choice.name == "toy" else known_schema(choice),
            clock=lambda: time.time() + self.later,
            verify=verify,
            domain=self.domain,
        )
        clock = self.core.clock
        self.ledger = await self.open_ledger()
        self.desk = RewardDesk(self.core.journal, self.core.blobs, self.core.workbench, self.ledger, clock, bytes(32))
        self.market = MarketDesk(self.core.journal, self.core.blobs, self.ledger, clock, self.rules)
        self.floor = MarketFloor(self.market, self.fabric, Threads(), chance=self.chance)
        self.sessions = Sessions(self.core, seal)
        self.core.lend(self.floor, self.sessions)
        self.core.keeper.retained = lambda: self.desk.retained() | self.market.retained() | self.sessions.retained()
        await self.core.start()
        self.core.background.spawn(self.desk.run())
        self.core.background.spawn(self.floor.run())
        for link in self.links.values():
            link.fabric = self.fabric
        return self.core

    async def open_ledger(self) -> Ledger:
        clock, key = self.core.clock, Ed25519Key.at(self.folder / "ledger.key")
        return await SignedLedger(SqliteEntries(self.folder / "ledger.sqlite"), key, lambda: int(1000 * clock())).open()

    async def down(self) -> None:
        """The coordinator is gone; its nodes notice, and go on trying."""
        for link in self.links.values():
            link.fabric = None
            link.drop()
        asyncio.get_running_loop().call_soon(self._saboteur.release)
        await self.core.stop()
        await self.ledger.close()

    async def join(
        self,
        name: str,
        part: int,
        policy: Policy | None = None,
        gate: threading.Event | None = None,
        data: Data | None = None,
        offer: Offer | None = None,
        solve: Solve = solve,
        worker: type[Worker] = Worker,
        key: SigningKey | None = None,
        machine: Host | None = None,
        gpu: Answer | None = None,
    ) -> None:
        if name not in self._secrets:
            self._secrets[name] = await self.core.members.admit(await self.core.members.invite(), name)
        link = self.links[name] = LocalLink(self.fabric)
        runtime = NodeRuntime(
            name=name,
            token=self._secrets[name],
            link=link,
            data=data or toy_data(part),
            policy=policy or Policy(),
            machine=machine or Machine(),
            workdir=self.folder / "nodes" / name,
            trainer_for=lambda model, data: ToyTrainer(gate) if gate else models.build(model, data=data),
            worker=worker(name, self._secrets[name], offer, link, self.folder / "market" / name, solve, gpu=gpu)
            if offer
            else None,
            key=key,
        )
        self._nodes[name] = asyncio.create_task(runtime.run())

    def task(self, name: str) -> "asyncio.Task[None]":
        """A node's life."""
        return self._nodes[name]

    def look_again(self) -> None:
        """What a timer would do that went by the coordinator's clock."""
        self.core._nodes_changed()

    async def kill(self, name: str) -> None:
        """The node's process dies: no goodbye."""
        self.links.pop(name).drop()
        task = self._nodes.pop(name)
        task.cancel()
        with suppress(asyncio.CancelledError, LinkRefused):
            await task

    async def finished(self, job: Job) -> Job:
        async with asyncio.timeout(DEADLINE):
            return await self.core.wait_final(job.id)

    async def until(self, condition, job: Job) -> None:
        """Wait until an event makes `condition(job)` true."""
        async with asyncio.timeout(DEADLINE):
            await self.core.wait_for(job.id, condition)

    async def close(self) -> None:
        self._saboteur.release()
        for name in list(self._nodes):
            await self.kill(name)
        await self.core.stop()
        await self.ledger.close()

"""A ring of real processes: a supernode and members, by their commands."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from support.commands import Running, running
from tutti.adapters.datasets import parts
from tutti.adapters.thrift.node import peer_at
from tutti.apps.ringclient import RingClient
from tutti.ports.training import Data
from tutti.services.views.ring import RingView


@dataclass
class Ring:
    """A supernode and members in processes of their own."""

    folder: Path
    stack: ExitStack
    port: int
    supernode: Running
    members: dict[str, Running] = field(default_factory=dict)

    def start(self, port: int, *options: object, **environment: str) -> str:
        address = f"127.0.0.1:{port}"
        state = self.folder / str(port)
        arguments = ("ring", "node", port, "127.0.0.1", self.port, "--state-dir", state, *options)
        self.members[address] = self.stack.enter_context(running(*arguments, cwd=self.folder, **environment))
        return address

    def views(self, at: str | None = None) -> list[RingView]:
        async def ask() -> list[RingView]:
            client = RingClient(at or f"127.0.0.1:{self.port}")
            try:
                return await client.views()
            finally:
                await client.close()

        return asyncio.run(ask())

    async def until(self, condition: Callable[[list[RingView]], bool], at: str | None = None) -> list[RingView]:
        client = RingClient(at or f"127.0.0.1:{self.port}")
        try:
            async with asyncio.timeout(180):
                async for views in client.watch():
                    if condition(views):
                        return views
        finally:
            await client.close()

    def until_all_are_there(self) -> list[RingView]:
        count = len(self.members)
        return asyncio.run(
            self.until(lambda views: len(views) == count and all(len(view.roster) == count for view in views))
        )


def owned_rows(whole: Data, addresses: list[str]) -> dict[str, NDArray[np.int64]]:
    """Which rows of a data set that is placed on a ring of these members each of them trains on."""
    owned = parts.owners(parts.cut(whole), [peer_at(address) for address in addresses])
    return {peer.address: np.sort(np.concatenate([part.rows for part in mine])) for peer, mine in owned.items() if mine}

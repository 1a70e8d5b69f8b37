"""Members of a ring in one process, on real sockets."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.blobs.held import HeldBlobs
from tutti.adapters.thrift.idl import CHUNK, compute_node
from tutti.adapters.thrift.node import ComputeNode, ThriftPeers, peer_at
from tutti.adapters.thrift.server import Server
from tutti.ring.identifiers import Peer
from tutti.services.ring import RingMember

LARGEST_HELD = 4 * CHUNK
"""Larger blobs go to the disk as they come."""


class Running:
    """One member, its server and its calls to others."""

    def __init__(
        self,
        root: Path,
        *,
        server_tls: ssl.SSLContext | None = None,
        tls: ssl.SSLContext | None = None,
        members: Collection[str] = (),
    ) -> None:
        self.blobs = HeldBlobs(DirectoryBlobs(root), largest=LARGEST_HELD)
        self.peers = ThriftPeers(tls=tls)
        self.handler = ComputeNode(self, self.blobs, limit=10_000_000, members=members)
        self.server = Server(compute_node.ComputeNode, self.handler, tls=server_tls)
        self.running: asyncio.Task[None] | None = None

    async def start(self, seeds: tuple[Peer, ...] = (), port: int = 0, incarnation: int = 0) -> None:
        self.port = await self.server.start("127.0.0.1", port)
        self.ring = RingMember(peer_at(f"127.0.0.1:{self.port}", incarnation), self.peers, seeds, every=0.02)
        self.running = asyncio.create_task(self.ring.run())

    async def stop(self) -> None:
        """As if it were killed: nobody is told."""
        if self.running is not None:
            self.running.cancel()
            await asyncio.wait([self.running])
        await self.server.close()
        await self.peers.close()

    @property
    def peer(self) -> Peer:
        return self.ring.member.me

    async def asked(self, key, asker):
        return await self.ring.asked(key, asker)

    async def told(self, peer):
        await self.ring.told(peer)


@asynccontextmanager
async def ring(root: Path, count: int, **options: object) -> AsyncIterator[list[Running]]:
    """`count` members, each joined through the first."""
    nodes: list[Running] = []
    try:
        for number in range(count):
            node = Running(root / str(number), **options)  # type: ignore[arg-type]
            nodes.append(node)
            await node.start((nodes[0].peer,) if number else ())
        yield nodes
    finally:
        for node in nodes:
            await node.stop()


async def in_order(nodes: list[Running]) -> None:
    """Wait until these, and nobody else, are the ring."""
    ids = sorted(node.peer.id for node in nodes)
    for node in nodes:
        at = ids.index(node.peer.id)
        after = (ids[at + 1 :] + ids[:at])[:3]
        await node.ring.until(
            lambda member, after=after, before=ids[at - 1]: (
                [peer.id for peer in member.successors[:3]] == after
                and (not after or (member.predecessor is not None and member.predecessor.id == before))
            )
        )

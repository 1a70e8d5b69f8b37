"""The least that a round can be: asyncio streams, model down, update up, everybody at once; no log, no hash, no HTTP.

python _bare.py serve <fd> <nodes> <bytes> <rounds>      prints the seconds of each round
python _bare.py nodes <port> <nodes> <bytes>
"""

import asyncio
import contextlib
import json
import socket
import sys
import time

import uvloop

LIMIT = 1 << 20
Channel = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def serve(listener: socket.socket, nodes: int, size: int, rounds: int) -> None:
    channels: asyncio.Queue[Channel] = asyncio.Queue()
    model, durations = bytes(size), []
    async with await asyncio.start_server(lambda r, w: channels.put_nowait((r, w)), sock=listener, limit=LIMIT):
        print(json.dumps({"ready": nodes}), flush=True)
        cohort = [await channels.get() for _ in range(nodes)]
        for _ in range(rounds + 1):
            start = time.perf_counter()
            await asyncio.gather(*(exchange(reader, writer, model) for reader, writer in cohort))
            durations.append(time.perf_counter() - start)
        for _, writer in cohort:
            writer.close()
    print(json.dumps({"seconds": durations[1:]}), flush=True)


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, model: bytes) -> None:
    writer.write(model)
    await writer.drain()
    await reader.readexactly(len(model))


async def node(port: int, size: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=LIMIT)
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            writer.write(await reader.readexactly(size))
            await writer.drain()
    writer.close()


async def many(port: int, nodes: int, size: int) -> None:
    await asyncio.gather(*(node(port, size) for _ in range(nodes)))


if __name__ == "__main__":
    kind, where, *sizes = sys.argv[1], *map(int, sys.argv[2:])
    if kind == "serve":
        uvloop.run(serve(socket.socket(fileno=where), *sizes))
    else:
        uvloop.run(many(where, *sizes))

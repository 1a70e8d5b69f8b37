"""Peers for the benchmarks of the API, served as `tutti up` serves: an echo over WebSockets, a route with a constant.

python _served.py <fd>
"""

import asyncio
import json
import socket
import sys
import threading

import uvicorn
import uvloop
from fastapi import FastAPI, WebSocket, WebSocketDisconnect


def create_app() -> FastAPI:
    app = FastAPI()

    @app.get("/constant")
    async def constant() -> dict[str, str]:
        return {"status": "healthy"}

    @app.websocket("/echo")
    async def echo(channel: WebSocket) -> None:
        await channel.accept()
        try:
            while True:
                await channel.send_text(await channel.receive_text())
        except WebSocketDisconnect:
            return

    return app


async def serve(listener: socket.socket) -> None:
    config = uvicorn.Config(
        create_app(),
        log_config=None,
        access_log=False,
        http="httptools",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        server_header=False,
        lifespan="off",
    )
    server, loop = uvicorn.Server(config), asyncio.get_running_loop()

    def end_at_eof() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(setattr, server, "should_exit", True)

    threading.Thread(target=end_at_eof, daemon=True).start()
    await server.serve(sockets=[listener])


if __name__ == "__main__":
    print(json.dumps({"ready": 1}), flush=True)
    uvloop.run(serve(socket.socket(fileno=int(sys.argv[1]))))

"""`WS /ws`: events as they are logged. Every message carries its offset; coming back with the last one misses nothing.

A client reads from the log itself, one batch at a time, so that a slow one costs no memory; one that takes
nothing for SEND_SECONDS is disconnected, and may resume.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

import msgspec
from fastapi import FastAPI, Query, WebSocket
from starlette.websockets import WebSocketDisconnect

from tutti.ports.log import Recorded
from tutti.services.coordinator import Coordinator
from tutti.services.views import event_view

SEND_SECONDS = 15.0
GOING_AWAY, POLICY, TRY_AGAIN_LATER = 1001, 1008, 1013  # https://www.rfc-editor.org/rfc/rfc6455#section-7.4


class LiveRoutes:
    def __init__(self, coordinator: Coordinator, send_seconds: float = SEND_SECONDS) -> None:
        self._coordinator, self._send_seconds = coordinator, send_seconds

    async def live(
        self, websocket: WebSocket, after: Annotated[int | None, Query(ge=0)] = None, stream: str = ""
    ) -> None:
        """Send every event above `after` (by default only new ones), of one stream or of all, for ever."""
        await websocket.accept()
        start = self._coordinator.journal.offset if after is None else after
        sending = asyncio.create_task(self._send(websocket, start, stream))
        hanging_up = asyncio.create_task(_until_closed(websocket))
        try:
            await asyncio.wait([sending, hanging_up], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, hanging_up):
                task.cancel()
            await asyncio.gather(sending, hanging_up, return_exceptions=True)

    async def _send(self, websocket: WebSocket, after: int, stream: str) -> None:
        sent = after
        try:
            async for recorded in self._events(after, stream):
                if not websocket.state.still():
                    await self._close(websocket, POLICY, f"the session has ended; come back with after={sent}")
                    return
                text = msgspec.json.encode(event_view(recorded)).decode()
                async with asyncio.timeout(self._send_seconds):
                    await websocket.send_text(text)
                sent = recorded.offset
            await self._close(websocket, GOING_AWAY, "the coordinator stops")
        except TimeoutError:
            await self._close(websocket, TRY_AGAIN_LATER, f"too slow; come back with after={sent}")
        except WebSocketDisconnect:
            return

    async def _events(self, after: int, stream: str) -> AsyncIterator[Recorded]:
        """The backlog of one stream is read by its index; only what is new is looked through."""
        log, newest = self._coordinator.log, self._coordinator.journal.offset
        while stream and (batch := await log.read(after, stream=stream)):
            for recorded in batch:
                yield recorded
                after = recorded.offset
        if stream:
            after = max(after, newest)
        async for batch in log.follow(after):
            for recorded in batch:
                if not stream or recorded.stream == stream:
                    yield recorded

    async def _close(self, websocket: WebSocket, code: int, reason: str) -> None:
        with suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
            async with asyncio.timeout(self._send_seconds):
                await websocket.close(code, reason)


async def _until_closed(websocket: WebSocket) -> None:
    """Read and forget what the client says, until it leaves."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


def add_routes(app: FastAPI, live: LiveRoutes) -> None:
    app.add_api_websocket_route("/ws", live.live)

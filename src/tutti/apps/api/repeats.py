"""`Idempotency-Key` on any POST: a request that comes again gets the first one's answer, and is not done twice.

Answers are kept in memory, for a day at most. A job's key is kept with the job, for ever (see `Coordinator.submit`).
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from blake3 import blake3
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutti.apps.api.problems import problem

LASTING = frozenset({"/api/v1/jobs", "/api/v1/market/jobs", "/job/submit"})
"""Paths whose handlers see to their keys themselves."""

KEPT, KEPT_SECONDS = 1000, 86_400.0
LONGEST_KEY, LARGEST_BODY, LARGEST_ANSWER = 200, 1 << 20, 1 << 16

Key = tuple[str, str, str]


@dataclass(slots=True, eq=False)
class _Kept:
    """What was asked, as a digest, and the messages of the answer once `done` is set; none if it is not kept."""

    asked: bytes
    at: float
    done: asyncio.Event = field(default_factory=asyncio.Event)
    messages: list[Message] = field(default_factory=list)


class Repeats:
    """ASGI middleware, within the guard."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._clock = app, clock
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = Headers(scope=scope).get("idempotency-key", "") if scope["type"] == "http" else ""
        identity = scope.get("state", {}).get("identity")
        if not text or scope["method"] != "POST" or identity is None or scope["path"] in LASTING:
            await self._app(scope, receive, send)
            return
        if len(text) > LONGEST_KEY:
            await problem(422, f"an Idempotency-Key has at most {LONGEST_KEY} characters")(scope, receive, send)
            return
        body = await _read(receive)
        if body is None:
            await problem(413, f"a request body may have {LARGEST_BODY} bytes, this one has more")(scope, receive, send)
            return
        asked = blake3(scope["query_string"] + b"\n" + body).digest()
        await self._answer((identity.name, scope["path"], text), asked, body, scope, receive, send)

    async def _answer(self, key: Key, asked: bytes, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        while (kept := self._known(key)) is not None:
            if kept.asked != asked:
                detail = f"the key {key[2]!r} was used for another request: choose a new key"
                await problem(409, detail)(scope, receive, send)
                return
            await kept.done.wait()
            if kept.messages:
                for message in kept.messages:
                    await send(message)
                return
        await self._do(key, asked, body, scope, receive, send)

    def _known(self, key: Key) -> _Kept | None:
        kept = self._kept.get(key)
        if kept is not None and self._clock() - kept.at > KEPT_SECONDS:
            del self._kept[key]
            return None
        return kept

    async def _do(self, key: Key, asked: bytes, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        kept = self._kept[key] = _Kept(asked, self._clock())
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        sent: list[Message] = []

        async def keep(message: Message) -> None:
            sent.append(message)
            await send(message)

        try:
            await self._app(scope, _given(body, receive), keep)
            # what was refused has not been done: it may be tried again with its key
            worth = sent and sent[0]["status"] < 400 and sum(len(m.get("body", b"")) for m in sent) <= LARGEST_ANSWER
            kept.messages = sent if worth else []
        finally:
            if not kept.messages and self._kept.get(key) is kept:
                del self._kept[key]  # it may be tried again
            kept.done.set()


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None if it is too large."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > LARGEST_BODY:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _given(body: bytes, receive: Receive) -> Receive:
    """The body once more, then whatever else comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again

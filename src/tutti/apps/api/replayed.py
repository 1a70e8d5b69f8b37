"""The body of a request that somebody else is asked, and then perhaps another one."""

from collections.abc import AsyncIterator

import aiohttp
from starlette.types import Message, Receive

KEPT_BYTES = 1 << 20
"""What is remembered of a body. One that is larger can be sent on once."""


class ReplayedBody:
    """Reads a request, and what came so far once more for each further reader; one reader at a time."""

    def __init__(self, receive: Receive) -> None:
        self.whole, self.left = True, False
        """Whether all that came so far is still here, and whether the caller has gone away."""
        self._receive, self._came, self._bytes = receive, list[Message](), 0

    def again(self) -> Receive:
        """The request from its beginning, if it is `whole`."""
        came = iter(tuple(self._came))

        async def receive() -> Message:
            if (message := next(came, None)) is not None:
                return message
            message = await self._receive()
            self._keep(message)
            return message

        return receive

    async def parts(self) -> AsyncIterator[bytes]:
        """The body from its beginning; raises ClientError if the caller goes away."""
        receive, more = self.again(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left = True
                raise aiohttp.ClientError("the caller went away")
            more = message.get("more_body", False)
            if body := message.get("body"):
                yield body

    def _keep(self, message: Message) -> None:
        self._bytes += len(message.get("body", b""))
        if self._bytes > KEPT_BYTES:
            self.whole = False
            self._came.clear()
        elif message["type"] == "http.request":
            self._came.append(message)

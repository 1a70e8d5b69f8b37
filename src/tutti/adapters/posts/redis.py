"""The post over Redis: a stream for each receiver, https://redis.io/docs/latest/develop/data-types/streams/.

What was read is deleted, so the length of a stream is what waits, and all of it is read from the beginning: nothing
that Redis forgets, or restores from an old copy, confuses anybody who numbers letters. A stream that nobody writes to
goes by itself.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from tutti.adapters.addresses import shown
from tutti.core.errors import UserError
from tutti.ports.post import PostLost

log = logging.getLogger(__name__)

KEY = "tutti:post:"
ROOM = 256
"""Envelopes that may wait for one receiver; a sender waits for a place."""

LOOK_SECONDS, PATIENCE_SECONDS = 0.02, 5.0
"""How often a sender looks for a place, and how long: whoever reads nothing for so long is gone."""

KEPT_SECONDS = 60
BLOCK_SECONDS, ANSWER_SECONDS, RETRY_SECONDS = 1.0, 3.0, 0.2
AT_ONCE = 64


class RedisPost:
    """A Post. `rediss://` encrypts, and checks the server's certificate (`?ssl_ca_certs=/path` names an authority)."""

    def __init__(self, url: str) -> None:
        self._where = shown(url)
        self.trouble = ""
        try:
            self._redis: Any = Redis.from_url(  # its types leave open whether there is something to await
                url, protocol=2, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS
            )
        except ValueError as error:
            raise UserError(f"--redis: {error}: expected an address such as rediss://:password@host:6379/0") from None

    async def check(self) -> None:
        """Raises UserError for what only a person can mend; a server that is away is no such thing."""
        try:
            await self._redis.ping()
        except (AuthenticationError, NoPermissionError, ResponseError) as error:
            raise UserError(f"cannot use Redis at {self._where}: {error}: check user and password") from None
        except (RedisError, OSError) as error:
            if _is_of_tls(error):
                raise UserError(f"cannot use Redis at {self._where}: {error}") from None
            log.warning("Redis at %s does not answer: %s", self._where, error)

    async def send(self, to: str, letter: bytes) -> None:
        key = KEY + to
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.xadd(key, {b"l": letter})
                pipe.expire(key, KEPT_SECONDS)
                pipe.xlen(key)
                *_, waiting = await pipe.execute()
            loop = asyncio.get_running_loop()
            until = loop.time() + PATIENCE_SECONDS
            _stop_if_cancelled()
            while waiting > ROOM:
                if loop.time() > until:
                    raise PostLost(f"{waiting} letters wait in Redis at {self._where}, and nobody reads them")
                await asyncio.sleep(LOOK_SECONDS)
                waiting = await self._redis.xlen(key)
        except (RedisError, OSError) as error:
            _stop_if_cancelled()
            raise PostLost(f"Redis at {self._where}: {error or type(error).__name__}: look after the server") from error

    async def letters(self, name: str) -> AsyncIterator[bytes]:
        key = KEY + name
        while True:
            try:
                found = await self._redis.xread({key: "0"}, count=AT_ONCE, block=int(1000 * BLOCK_SECONDS))
                entries = found[0][1] if found else []
                if entries:
                    await self._redis.xdel(key, *(place for place, _ in entries))
                self.trouble = ""
                _stop_if_cancelled()
            except (RedisError, OSError) as error:
                _stop_if_cancelled()
                if not self.trouble:
                    log.warning("Redis at %s: %s", self._where, error)
                self.trouble = f"Redis at {self._where} does not answer: {error or type(error).__name__}"
                await asyncio.sleep(RETRY_SECONDS)
                continue
            for _, fields in entries:
                yield fields[b"l"]

    async def close(self) -> None:
        await self._redis.aclose()


def _stop_if_cancelled() -> None:
    """redis-py can swallow a cancellation (wait_for of Python 3.11), or turn it into an error of its connection."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _is_of_tls(error: BaseException | None) -> bool:
    """Whether it came of a certificate, or of speaking with something else than TLS."""
    return error is not None and (isinstance(error, ssl.SSLError) or _is_of_tls(error.__cause__ or error.__context__))

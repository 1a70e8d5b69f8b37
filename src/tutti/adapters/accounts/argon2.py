"""Passwords hashed with Argon2id (https://www.rfc-editor.org/rfc/rfc9106), with OWASP's parameters."""

import asyncio
from typing import Any

from argon2 import PasswordHasher, Type
from argon2.exceptions import Argon2Error, InvalidHashError

AT_ONCE = 2
"""Hashes computed at the same time: each takes `memory` KiB and a core for some tens of milliseconds."""


class Argon2Passwords:
    def __init__(self, *, memory: int = 19_456, passes: int = 2) -> None:
        self._hasher = PasswordHasher(time_cost=passes, memory_cost=memory, parallelism=1, type=Type.ID)
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def hash(self, password: str) -> str:
        async with self._turns:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def verify(self, hash: str, password: str) -> bool:
        async with self._turns:
            return await asyncio.to_thread(self._verify, hash, password)

    def _verify(self, hash: Any, password: str) -> bool:
        try:
            return self._hasher.verify(hash, password)
        except (Argon2Error, InvalidHashError):
            return False

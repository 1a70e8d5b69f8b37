"""The real servers that tests talk to: a database, bucket or virtual host of its own for each.

Where a server is missing the test is skipped, saying how to have it; with TUTTI_REQUIRE_SERVICES=1 it fails.
"""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import asyncpg
import pytest

POSTGRES = os.environ.get("TUTTI_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")


def missing(what: str, error: object) -> NoReturn:
    reason = f"{what} does not answer ({error}): `make services` starts it"
    if os.environ.get("TUTTI_REQUIRE_SERVICES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@asynccontextmanager
async def database() -> AsyncIterator[str]:
    """The address of an empty database, which is gone afterwards."""
    name = f"tutti_test_{secrets.token_hex(6)}"
    try:
        server = await asyncpg.connect(POSTGRES, timeout=5)
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        missing("PostgreSQL", error)
    try:
        await server.execute(f"CREATE DATABASE {name}")
        yield POSTGRES.rsplit("/", 1)[0] + f"/{name}"
    finally:
        await server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await server.close()


async def alone(url: str, statement: str) -> None:
    """Carry out a statement on a connection of its own."""
    db = await asyncpg.connect(url)
    try:
        await db.execute(statement)
    finally:
        await db.close()

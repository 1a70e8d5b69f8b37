"""The real servers that tests talk to: a database, bucket or virtual host of its own for each.

Where a server is missing the test is skipped, saying how to have it; with TUTTI_REQUIRE_SERVICES=1 it fails.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import NoReturn
from urllib.parse import urlsplit

import asyncpg
import httpx
import obstore
import pytest
from obstore.store import S3Store
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tutti.adapters.blobs.s3 import S3Blobs
from tutti.adapters.fabrics import amqp
from tutti.adapters.fabrics.amqp import Address
from tutti.ports import LinkLost

POSTGRES = os.environ.get("TUTTI_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")

S3 = os.environ.get("TUTTI_TEST_S3", "http://127.0.0.1:39400")
S3_KEYS = {"AWS_ACCESS_KEY_ID": "tutti-test", "AWS_SECRET_ACCESS_KEY": "tutti-test-secret"}
"""Of deploy/services.sh."""

RABBITMQ = os.environ.get("TUTTI_TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672/")

REDIS = os.environ.get("TUTTI_TEST_REDIS", "redis://127.0.0.1:6379/")


def missing(what: str, error: object) -> NoReturn:
    reason = f"{what} does not answer ({error}): `make services` starts it"
    if os.environ.get("TUTTI_REQUIRE_SERVICES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def need_servers() -> None:
    """Of a test that runs a program which talks to RabbitMQ and S3."""
    for what, url in (("RabbitMQ", RABBITMQ), ("the S3 store", S3)):
        parts = urlsplit(url)
        try:
            socket.create_connection((parts.hostname or "", parts.port or 0), 5).close()
        except OSError as error:
            missing(what, error)


async def redis_url() -> str:
    """Where Redis is; whoever uses it has names of its own there."""
    try:
        async with asyncio.timeout(5), Redis.from_url(REDIS) as redis:
            await redis.ping()
    except (OSError, TimeoutError, RedisError) as error:
        missing("Redis", error)
    return REDIS


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


@asynccontextmanager
async def bucket(
    monkeypatch: pytest.MonkeyPatch, server: str = S3, keys: Mapping[str, str] = S3_KEYS
) -> AsyncIterator[str]:
    """The address of an empty bucket, which is emptied and gone afterwards."""
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    name = f"tutti-test-{secrets.token_hex(6)}"
    store = S3Store(
        name,
        endpoint=server,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    make, remove = (obstore.sign(store, method, "", timedelta(minutes=10)) for method in ("PUT", "DELETE"))
    async with httpx.AsyncClient(timeout=10) as client:
        try:
            (await client.put(make)).raise_for_status()
        except httpx.HTTPError as error:
            missing("the S3 store", error)
        yield f"s3://{name}/some/prefix?endpoint={server}"
        async for batch in store.list():
            await store.delete_async([meta["path"] for meta in batch])
        await client.delete(remove)


async def overwrite(blobs: S3Blobs, digest: str, data: bytes) -> None:
    """Other bytes under a blob's name, as a store has them that damaged it."""
    await obstore.put_async(blobs._store, f"blobs/{digest}", data)


@asynccontextmanager
async def coordinator_uid(url: str = RABBITMQ) -> AsyncIterator[Address]:
    """A broker's address with a coordinator's uid of its own; its queues are gone afterwards."""
    address = Address(url, f"test-{secrets.token_hex(6)}")
    try:
        connection = await amqp.connect(address)
    except LinkLost as error:
        missing("RabbitMQ", error)
    try:
        yield address
    finally:
        async with connection, connection.channel() as channel:
            for queue in (
                address.events,
                address.dead,
                *(address.commands(f"{n}{i}") for n in ("n", "peer-") for i in range(50)),
            ):
                await channel.queue_delete(queue)


CUT = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""
"""Ends all connections to a database but one's own."""


async def alone(url: str, statement: str) -> None:
    """Carry out a statement on a connection of its own."""
    db = await asyncpg.connect(url)
    try:
        await db.execute(statement)
    finally:
        await db.close()

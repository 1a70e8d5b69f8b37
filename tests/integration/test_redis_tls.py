"""Letters between replicas over TLS, by a real Redis that takes nothing else."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from support.certificates import certificate
from support.ports import free_ports
from support.redis import USER, redis_server
from tutti.adapters.posts.redis import RedisPost
from tutti.core.errors import UserError
from tutti.ports.post import PostLost


async def test_letters_arrive(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    (port,) = free_ports(1)
    with redis_server(tmp_path, port, (cert, key)):
        post = RedisPost(f"rediss://{USER}127.0.0.1:{port}/0?ssl_ca_certs={cert}")
        await post.check()
        letters = [b"one", b"\0" * 100_000, b"three"]
        for letter in letters:
            await post.send("owner", letter)
        came = post.letters("owner")
        async with asyncio.timeout(30):
            assert [await anext(came) for _ in letters] == letters
        await post.close()


@pytest.mark.parametrize(
    ("days", "trusted", "said"),
    [(1, False, "CERTIFICATE_VERIFY_FAILED"), (-1, True, "certificate has expired")],
    ids=["unknown authority", "expired"],
)
async def test_a_certificate_that_is_not_good(tmp_path: Path, days: int, trusted: bool, said: str) -> None:
    """It is said at the start, and no letter goes there later."""
    cert, key = certificate(tmp_path, until=datetime.now(UTC) + timedelta(days=days))
    (port,) = free_ports(1)
    with redis_server(tmp_path, port, (cert, key)):
        post = RedisPost(f"rediss://{USER}127.0.0.1:{port}/0" + (f"?ssl_ca_certs={cert}" if trusted else ""))
        with pytest.raises(UserError, match=said):
            await post.check()
        with pytest.raises(PostLost, match=said):
            await post.send("owner", b"secret")
        await post.close()


async def test_without_tls_nothing_is_sent(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with redis_server(tmp_path, port, certificate(tmp_path)):
        post = RedisPost(f"redis://{USER}127.0.0.1:{port}/0")
        with pytest.raises(PostLost):
            await post.send("owner", b"secret")
        await post.close()

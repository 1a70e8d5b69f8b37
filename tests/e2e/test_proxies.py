"""A load balancer on another machine says for whom it asks, and is believed if the coordinator was told of it."""

from pathlib import Path

import httpx
import pytest

from support.commands import running


@pytest.mark.parametrize(("trusted", "others"), [((), 429), (("--trusted-proxy", "127.0.0.8/30"), 401)])
def test_whoever_guesses_keeps_nobody_else_out(tmp_path: Path, trusted: tuple[str, ...], others: int) -> None:
    """127.0.0.9 stands for another machine: only 127.0.0.1 is believed without being named."""
    with running("up", "--auth", "--port", 0, "--data-dir", tmp_path, *trusted, cwd=tmp_path) as coordinator:
        balancer = httpx.HTTPTransport(local_address="127.0.0.9")
        with httpx.Client(base_url=coordinator.ready["url"], transport=balancer) as client:

            def guess(caller: str) -> int:
                headers = {"Authorization": "Bearer wrong", "X-Forwarded-For": caller}
                return client.get("/api/v1/jobs", headers=headers).status_code

            assert [guess("203.0.113.9") for _ in range(25)][-1] == 429
            assert guess("198.51.100.7") == others

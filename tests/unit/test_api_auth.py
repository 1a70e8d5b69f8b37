"""The guard's parts: what counts as this machine, and how often a client may fail."""

import pytest

from tutti.apps.api.auth import Buckets
from tutti.apps.api.settings import ApiSettings, is_loopback
from tutti.core.errors import UserError


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"])
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.7", "example.org", "localhost.evil.org", "127.0.0.1.nip.io", ""]
)
def test_not_loopback(host):
    assert not is_loopback(host)


def test_a_coordinator_on_the_network_needs_a_token():
    with pytest.raises(UserError, match=r"operator token is required to listen on 0\.0\.0\.0"):
        ApiSettings(host="0.0.0.0")
    assert ApiSettings(host="0.0.0.0", token="hash").needs_token
    assert not ApiSettings(host="127.0.0.1", token="hash").needs_token
    assert ApiSettings(host="127.0.0.1", token="hash", authenticate=True).needs_token


def test_failures_run_out_and_come_back_with_time():
    now = 0.0
    failures = Buckets(burst=3, rate=0.5, clock=lambda: now)
    for _ in range(3):
        assert failures.allows("mallory")
        failures.count("mallory")
    assert not failures.allows("mallory")
    assert failures.allows("somebody else")
    now = 2.0
    assert failures.allows("mallory")
    failures.count("mallory")
    assert not failures.allows("mallory")


def test_failures_remember_a_bounded_number_of_clients():
    failures = Buckets(burst=1, rate=0.0, clients=2, clock=lambda: 0.0)
    for client in ("a", "b", "c"):
        failures.count(client)
    assert [failures.allows(client) for client in ("a", "b", "c")] == [True, False, False]

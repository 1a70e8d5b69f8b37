"""Addresses that a coordinator is given: whether they are any, and whether the server's door stands open."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tutti.adapters.addresses import shown
from tutti.core.errors import UserError

WELL_KNOWN = frozenset(
    ("guest", "postgres", "root", "admin", "tutti", "test", "secret", "password", "changeme", "change-me", "default")
) | {"redis", "rabbitmq", "minio", "minioadmin", "minio123"}
"""Passwords that installers and examples use: whoever can reach a server that has one is in."""

EXAMPLES = {
    "database": "postgresql://user@host:5432/tutti",
    "broker": "amqps://user:password@host/vhost?coordinator=main",
    "redis": "rediss://:password@host:6379/0",
}
SCHEMES = {
    "database": ("postgresql", "postgres"),
    "broker": ("amqp", "amqps"),
    "redis": ("redis", "rediss"),
}
ALWAYS_ASKED = {
    "broker": "it would be guest's",
    "redis": "set one there (`requirepass`), for whoever reaches it could speak as a coordinator",
}
"""Where an address without a password means one that everybody knows, or none."""


@dataclass(frozen=True, slots=True)
class _Server:
    """What an address says, before the host and in its options, as drivers understand it."""

    hosts: frozenset[str]
    passwords: frozenset[str]

    @property
    def elsewhere(self) -> str:
        """The first of its hosts that is another machine; a path is a socket on this one."""
        from tutti.apps.api.settings import is_loopback

        return next((host for host in sorted(self.hosts) if host[:1] != "/" and not is_loopback(host)), "")


def check_addresses(settings: Mapping[str, Any]) -> None:
    """Raise UserError for what is no address, and for a server on another machine that lets everybody in."""
    _check_host(settings["host"], settings["port"])
    for network in settings["trusted_proxies"]:
        _check_network(network)
    for name in EXAMPLES:
        if settings[name]:
            _check_server(name, settings[name])
    if settings["broker"]:
        from tutti.adapters.fabrics.amqp import Address

        Address.parse(settings["broker"])
    if settings["blobs"]:
        _check_bucket(settings["blobs"])


def _check_host(host: str, port: int) -> None:
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host: cannot listen on {host!r}: {error}: expected an address of this machine") from None


def _check_network(network: str) -> None:
    try:
        ip_network(network)
    except ValueError as error:
        raise UserError(f"--trusted-proxy: {error}: expected an address or a network such as 10.1.0.0/16") from None


def _check_server(name: str, address: str) -> None:
    server = _server(name, address)
    if not (host := server.elsewhere):
        return
    if name in ALWAYS_ASKED and not server.passwords:
        raise UserError(f"--{name}: {host} is another machine, and the address has no password: {ALWAYS_ASKED[name]}")
    if any(password.lower() in WELL_KNOWN for password in server.passwords):
        raise UserError(
            f"--{name}: the password for {host} is one that everybody knows ({shown(address)}): give the server another"
        )


def _server(name: str, address: str) -> _Server:
    """Raises UserError for what is no address."""
    try:
        parts = urlsplit(address)
        options = parse_qs(parts.query)
        before, _, after = parts.netloc.rpartition("@")
        at = options.get("host", [after])[-1]
        hosts = {urlsplit(f"//{each}").hostname or "" if each[:1] != "/" else each for each in at.split(",")} - {""}
    except ValueError:
        parts, options, before, hosts = urlsplit(""), {}, "", set[str]()
    if parts.scheme not in SCHEMES[name] or not (hosts or name == "database"):
        raise UserError(f"--{name}: expected an address such as {EXAMPLES[name]}, came {shown(address)!r}")
    passwords = {unquote(before.partition(":")[2]), *options.get("password", ())}
    if name == "database":  # as libpq does
        passwords.add(os.environ.get("PGPASSWORD", ""))
        hosts = hosts or {os.environ.get("PGHOST", "/")}
    return _Server(frozenset(hosts), frozenset(passwords - {""}))


def _check_bucket(address: str) -> None:
    from tutti.adapters.blobs.s3 import S3Blobs

    S3Blobs(address)
    endpoint = parse_qs(urlsplit(address).query).get("endpoint", ["https://s3.amazonaws.com"])[-1]
    server = _Server(frozenset({urlsplit(endpoint).hostname or ""}), frozenset())
    if server.elsewhere and os.environ.get("AWS_SECRET_ACCESS_KEY", "").lower() in WELL_KNOWN:
        raise UserError(
            f"--blobs: the key for {server.elsewhere} (AWS_SECRET_ACCESS_KEY) is one that everybody knows: "
            "give the store another"
        )

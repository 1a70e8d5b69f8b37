"""TLS 1.3 for the ring, one-sided or mutual."""

import ssl
from collections.abc import Mapping
from contextvars import ContextVar
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeAlias

from tutti.core.errors import UserError

Certificate: TypeAlias = Mapping[str, Any]
"""As ssl.SSLSocket.getpeercert gives it."""

caller: ContextVar[Certificate | None] = ContextVar("caller", default=None)
"""The certificate of whoever makes the call that is being served; None where callers need none."""


class BadCertificate(UserError):
    """A certificate or key file is missing, unreadable, or does not belong to the other."""


def server_context(certificate: Path, key: Path, *, clients: Path | None = None) -> ssl.SSLContext:
    """For a server with this certificate. `clients`: only callers whose certificate this authority signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, certificate, key, clients)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(authority: Path, *, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """For a client that trusts servers signed by `authority`, and shows its own certificate if there is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load(context, certificate, key, authority)
    return context


def names(certificate: Certificate, host: str) -> bool:
    """Whether the certificate is for this host, as for those who call it (RFC 6125): by address, name or wildcard."""
    for kind, value in certificate.get("subjectAltName", ()):
        if kind == "DNS" and _same_name(str(value).lower(), host.lower()):
            return True
        if kind == "IP Address" and _same_address(str(value), host):
            return True
    return False


def _same_name(pattern: str, host: str) -> bool:
    head, _, rest = host.partition(".")
    return pattern == host or (bool(head and rest) and pattern == f"*.{rest}")


def _same_address(one: str, other: str) -> bool:
    try:
        return ip_address(one.strip()) == ip_address(other.strip("[]"))
    except ValueError:  # a name
        return False


def _load(context: ssl.SSLContext, certificate: Path | None, key: Path | None, authority: Path | None) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        if authority is not None:
            context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(file) for file in (certificate, key, authority) if file is not None)
        raise BadCertificate(f"cannot use {files}: {error.strerror or error}") from None

"""TLS 1.3 for the ring, one-sided or mutual."""

import ssl
from pathlib import Path

from tutti.core.errors import UserError


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

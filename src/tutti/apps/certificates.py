"""A coordinator's own certificate: whether it can be used today, and with this key."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tutti.core.errors import UserError

log = logging.getLogger(__name__)

SOON = timedelta(days=14)


def check_key(certificate: Path, key: Path | None) -> None:
    """Raise UserError where the private key, by default in the same file, is missing or another certificate's."""
    import ssl  # only here: the command line is asked for its help without it

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        what = f"{certificate} does not hold a certificate chain and its private key, or --tls-key is another's"
        raise UserError(f"{what} ({getattr(error, 'reason', None) or error})") from None


def check_certificate(file: Path, now: datetime | None = None) -> None:
    """Raise UserError for a certificate that is no longer, or not yet, valid; warn of one that soon will not be."""
    from cryptography import x509

    now = now or datetime.now(UTC)
    try:
        own = x509.load_pem_x509_certificates(file.read_bytes())[0]
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{file} does not hold a certificate chain in PEM: {error}") from None
    if now >= own.not_valid_after_utc:
        raise UserError(f"the certificate {file} expired on {own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: renew it")
    if now < own.not_valid_before_utc:
        since = f"{own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        raise UserError(f"the certificate {file} is valid from {since} only: is this machine's clock right?")
    if own.not_valid_after_utc - now < SOON:
        log.warning("the certificate %s expires on %s", file, f"{own.not_valid_after_utc:%Y-%m-%d}")

"""Where the API listens, and what it asks of its callers."""

import ipaddress
from dataclasses import dataclass
from functools import lru_cache

from tutti.core.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Where the API listens and who may use it.

    Attributes:
        token: Fingerprint of the operator's token; None if there is none.
        authenticate: Whether callers must prove who they are; None: unless bound to loopback. Once there are
            accounts they must in any case.
        url: The address by which nodes reach the coordinator; empty if only a request's own is known.
        key: Signs the access tokens of sessions, 32 bytes; None for one that lasts as long as the process.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    authenticate: bool | None = None
    url: str = ""
    key: bytes | None = None

    def __post_init__(self) -> None:
        if self.needs_token and self.token is None:
            raise UserError(f"an operator token is required to listen on {self.host}: give one, or bind to 127.0.0.1")

    @property
    def needs_token(self) -> bool:
        return not is_loopback(self.host) if self.authenticate is None else self.authenticate


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

"""Addresses of servers, for people."""

import re

USER = re.compile(r"://([^:@/?#]*):.*@")
SECRETS = re.compile(r"([?&][^=&]*(?:pass|secret|token)[^=&]*=)[^&#]*", re.IGNORECASE)


def shown(address: str) -> str:
    """An address without the password before its host, or in its options: for messages and lists."""
    return SECRETS.sub(r"\1***", USER.sub(r"://\1:***@", address))

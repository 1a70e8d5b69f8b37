"""Who sends a request: the operator, a person by session or a program by token; and the tokens of sessions."""

import secrets
import time
from hmac import compare_digest

import jwt
from starlette.requests import HTTPConnection
from starlette.responses import Response

from tutti.apps.api.settings import ApiSettings
from tutti.domain.accounts import SESSION_SECONDS, Identity
from tutti.services.accounts import Accounts
from tutti.services.members import fingerprint

ACCESS_SECONDS = 900
ALGORITHM, AUDIENCE = "HS256", "tutti"

OPERATOR = Identity(name="the operator", role="admin", host=True)
"""Whoever sits at the machine, or has its token."""


class Identify:
    """Tells who sends a request. Until accounts exist, on loopback, everybody is the operator."""

    def __init__(self, settings: ApiSettings, accounts: Accounts) -> None:
        self._settings, self._accounts = settings, accounts
        self._key = settings.key or secrets.token_bytes(32)
        self._cookie = f"tutti_session_{settings.port}"  # cookies do not know ports, and a machine has many

    @property
    def needed(self) -> bool:
        """Whether callers must prove who they are."""
        return self._settings.needs_token or self._accounts.exist

    def __call__(self, connection: HTTPConnection) -> Identity | None:
        if not self.needed:
            return OPERATOR
        if token := bearer(connection):
            return self._by_bearer(token)
        if token := self.cookie_of(connection):
            return self._accounts.by_session_token(token)
        return None

    def _by_bearer(self, token: str) -> Identity | None:
        if compare_digest(fingerprint(token), self._settings.token or ""):
            return OPERATOR
        if token.count(".") == 2:
            return self._by_access_token(token)
        return self._accounts.by_api_token(token)

    def _by_access_token(self, token: str) -> Identity | None:
        try:
            claims = jwt.decode(
                token, self._key, [ALGORITHM], audience=AUDIENCE, options={"require": ["exp", "sid", "aud"]}
            )
        except (jwt.InvalidTokenError, ValueError):
            return None
        return self._accounts.by_session(str(claims["sid"]))

    def access_token(self, session: str, name: str) -> str:
        """A JWT that stands for a session for ACCESS_SECONDS; it is void as soon as the session is."""
        now = int(time.time())
        claims = {"sub": name, "sid": session, "aud": AUDIENCE, "iat": now, "exp": now + ACCESS_SECONDS}
        return jwt.encode(claims, self._key, ALGORITHM)

    # -- cookies -------------------------------------------------------------------------------------------

    def by_cookie(self, connection: HTTPConnection) -> bool:
        """Whether the browser proves who sends this, by itself and also where another site made it do so."""
        return self.needed and not bearer(connection) and bool(self.cookie_of(connection))

    def cookie_of(self, connection: HTTPConnection) -> str:
        return connection.cookies.get(self._cookie, "")

    def set_cookie(self, connection: HTTPConnection, answer: Response, token: str) -> None:
        answer.set_cookie(
            self._cookie,
            token,
            max_age=int(SESSION_SECONDS),
            httponly=True,
            samesite="strict",
            secure=connection.url.scheme == "https",
        )

    def drop_cookie(self, answer: Response) -> None:
        answer.delete_cookie(self._cookie, httponly=True, samesite="strict")


def bearer(connection: HTTPConnection) -> str:
    """The token of an `Authorization: Bearer` header; empty if there is none."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""

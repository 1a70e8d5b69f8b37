"""Errors as problem details (https://www.rfc-editor.org/rfc/rfc9457)."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from tutti.core.errors import (
    Conflict,
    CorruptBlob,
    Forbidden,
    NotFound,
    StorageError,
    TuttiError,
    Unavailable,
    Unproven,
    UserError,
)
from tutti.ports.blobs import TooLarge
from tutti.services.sessions import NotEnoughPeers

MEDIA_TYPE = "application/problem+json"


_STATUS: dict[type[Exception], int] = {
    Unproven: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    NotEnoughPeers: 400,
    UserError: 422,
    CorruptBlob: 500,
    Unavailable: 503,
    StorageError: 507,
    TuttiError: 500,
}


def status_of(error: TuttiError) -> int:
    """The HTTP status of an error: that of the nearest class in its line of ancestors."""
    return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)


def problem(status: int, detail: str, *, headers: Mapping[str, str] | None = None, **extra: Any) -> Response:
    """A problem document; `detail` says what was expected, what came and what to do, `extra` adds members."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **extra}
    return Response(msgspec.json.encode(body), status, headers, MEDIA_TYPE)


def problem_of(error: TuttiError) -> Response:
    """The problem document of an error; a 401 tells how to prove oneself."""
    status = status_of(error)
    return problem(status, str(error), headers={"www-authenticate": "Bearer"} if status == 401 else None)

"""Errors as problem details."""

import json

import pytest

from tutti.apps.api.problems import problem, problem_of, status_of
from tutti.core.errors import Conflict, CorruptBlob, Forbidden, NotFound, StorageError, TuttiError, Unproven, UserError
from tutti.core.registry import BadOption, UnknownName
from tutti.domain.spec import BadSpec
from tutti.ports.blobs import TooLarge


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (Unproven, 401),
        (Forbidden, 403),
        (NotFound, 404),
        (Conflict, 409),
        (TooLarge, 413),
        (BadSpec, 422),
        (BadOption, 422),
        (UnknownName, 422),
        (UserError, 422),
        (CorruptBlob, 500),
        (StorageError, 507),
        (TuttiError, 500),
    ],
)
def test_every_error_has_a_status(kind: type[TuttiError], status: int) -> None:
    assert status_of(kind("why")) == status


def test_a_problem_document() -> None:
    response = problem(409, "not now", headers={"retry-after": "5"}, job="job-1")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["retry-after"] == "5"
    expected = {"type": "about:blank", "title": "Conflict", "status": 409, "detail": "not now", "job": "job-1"}
    assert json.loads(response.body) == expected


def test_who_shows_nothing_is_challenged() -> None:
    assert problem_of(Unproven("who are you?")).headers["www-authenticate"] == "Bearer"
    assert "www-authenticate" not in problem_of(Forbidden("not you")).headers

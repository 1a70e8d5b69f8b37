"""The coordinator against its own OpenAPI document: requests drawn from the schemas, none of which may break it."""

import json
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from support.commands import running, tutti

pytestmark = pytest.mark.timeout(600)

EXAMPLES = 12
"""Requests for each operation."""


def test_no_request_that_the_document_allows_breaks_the_coordinator(tmp_path):
    with running("up", "--port", 0, cwd=tmp_path) as up:
        url = up.ready["url"]
        token = (tmp_path / "tutti-data" / "operator-token").read_text()  # a drawn sign-up may switch tokens on
        headers = {"authorization": f"Bearer {token}"}
        document = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=headers)
        called = [_call_often(operation.ok(), url, headers) for operation in document.get_all_operations()]
        assert len(called) > 50
        assert tutti("jobs", "ls", cwd=tmp_path, TUTTI_URL=url, TUTTI_TOKEN=token).returncode == 0


def _call_often(operation: schemathesis.APIOperation, url: str, headers: dict[str, str]) -> str:
    @given(case=operation.as_strategy())
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    def call(case: schemathesis.Case) -> None:
        answer = case.call(base_url=url, headers=headers)
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)

    call()
    return operation.label


def test_the_committed_document_is_the_one_that_is_served(tmp_path):
    committed = Path(__file__).parents[2] / "docs" / "openapi.json"
    with running("up", "--port", 0, cwd=tmp_path) as up:
        assert httpx.get(f"{up.ready['url']}/openapi.json").json() == json.loads(committed.read_text())

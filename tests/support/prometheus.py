"""A real Prometheus of a test's own, and the expressions of what deploy/ has for it."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from math import isnan
from pathlib import Path
from typing import Any

import httpx
import yaml

from support.ports import free_port
from support.services import missing

SCRAPE_SECONDS = 0.2
DEADLINE = 60.0

DEPLOY = Path(__file__).parents[2] / "deploy"


def program(name: str) -> str:
    return shutil.which(name) or missing(name, "not installed: apt-get install prometheus")


def dashboard_expressions() -> list[str]:
    """Of every target of every panel, with a range that fits a short run."""
    dashboard = json.loads((DEPLOY / "grafana" / "tutti.json").read_text())
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [target.replace("$__rate_interval", "1m") for target in targets]


def alert_operands() -> list[str]:
    """What each alert compares with its threshold: the alert itself has no value as long as all is well."""
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    rules = [rule["expr"] for group in groups for rule in group["rules"]]
    split = [re.fullmatch(r"(.*) (?:>|<|==) [\d.]+\s*", rule, re.DOTALL) for rule in rules]
    assert all(split), rules
    return [found[1] for found in split if found]


class Prometheus:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def ask(self, expression: str) -> list[Any]:
        """The present values of an expression."""
        response = await self._client.get("/api/v1/query", params={"query": expression})
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:  # it has only begun
            return []
        answer = response.json()
        assert answer["status"] == "success", (expression, answer)
        return list(answer["data"]["result"])

    async def until_all_have_values(self, expressions: Iterable[str]) -> None:
        """Wait for the scrapes that it takes; fails with those that have none in the end."""
        lacking = list(expressions)
        try:
            async with asyncio.timeout(DEADLINE):
                while lacking := [each for each in lacking if not await self._has_value(each)]:  # noqa: ASYNC110
                    await asyncio.sleep(SCRAPE_SECONDS)  # another program's next scrape
        except TimeoutError:
            raise AssertionError(f"no data for {lacking}") from None

    async def _has_value(self, expression: str) -> bool:
        try:
            return any(not isnan(float(found["value"][1])) for found in await self.ask(expression))
        except httpx.ConnectError:  # it has not started yet
            return False

    async def rules(self) -> list[dict[str, Any]]:
        answer = (await self._client.get("/api/v1/rules")).json()
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]


@asynccontextmanager
async def prometheus(
    folder: Path, target: str, *, token: str, others: tuple[Sequence[str], str] = ((), "")
) -> AsyncIterator[Prometheus]:
    """Scrape `target`, and others that want another token, five times a second with the rules of deploy/."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    every = f"{1000 * SCRAPE_SECONDS:g}ms"
    config["global"] = {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every}
    config["rule_files"] = [str(DEPLOY / "prometheus" / "alerts.yml")]
    (scrape,) = config["scrape_configs"]
    scrape |= {"authorization": {"credentials": token}, "static_configs": [{"targets": [target]}]}
    beside = {"targets": [*others[0]], "labels": {"job": scrape["job_name"]}}
    further = {"job_name": "replicas", "authorization": {"credentials": others[1]}, "static_configs": [beside]}
    config["scrape_configs"].append({**scrape, **further})
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield Prometheus(client)
    finally:
        process.kill()
        await process.wait()

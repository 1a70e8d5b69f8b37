"""What deploy/ has for Prometheus and Grafana, against a real Prometheus that scrapes a real run.

Nothing here draws the dashboard: it is not rendered in Grafana.
"""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from support.prometheus import DEPLOY, alert_operands, dashboard_expressions, program, prometheus
from support.replicas import TOKEN as OPERATOR
from support.replicas import Replicas, three
from support.served import OPEN_TO_THE_NETWORK, TOKEN, app_of, served
from support.services import coordinator_uid, database
from support.worlds import World, toy_spec
from tutti.adapters.fabrics.broker import BrokerFabric
from tutti.adapters.logs.postgres import PostgresLog


def promtool(*arguments: str) -> str:
    done = subprocess.run([program("promtool"), *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_sound_and_fire_when_they_should() -> None:
    promtool("check", "config", "--syntax-only", "prometheus.yml")
    assert "SUCCESS" in promtool("test", "rules", "alerts.test.yml")


async def test_promtool_finds_no_fault_in_the_metrics(tmp_path: Path) -> None:
    """But for the four documented names, which are older than the conventions that it lints."""
    world = World(tmp_path)
    await world.up()
    async with served(app_of(world)) as url, httpx.AsyncClient() as client:
        page = (await client.get(f"{url}/metrics")).content
    await world.close()
    check = [program("promtool"), "check", "metrics"]
    linted = await asyncio.to_thread(subprocess.run, check, input=page, capture_output=True)
    complaints = [line for line in linted.stderr.decode().splitlines() if "devices_connected_total" not in line]
    assert complaints == []


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[Replicas]:
    with three(tmp_path) as its:
        yield its


async def test_every_expression_has_data_in_a_real_run(tmp_path: Path, replicas: Replicas) -> None:
    """Of a coordinator whose log may pass to another one, that nodes reach by a broker too; and of three replicas."""
    async with AsyncExitStack() as stack:
        url, address = [await stack.enter_async_context(it) for it in (database(), coordinator_uid())]
        log = await PostgresLog.open(url)
        broker = await stack.enter_async_context(BrokerFabric(address, lambda node, secret: None))
        world = World(tmp_path)
        world.open_log = lambda: opened(log)
        await world.up()
        world.core.log = log  # which the world has behind its saboteur
        for work in (log.keep(), broker.run()):
            world.core.background.spawn(work)
        await observed(world, tmp_path, broker, replicas)
        await world.close()


async def opened(log: PostgresLog) -> PostgresLog:
    return log


async def observed(world: World, tmp_path: Path, broker: BrokerFabric, replicas: Replicas) -> None:
    app = app_of(world, OPEN_TO_THE_NETWORK, broker=broker)
    for part, name in enumerate(("ada", "bob", "cyd")):
        await world.join(name, part)
    await world.core.drain_node("cyd")
    others = [f"127.0.0.1:{port}" for port in replicas.ports], OPERATOR
    async with (
        served(app) as url,
        prometheus(tmp_path, url.removeprefix("http://"), token=TOKEN, others=others) as asked,
    ):
        await asked.until_all_have_values(['up{job="tutti"} == 1'])
        await world.finished(await world.core.submit(toy_spec(2)))
        await asked.until_all_have_values(['sum(tutti_exclusions_total{reason="drained"}) == 4'])
        await world.finished(await world.core.submit(toy_spec(2)))  # a rate is of what grows between two scrapes
        await asked.until_all_have_values(dashboard_expressions() + alert_operands())
        await asked.until_all_have_values(['sum(tutti_exclusions_total{reason="drained"}) == 8'])
        await asked.until_all_have_values(['sum(tutti_update_bytes_total{codec="none"}) > 0'])
        await asked.until_all_have_values(["tutti_log_lease_seconds > 2", "tutti_log_owner == 1"])
        await asked.until_all_have_values(["sum(tutti_relay_linked) == 2", "sum(tutti_redis_up) == 2"])
        assert {rule["health"] for rule in await asked.rules()} == {"ok"}

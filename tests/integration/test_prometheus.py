"""What deploy/ has for Prometheus and Grafana, against a real Prometheus that scrapes a real run.

Nothing here draws the dashboard: it is not rendered in Grafana.
"""

import asyncio
import subprocess
from pathlib import Path

import httpx

from support.prometheus import DEPLOY, alert_operands, dashboard_expressions, program, prometheus
from support.served import OPEN_TO_THE_NETWORK, TOKEN, app_of, served
from support.worlds import World, toy_spec


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


async def test_every_expression_has_data_in_a_real_run(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.up()
    app = app_of(world, OPEN_TO_THE_NETWORK)
    for part, name in enumerate(("ada", "bob", "cyd")):
        await world.join(name, part)
    await world.core.drain_node("cyd")
    async with served(app) as url, prometheus(tmp_path, url.removeprefix("http://"), token=TOKEN) as asked:
        await asked.until_all_have_values(['up{job="tutti"} == 1'])
        await world.finished(await world.core.submit(toy_spec(2)))
        await asked.until_all_have_values(dashboard_expressions() + alert_operands())
        await asked.until_all_have_values(['sum(tutti_exclusions_total{reason="drained"}) == 4'])
        assert {rule["health"] for rule in await asked.rules()} == {"ok"}
    await world.close()

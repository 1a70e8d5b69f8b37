"""The dashboard's Market page in a real browser, while a real worker does a job: everything is shown as it happens."""

import pytest
from playwright.sync_api import expect

from support.browser import PATIENCE_MS, Visitor, chromium
from support.commands import running
from tutti.apps.client import Client

pytestmark = [pytest.mark.xdist_group("dashboard"), pytest.mark.timeout(600)]

expect.set_options(timeout=PATIENCE_MS)


def test_a_job_is_seen_from_escrow_to_its_result(tmp_path):
    with (
        chromium() as browser,
        running("up", "--port", 0, "--data-dir", "data", cwd=tmp_path) as up,
        Client(up.ready["url"]) as client,
    ):
        client.mint("node:gpu-box", 150, key="m")
        client.market.register_client("alice", 1000)
        visitor = Visitor(browser, up.ready["url"], width=1400, height=1000)
        page = visitor.goto("/dashboard/market")
        jobs = page.get_by_role("region", name="Compute jobs")
        job = client.market.submit("alice", "linear_regression", 50)
        expect(jobs.get_by_text("pending")).to_be_visible()
        join = ("join", up.ready["join_link"], "--worker", "--stake", 150, "--name", "gpu-box", "--state-dir", "box")
        with running(*join, cwd=tmp_path):
            expect(jobs.get_by_text("verified")).to_be_visible()
            expect(jobs.get_by_text("gpu-box")).to_be_visible()
            client.market.wait(job.job_id)
            jobs.get_by_role("button").first.click()
            expect(page.get_by_role("dialog").get_by_text("coefficients")).to_be_visible()
            visitor.picture("market-result")
            assert visitor.violations() == []
        assert visitor.said == []

"""The dashboard's page of the chain, over the chain that runs in the coordinator's own process."""

import pytest
from playwright.sync_api import expect

from support.browser import PATIENCE_MS, Visitor, chromium
from support.commands import running, tutti
from tutti.apps.client import Client

pytest.importorskip("tutti.adapters.chain.embedded", reason="needs the extra 'chain'")
pytestmark = [pytest.mark.xdist_group("dashboard"), pytest.mark.timeout(600)]
expect.set_options(timeout=PATIENCE_MS)

JOB = {"dataset": "digits", "model": "linear", "rounds": 2, "cohort": {"min_nodes": 1}}


def test_a_jobs_rounds_are_shown_as_they_stand_on_the_chain(tmp_path):
    assert tutti("chain", "deploy", cwd=tmp_path).returncode == 0
    with running("up", "--port", 0, cwd=tmp_path) as up, chromium() as browser:
        url = up.ready["url"]
        with Client(url) as client:
            join = ("join", client.invite().link, "--data", "digits", "--name", "ada", "--state-dir", "ada")
            with running(*join, cwd=tmp_path):
                job = client.wait(client.submit(JOB).id)
        for scheme, width in (("light", 1280), ("dark", 390)):
            visitor = Visitor(browser, url, width=width, scheme=scheme)
            page = visitor.goto("/")
            if width < 700:
                page.get_by_role("button", name="More").click()
            page.get_by_role("link", name="Blockchain").click()
            row = page.get_by_role("row", name=job.id)
            row.get_by_role("button", name="2", exact=True).click()
            expect(row).to_contain_text("1 update,")
            page.get_by_text("Contracts and roles").click()
            expect(page.get_by_role("heading", name="escrow")).to_be_visible()
            assert visitor.violations() == []
            assert visitor.overflow() == 0
            visitor.picture(f"blockchain-{scheme}")
            assert visitor.said == []
            visitor.close()


def test_without_a_chain_there_is_no_such_page(tmp_path):
    with running("up", "--port", 0, cwd=tmp_path) as up, chromium() as browser:
        visitor = Visitor(browser, up.ready["url"])
        page = visitor.goto("/")
        expect(page.get_by_role("link", name="Ledger")).to_be_visible()
        expect(page.get_by_role("link", name="Blockchain")).to_have_count(0)
        visitor.goto("/dashboard/blockchain")
        expect(page.get_by_text("this coordinator uses no chain")).to_be_visible()
        visitor.close()

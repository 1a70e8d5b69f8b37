"""The dashboard in a real browser, against a real coordinator with real nodes that train."""

import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from support.browser import PATIENCE_MS, Visitor, chromium
from support.commands import Running, running, tutti
from support.line import line_to
from tutti.apps.client import Client
from tutti.core.errors import Conflict

pytestmark = [pytest.mark.xdist_group("dashboard"), pytest.mark.timeout(600)]

PASSWORD = "correct horse battery"
JOB = {"dataset": "digits", "model": "mlp", "cohort": {"min_nodes": 2}, "training": {"lr": 0.1}}
SCREENS = {
    "light": {"width": 1280, "height": 900, "scheme": "light"},
    "phone-light": {"width": 390, "height": 844, "scheme": "light"},
    "phone-dark": {"width": 390, "height": 844, "scheme": "dark"},
    "wide-light": {"width": 2200, "height": 1200, "scheme": "light"},
    "wide-dark": {"width": 2200, "height": 1200, "scheme": "dark"},
}

expect.set_options(timeout=PATIENCE_MS)


@dataclass
class Site:
    """A coordinator with two nodes; `url` stays the same when it is started again."""

    folder: Path
    stack: ExitStack
    up: Running
    url: str
    links: list[str] = field(default_factory=list)

    def node(self, name: str, part: int, link: str) -> None:
        source = f"digits:part={part}/2,partition=dirichlet:0.5"
        join = ("join", link, "--data", source, "--name", name, "--state-dir", name)
        self.stack.enter_context(running(*join, cwd=self.folder))

    def client(self) -> Client:
        return Client(self.url)

    def restart(self) -> None:
        self.up.end(signal.SIGKILL)
        port = self.url.rsplit(":", 1)[1]
        self.up = self.stack.enter_context(running("up", "--port", port, cwd=self.folder))


@contextmanager
def a_site(folder: Path, *, nodes: int = 2) -> Iterator[Site]:
    with ExitStack() as stack:
        up = stack.enter_context(running("up", "--port", 0, cwd=folder))
        site = Site(folder, stack, up, up.ready["url"])
        if nodes:
            link = tutti("invite", "--uses", nodes, cwd=folder, TUTTI_URL=site.url).stdout.strip()
            for part in range(nodes):
                site.node(f"clinic-{'ab'[part]}", part, link)
            with site.client() as client:
                for event in client.follow():
                    if event.type == "NodeConnected" and client.status().nodes_connected == nodes:
                        break
        yield site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    with a_site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture
def visitor(browser, site) -> Iterator[Visitor]:
    visitor = Visitor(browser, site.url)
    yield visitor
    visitor.close()
    assert visitor.said == []


def test_from_an_empty_coordinator_to_a_trained_model(browser, tmp_path):
    with a_site(tmp_path, nodes=0) as site:
        visitor = Visitor(browser, site.url)
        page = visitor.goto("/")
        expect(page.get_by_text("No node has joined yet.")).to_be_visible()
        expect(page.get_by_text("Live", exact=True)).to_be_visible()

        page.get_by_role("link", name="Join").click()
        page.get_by_label("How many nodes").fill("2")
        page.get_by_role("button", name="Make a join link").click()
        expect(page.get_by_role("img", name="QR code of the join link")).to_be_visible()
        link = page.locator(".copied code").first.inner_text()
        assert (
            page.locator(".copied code").nth(1).inner_text()
            == f"tutti join '{link}' --data csv:path=mine.csv,target=outcome"
        )
        visitor.picture("join-made-light")
        for part, name in enumerate(("clinic-a", "clinic-b")):
            site.node(name, part, link)

        page.get_by_role("link", name="Nodes").click()
        expect(page.get_by_text("2 nodes of 2 connected, 2 shown")).to_be_visible()

        page.get_by_role("link", name="New job").click()
        page.get_by_label("Data set").fill("digits")
        page.get_by_label("Name", exact=True).fill("first")
        page.get_by_label("Rounds").fill("4")
        page.get_by_label("Model", exact=True).select_option("mlp")
        page.get_by_text("Cohort", exact=True).click()
        page.get_by_label("Min nodes").fill("2")
        expect(page.get_by_text("Starts at once: 2 nodes are ready, 2 needed.")).to_be_visible()
        page.get_by_role("button", name="Start training").click()

        expect(page.get_by_role("heading", name="first")).to_be_visible()
        expect(page.locator(".title .badge")).to_have_text("completed")
        expect(page.locator(".figure", has_text="Round").first).to_contain_text("4 of 4")
        expect(page.get_by_role("img", name=re.compile("Accuracy, latest value. first: [5-9]"))).to_be_visible()
        page.get_by_role("button", name=re.compile("^Round 1: closed")).click()
        expect(page.get_by_role("region", name="Nodes in round 1")).to_contain_text("clinic-a")
        expect(page.get_by_role("region", name="Contributions by node")).to_contain_text("clinic-b")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download model").click()
        model = tmp_path / "model.safetensors"
        download.value.save_as(model)
        predicted = tutti("predict", model, "digits:split=test", cwd=tmp_path)
        assert model.read_bytes()[8:9] == b"{", predicted.stderr

        page.get_by_role("link", name="Clone").click()
        expect(page.get_by_label("Name", exact=True)).to_have_value("first")
        expect(page.get_by_label("Rounds")).to_have_value("4")
        visitor.close()
        assert visitor.said == []


def test_pausing_resuming_and_stopping(visitor, site):
    with site.client() as client:
        job = client.submit({**JOB, "name": "long", "rounds": 5000, "training": {"lr": 0.1, "epochs": 2}})
    page = visitor.goto("/")
    row = page.locator(".jobs li", has_text="long").first
    row.get_by_role("button", name="Pause long").click()
    expect(row.locator(".badge")).to_have_text("paused")
    row.get_by_role("button", name="Resume long").click()
    expect(row.locator(".badge")).to_have_text("training")
    row.get_by_role("link", name="long").click()
    expect(page.get_by_role("button", name=re.compile("^Round 3: closed"))).to_be_visible()
    page.get_by_role("button", name="Stop long").click()
    expect(page.locator(".title .badge")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Stop long")).to_have_count(0)
    with site.client() as client:
        assert client.job(job.id).status == "stopped"


def test_maintenance_is_begun_told_of_on_every_page_and_ended(visitor, site):
    page = visitor.goto("/dashboard/settings")
    page.get_by_label("Why").fill("new disks")
    page.get_by_role("button", name="Begin maintenance").click()
    banner = page.locator(".banner")
    expect(banner).to_contain_text("Maintenance: new disks.")
    expect(banner).to_contain_text(re.compile(r"Begun by the operator.* on .*\d\d:\d\d"))
    page.get_by_role("link", name="Home").click()
    expect(banner).to_contain_text("Nothing new begins")
    visitor.picture("maintenance-light")
    with site.client() as client, pytest.raises(Conflict, match="new disks"):
        client.submit({**JOB, "rounds": 1})
    banner.get_by_role("button", name="End maintenance").click()
    page.get_by_role("dialog").get_by_role("button", name="End maintenance").click()
    expect(banner).to_have_count(0)
    with site.client() as client:
        assert client.status().maintenance == ""


def test_a_coordinator_that_is_killed_leaves_no_gap(visitor, site):
    """The page that stayed open shows the same points as one that is opened afterwards."""
    with site.client() as client:
        job = client.submit({**JOB, "name": "gap", "rounds": 40, "training": {"lr": 0.05, "epochs": 3}})
    page = visitor.goto(f"/dashboard/job/{job.id}")
    expect(page.get_by_role("button", name=re.compile("^Round 2: closed"))).to_be_visible()
    site.restart()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    expect(page.locator(".title .badge")).to_have_text("completed")
    expect(page.get_by_role("button", name=re.compile("^Round 40: closed"))).to_be_visible()
    accuracy = page.get_by_role("img", name=re.compile("Accuracy, latest"))
    with site.client() as client:
        last = [point for point in client.metrics(job.id) if point.nodes][-1]
        assert len(list(client.metrics(job.id))) == 41
    expect(accuracy).to_have_attribute(
        "aria-label", f"Accuracy, latest value. gap: {last.nodes['accuracy'] * 100:.0f} %"
    )
    visitor.said = [said for said in visitor.said if "WebSocket" not in said]  # that it was away is no mistake


def test_a_connection_that_dies_without_a_word_leaves_no_gap(browser, site):
    """As behind a closed lid: the page finds out by itself that it hears nothing, and asks for what it missed."""
    with site.client() as client, line_to(site.url) as line:
        job = client.submit({**JOB, "name": "lid", "rounds": 40, "training": {"lr": 0.05, "epochs": 3}})
        visitor = Visitor(browser, line.url)
        page = visitor.goto(f"/dashboard/job/{job.id}")
        expect(page.get_by_role("button", name=re.compile("^Round 2: closed"))).to_be_visible()
        assert line.go_dead() == 1
        with page.expect_websocket() as again:
            client.wait(job.id)
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        missed = int(again.value.url.rpartition("after=")[2])
        assert 0 < missed < client.status().offset
        expect(page.get_by_text("Live", exact=True)).to_be_visible()
        expect(page.locator(".title .badge")).to_have_text("completed")
        for round in range(1, 41):
            expect(page.get_by_role("button", name=re.compile(f"^Round {round}: closed"))).to_have_count(1)
        visitor.close()


def test_what_is_wrong_with_a_job_is_said_before_it_is_sent(visitor):
    page = visitor.goto("/dashboard/new")
    page.get_by_label("Data set").fill("digits")
    page.get_by_text("Cohort", exact=True).click()
    page.get_by_label("Quorum").fill("9")
    expect(page.get_by_role("alert")).to_contain_text("it could never close; lower the quorum")
    expect(page.get_by_role("button", name="Start training")).to_be_disabled()
    page.get_by_label("Quorum").fill("")
    expect(page.get_by_role("button", name="Start training")).to_be_enabled()
    forecast = page.get_by_role("region", name="Forecast")
    expect(forecast.locator(".figure", has_text="Sent by nodes")).to_contain_text("kB")
    page.get_by_label("Min nodes").fill("3")
    page.get_by_label("Strategy", exact=True).select_option("scaffold")
    page.locator("#main").get_by_text("More", exact=True).click()
    page.get_by_label("Reducer", exact=True).select_option("median")
    expect(page.get_by_role("alert")).to_contain_text("which reducer median cannot judge")
    page.get_by_label("Reducer", exact=True).select_option("mean")
    expect(page.get_by_role("alert")).to_have_count(0)
    page.get_by_label("Learning rate", exact=True).fill("lots")
    expect(page.get_by_role("alert")).to_contain_text("Expected `float`")


def test_the_forms_choices_are_those_of_the_registries(visitor, site):
    page = visitor.goto("/dashboard/new")
    expect(page.get_by_label("Model", exact=True).locator("option").first).to_be_attached()
    with site.client() as client:
        for label, kind in (("Model", "models"), ("Strategy", "strategies"), ("Reducer", "reducers")):
            offered = page.get_by_label(label, exact=True).locator("option").all_text_contents()
            assert offered == list(client.registry(kind)), label
    page.get_by_label("Strategy", exact=True).select_option("fedadam")
    for option in ("Server learning rate", "Beta1", "Beta2"):
        expect(page.get_by_label(option, exact=True)).to_have_count(1)


def test_nodes_tell_of_their_data_what_their_owners_allow(visitor):
    page = visitor.goto("/dashboard/nodes")
    page.get_by_role("button", name="clinic-a").click()
    dialog = page.get_by_role("dialog", name="clinic-a")
    dialog.get_by_role("button", name="Summarise the data").click()
    expect(dialog).to_contain_text("Its owner allows figures of 10 rows or more")
    expect(dialog.get_by_role("list", name="Rows by class").get_by_role("listitem")).to_have_count(10)
    expect(dialog.get_by_role("region", name="Columns of clinic-a").get_by_role("row")).to_have_count(65)
    assert visitor.violations() == []
    visitor.picture("data-light")
    dialog.get_by_role("button", name="Close").click()
    page.get_by_role("region", name="digits", exact=True).get_by_role("button", name="Summarise the data").click()
    expect(page.get_by_text("1,151 rows on 2 nodes, added up without a row leaving its node.")).to_be_visible()
    assert visitor.violations() == []
    visitor.picture("data-all-light")


def test_an_update_that_is_not_used_is_listed_with_the_reason(visitor, site):
    with site.client() as client:
        link = client.invite().link
        join = ("join", link, "--data", "digits:part=0/2", "--name", "leaver", "--state-dir", "leaver")
        with running(*join, cwd=site.folder):
            cohort, training = {"min_nodes": 3, "quorum": 2}, {"epochs": 2000}
            job = client.submit({**JOB, "name": "left", "rounds": 1, "cohort": cohort, "training": training})
            for event in client.follow(job.id):
                if event.type == "RoundOpened":
                    break
            page = visitor.goto(f"/dashboard/job/{job.id}")
            expect(page.get_by_text("None: every update that was sent counted.")).to_be_visible()
            client.remove_node("leaver")
            row = page.get_by_role("region", name="Excluded updates, newest first").get_by_role("row", name="leaver")
            expect(row).to_contain_text("removed")
            client.stop(job.id)


def test_everything_can_be_done_by_keyboard(visitor, site):
    with site.client() as client:
        for name in ("to-compare", "keys"):
            client.wait(client.submit({**JOB, "name": name, "rounds": 2}).id)
    page = visitor.goto("/")
    expect(page.get_by_role("link", name="keys").first).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="New job").last).to_be_focused()
    page.get_by_role("link", name="keys").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="keys")).to_be_visible()
    expect(page.locator("main")).to_be_focused()  # not lost with the page that went away
    page.get_by_role("button", name=re.compile("^Round 1: closed")).press("Enter")
    expect(page.get_by_role("region", name="Nodes in round 1")).to_be_visible()
    page.get_by_text("Compare", exact=True).press("Enter")
    expect(page.locator(".menu > div")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".menu > div")).to_be_hidden()

    page.get_by_role("link", name="Nodes").press("Enter")
    opener = page.get_by_role("button", name="clinic-a")
    opener.press("Enter")
    expect(page.get_by_role("dialog", name="clinic-a")).to_be_visible()
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    expect(opener).to_be_focused()
    opener.press("Enter")
    page.get_by_role("button", name="Close").press("Enter")
    expect(opener).to_be_focused()

    page.get_by_role("link", name="New job").press("Enter")
    page.get_by_label("Rounds").press_sequentially("1")
    expect(page.get_by_text("Waits for nodes").or_(page.get_by_text("Starts at once"))).to_be_visible()
    page.get_by_label("Rounds").press("Enter")
    expect(page.locator(".title .badge")).to_have_text("completed")


@pytest.mark.parametrize("width", [320, 390])
def test_on_a_phone_every_page_is_reached_from_the_bar(browser, site, width):
    visitor = Visitor(browser, site.url, width=width, height=640)
    page = visitor.goto("/")
    nav = page.get_by_role("navigation", name="Pages")
    expect(nav.get_by_role("link")).to_have_text(["Home", "Nodes", "New job", "Join"])
    more = nav.get_by_role("button", name="More")
    more.click()
    rest = ["Metrics", "Ledger", "Market", "Users", "Settings"]
    expect(nav.get_by_role("link")).to_have_text(["Home", "Nodes", "New job", "Join", *rest])
    clipped = """nav => [...nav.querySelectorAll("li :is(a, button)")].filter(each => {
        const box = each.getBoundingClientRect();
        const fits = box.left >= 0 && box.right <= innerWidth && box.bottom <= innerHeight;
        return !fits || each.querySelector("span").offsetWidth > box.width;
    }).map(each => each.textContent)"""
    assert nav.evaluate(clipped) == []
    assert visitor.violations() == []
    visitor.picture(f"bar-{width}", whole=False)
    page.keyboard.press("Escape")
    expect(nav.get_by_role("link", name="Settings")).to_have_count(0)
    for name in rest:
        more.click()
        nav.get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
        expect(page.locator("main")).to_be_focused()
        expect(more).to_have_attribute("aria-expanded", "false")
        expect(more).to_have_class("here")
    visitor.close()
    assert visitor.said == []


def test_older_jobs_are_shown_when_asked_for(browser, tmp_path):
    with a_site(tmp_path, nodes=0) as site:
        with site.client() as client:
            for number in range(51):
                client.submit({**JOB, "name": f"job-{number:02d}"}, paused=True)
        visitor = Visitor(browser, site.url)
        page = visitor.goto("/")
        jobs = page.locator(".jobs li")
        expect(jobs).to_have_count(50)
        expect(page.get_by_role("link", name="job-00", exact=True)).to_have_count(0)
        page.get_by_role("button", name="Show older jobs").click()
        expect(jobs).to_have_count(51)
        expect(jobs.last).to_contain_text("job-00")
        expect(page.get_by_role("button", name="Show older jobs")).to_have_count(0)
        visitor.close()
        assert visitor.said == []


def test_a_node_is_drained_and_removed(visitor, site):
    with site.client() as client:
        invitation = client.invite()
        client.join(invitation.token, "spare", "s" * 43)
    page = visitor.goto("/dashboard/nodes")
    page.get_by_role("button", name="spare").click()
    page.get_by_role("button", name="Drain").click()
    page.get_by_role("button", name="Give it work again").click()
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog", name="Remove?").get_by_role("button", name="Remove").click()
    expect(page.get_by_role("button", name="spare")).to_have_count(0)


def test_a_join_link_opened_in_a_browser_says_what_to_do(visitor, site):
    page = visitor.goto("/join#some-token")
    page.get_by_text("Join with a computer instead").click()
    expect(page.get_by_text(f"tutti join '{site.url}/join#some-token' --data")).to_be_visible()
    assert visitor.violations() == []
    visitor.picture("invited-light")


def test_a_thousand_nodes_are_listed_by_drawing_those_in_view(browser, tmp_path):
    with a_site(tmp_path, nodes=0) as site:
        with site.client() as client:
            token = client.invite(uses=1000).token
            for number in range(1000):
                client.join(token, f"phone-{number:04d}", "s" * 43)
        visitor = Visitor(browser, site.url)
        page = visitor.goto("/dashboard/nodes")
        expect(page.get_by_text("0 nodes of 1,000 connected, 1,000 shown")).to_be_visible()
        rows = page.get_by_role("table", name="Nodes").get_by_role("row")
        assert rows.count() < 50
        page.get_by_role("rowgroup", name="Nodes, rows").evaluate("box => box.scrollTo(0, box.scrollHeight)")
        expect(page.get_by_role("button", name="phone-0999")).to_be_visible()
        assert rows.count() < 50
        page.get_by_label("Search by name").fill("0123")
        expect(page.get_by_text("1 shown")).to_be_visible()
        expect(page.get_by_role("button", name="phone-0123")).to_be_visible()
        visitor.close()
        assert visitor.said == []


def test_the_page_paints_before_the_coordinator_has_answered_anything(browser, site):
    visitor, asked, held = Visitor(browser, site.url), [], []
    page = visitor.page
    page.on("request", lambda request: asked.append(request.url.removeprefix(site.url)))
    page.route(re.compile("/(api|auth)/"), lambda route: held.append(route))
    visitor.goto("/")
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length === 1")
    assert [url for url in asked if not re.fullmatch(r"/|/favicon.svg|/assets/[\w.-]+|/auth/session", url)] == []
    for route in held:
        route.continue_()
    expect(page.get_by_role("heading", name="Home")).to_be_visible()
    visitor.close()


def test_the_market_from_its_forms_to_a_job_in_escrow(browser, tmp_path):
    with a_site(tmp_path, nodes=0) as site:
        visitor = Visitor(browser, site.url)
        page = visitor.goto("/dashboard/market")
        for text in ("Nobody has asked for work yet.", "No worker has registered", "No client has registered"):
            expect(page.get_by_text(text)).to_be_visible()
        visitor.picture("market-empty")
        page.get_by_label("Worker", exact=True).fill("gpu-box")
        page.get_by_label("GPU", exact=True).select_option("RTX 4090")
        expect(page.get_by_label("Compute capacity, GFLOP/s")).to_have_value("82600")
        page.get_by_label("Stake, tokens").fill("1")
        page.get_by_role("button", name="Register the worker").click()
        expect(page.get_by_role("alert")).to_contain_text("stake")
        page.get_by_label("Stake, tokens").fill("150")
        page.get_by_role("button", name="Register the worker").click()
        worker = page.get_by_role("region", name="Workers by name").get_by_role("row", name="gpu-box")
        expect(worker).to_contain_text("is not connected as a worker")
        page.get_by_role("region", name="Register a client").get_by_label("Client", exact=True).fill("acme")
        page.get_by_label("First balance, tokens").fill("100")
        page.get_by_role("button", name="Register the client").click()
        expect(page.get_by_role("region", name="Clients by name").get_by_role("row", name="acme")).to_contain_text(
            "100"
        )
        ask = page.get_by_role("region", name="Ask for work")
        ask.get_by_label("Client").fill("acme")
        ask.get_by_label("Reward, tokens").fill("40")
        ask.get_by_label("Kind of job").select_option("kmeans")
        ask.get_by_role("button", name="Submit the job").click()
        job = page.get_by_role("region", name="Compute jobs, newest first").get_by_role("row", name="kmeans")
        expect(job).to_contain_text("pending")
        expect(page.locator(".figure", has_text="Contract balance")).to_contain_text("40")
        page.get_by_role("button", name="Stop coordination").click()
        expect(page.locator(".title .badge")).to_have_text("stopped")
        page.get_by_role("button", name="Start coordination").click()
        expect(page.locator(".title .badge")).to_have_text("coordinating")
        page.get_by_role("button", name="Assign now").click()
        expect(page.get_by_text("0 jobs assigned")).to_be_visible()
        for name, screen in SCREENS.items():
            page.set_viewport_size({"width": screen["width"], "height": screen["height"]})
            page.emulate_media(color_scheme=screen["scheme"])
            assert visitor.violations() == [], name
            assert visitor.overflow() <= 0, name
            visitor.picture(f"market-{name}")
        job.get_by_role("button", name="kmeans").click()
        expect(page.get_by_role("dialog")).to_contain_text("for acme")
        assert visitor.violations() == []
        visitor.close()
        assert visitor.said == []


# -- accounts ------------------------------------------------------------------------------------------------


def sign_in(page: Page, name: str, password: str = PASSWORD) -> None:
    page.get_by_label("Name or e-mail address").fill(name)
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_role("button", name="Sign in").click()


def test_accounts_from_set_up_to_the_audit_log(browser, tmp_path):
    with a_site(tmp_path, nodes=0) as site:
        ada, bob = Visitor(browser, site.url), Visitor(browser, site.url)
        page = ada.goto("/dashboard/settings")
        page.get_by_label("Name or e-mail address").fill("ada")
        page.get_by_label("Organisation").fill("Ward 7")
        page.get_by_label("Password", exact=True).fill(PASSWORD)
        page.get_by_role("button", name="Make the admin's account").click()
        expect(page.get_by_text("ada, admin of Ward 7")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        ada.picture("sign-in-light")
        assert ada.violations() == []
        sign_in(page, "ada", "not my password")
        expect(page.get_by_role("alert")).to_contain_text("the name or the password is wrong")
        sign_in(page, "ada")
        expect(page.get_by_role("heading", name="Settings")).to_be_visible()

        other = bob.goto("/")
        other.get_by_role("button", name="Sign up").click()
        other.get_by_label("Name or e-mail address").fill("bob")
        other.get_by_label("Password", exact=True).fill(PASSWORD)
        other.get_by_role("button", name="Sign up").click()
        expect(other.get_by_role("heading", name="Almost there")).to_be_visible()
        assert bob.violations() == []
        bob.picture("waiting-light")

        page.get_by_role("link", name="Users").click()
        page.get_by_label("Role of bob").select_option("viewer")
        accounts = page.get_by_role("region", name="Accounts and roles")
        expect(accounts.locator("tr", has_text="bob").locator(".badge")).to_have_count(0)
        other.get_by_role("button", name="Look again").click()
        expect(other.get_by_text("No node has joined yet.")).to_be_visible()
        expect(other.get_by_role("link", name="New job")).to_have_count(0)
        expect(other.get_by_role("link", name="Users")).to_have_count(0)

        page.reload()
        log = page.get_by_role("region", name="Audit log, newest first")
        expect(log).to_contain_text("PATCH /api/v1/accounts/bob role viewer")
        with page.expect_download() as download:
            page.get_by_role("link", name="Export CSV").click()
        assert b"PATCH /api/v1/accounts/bob" in download.value.path().read_bytes()
        page.get_by_role("button", name="New password for bob").click()
        page.get_by_role("dialog").get_by_label("Password").fill("bob")
        page.get_by_role("button", name="Set the password").click()
        expect(page.get_by_role("dialog")).to_be_visible()
        page.get_by_role("dialog").get_by_label("Password").fill("another horse battery")
        assert ada.violations() == []
        ada.picture("new-password-light", whole=False)
        page.get_by_role("button", name="Set the password").click()
        expect(page.get_by_role("dialog")).to_have_count(0)
        other.reload()
        expect(other.get_by_role("heading", name="Sign in")).to_be_visible()
        sign_in(other, "bob", "another horse battery")
        expect(other.get_by_text("No node has joined yet.")).to_be_visible()
        for name, screen in SCREENS.items():
            page.set_viewport_size({"width": screen["width"], "height": screen["height"]})
            page.emulate_media(color_scheme=screen["scheme"])
            assert ada.violations() == [], name
            assert ada.overflow() <= 0, name
            assert accounts.locator("tr", has_text="bob").bounding_box()["height"] < 70, name
            ada.picture(f"users-{name}")

        page.get_by_role("link", name="Settings").click()
        page.get_by_label("What for").fill("nightly")
        page.get_by_label("Role").select_option("operator")
        for wrong in ("e", "0"):  # neither is a token for ever
            page.get_by_label("Days").fill("")
            page.get_by_label("Days").press_sequentially(wrong)
            page.get_by_role("button", name="Make a token").click()
            assert page.get_by_label("Days").evaluate("field => !field.validity.valid")
        page.get_by_label("Days").fill("30")
        expect(page.get_by_text("None yet.")).to_be_visible()
        page.get_by_role("button", name="Make a token").click()
        secret = page.get_by_role("status").locator("code").inner_text()
        assert tutti("jobs", "ls", cwd=tmp_path, TUTTI_URL=site.url, TUTTI_TOKEN=secret).returncode == 0
        assert tutti("jobs", "ls", cwd=tmp_path, TUTTI_URL=site.url).returncode != 0
        ada.picture("settings-account-wide")
        page.get_by_role("button", name="Revoke").click()
        page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        expect(page.get_by_text("None yet.")).to_be_visible()
        assert tutti("jobs", "ls", cwd=tmp_path, TUTTI_URL=site.url, TUTTI_TOKEN=secret).returncode != 0
        for visitor in (ada, bob):
            visitor.close()
            assert visitor.said == []


def test_the_operators_token_makes_the_first_account_from_another_machine(browser, tmp_path):
    with running("up", "--port", 0, "--host", "0.0.0.0", cwd=tmp_path) as up:
        visitor = Visitor(browser, f"http://127.0.0.1:{up.ready['url'].rpartition(':')[2]}")
        page = visitor.goto("/")
        expect(page.get_by_role("heading", name="Set up Tutti")).to_be_visible()
        assert visitor.violations() == []
        visitor.picture("set-up-light")
        page.get_by_label("Operator's token").fill("not the token")
        page.get_by_label("Name or e-mail address").fill("ada")
        page.get_by_label("Organisation").fill("Ward 7")
        page.get_by_label("Password", exact=True).fill(PASSWORD)
        page.get_by_role("button", name="Make the account").click()
        expect(page.get_by_role("alert")).to_contain_text("whoever operates the coordinator makes the first")
        page.get_by_label("Operator's token").fill((tmp_path / up.ready["token_file"]).read_text())
        page.get_by_role("button", name="Make the account").click()
        expect(page.get_by_role("heading", name="Home")).to_be_visible()
        page.get_by_role("link", name="Settings").click()
        expect(page.get_by_text("ada, admin of Ward 7")).to_be_visible()
        visitor.close()
        assert visitor.said == []


# -- nothing there, not yet, or not at all -------------------------------------------------------------------

EMPTY = {
    "/": ["No node has joined yet.", "No job yet."],
    "/dashboard/nodes": ["No node has joined yet."],
    "/dashboard/new": ["No node is connected yet"],
    "/dashboard/metrics": ["No job yet."],
    "/dashboard/ledger": ["Nobody holds a token yet.", "No job pays for contributions yet"],
    "/dashboard/users": ["Nobody has an account", "Nobody has done anything yet."],
}
WAITING = ["No round has closed yet.", "No round has been opened yet.", "No update has been counted yet."]


def test_a_page_with_nothing_to_show_says_so(browser, tmp_path):
    with a_site(tmp_path, nodes=0) as site:
        visitor = Visitor(browser, site.url)
        for path, texts in EMPTY.items():
            page = visitor.goto(path)
            for text in texts:
                expect(page.get_by_text(text).first).to_be_visible()
        visitor.goto("/dashboard/ledger")
        visitor.picture("ledger-empty")
        with site.client() as client:
            job = client.submit(JOB, paused=True).id
        page = visitor.goto(f"/dashboard/job/{job}")
        for text in WAITING:
            expect(page.get_by_text(text)).to_be_visible()
        visitor.picture("job-empty")
        visitor.close()
        assert visitor.said == []


READS = ["/", "/dashboard/nodes", "/dashboard/new", "/dashboard/metrics", "/dashboard/ledger", "/dashboard/users"]
READS += ["/dashboard/market", "/dashboard/settings", "/dashboard/job/{job}"]


def test_a_page_says_that_it_loads_and_what_went_wrong_and_tries_again(browser, site):
    with site.client() as client:
        job = client.submit({**JOB, "name": "read", "rounds": 1}).id
        client.wait(job)
    visitor = Visitor(browser, site.url)
    page, held, mode = visitor.page, [], ""

    def stand_between(route: Route) -> None:
        if mode == "hold":
            held.append(route)
        elif mode == "fail":
            route.abort()
        else:
            route.continue_()

    page.route("**/api/v1/**", stand_between)
    for path in READS:
        mode = "hold"
        visitor.goto(path.format(job=job))
        expect(page.get_by_text("Loading…").first).to_be_visible()
        mode = "fail"
        while held:
            held.pop().abort()
        trouble = page.get_by_role("alert", name="").filter(has_text="The coordinator does not answer.")
        expect(trouble.first).to_be_visible()
        expect(page.get_by_text("Reconnecting…")).to_be_visible()
        assert visitor.violations() == [], path
        mode = "pass"
        page.evaluate("document.querySelectorAll('.trouble button').forEach(button => button.click())")
        expect(trouble).to_have_count(0)
        expect(page.get_by_text("Loading…")).to_have_count(0)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
    visitor.close()


# -- every page ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lived_in(site) -> dict[str, str]:
    """Paths of pages on a coordinator that has done something."""
    with site.client() as client:
        client.mint("treasury", 100_000, key="for-the-pictures")
        done = client.submit({**JOB, "name": "digits-fedadam", "rounds": 12, "strategy": "fedadam:server_lr=0.02"})
        client.wait(done.id)
        rewards = {"pool": 1000, "data": "digits:split=test"}
        shown = client.submit({**JOB, "name": "digits-fedavg", "rounds": 12, "rewards": rewards})
        for event in client.follow():
            if event.type == "RewardsSettled":
                break
    return {
        "home": "/",
        "job": f"/dashboard/job/{shown.id}",
        "nodes": "/dashboard/nodes",
        "new": f"/dashboard/new?from={shown.id}",
        "join": "/dashboard/join",
        "metrics": "/dashboard/metrics",
        "ledger": "/dashboard/ledger",
        "settings": "/dashboard/settings",
        "users-before": "/dashboard/users",
        "unknown-job": "/dashboard/job/nonsense",
    }


@pytest.mark.parametrize("screen", SCREENS)
def test_every_page_is_accessible_and_fits(browser, site, lived_in, screen):
    visitor = Visitor(browser, site.url, **SCREENS[screen])
    for name, path in lived_in.items():
        page = visitor.goto(path)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.get_by_text("Loading…")).to_have_count(0)
        if name == "job":
            page.get_by_role("button", name=re.compile("^Round 5: closed")).click()
            expect(page.get_by_role("region", name="Nodes in round 5")).to_be_visible()
            page.get_by_text("Compare", exact=True).click()
            page.get_by_label("digits-fedadam").check()
            page.get_by_text("Compare", exact=True).click()
            expect(page.locator(".u-legend").first).to_contain_text("digits-fedadam")
            expect(page.get_by_role("list", name="Why each node earned what it did in round 12")).to_contain_text(
                re.compile(r"clinic-[ab] earned \d+ of 1000 in round 12")
            )
        assert visitor.violations() == [], (name, screen)
        assert visitor.overflow() <= 0, (name, screen)
        visitor.picture(f"{name}-{screen}")
        if (name, screen) == ("job", "light"):
            visitor.picture("dashboard", whole=False)
    visitor.close()
    assert visitor.said == []

"""The browser node where the network is bad, or strange: cut off, asleep, over TLS, by a plain address, overheard."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect

from support.browser import Visitor, chromium
from support.certificates import certificate, fingerprint
from support.commands import Running, running
from support.line import Line, line_to
from support.phones import KEPT, NAMED, PHONE, Site, counted, join, joined, take_a_part, up
from tutti.adapters.browser.kernel import WASM
from tutti.adapters.fabrics.hub_link import HubLink
from tutti.apps.client import Client
from tutti.ports import LinkBusy
from tutti.wire.messages import Registration, decode_from_node

pytestmark = [pytest.mark.xdist_group("browser-node"), pytest.mark.timeout(600)]

LONG = {"model": "mlp:hidden=100x100", "rounds": 1, "seed": 7, "training": {"epochs": 1200, "batch_size": 4}}
ALONE = {"min_nodes": 1, "grace": 300}
TRAINS = """new Promise((resolve) => {
  const look = () => (document.querySelector('.state').innerText.includes('training') ? resolve() : setTimeout(look));
  look();
})"""


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("identity"))


@pytest.fixture(scope="module")
def browser(identity: tuple[Path, Path]) -> Iterator[Browser]:
    trusted = f"--ignore-certificate-errors-spki-list={fingerprint(identity[0])}"
    with chromium(f"--host-resolver-rules=MAP {NAMED} 127.0.0.1", trusted) as browser:
        yield browser


def port_of(url: str) -> str:
    return url.rsplit(":", 1)[1]


def to_pages(browser: Browser, number: signal.Signals) -> None:
    """Send a signal to the processes in which pages and their workers run."""
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    for process in processes:
        if process["type"] == "renderer":
            with suppress(ProcessLookupError):  # one that nobody needed any more
                os.kill(process["id"], number)


def opened_again(context: BrowserContext, address: str) -> Page:
    """The browser may offer a page that waited in a process which was killed too: then there is another."""
    for last in (False, True):
        try:
            page = context.new_page()
            page.goto(address)
        except Error:
            if last:
                raise
        else:
            return page
    raise AssertionError


class Trip:
    """What can happen on the way to a phone that trains; `site.url` leads by way of the line."""

    def __init__(self, browser: Browser, site: Site, line: Line, phone: Visitor, port: str) -> None:
        self.browser, self.site, self.line, self.phone, self.page = browser, site, line, phone, phone.page
        self.port = port

    def nothing(self) -> None:
        """The model that all others must make too."""

    def a_tunnel(self) -> None:
        self.line.cut()
        self.phone.context.set_offline(True)
        self.is_away_until_done()
        self.phone.context.set_offline(False)
        self.line.mend()

    def a_coordinator_that_is_killed(self) -> None:
        self.site.up.end(signal.SIGKILL)
        self.is_away_until_done()
        self.site.up = start(self.site.stack, self.site.folder, self.port)

    def sleep(self) -> None:
        after = self.events()
        to_pages(self.browser, signal.SIGSTOP)
        self.is_given_up(after)
        to_pages(self.browser, signal.SIGCONT)

    def a_way_that_is_dead_without_a_word(self) -> None:
        after = self.events()
        assert self.line.go_dead() > 0
        self.is_given_up(after)

    def is_away_until_done(self) -> None:
        """The page says that it is away, and goes on training all the same."""
        expect(self.page.get_by_role("status").first).to_contain_text("No connection to the coordinator")
        expect(self.page.get_by_label("Progress of this round")).to_have_js_property("value", 1)

    def events(self) -> int:
        with self.site.client() as client:
            return max(event.offset for event in client.events())

    def is_given_up(self, after: int) -> None:
        """By the coordinator, which has heard nothing for too long."""
        with Client(f"http://127.0.0.1:{self.port}") as client:
            next(event for event in client.follow(after=after) if event.type == "NodeDisconnected")


def start(stack: ExitStack, folder: Path, port: int | str = 0) -> Running:
    return stack.enter_context(running(*up(folder, port, "--heartbeat", "0.5"), cwd=folder))


def test_whatever_happens_on_the_way_the_model_is_the_same_and_nothing_counts_twice(tmp_path, browser):
    with ExitStack() as stack:
        started = start(stack, tmp_path)
        line = stack.enter_context(line_to(started.ready["url"]))
        site = Site(tmp_path, stack, started, line.url)
        link = f"{line.url}/join#{site.link().partition('#')[2]}"
        phone = site.phone(browser, link=link)
        take_a_part(join(phone, "ada"))
        trip = Trip(browser, site, line, phone, port_of(started.ready["url"]))
        made = {}
        happenings = (
            trip.nothing,
            trip.a_tunnel,
            trip.a_coordinator_that_is_killed,
            trip.sleep,
            trip.a_way_that_is_dead_without_a_word,
        )
        for happening in happenings:
            job = site.train(**LONG, cohort=ALONE)
            phone.page.evaluate(TRAINS)
            happening()
            done = site.wait(job)
            assert done.status == "completed"
            with site.client() as client:
                kinds = ("UpdateAccepted", "UpdateRefused", "UpdateLost", "NodeDropped", "RoundFailed")
                events = [event.type for event in client.events_of(*kinds, stream=f"job:{job.id}")]
            made[happening.__name__] = (done.model_digest, events)
        assert made["nothing"][1] == ["UpdateAccepted"] * 2  # the second is what the model was measured to be
        assert made == dict.fromkeys(made, made["nothing"])
        expect(phone.page.get_by_role("status").first).to_contain_text("Connected, waiting for work.")
        assert counted(phone.page) == len(happenings)

        phone.page.reload()
        expect(phone.page.get_by_role("status").first).to_contain_text("Connected, waiting for work.")
        assert counted(phone.page) == len(happenings)
        expect(phone.page.get_by_text("Accuracy, round by round")).to_be_visible()


def test_over_tls_it_is_an_app_that_opens_without_a_connection(tmp_path, browser, identity):
    cert, key = identity
    with ExitStack() as stack:
        tls = ("--tls-cert", str(cert), "--tls-key", str(key))
        started = stack.enter_context(running(*up(tmp_path, 0, *tls), cwd=tmp_path))
        site = Site(tmp_path, stack, started, started.ready["url"], ca=cert)
        phone = joined(site, browser, "ada")
        assert phone.page.evaluate("[isSecureContext, location.protocol]") == [True, "https:"]
        phone.page.evaluate("navigator.serviceWorker.ready.then(() => true)")

        devtools = phone.context.new_cdp_session(phone.page)
        assert devtools.send("Page.getAppManifest")["errors"] == []
        errors = devtools.send("Page.getInstallabilityErrors")["installabilityErrors"]
        assert [error["errorId"] for error in errors] == ["in-incognito"]  # as every page of a test is

        site.up.end(signal.SIGKILL)
        phone.page.close()
        phone.page = page = phone.context.new_page()  # its files are kept since the first time, not only the second
        page.goto("/node")
        expect(page.get_by_role("status").first).to_contain_text("No connection to the coordinator; trying again.")
        phone.picture("node-away")

        site.up = stack.enter_context(running(*up(tmp_path, port_of(site.url), *tls), cwd=tmp_path))
        expect(page.get_by_role("status").first).to_contain_text("Connected, waiting for work.")
        assert site.wait(site.train(rounds=1, cohort=ALONE)).status == "completed"


def lan_address() -> str:
    """This machine's address in its network; a name that is no more trusted, if it has none."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            return NAMED
        return str(probe.getsockname()[0])


def test_a_plain_address_is_enough_and_who_listens_there_learns_no_secret(tmp_path, browser):
    with ExitStack() as stack:
        started = stack.enter_context(running(*up(tmp_path, 0, "--host", "0.0.0.0"), cwd=tmp_path))
        port, token = port_of(started.ready["url"]), Path(started.ready["token_file"]).read_text().strip()
        site = Site(tmp_path, stack, started, f"http://127.0.0.1:{port}", token)
        address = f"http://{lan_address()}:{port}"
        phone = Visitor(browser, address, **PHONE)
        heard: list[str] = []
        phone.page.on("request", lambda request: heard.extend((*request.headers.values(), request.post_data or "")))
        phone.page.on("websocket", lambda ws: ws.on("framesent", lambda frame: heard.append(str(frame))))
        phone.goto(f"{address}/join#{site.link().partition('#')[2]}")
        assert phone.page.evaluate("[isSecureContext, typeof crypto.subtle]") == [False, "undefined"]
        take_a_part(join(phone, "ada"))
        done = site.wait(site.train(model="2nn", cohort=ALONE))  # so large that it goes by HTTP
        assert site.parts(done, 3)["ada"].outcome == "counted"

        key = phone.page.evaluate(KEPT, "member")["key"]
        assert len(key) == 64
        assert not any(key in said for said in heard)
        shown = next(said for said in heard if "device:register" in said)
        overheard = decode_from_node(json.dumps(json.loads(shown[shown.index("{") : shown.rindex("}") + 1])))
        assert isinstance(overheard, Registration)

        async def show_it_again() -> None:
            async with HubLink(site.url, "ada", overheard.token) as link:
                await anext(await link.connect(overheard))

        def is_refused(reason: str) -> None:
            with ThreadPoolExecutor(1) as other, pytest.raises(LinkBusy, match=reason):
                other.submit(asyncio.run, show_it_again()).result()
            expect(phone.page.get_by_role("status").first).to_contain_text("Connected, waiting for work.")

        is_refused("has been shown before")
        site.up.end(signal.SIGKILL)
        expect(phone.page.get_by_role("status").first).to_contain_text("No connection")
        site.up = stack.enter_context(running(*up(tmp_path, port, "--host", "0.0.0.0"), cwd=tmp_path))
        expect(phone.page.get_by_role("status").first).to_contain_text("Connected, waiting for work.")
        is_refused("from before this coordinator started")  # which has forgotten what was shown


# -- too little memory -----------------------------------------------------------------------------------

MEMORY = bytes.fromhex("0503010010")
"""Of a WebAssembly module: its section of memories, one of 16 pages (1 MiB) that may grow."""


def test_a_device_with_too_little_memory_says_so_in_words(tmp_path, browser):
    kernel = WASM.read_bytes()
    assert kernel.count(MEMORY) == 1
    small = kernel.replace(MEMORY, bytes.fromhex("050401011020"))  # at most 2 MiB
    with ExitStack() as stack:
        started = stack.enter_context(running(*up(tmp_path), cwd=tmp_path))
        site = Site(tmp_path, stack, started, started.ready["url"])
        phone = Visitor(browser, site.url, **PHONE)
        phone.page.add_init_script("delete Navigator.prototype.serviceWorker")  # it would fetch the kernel itself
        fulfill = {"body": small, "content_type": "application/wasm"}
        phone.page.route("**/node-kernel.wasm", lambda route: route.fulfill(**fulfill))
        phone.goto(site.link())
        take_a_part(join(phone, "ada"))
        job = site.train(model="mlp:hidden=1000x1000", rounds=1, cohort={"min_nodes": 1, "retries": 0})
        expect(phone.page.get_by_role("alert")).to_contain_text("too little memory on this device for the model")
        phone.picture("node-memory")
        assert site.wait(job).status == "failed"
        assert "too little memory" in site.parts(job, 1)["ada"].reason
        assert site.wait(site.train(model="linear", rounds=1, cohort=ALONE)).status == "completed"  # smaller ones fit


def test_a_page_that_the_browser_ends_again_and_again_gives_the_task_up(tmp_path, browser):
    with ExitStack() as stack:
        started = stack.enter_context(running(*up(tmp_path), cwd=tmp_path))
        site = Site(tmp_path, stack, started, started.ready["url"])
        phone = joined(site, browser, "ada")
        endless = {"epochs": 100_000, "batch_size": 4}
        job = site.train(rounds=1, training=endless, cohort=ALONE)
        page = phone.page
        for _ in range(2):
            expect(page.get_by_role("status").first).to_contain_text("training")
            if page is phone.page:
                phone.picture("node-training")
            with page.expect_event("crash"):
                to_pages(browser, signal.SIGKILL)  # as a system does that has no memory left
            page = opened_again(phone.context, "/node")
        expect(page.get_by_role("alert")).to_contain_text("the browser has ended this page again and again")
        assert "too little memory" in site.parts(site.wait(job), 1)["ada"].reason

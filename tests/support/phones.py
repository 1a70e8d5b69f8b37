"""Phones at a coordinator: pages of the browser node in a real Chromium, and what people do there."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from support.browser import PATIENCE_MS, Visitor
from support.commands import Running, running
from tutti.adapters.identities.secp256k1 import Secp256k1Key
from tutti.apps.client import Client
from tutti.services.views import JobView, PartView

expect.set_options(timeout=PATIENCE_MS)

PHONE = {"width": 390, "height": 844}
NAMED = "phone.test"
"""A name for this machine that browsers do not trust as they trust loopback: an insecure origin, as on a LAN."""


@dataclass
class Site:
    folder: Path
    stack: ExitStack
    up: Running
    url: str
    token: str = ""
    ca: Path | None = None
    phones: list[Visitor] = field(default_factory=list)

    def client(self) -> Client:
        return Client(self.url, self.token, ca=self.ca)

    def link(self, uses: int = 1) -> str:
        with self.client() as client:
            return client.invite(uses=uses).link

    def phone(self, browser: Browser, scheme: str = "light", link: str = "") -> Visitor:
        link = link or self.link()
        visitor = Visitor(browser, link.partition("/join")[0], **PHONE, scheme=scheme)
        visitor.context.set_default_timeout(PATIENCE_MS)
        self.phones.append(visitor)
        visitor.goto(link)
        return visitor

    def train(self, **fields: object) -> JobView:
        job = {"dataset": "digits", "model": "mlp", "rounds": 3, "training": {"batch_size": 16}, **fields}
        with self.client() as client:
            return client.submit(job)

    def wait(self, job: JobView) -> JobView:
        with self.client() as client:
            return client.wait(job.id)

    def parts(self, job: JobView, round: int) -> dict[str, PartView]:
        with self.client() as client:
            return {part.node: part for part in client.why(job.id, round).attempts[-1].nodes}


def up(folder: Path, port: int | str = 0, *options: str) -> tuple[str, ...]:
    return ("up", "--port", str(port), "--data-dir", str(folder / "data"), "--audited", "1", *options)


def python_node(site: Site, name: str, part: str, *, dataset: str = "digits", **environment: str) -> Running:
    join = ("join", site.link(), "--data", f"{dataset}:part={part}", "--name", name, "--state-dir", name)
    return site.stack.enter_context(running(*join, cwd=site.folder, **environment))


def join(phone: Visitor, name: str) -> Page:
    phone.page.get_by_label("What this device is called").fill(name)
    phone.page.get_by_role("button", name="Join with this device").click()
    expect(phone.page.get_by_role("heading", name="What shall it train on?")).to_be_visible()
    return phone.page


def take_a_part(page: Page) -> None:
    page.get_by_role("button", name="A part of “digits”").click()
    expect(page.get_by_role("status").first).to_contain_text("Connected, waiting for work.")


def joined(site: Site, browser: Browser, name: str) -> Visitor:
    phone = site.phone(browser)
    take_a_part(join(phone, name))
    return phone


def draw(page: Page, strokes: list[tuple[float, float]]) -> None:
    box = page.get_by_label("Draw a digit here").bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in strokes]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


KEPT = """(key) => new Promise((resolve) => {
  const opening = indexedDB.open('tutti-node', 1);
  opening.onsuccess = () => {
    const asked = opening.result.transaction('kept').objectStore('kept').get(key);
    asked.onsuccess = () => resolve(asked.result);
  };
})"""


def key_of(page: Page) -> Secp256k1Key:
    """The key that a phone keeps, which nobody but its page sees."""
    return Secp256k1Key(bytes.fromhex(page.evaluate(KEPT, "member")["key"]))


def counted(page: Page) -> int:
    return int(page.locator("dt:has-text('Updates that counted') + dd").inner_text())

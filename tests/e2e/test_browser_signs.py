"""Phones sign what they hand in: anybody can check it without a coordinator, and one that signs twice is found out."""

from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from playwright.sync_api import Browser, Page, WebSocketRoute, expect

from support.browser import chromium
from support.commands import running, tutti
from support.phones import Site, join, joined, key_of, python_node, take_a_part, up
from tutti.adapters.identities.secp256k1 import Secp256k1Key, verify
from tutti.core.params import Params
from tutti.core.registry import Choice
from tutti.domain.signing import NOWHERE, Domain, Signed, address_of, digest_of
from tutti.domain.spec import DataSchema, Training
from tutti.wire import tensors
from tutti.wire.messages import (
    MAX_ATTACHED,
    Failure,
    Message,
    Registered,
    Registration,
    Start,
    Submission,
    Verdict,
    attach,
    decode_from_coordinator,
    decode_from_node,
    encode,
)

pytestmark = [pytest.mark.xdist_group("browser-node"), pytest.mark.timeout(600)]

OTHER = "ab" * 32


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    with ExitStack() as stack:
        started = stack.enter_context(running(*up(tmp_path), cwd=tmp_path))
        yield Site(tmp_path, stack, started, started.ready["url"], "")


def test_what_phones_hand_in_is_checked_offline_as_that_of_any_node(site, browser):
    python_node(site, "clinic", "0/5")
    phones = {name: joined(site, browser, name) for name in ("ada", "grace")}
    addresses = {name: phone.page.locator("code").inner_text() for name, phone in phones.items()}
    assert addresses == {name: address_of(key_of(phone.page).public) for name, phone in phones.items()}
    rewards = {"pool": 100, "data": "digits:split=test"}
    job = site.train(rounds=3, rewards=rewards, cohort={"min_nodes": 3}).id
    with site.client() as client:
        client.mint("treasury", 300, key="grant")
        next(event for event in client.follow() if event.type == "RewardsSettled")
        assert {name: client.node(name).signs_as for name in addresses} == addresses
        key = client.ledger().public_key
    at = {"cwd": site.folder, "TUTTI_URL": site.url}
    for command in (
        ("rewards", job, "--round", 2, "--node", "ada", "--proof", "proof.json"),
        ("ledger", "export", "its"),
    ):
        assert tutti(*command, **at).returncode == 0
    for phone in phones.values():
        phone.close()
    site.up.process.kill()  # from here on, nobody has to be believed

    check = ("ledger", "verify", "--key", key, "--file", "its", "--job", job)
    signers = [f"--signer={name}={address}" for name, address in addresses.items()]
    checked = tutti(*check, *signers, "--proof", "proof.json", cwd=site.folder)
    assert checked.returncode == 0, checked.stderr
    for name, address in addresses.items():
        assert f"{name}: 3 updates, signed by {address}" in checked.stdout
    assert "of ada is among those of round 2" in checked.stdout
    other = tutti(*check, f"--signer=ada={addresses['grace']}", cwd=site.folder)
    assert (other.returncode != 0, "ada signs as" in other.stderr) == (True, True)


class TwoFaced:
    """Between a phone and its coordinator: once an update counts, it signs another under the same number with `key`."""

    def __init__(self, socket: WebSocketRoute) -> None:
        self.key: Secp256k1Key | None = None
        self.socket, self.server = socket, socket.connect_to_server()
        self.start: Start | None = None
        self.first: Submission | None = None
        self.server.on_message(self.tell)
        socket.on_message(self.hand_in)

    def tell(self, frame: str | bytes) -> None:
        self.socket.send(frame)
        message = decode_from_coordinator(frame) if isinstance(frame, str) else None
        if isinstance(message, Start):
            self.start = message
        if isinstance(message, Verdict) and message.accepted and self.first is not None:
            self.server.send(text(self.another(self.first)))

    def hand_in(self, frame: str | bytes) -> None:
        self.server.send(frame)
        message = decode_from_node(frame) if isinstance(frame, str) else None
        if isinstance(message, Submission) and message.digest:
            self.first = message

    def another(self, first: Submission) -> Submission:
        assert self.start is not None
        assert self.key is not None
        its = signed(self.key.public, self.start, replace(first, weight=1))
        return replace(first, digest=OTHER, weight=1, signature=self.key.sign(digest_of(first.job, OTHER, its)).hex())


def text(message: Message) -> str:
    return str(encode(message), "utf-8")


def signed(key: str, start: Start, said: Submission) -> Signed:
    """What is signed of an update, beside job and digest."""
    its = {"samples": said.weight, "nonce": said.nonce, "signature": said.signature}
    return Signed(key=key, round=start.round, base=start.weights, domain=start.domain, **its)


def test_a_phone_that_signs_two_updates_under_one_number_gets_no_more_work(site, browser):
    phone = site.phone(browser)
    faces: list[TwoFaced] = []
    phone.page.route_web_socket("**/ws/node", lambda socket: faces.append(TwoFaced(socket)))
    take_a_part(join(phone, "mallory"))
    (mallory,) = faces
    mallory.key = key_of(phone.page)
    honest = joined(site, browser, "ada")
    honest.page.route("**/api/v1/blobs/*", lambda route: None)  # so that the round stays open
    job = site.train(model="2nn", rounds=1, cohort={"min_nodes": 2})  # so large that it goes by HTTP
    with site.client() as client:
        while not (found := list(client.events_of("NodeEquivocated"))):
            phone.page.wait_for_timeout(20)  # Playwright deals with what was said; the test's deadline ends it
        proof = found[0].data
        assert mallory.first is not None
        assert (proof["node"], proof["job"], proof["digests"]) == ("mallory", job.id, [mallory.first.digest, OTHER])
        for digest, its in zip(proof["digests"], proof["signed"], strict=True):
            one = msgspec.convert(its, Signed)
            assert verify(mallory.key.public, digest_of(job.id, digest, one), bytes.fromhex(one.signature))
        assert [client.node(name).drained for name in ("mallory", "ada")] == [True, False]


# -- a coordinator that tries to have two updates signed under one number ----------------------------------

DATA = DataSchema("classification", (64,), 10)


class Asking:
    """Asks a phone for what it likes, and hears what it hands in."""

    def __init__(self, socket: WebSocketRoute) -> None:
        self.socket = socket
        self.key = ""
        self.heard: list[Submission | Failure] = []
        socket.on_message(self.hear)

    def hear(self, frame: str | bytes) -> None:
        raw = frame.encode() if isinstance(frame, str) else frame[4 : 4 + int.from_bytes(frame[:4], "big")]
        match decode_from_node(raw):
            case Registration(key=key):
                self.key = key
                self.socket.send(text(Registered(node="ada", attached=MAX_ATTACHED)))
            case Submission() | Failure() as said:
                self.heard.append(said)

    def ask(self, page: Page, weight: float, round: int) -> tuple[Start, Submission]:
        start, said = self.answer(page, weight, round)
        assert isinstance(said, Submission), said
        return start, said

    def answer(self, page: Page, weight: float, round: int) -> tuple[Start, Submission | Failure]:
        params = Params.from_arrays({"w": np.full((10, 64), weight, np.float32), "b": np.zeros(10, np.float32)})
        blob, before = bytes(tensors.encode(params)), len(self.heard)
        start = Start(
            job="digits-1",
            name="digits",
            round=round,
            attempt=before,
            rounds=3,
            task="train",
            model=Choice("linear"),
            data=DATA,
            weights=tensors.digest(blob),
            seed=7,
            cohort=1,
            training=Training(batch_size=8),
            domain=Domain(31337, NOWHERE),
        )
        self.socket.send(attach(start, blob))
        while len(self.heard) == before:
            page.wait_for_timeout(10)  # Playwright deals with what was said; the test's deadline ends it
        return start, self.heard[-1]


@pytest.fixture
def asked(site, browser) -> tuple[Page, list[Asking]]:
    """A phone, and who asks it, once for each of its connections."""
    page = join(site.phone(browser), "ada")
    asking: list[Asking] = []
    page.route_web_socket("**/ws/node", lambda socket: asking.append(Asking(socket)))
    page.get_by_role("button", name="A part of “digits”").click()
    expect(page.get_by_role("status").first).to_contain_text("Connected")
    return page, asking


def test_no_coordinator_can_have_two_updates_signed_under_one_number(asked):
    page, asking = asked
    first = [asking[-1].ask(page, weight, round) for weight, round in ((0.0, 1), (0.1, 1), (0.0, 1), (0.1, 2))]
    page.reload()
    expect(page.get_by_role("status").first).to_contain_text("Connected")
    second = [asking[-1].ask(page, weight, round) for weight, round in ((0.1, 1), (0.2, 1), (0.1, 2))]
    assert [said.nonce for _, said in (*first, *second)] == [0, 1, 0, 0, 1, 2, 0]
    assert first[0][1].signature == first[2][1].signature
    assert asking[0].key == asking[-1].key
    assert page.locator("code").inner_text() == address_of(asking[0].key)
    for start, said in (*first, *second):
        digest = digest_of(start.job, said.digest, signed(asking[0].key, start, said))
        assert verify(asking[0].key, digest, bytes.fromhex(said.signature))


def test_a_tab_signs_nothing_once_its_device_has_left_in_another(asked):
    page, asking = asked
    assert asking[-1].ask(page, 0.0, 1)[1].nonce == 0
    other = page.context.new_page()
    other.goto("/node")
    other.get_by_role("button", name="Leave").click()
    other.get_by_role("dialog").get_by_role("button", name="Leave").click()
    expect(other.get_by_role("heading", name="An invitation is needed")).to_be_visible()
    _, said = asking[-1].answer(page, 0.1, 1)
    assert isinstance(said, Failure)
    assert "the key of this device is not kept here any more" in said.reason
    expect(page.get_by_role("alert")).to_contain_text("not kept here any more")


def test_a_device_that_cannot_leave_says_so(asked):
    page, _ = asked
    page.evaluate("() => { IDBObjectStore.prototype.clear = () => { throw new Error('the disk is gone') } }")
    page.get_by_role("button", name="Leave").click()
    page.get_by_role("dialog").get_by_role("button", name="Leave").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("the disk is gone")

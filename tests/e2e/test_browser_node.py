"""The browser node in a real Chromium: phones join by a link, and train in one round with Python nodes."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import Browser, Page, WebSocketRoute, expect

from support.browser import Visitor, chromium
from support.commands import running
from support.phones import NAMED, PHONE, Site, counted, draw, join, joined, python_node, take_a_part, up
from support.shared_data import SHARED, needs
from tutti.wire.messages import PROTOCOL

pytestmark = [pytest.mark.xdist_group("browser-node"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(f"--host-resolver-rules=MAP {NAMED} 127.0.0.1") as browser:
        yield browser


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    with ExitStack() as stack:
        started = stack.enter_context(running(*up(tmp_path), cwd=tmp_path))
        yield Site(tmp_path, stack, started, started.ready["url"], "")


def test_phones_and_python_nodes_train_in_one_round(site, browser):
    for part in range(2):
        python_node(site, f"clinic-{part}", f"{part}/5")
    for name in ("ada", "grace"):
        joined(site, browser, name)
    phone = site.phone(browser, scheme="dark")
    page = join(phone, "handwriting")
    page.get_by_role("button", name="My own data for “digits”").click()
    for _ in range(3):
        draw(page, [(0.5, 0.1), (0.5, 0.9)])
        page.get_by_role("button", name="1", exact=True).click()
        draw(page, [(0.2, 0.15), (0.8, 0.15), (0.4, 0.9)])
        page.get_by_role("button", name="7", exact=True).click()
    phone.picture("node-draw")
    page.get_by_role("button", name="Train on 6 digits").click()
    expect(page.get_by_role("status").first).to_contain_text("Connected")

    done = site.wait(site.train(rounds=12, training={"batch_size": 8}, cohort={"min_nodes": 5}))
    assert done.status == "completed"
    assert done.accuracy is not None
    assert done.accuracy > 0.7
    for round in range(1, 13):
        parts = site.parts(done, round)
        assert {name: part.outcome for name, part in parts.items()} == dict.fromkeys(parts, "counted")
        assert len(parts) == 5
    expect(page.get_by_text("Accuracy, round by round")).to_be_visible()
    assert counted(page) >= 12

    page.get_by_role("button", name="Draw more digits").click()
    draw(page, [(0.5, 0.1), (0.5, 0.9)])
    expect(page.get_by_text("The model takes this for")).to_be_visible()
    for number, phone in enumerate(site.phones):
        phone.picture(f"node-working-{number}")
        assert phone.violations() == []
        assert phone.overflow() == 0
        assert phone.said == []


ONE, SEVEN = [(0.5, 0.1), (0.5, 0.9)], [(0.2, 0.15), (0.8, 0.15), (0.4, 0.9)]


def draws(page: Page, times: int) -> None:
    """Ones and sevens, each so often, to be trained on."""
    for _ in range(times):
        for strokes, digit in ((ONE, "1"), (SEVEN, "7")):
            draw(page, strokes)
            page.get_by_role("button", name=digit, exact=True).click()
    page.get_by_role("button", name=f"Train on {2 * times} digits").click()


def is_taken_for(page: Page, strokes: list[tuple[float, float]], digit: str) -> None:
    draw(page, strokes)
    expect(page.get_by_text("The model takes this for")).to_contain_text(f"for a {digit} ")
    page.get_by_role("button", name="Clear").click()


def test_handwriting_of_ones_own_is_trained_on_as_mnist_is(site, browser):
    job = site.train(
        dataset="mnist", model="cnn", rounds=2, training={"epochs": 8, "batch_size": 4}, cohort={"min_nodes": 1}
    )
    phone = site.phone(browser)
    page = join(phone, "ada")
    page.get_by_role("button", name="My own data for “mnist”").click()
    draws(page, 3)
    done = site.wait(job)
    assert (done.data.shape, done.parameters) == ((1, 28, 28), 1_663_370)  # as in McMahan et al. 2017
    part = site.parts(done, 2)["ada"]
    assert (part.outcome, part.weight) == ("counted", 5)  # every fifth is held out
    page.get_by_role("button", name="Draw more digits").click()
    is_taken_for(page, ONE, "1")
    is_taken_for(page, SEVEN, "7")
    phone.picture("node-handwriting")


@needs("mnist")
def test_handwriting_of_ones_own_is_trained_on_beside_nodes_that_have_mnist(site, browser):
    for part in (0, 1):
        python_node(site, f"lab-{part}", f"{part}/60", dataset="mnist", TUTTI_DATA_DIR=str(SHARED))
    training = {"epochs": 1, "batch_size": 20, "lr": 0.1}
    job = site.train(dataset="mnist", model="cnn", rounds=3, training=training, cohort={"min_nodes": 3, "grace": 300})
    phone = site.phone(browser)
    page = join(phone, "ada")
    page.get_by_role("button", name="My own data for “mnist”").click()
    draws(page, 3)
    done = site.wait(job)
    parts = site.parts(done, 3)
    assert {name: (part.outcome, part.weight) for name, part in parts.items()} == {
        "lab-0": ("counted", 800),
        "lab-1": ("counted", 800),
        "ada": ("counted", 5),  # every fifth row is held out, everywhere
    }
    assert done.accuracy is not None
    assert done.accuracy > 0.8
    page.get_by_role("button", name="Draw more digits").click()
    is_taken_for(page, ONE, "1")
    phone.picture("node-mnist")


def test_a_browser_without_webassembly_trains_every_model_too(site, browser):
    phone = Visitor(browser, site.url, **PHONE)
    phone.page.add_init_script("delete window.WebAssembly")
    phone.goto(site.link())
    page = join(phone, "ada")
    alone = {"rounds": 1, "cohort": {"min_nodes": 1}, "evaluation": {"nodes": False}}
    page.get_by_role("button", name="A part of “digits”").click()
    expect(page.get_by_text("this browser has no WebAssembly SIMD, so training is slow")).to_be_visible()
    for model in ("linear", "2nn", "mlp:hidden=20x10"):
        done = site.wait(site.train(model=model, **alone))
        assert site.parts(done, 1)["ada"].outcome == "counted"  # and every one came out to the bit in an audit
    with site.client() as client:
        assert not client.node("ada").drained

    page.get_by_role("button", name="Leave").click()
    page.get_by_role("button", name="Leave").last.click()
    expect(page.get_by_role("heading", name="An invitation is needed")).to_be_visible()
    phone.goto(site.link())
    page = join(phone, "grace")
    job = site.train(dataset="mnist", model="cnn", training={"batch_size": 4}, **alone)
    page.reload()
    page.get_by_role("button", name="My own data for “mnist”").click()
    draws(page, 1)
    assert site.parts(site.wait(job), 1)["grace"].outcome == "counted"


def test_every_update_comes_out_to_the_bit_in_an_audit(site, browser):
    joined(site, browser, "ada")
    fields = {"dataset": "digits", "model": "linear", "strategy": "fedprox:mu=0.1", "cohort": {"min_nodes": 1}}
    for model in ("linear", "2nn", "mlp:hidden=20x10"):
        done = site.wait(site.train(**{**fields, "model": model}, rounds=1))
        assert done.status == "completed"
        assert site.parts(done, 1)["ada"].outcome == "counted"


def test_a_tab_that_is_closed_costs_only_its_share_and_a_reloaded_one_goes_on(site, browser):
    python_node(site, "clinic", "0/5")
    leaves, stays = joined(site, browser, "leaves"), joined(site, browser, "stays")
    job = site.train(rounds=30, training={"epochs": 20, "batch_size": 4}, cohort={"min_nodes": 2, "grace": 1.0})
    expect(leaves.page.get_by_role("status").first).to_contain_text("round 2")
    leaves.page.close()
    stays.page.reload()
    expect(stays.page.get_by_role("status").first).to_contain_text("of 30")
    done = site.wait(job)
    assert done.status == "completed"
    last = site.parts(done, 30)
    assert last["stays"].outcome == last["clinic"].outcome == "counted"
    assert last["leaves"].outcome != "counted"


def test_its_owner_can_pause_it(site, browser):
    python_node(site, "clinic", "0/5")
    phone = joined(site, browser, "ada")
    phone.page.get_by_role("button", name="Pause").click()
    expect(phone.page.get_by_role("status").first).to_contain_text("Not working now: paused by you.")
    phone.picture("node-paused")
    phone.page.reload()  # it comes paused, and goes on all the same
    expect(phone.page.get_by_role("status").first).to_contain_text("Not working now: paused by you.")
    done = site.wait(site.train(cohort={"min_nodes": 1}))
    assert "owner" in site.parts(done, 1)["ada"].reason
    phone.page.get_by_role("button", name="Go on").click()

    phone.page.route("**/api/v1/blobs/*", lambda route: None)  # in the middle of a round
    job = site.train(model="2nn", rounds=1, cohort={"min_nodes": 2, "quorum": 1})
    expect(phone.page.get_by_role("status").first).to_contain_text("getting the model")
    phone.page.get_by_role("button", name="Pause").click()
    expect(phone.page.get_by_role("status").first).to_contain_text("Not working now: paused by you.")
    expect(phone.page.get_by_role("alert")).to_have_count(0)  # it is no error
    assert "the owner of this device" in site.parts(site.wait(job), 1)["ada"].reason
    phone.page.unroute("**/api/v1/blobs/*")
    phone.page.get_by_role("button", name="Go on").click()

    done = site.wait(site.train(cohort={"min_nodes": 2}))
    assert site.parts(done, 3)["ada"].outcome == "counted"


# -- what goes wrong, in words ---------------------------------------------------------------------------


def test_links_that_are_wrong_or_used_up_say_so(site, browser):
    phone = site.phone(browser, link=f"{site.url}/join#{'x' * 32}")
    phone.page.get_by_role("button", name="Join with this device").click()
    expect(phone.page.get_by_role("alert")).to_contain_text("this join link is not known here")
    phone.picture("node-refused")
    phone.page.evaluate("link => { location.href = link }", site.link())  # in the same tab, where only the hash changes
    expect(phone.page.get_by_role("alert")).to_have_count(0)
    join(phone, "ada")
    nobody = Visitor(browser, site.url, **PHONE)
    nobody.goto("/node")
    expect(nobody.page.get_by_role("heading", name="An invitation is needed")).to_be_visible()
    nobody.picture("node-uninvited")


def test_a_model_that_browsers_do_not_have_leaves_the_phone_out(site, browser):
    python_node(site, "clinic", "0/5")
    joined(site, browser, "ada")
    done = site.wait(site.train(model="sgd-linear", rounds=1, cohort={"min_nodes": 1}))
    assert site.parts(done, 1)["ada"].reason == "its owner does not allow model 'sgd-linear'"


def test_an_option_that_browsers_do_not_have_is_said_on_the_phone(site, browser):
    python_node(site, "clinic", "0/5")
    phone = joined(site, browser, "ada")
    done = site.wait(site.train(model="mlp:activation=tanh", rounds=1, cohort={"min_nodes": 2, "quorum": 1}))
    assert "this browser cannot train the model “mlp”" in site.parts(done, 1)["ada"].reason
    expect(phone.page.get_by_role("alert")).to_contain_text("this browser cannot train the model “mlp”")


def test_a_browser_that_keeps_nothing_says_so_and_trains(site, browser):
    phone = Visitor(browser, site.url, **PHONE)
    phone.page.add_init_script(
        "Object.defineProperty(window, 'indexedDB', {value: {open() { throw new Error('denied'); }}})"
    )
    phone.goto(site.link())
    take_a_part(join(phone, "ada"))
    expect(phone.page.get_by_role("alert")).to_contain_text("does not let pages keep anything")
    assert site.wait(site.train(rounds=1, cohort={"min_nodes": 1})).status == "completed"


def test_a_browser_that_keeps_nothing_at_all_takes_part_until_it_is_closed(site, browser):
    phone = Visitor(browser, site.url, **PHONE)
    for store in ("indexedDB", "localStorage"):
        phone.page.add_init_script(
            f"Object.defineProperty(window, '{store}', {{get() {{ throw new Error('denied'); }}}})"
        )
    phone.goto(site.link())
    take_a_part(join(phone, "ada"))
    expect(phone.page.get_by_role("alert").first).to_contain_text("the device may have to join again")
    phone.picture("node-denied")
    done = site.wait(site.train(rounds=2, cohort={"min_nodes": 1}))
    assert site.parts(done, 2)["ada"].outcome == "counted"
    phone.goto("/node")
    expect(phone.page.get_by_role("heading", name="An invitation is needed")).to_be_visible()


def test_a_full_storage_is_not_called_a_private_window(site, browser):
    page = joined(site, browser, "ada").page
    page.evaluate(
        "() => { Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') } }"
    )
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("alert")).to_contain_text("cannot keep more for this page (full): make room on the device")


def test_a_phone_whose_clock_is_wrong_takes_part(site, browser):
    phone = Visitor(browser, site.url, **PHONE)
    phone.page.add_init_script("const right = Date.now; Date.now = () => right() + 86_400_000")
    phone.goto(site.link())
    take_a_part(join(phone, "ada"))
    done = site.wait(site.train(model="2nn", rounds=1, cohort={"min_nodes": 1}))
    assert site.parts(done, 1)["ada"].outcome == "counted"


def test_a_coordinator_that_speaks_another_protocol_is_said_in_words(site, browser):
    def age(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        socket.on_message(lambda said: server.send(str(said).replace(f'"protocol":{PROTOCOL}', '"protocol":0')))

    phone = site.phone(browser)
    phone.page.route_web_socket("**/ws/node", age)
    page = join(phone, "ada")
    page.get_by_role("button", name="A part of “digits”").click()
    expect(page.get_by_role("status").first).to_contain_text("This device takes no part now.")
    expect(page.get_by_role("alert")).to_contain_text(
        "this page is of another version than the coordinator: load it again"
    )


def test_a_phone_that_was_removed_stops(site, browser):
    phone = joined(site, browser, "ada")
    with site.client() as client:
        client.remove_node("ada")
    expect(phone.page.get_by_role("status").first).to_contain_text("This device takes no part now.")

    phone.goto(site.link())  # but for a new invitation
    phone.page.get_by_label("What this device is called").fill("ada")
    phone.page.get_by_role("button", name="Join with this device").click()
    expect(phone.page.get_by_role("status").first).to_contain_text("Connected, waiting for work.")


def test_a_second_tab_takes_over_and_the_first_one_says_so(site, browser):
    phone = joined(site, browser, "ada")
    other = phone.context.new_page()
    other.goto("/node")
    expect(other.get_by_role("status").first).to_contain_text("Connected, waiting for work.")
    expect(phone.page.get_by_role("status").first).to_contain_text("This device takes no part now.")
    expect(phone.page.get_by_role("alert")).to_contain_text("this device takes part in another tab or window")


def test_a_table_of_ones_own_is_checked_and_trained_on(site, browser):
    (site.folder / "bad.csv").write_text("age,died\n40,0\nfifty,1\n")
    lines = "\n".join(f"{age},1,2,3,{age % 10}" for age in range(40, 60))
    (site.folder / "good.csv").write_text(f"age,height,size,weight,stage\n{lines}\n")
    phone = site.phone(browser)
    page = join(phone, "ada")
    page.get_by_role("button", name="My own data for another job").click()
    page.get_by_label("What the data set is called").fill("clinic")
    page.get_by_label("CSV file", exact=True).set_input_files(site.folder / "bad.csv")
    page.get_by_role("button", name="Train on this file").click()
    expect(page.get_by_role("alert")).to_contain_text("row 3, column “age”: expected a number, came “fifty”")
    phone.picture("node-csv")
    page.get_by_label("CSV file", exact=True).set_input_files(site.folder / "good.csv")
    page.get_by_role("button", name="Train on this file").click()
    expect(page.get_by_role("status").first).to_contain_text("Connected")
    expect(page.get_by_role("button", name="Draw more digits")).to_have_count(0)  # ten classes, and no digits
    done = site.wait(site.train(dataset="clinic", model="linear", cohort={"min_nodes": 1}))
    assert site.parts(done, 3)["ada"].weight == 16


def test_pictures_of_ones_own_are_checked_and_trained_on(site, browser):
    (site.folder / "bad.png").write_text("no picture")
    phone = site.phone(browser)
    phone.page.screenshot(path=site.folder / "good.png")
    page = join(phone, "ada")
    page.get_by_role("button", name="My own data for “digits”").click()
    draw(page, ONE)
    page.get_by_role("button", name="1", exact=True).click()
    page.get_by_label("CSV", exact=True).check()
    page.get_by_label("draw", exact=True).check()
    expect(page.get_by_role("button", name="Train on 1 digit")).to_be_enabled()  # it is kept
    page.get_by_label("pictures", exact=True).check()
    page.get_by_label("Pictures of").select_option("7")
    page.get_by_label("Add pictures").set_input_files([site.folder / "bad.png", site.folder / "good.png"])
    expect(page.get_by_role("alert")).to_contain_text("bad.png: this browser cannot read it as a picture")
    page.get_by_role("button", name="Train on 1 picture").click()
    expect(page.get_by_role("status").first).to_contain_text("Connected")
    done = site.wait(site.train(rounds=1, cohort={"min_nodes": 1}, evaluation={"nodes": False}))
    assert (site.parts(done, 1)["ada"].outcome, site.parts(done, 1)["ada"].weight) == ("counted", 1)


BATTERY = """
window.battery = new (class extends EventTarget {
  charging = true;
  level = 0.5;
  heard = 0;
  addEventListener(type, hear, options) {
    this.heard++;
    options?.signal?.addEventListener('abort', () => this.heard--);
    super.addEventListener(type, hear, options);
  }
})();
navigator.getBattery = async () => window.battery;
window.net = Object.assign(new EventTarget(), {type: 'wifi'});
Object.defineProperty(navigator, 'connection', {value: window.net});
"""


def test_it_can_wait_until_it_is_charging_and_has_wifi(site, browser):
    phone = Visitor(browser, site.url, **PHONE)
    phone.page.add_init_script(BATTERY)
    phone.goto(site.link())
    page = join(phone, "ada")
    page.get_by_role("button", name="My own data for “digits”").click()
    for count in ("1 digit", "2 digits"):
        draw(page, [(0.5, 0.1), (0.5, 0.9)])
        page.get_by_role("button", name="1", exact=True).click()
        page.get_by_role("button", name=f"Train on {count}").click()
        expect(page.get_by_role("status").first).to_contain_text("Connected")
        if count == "1 digit":
            page.get_by_role("button", name="Draw more digits").click()
    page.get_by_label("Only while charging").check()
    plug = "on => { battery.charging = on; battery.dispatchEvent(new Event('chargingchange')) }"
    page.evaluate(plug, False)
    expect(page.get_by_role("status").first).to_contain_text("waiting until the device is charging")
    page.evaluate(plug, True)
    expect(page.get_by_role("status").first).to_contain_text("Connected")
    page.get_by_label("Only on Wi-Fi").check()
    move = "type => { net.type = type; net.dispatchEvent(new Event('change')) }"
    page.evaluate(move, "cellular")
    expect(page.get_by_role("status").first).to_contain_text("waiting for Wi-Fi")
    page.evaluate(move, "wifi")
    expect(page.get_by_role("status").first).to_contain_text("Connected")
    assert page.evaluate("battery.heard") == 1  # the run on the first digit listens no more


SHAKING = """
let moment = 0;
setInterval(() => {
  const event = new Event('devicemotion');
  event.accelerationIncludingGravity = {x: Math.sin(moment++) * window.strength, y: 0, z: 9.81};
  dispatchEvent(event);
}, 10);
"""


def test_movements_are_recorded_and_trained_on(site, browser):
    phone = site.phone(browser)
    page = join(phone, "ada")
    page.get_by_role("button", name="My own data for another job").click()
    page.get_by_label("motion").check()
    page.get_by_role("button", name="still: 0").click()
    expect(page.get_by_role("alert")).to_contain_text("the sensors of this device gave nothing")
    page.evaluate(SHAKING)
    for strength, kind in ((0.0, "still"), (20.0, "shaking")):
        page.evaluate(f"window.strength = {strength}")
        page.get_by_role("button", name=f"{kind}: 0").click()
        expect(page.get_by_role("button", name=f"{kind}: 1")).to_be_enabled()
    phone.picture("node-motion")
    page.get_by_role("button", name="Train on 2 movements").click()
    expect(page.get_by_role("status").first).to_contain_text("Connected")
    fields = {"dataset": "motion", "model": "linear", "cohort": {"min_nodes": 1}, "evaluation": {"nodes": False}}
    done = site.wait(site.train(**fields))
    assert (site.parts(done, 3)["ada"].outcome, site.parts(done, 3)["ada"].weight) == ("counted", 2)

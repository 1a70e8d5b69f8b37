"""A class plays: so many pupils open a join link in pages of their own in Chromium, draw digits, and train together.

    python bench/classroom.py [--pupils 30] [--rounds 20] [--quick] [--json]

Each draws four kinds of digits twice, by hand as it were: strokes that lean, grow and shift differently for everybody.
In the end some draw each once more, and the page says what the common model takes it for. One pupil alone is what the
class is compared with, in the same run; all pages share this machine, where a class has a phone each.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from _common import show
from _federation import coordinator, wait_for
from tutti.apps.client import OVER, Client

PHONE = {"width": 390, "height": 844}
PATIENCE_MS = 300_000

Stroke = list[tuple[float, float]]
DIGITS: dict[int, list[Stroke]] = {
    0: [[(0.5, 0.1), (0.25, 0.3), (0.25, 0.7), (0.5, 0.9), (0.75, 0.7), (0.75, 0.3), (0.5, 0.1)]],
    1: [[(0.35, 0.3), (0.5, 0.1), (0.5, 0.9)]],
    4: [[(0.6, 0.9), (0.6, 0.1), (0.2, 0.6), (0.8, 0.6)]],
    7: [[(0.2, 0.15), (0.8, 0.15), (0.4, 0.9)]],
}


def hand(rng: Random) -> "Hand":
    return Hand(rng.uniform(-0.15, 0.15), rng.uniform(0.7, 1.0), rng)


class Hand:
    """Somebody's: leans to one side, and writes large or small."""

    def __init__(self, lean: float, size: float, rng: Random) -> None:
        self._lean, self._size, self._rng = lean, size, rng

    def draw(self, page: Page, digit: int) -> None:
        box = page.get_by_label("Draw a digit here").bounding_box()
        assert box is not None
        for stroke in DIGITS[digit]:
            places = [self._place(x, y) for x, y in stroke]
            for number, (x, y) in enumerate(places):
                page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=2 if number else 1)
                if number == 0:
                    page.mouse.down()
            page.mouse.up()

    def _place(self, x: float, y: float) -> tuple[float, float]:
        shake = self._rng.uniform(-0.03, 0.03)
        wide = 0.5 + (x - 0.5) * self._size + self._lean * (0.5 - y) + shake
        return min(0.95, max(0.05, wide)), min(0.95, max(0.05, 0.5 + (y - 0.5) * self._size + shake))


def join(browser: Browser, link: str, name: str) -> Page:
    page = browser.new_context(viewport=PHONE).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(link)
    page.get_by_label("What this device is called").fill(name)
    page.get_by_role("button", name="Join with this device").click()
    page.get_by_role("button", name="My own data for “digits”").click()
    return page


def write(page: Page, its: Hand, times: int) -> None:
    for _ in range(times):
        for digit in DIGITS:
            its.draw(page, digit)
            page.get_by_role("button", name=str(digit), exact=True).click()
    page.get_by_role("button", name=f"Train on {times * len(DIGITS)} digits").click()
    page.get_by_text("Connected, waiting for work.").wait_for()


def recognised(page: Page, its: Hand) -> int:
    """How many of the digits, drawn once more, the common model knows."""
    found = 0
    page.get_by_role("button", name="Draw more digits").click()
    for digit in DIGITS:
        its.draw(page, digit)
        said = page.get_by_text("The model takes this for").inner_text()
        found += said.startswith(f"The model takes this for a {digit} ")
        page.get_by_role("button", name="Clear").click()
    return found


def play(browser: Browser, folder: Path, pupils: int, rounds: int) -> dict[str, Any]:
    with coordinator(folder) as (process, client):
        link, hands = client.invite(uses=pupils).link, [hand(Random(number)) for number in range(pupils)]
        began = time.perf_counter()
        pages = [join(browser, link, f"pupil-{number}") for number in range(pupils)]
        joined = time.perf_counter()
        for page, its in zip(pages, hands, strict=True):
            write(page, its, 2)
        drawn, before = time.perf_counter(), process.cpu()
        done, trained = train(client, pupils, rounds)
        cpu = process.cpu() - before
        asked = list(zip(pages, hands, strict=True))[:5]
        known = sum(recognised(page, its) for page, its in asked)
        counted = [part.outcome for part in client.why(done, rounds).attempts[-1].nodes].count("counted")
        for page in pages:
            page.context.close()
        return {
            "pupils": pupils,
            "of whom counted": counted,
            "to join, s each": (joined - began) / pupils,
            "to draw 8 digits, s each": (drawn - joined) / pupils,
            "a round, s": trained / rounds,
            "coordinator's CPU a round, ms": 1000 * cpu / rounds,
            "coordinator's peak, MB": process.memory("VmHWM") / 1e6,
            "digits known again": known / (len(asked) * len(DIGITS)),
        }


def train(client: Client, pupils: int, rounds: int) -> tuple[str, float]:
    """A job, and how long all its rounds took."""
    job = {"dataset": "digits", "model": "mlp", "rounds": rounds, "training": {"lr": 0.1, "batch_size": 4}}
    job |= {"cohort": {"min_nodes": pupils, "retries": 0}, "seed": 1}
    made = client.submit(job).id
    done = wait_for(client, made, lambda now: now.status in OVER)
    assert done.status == "completed", done.reason
    at = [event.at for event in client.events_of("RoundOpened", "RoundClosed", stream=f"job:{made}")]
    return made, at[2 * rounds - 1] - at[0]


def measure(pupils: int, rounds: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="tutti-bench-") as temporary, sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        rows = [play(browser, Path(temporary) / str(number), number, rounds) for number in (1, pupils)]
        browser.close()
    return [row | {"a round / one pupil's": row["a round, s"] / rows[0]["a round, s"]} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pupils", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="two pupils: does it work at all?")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(2, 2) if options.quick else measure(options.pupils, options.rounds)
    show(rows, as_json=options.json, notes={})


if __name__ == "__main__":
    main()

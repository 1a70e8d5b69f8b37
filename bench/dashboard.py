"""Our pages in Chromium: first paint, frames while a job's curves grow, scrolling a thousand nodes, a node that trains.

    python bench/dashboard.py

Frames are those of requestAnimationFrame; the same page at rest is what they are compared with, in the same run.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from _common import show
from _federation import federation, percentile, submit, wait_for

FRAMES = """seconds => new Promise(done => {
    const found = []; let last = performance.now(); const end = last + 1000 * seconds;
    const step = now => { found.push(now - last); last = now; now < end ? requestAnimationFrame(step) : done(found); };
    requestAnimationFrame(step);
})"""
SCROLL = """seconds => new Promise(done => {
    const box = document.querySelector('.virtual .rows'); const found = []; let last = performance.now();
    const end = last + 1000 * seconds;
    const step = now => {
        found.push(now - last); last = now; box.scrollTop = (box.scrollTop + 97) % box.scrollHeight;
        now < end ? requestAnimationFrame(step) : done(found);
    };
    requestAnimationFrame(step);
})"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def frames(page: Page, script: str, seconds: float) -> list[float]:
    found: list[float] = page.evaluate(script, seconds)
    return found[1:]


def row(what: str, found: list[float], rest: list[float], points: float | None) -> dict[str, Any]:
    return {
        "what": what,
        "points/s": points,
        "frame p50 ms": percentile(found, 0.5),
        "p99 ms": percentile(found, 0.99),
        "longest ms": max(found),
        "p99 / at rest": percentile(found, 0.99) / percentile(rest, 0.99),
    }


def measure(seconds: float, nodes: int) -> tuple[list[dict[str, Any]], dict[str, object]]:
    with (
        tempfile.TemporaryDirectory(prefix="tutti-bench-") as temporary,
        federation(Path(temporary), 1, hosts=1) as it,
        sync_playwright() as playwright,
    ):
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(base_url=it.client.url)
        page.goto("/")
        page.get_by_role("heading", name="Home").wait_for()
        shown, paint = float(page.evaluate("performance.now()")), float(page.evaluate(PAINT))
        rest = frames(page, FRAMES, seconds)

        job = submit(it.client, nodes=1, rounds=100_000, size="tiny")
        page.goto(f"/dashboard/job/{job}")
        before = wait_for(it.client, job, lambda now: now.rounds_done > 1).rounds_done
        page.get_by_role("button", name="Round 1: closed").wait_for()
        growing = frames(page, FRAMES, seconds)
        points = (it.client.job(job).rounds_done - before) / seconds
        it.client.stop(job)

        token = it.client.invite(uses=nodes).token
        for number in range(nodes):
            it.client.join(token, f"phone-{number:05d}", "s" * 43)
        page.goto("/dashboard/nodes")
        page.get_by_text("shown").wait_for()
        scrolling = frames(page, SCROLL, seconds)

        learn = {"dataset": "digits", "model": "2nn", "rounds": 1, "training": {"epochs": 100_000, "lr": 0.01}}
        learning = it.client.submit(learn).id
        phone = browser.new_page()
        phone.goto(it.client.invite(uses=1).link)
        phone.get_by_role("button", name="Join with this device").click()
        phone.get_by_role("button", name="A part of “digits” from the coordinator").click()
        phone.get_by_text("training.").wait_for()
        training = frames(phone, FRAMES, seconds)
        it.client.stop(learning)
        browser.close()
    rows = [
        row("at rest", rest, rest, None),
        row("curves grow", growing, rest, points),
        row(f"scrolling {nodes} nodes", scrolling, rest, None),
        row("a browser node trains the 2NN", training, rest, None),
    ]
    return rows, {"first paint ms": paint, "home shown ms": shown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a moment of each: does it work at all?")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows, notes = measure(0.5, 20) if options.quick else measure(8.0, 1000)
    show(rows, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()

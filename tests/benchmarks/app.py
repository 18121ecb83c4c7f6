"""Run `python -m tests.benchmarks.app [--out FILE.json]`: how soon the page is full, how fast tabs open, what polls cost."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import sklearn

from rift.ui import diagnostic
from rift.ui.tabs import compare
from tests.browser import actions
from tests.browser.server import Server

GOALS = {"page_full_seconds": 3.0, "sub_tab_seconds": 0.5, "tick_kilobytes": 50.0, "button_p95_seconds": 0.3}
PHOTO = Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg"
# Milliseconds since navigation began, once the status bar and the pictures of Data that can be seen are there.
FULL = """() => {
  const all = [...document.querySelectorAll('#data-summary img')], there = all.length && document.querySelector('#status .state')
  const seen = all.filter(one => one.getBoundingClientRect().top < innerHeight)
  return there && seen.every(one => one.naturalWidth > 0) ? performance.now() : false
}"""
# The same for the verdict; Gradio mounts a tab when it is opened, so Compare is opened as soon as it can be clicked.
VERDICT = """() => {
  document.querySelector('#tab-compare-button[aria-selected=false]')?.click()
  return document.querySelector('#verdicts li') ? performance.now() : false
}"""


def page_full(browser, server: Server, rounds: int) -> dict[str, Any]:
    """Time the page in new browsers; the first one finds the server's caches empty."""
    found = {}
    for name, there in (("data", FULL), ("verdict", VERDICT)):
        times = []
        for _ in range(rounds + 1):
            context = browser.new_context(viewport={"width": 1280, "height": 1200})
            page = context.new_page()
            page.goto(server.url, wait_until="commit")
            times.append(page.wait_for_function(there, timeout=120_000).json_value() / 1000)
            context.close()
        found[name] = {"first_seconds": round(times[0], 2), **spread(times[1:])}
    return found


# From the press of the mouse until the words are in the page, within the page itself: no part of it is the driver's.
TOOK = """([selector, words]) => {
  window.took = 0
  addEventListener('mousedown', () => {
    const began = performance.now()
    const look = () => document.querySelector(selector).textContent.includes(words)
      ? window.took = performance.now() - began : requestAnimationFrame(look)
    look()
  }, {once: true, capture: true})
}"""


# From the press of the mouse until a figure is drawn and can be seen.
DRAWN = """selector => {
  window.took = 0
  addEventListener('mousedown', () => {
    const began = performance.now()
    const look = () => [...document.querySelectorAll(selector)].some(one => one.clientHeight > 100 && one.checkVisibility())
      ? window.took = performance.now() - began : requestAnimationFrame(look)
    look()
  }, {once: true, capture: true})
}"""


class Traffic:
    """Counts what a page receives and sends, from the browser's own network events."""

    def __init__(self, page):
        self.polls, self.received, self.sent, self.largest = 0, 0, 0, 0
        self._streams: dict[str, int] = {}
        events = page.context.new_cdp_session(page)
        events.send("Network.enable")
        events.on("Network.requestWillBeSent", self._asked)
        events.on("Network.dataReceived", self._got)

    def _asked(self, event: dict[str, Any]) -> None:
        self.polls += "/queue/join" in event["request"]["url"]
        self.sent += len(event["request"].get("postData", ""))

    def _got(self, event: dict[str, Any]) -> None:
        one = event["requestId"]
        self.received += event["dataLength"]
        self._streams[one] = self._streams.get(one, 0) + event["dataLength"]
        self.largest = max(self.largest, self._streams[one])


def traffic(page, seconds: float) -> dict[str, Any]:
    """Return what the page asks for in a while, nobody touching it; bytes are those of the text before any compression."""
    counted = Traffic(page)
    page.wait_for_timeout(1000 * seconds)
    each = counted.received / max(1, counted.polls)
    return {
        "seconds": seconds,
        "polls": counted.polls,
        "kilobytes_each": round(each / 1000, 2),
        "largest_kilobytes": round(counted.largest / 1000, 2),
        "sent_kilobytes_each": round(counted.sent / max(1, counted.polls) / 1000, 2),
    }


def sub_tabs(page) -> dict[str, Any]:
    """Time every figure of the example from the press of its tab, when it is opened first and when it is opened again."""
    actions.tab(page, "Compare")
    page.locator("#verdicts li").first.wait_for()
    tabs = page.locator("#tabs")
    found: dict[str, dict[str, float]] = {}
    for visit in ("first", "again"):
        times = found[visit] = {}
        for family, names in compare.families().items():
            actions.tab(page, "Verdict")
            times[family] = took(page, tabs.get_by_role("tab", name=family, exact=True), "#tab-compare .main-svg")
            for name in names:
                if not page.locator(f"#figure-{name} .main-svg").first.is_visible():
                    pressed = tabs.get_by_role("tab", name=diagnostic.title(name), exact=True)
                    times[diagnostic.title(name)] = took(page, pressed, f"#figure-{name} .main-svg")
    return {visit: {name: round(seconds, 2) for name, seconds in times.items()} for visit, times in found.items()}


def buttons(page, rounds: int) -> dict[str, Any]:
    """Time from a choice of the regularizer to its own sentence on the page, and from Ask to a new answer."""
    actions.tab(page, "Train")
    switched, asked = [], []
    for turn in range(rounds):
        name, words = (("none", "Ordinary finetuning"), ("rift", "RIFT: hold"))[turn % 2]
        page.locator("#pick-regularizers input").click()
        option = page.get_by_role("option", name=name, exact=True)
        option.wait_for()
        switched.append(took(page, option, "#tab-train", words))
    actions.tab(page, "Compare")
    actions.tab(page, "Zero-shot")
    page.get_by_label("A photo of your own").check()
    actions.drop(page, "photo-zero_shot", "photo.jpg", PHOTO)
    page.locator("#own-zero_shot img[alt='your photo']").wait_for()
    field = page.get_by_label("Words to choose from")
    for turn in range(2 * max(2, rounds // 8)):  # an even number, so that the words change every time
        count = 2 + turn % 2
        field.fill(", ".join(("palace", "boat", "flower")[:count]))
        asked.append(took(page, page.locator("#ask-zero_shot"), "#answer-zero_shot", f"Of these {count} words"))
    return {"switch": spread(switched), "ask": {"first_seconds": round(asked[0], 3), **spread(asked[1:])}}


def took(page, pressed, selector: str, words: str = "") -> float:
    """Press something and return the seconds until the words are there; without words, until a figure is drawn."""
    page.evaluate(TOOK, [selector, words]) if words else page.evaluate(DRAWN, selector)
    pressed.click()
    return page.wait_for_function("window.took").json_value() / 1000


def spread(seconds: list[float]) -> dict[str, Any]:
    return {
        "rounds": len(seconds),
        "p50_seconds": round(statistics.median(seconds), 3),
        "p95_seconds": round(float(np.percentile(seconds, 95)), 3),
    }


def fresh(browser, server: Server):
    """Return a new visitor's page, full."""
    page = browser.new_page(viewport={"width": 1280, "height": 1200})
    page.set_default_timeout(120_000)
    page.goto(server.url)
    page.locator("#data-summary img").first.wait_for()
    return page


def measure(rounds: int) -> dict[str, Any]:
    """Start the app on an empty lab and measure it idle, then while a run trains."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        began = time.perf_counter()
        server = Server(Path(folder), "--stand-by")
        started = time.perf_counter() - began
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            full = page_full(browser, server, rounds // 4)
            opened = {
                "first_on_this_server": sub_tabs(fresh(browser, server)),
                "second_visitor": sub_tabs(fresh(browser, server)),
            }
            page, watcher = fresh(browser, server), fresh(browser, server)
            page.wait_for_timeout(3000)  # what comes with the opening is not idle traffic
            idle = {"tick": traffic(page, 5), "button": buttons(page, rounds)}
            actions.settings(watcher, epochs=1000)
            actions.start(watcher)
            watcher.locator("#status .message", has_text=", step ").wait_for()
            training = {"tick": traffic(watcher, 20), "button": buttons(page, rounds), "tick_later": traffic(watcher, 20)}
            document = {
                "app_start_seconds": round(started, 1),
                "page_full": full,
                "sub_tabs": opened,
                "idle": idle,
                "training": training,
            }
        finally:
            browser.close()
            server.rest()
            server.close()
    return document


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    chosen = parser.parse_args()
    packages = ("gradio", "playwright", "torch")
    document = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "load_before": os.getloadavg()[0]},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "goals": GOALS,
        **measure(chosen.rounds),
    }
    document["machine"]["load_after"] = os.getloadavg()[0]
    text = json.dumps(document, indent=1)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

"""A comparison from the upload to the verdict, and everything that may come between: reload, a second tab, Stop, a crash."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import expect

from rift import checkpoint, service
from tests.browser.actions import kinds, message, reload, settings, start, state, tab, upload, zipped

pytestmark = pytest.mark.browser
LONG_MS = 360_000  # for what has to be trained first, on a machine that may be slow


def begin(page, seed: int, **values: object) -> None:
    """Start a comparison of two small made-up kinds, which nobody else has asked for."""
    upload(page, f"kinds{seed}.zip", zipped(kinds(seed)))
    settings(page, batch_size=4, **values)
    start(page)


def under_way(page) -> None:
    """Wait until steps are counted."""
    expect(page.locator("#status .message")).to_contain_text(", step ", timeout=LONG_MS)


def shown_step(page) -> int:
    """Return the step that the page tells; between two epochs it tells none for a moment."""
    while True:
        under_way(page)
        if found := re.search(r", step (\d+)", page.locator("#status .message").inner_text()):
            return int(found[1])


@pytest.mark.slow
def test_a_real_zip_is_trained_watched_reloaded_and_compared(page, server, shared):
    upload(page, "blood.zip", shared / "data" / "med_wbc_dataset2_5class.zip")
    expect(page.locator("#data-summary table.classes tbody tr")).to_have_count(5)
    tab(page, "Train")
    page.get_by_label("Quick").check()
    settings(page, epochs=1, batch_size=8)
    start(page)
    under_way(page)
    expect(page.locator("#curve-task_loss .js-plotly-plot .trace.scatter")).not_to_have_count(0)

    reload(page)
    message(page, "of 2")
    expect(page.locator("#stop")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("Safe to close this tab")
    expect(page.locator("#status .state")).to_have_text("Finished", timeout=LONG_MS)
    expect(page.locator("#stop")).not_to_be_visible()

    tab(page, "Watch")
    expect(page.locator("#curve-cka_debiased .js-plotly-plot .trace.scatter")).to_have_count(2)
    page.get_by_text("Epochs as a table").click()
    expect(page.locator("#log tbody tr")).to_have_count(2)
    tab(page, "Compare")
    expect(page.locator("#compare-heading h2")).to_contain_text("blood")
    expect(page.locator("#verdicts li")).not_to_have_count(0)
    document = service.result(server.lab, service.comparisons(server.lab)[0])
    tested = document["data"]["counts"]["test"]
    expect(page.locator("#arms")).to_contain_text(f"{tested} test images")
    accuracy = document["arms"][1]["mean"]["accuracy"]
    expect(page.locator("#arms tbody tr").first).to_contain_text(f"{accuracy:.3f}".rstrip("0").rstrip("."))


@pytest.mark.slow
def test_stop_keeps_what_is_done_and_go_on_finishes(page, server):
    begin(page, 1, epochs=30)  # so many that the first run is not finished before Stop
    under_way(page)
    page.locator("#stop").click()
    state(page, "Stopped")
    expect(page.locator("#stop")).not_to_be_visible()
    (first, second) = service.runs(service.arms(server.lab, service.comparisons(server.lab)[0]))
    saved = list((first.path / "checkpoint").glob(f"step-*{checkpoint.ENDING}"))  # none where a step outlasts Stop
    message(page, "Go on takes it up from where it was." if saved else "Go on begins anew: no step was saved yet.")
    assert any(event["event"] == "step" for event in first.events()) and second.state == "stopped"

    page.locator("#resume").click()
    expect(page.locator("#status .state")).to_have_text("Finished", timeout=LONG_MS)
    expect(page.locator("#resume")).not_to_be_visible()
    resumed = any(event["event"] == "resume" for event in first.events())
    assert resumed == bool(saved), "what was saved is not done again"


@pytest.mark.slow
def test_one_run_in_many_pages_and_a_second_visitor_who_waits(page, server, visit):
    begin(page, 2, epochs=400)
    under_way(page)
    name = service.comparisons(server.lab)[0]
    tab2, link = visit(server, context=page.context), visit(server, f"/?run={name}")
    for other in (tab2, link):
        message(other, ", step ")
        expect(other.locator("#stop")).to_be_visible()

    waiting = visit(server)
    begin(waiting, 3, epochs=400)
    state(waiting, "Waiting")
    message(waiting, "Waiting for 2 other runs; yours come next.")
    waiting.locator("#stop").click()
    state(waiting, "Stopped")
    before = shown_step(page)
    expect(page.locator("#status .message")).not_to_contain_text(f"step {before} ")
    message(page, ", step ")

    link.locator("#stop").click()
    for one in (link, tab2, page):
        state(one, "Stopped")


@pytest.mark.slow
def test_the_server_may_die_and_come_back(own_server, visit):
    server = own_server
    page = visit(server)
    begin(page, 5, epochs=400)
    under_way(page)
    before = shown_step(page)
    page.watch.expect(
        "Failed to load resource: net::ERR_", "TypeError: Failed to fetch", "TypeError: network error"
    )  # as the browser says, rightly, while nobody answers
    server.kill()
    run = service.runs(service.arms(server.lab, service.comparisons(server.lab)[0]))[0]
    reached = run.last_event().get("step", 0)
    deadline = time.monotonic() + LONG_MS / 1000
    while run.last_event().get("step", 0) <= reached + 5:
        assert time.monotonic() < deadline and run.is_alive, "the worker goes on without the app"
    assert server.start(server.port) == server.url
    page.watch.problems.clear()  # the browser says, rightly, that nobody answered
    reload(page)
    under_way(page)
    assert shown_step(page) > before
    assert len(server.workers()) == 1, "no second worker was started"
    page.locator("#stop").click()
    state(page, "Stopped")

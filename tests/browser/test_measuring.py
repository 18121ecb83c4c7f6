"""Measuring from the page: settings, progress, stop, a reload, go on, and the figure without another visit."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from rift import measuring, service
from rift.runs import Lab
from tests.browser.actions import reload, tab

pytestmark = [pytest.mark.browser, pytest.mark.slow]  # two models, seven points each


def wide(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth")


def open_interpolation(page) -> None:
    tab(page, "Compare")
    tab(page, "Interpolation")
    expect(page.locator("#figure-interpolation .js-plotly-plot .main-svg").first).to_be_visible()


def test_measure_stop_reload_and_go_on(page, server, visit):
    page.set_viewport_size({"width": 390, "height": 844})
    open_interpolation(page)
    expect(page.locator("#measured-interpolation")).to_contain_text("points = 11")
    page.get_by_role("button", name="Measure again").click()
    expect(page.locator("#plan-interpolation")).to_contain_text("for 2 arms: none, rift.")
    page.get_by_role("button", name="Settings").locator("visible=true").click()
    points = page.get_by_label("Points", exact=True)
    points.fill("99")
    points.press("Tab")
    page.locator("#measure-interpolation").click()
    expect(page.locator(".toast-body")).to_contain_text("points = 99 is not allowed")
    points.fill("7")
    points.press("Tab")
    page.locator("#measure-interpolation").click()

    state, message = page.locator("#measuring-interpolation .state"), page.locator("#measuring-interpolation .message")
    expect(message).to_contain_text(re.compile(r"none, arm 1 of 2: \d of 7 points on the line"))
    expect(state).to_have_text("Measuring")
    assert wide(page) <= 390
    second = visit(server)
    open_interpolation(second)
    expect(second.locator("#halt-interpolation")).to_be_visible()
    second.locator("#halt-interpolation").click()
    expect(state).to_have_text("Stopped")
    expect(message).to_contain_text("what was done is kept")
    expect(page.locator("#measured-interpolation")).to_contain_text("points = 11")

    reload(page)
    open_interpolation(page)
    expect(state).to_have_text("Stopped")
    page.locator("#resume-interpolation").click()
    expect(page.locator("#measured-interpolation")).to_contain_text("Measured with points = 7.", timeout=240_000)
    expect(page.locator("#measuring-interpolation .status")).to_have_count(0)
    expect(page.locator("#figure-interpolation .js-plotly-plot .main-svg").first).to_be_visible()
    example = Lab(server.root / "example")
    (name,) = service.comparisons(example)
    assert [len(one["alphas"]) for one in measuring.results(example, name, "interpolation").values()] == [7, 7]

    asked = []
    page.on("request", lambda request: asked.append(request.post_data_json) if "/queue/join" in request.url else None)
    for _ in range(15):  # what was under way comes to its end first, on a busy machine later
        asked.clear()
        page.wait_for_timeout(4000)
        if not asked:
            break
    events = sorted({(one["fn_index"], one.get("trigger_id")) for one in asked})
    assert not asked, f"a page on which nothing runs asked {len(asked)} times in four seconds: {events}"
    assert str(server.root) not in page.content() and str(server.root.resolve()) not in page.content()

"""The toys on the Learn tab: they run when opened, and follow their slider."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from rift import catalog
from tests.browser.actions import tab

pytestmark = pytest.mark.browser


@pytest.mark.slow
def test_every_toy_opens_and_follows_its_slider(page, server):
    tab(page, "Learn")
    for name in catalog.names("toys"):
        toy = page.locator(f"#toy-{name}")
        toy.locator("button").first.click()
        expect(toy.locator(".js-plotly-plot .main-svg").first).to_be_visible()
        said = toy.locator(".says").inner_text()
        slider = toy.locator("input[type=range]")
        slider.focus()
        slider.press("Home")
        expect(toy.locator(".says")).not_to_have_text(said)
        assert len(toy.locator(".says").inner_text()) > 50

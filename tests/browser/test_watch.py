"""The Watch tab: a map that moves with the epochs, by slider and keyboard, and what happened in words."""

from __future__ import annotations

import json

import numpy as np
import pytest
from playwright.sync_api import expect

from rift import service
from rift.runs import Lab
from tests.browser.actions import tab

pytestmark = pytest.mark.browser


@pytest.fixture
def mapped(server):
    """The example as if it had been trained with maps: made-up places that move, taken away after the test."""
    lab, draw = Lab(server.root / "example"), np.random.default_rng(0)
    (name,) = service.comparisons(lab)
    start = draw.normal(size=(20, 2)).round(3)
    paths = []
    for run in service.runs(service.arms(lab, name)):
        head = {
            "labels": [i % 4 for i in range(20)],
            "classes": ["a", "b", "c", "d"],
            "share": [0.3, 0.1],
            "start": start.tolist(),
        }
        lines = [head, *({"epoch": epoch, "places": (start * (1 + epoch / 10)).tolist()} for epoch in range(1, 31))]
        paths.append(run.path / "places.jsonl")
        paths[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    yield
    for path in paths:
        path.unlink()


@pytest.mark.slow
def test_the_map_steps_through_the_epochs_and_the_log_says_what_happened(server, mapped, visit):
    page = visit(server)
    tab(page, "Watch")
    titles = page.locator("#map .annotation-text")
    expect(titles.first).to_have_text("none, epoch 30")
    expect(page.locator("#map-said")).to_contain_text("After epoch 30")
    number, newest = page.locator("#map-epoch input[type=number]"), page.get_by_label("Stay at the newest")
    expect(number).to_have_value("30")
    number.fill("3")
    expect(titles.first).to_have_text("none, epoch 3")
    expect(newest).not_to_be_checked()
    page.locator("#map-epoch input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#map-said")).to_contain_text("After epoch 2 ")
    newest.check()
    expect(titles.last).to_have_text("rift, epoch 30")
    story = page.locator("#story")
    expect(story.locator("ol > li").first).to_contain_text("finished in")
    story.get_by_text("earlier").click()
    expect(story).to_contain_text("none, epoch 1 of 30: accuracy 0.575, similarity to the pretrained model")
    expect(page.locator("#log th").nth(2)).to_have_text("Accuracy, validation")


@pytest.mark.slow
def test_a_run_that_is_older_than_maps_says_so(server, visit):
    page = visit(server)
    tab(page, "Watch")
    expect(page.locator("#map")).to_contain_text("older than this page have none.")
    expect(page.locator("#map-epoch")).not_to_be_visible()

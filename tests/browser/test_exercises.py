"""The exercises on the Learn tab: predict first, then a real run, then what it says beside the prediction."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from rift import exercises, service
from tests.browser.actions import kinds, reload, state, tab, upload, zipped

pytestmark = pytest.mark.browser
LONG_MS = 480_000  # for what has to be trained first


def opened(page, name: str):
    """Open the Learn tab and one of its exercises."""
    tab(page, "Learn")
    box = page.locator(f"#exercise-{name}")
    box.locator("button").first.click()
    expect(page.locator(f"#exercise-cost-{name} p")).to_be_visible()
    return box


def test_nobody_starts_or_sees_before_a_prediction(page, server):
    box, start = opened(page, "rate"), page.locator("#exercise-start-rate")
    expect(start).to_be_disabled()
    expect(page.locator("#exercise-cost-rate")).to_contain_text("4 runs to train: about")
    expect(page.locator("#exercise-seen-rate")).to_have_text("It appears here after your prediction and the run.")
    box.get_by_label(exercises.EXERCISES["rate"].answers["higher"]).check()
    expect(start).to_be_enabled()
    assert server.lab.runs() == [] or all(run.experiment.training.learning_rate != 0.003 for run in server.lab.runs())


@pytest.mark.slow
def test_one_exercise_whole(page, server, visit):
    upload(page, "kinds72.zip", zipped(kinds(72, each=12)))
    exercise = exercises.EXERCISES["lambda"]
    box, seen = opened(page, "lambda"), page.locator("#exercise-seen-lambda")
    expect(page.locator("#exercise-cost-lambda")).to_contain_text("3 runs to train")
    box.get_by_label(exercise.answers["higher"]).check()
    page.locator("#exercise-start-lambda").click()
    expect(seen).to_contain_text("Running.")
    expect(page.locator("#exercise-stop-lambda")).to_be_visible()
    page.locator("#exercise-stop-lambda").click()
    state(page, "Stopped")
    reload(page)
    opened(page, "lambda")
    expect(seen).to_contain_text(re.compile(r"Go on (takes it up from where it was|begins anew)"))
    expect(box.get_by_label(exercise.answers["higher"])).to_be_checked()
    expect(box.get_by_label(exercise.answers["higher"])).to_be_disabled()
    page.locator("#exercise-start-lambda").click()
    expect(seen.locator("dd")).to_have_count(3, timeout=LONG_MS)

    words = [exercise.answers["higher"], exercise.answers["lower"], "No answer: it takes at least 20 images"]
    for said, wanted in zip(seen.locator("dd").all(), words, strict=True):
        expect(said).to_contain_text(wanted)
    name = service.comparisons(server.lab)[0]
    asked = (service.order_of(server.lab, name)[0],)
    sentences = [row["sentence"] for row in exercises.findings(server.lab, exercise, asked)]
    assert seen.locator("li").all_inner_texts() == sentences
    assert "95 % interval" in sentences[0] and "n = " in sentences[0]

    page.locator("#exercise-open-lambda").click()
    expect(page.get_by_role("tab", name="4 Compare")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#compare-heading h2")).to_contain_text("kinds72: none and rift[strength=1] and rift[strength=10]")

    other = visit(server)  # who has predicted nothing sees nothing, though it is all there
    upload(other, "kinds72.zip", zipped(kinds(72, each=12)))
    opened(other, "lambda")
    expect(other.locator("#exercise-cost-lambda")).to_contain_text("it opens at once")
    expect(other.locator("#exercise-seen-lambda dd")).to_have_count(0)
    other.locator("#exercise-lambda").get_by_label(exercise.answers["lower"]).check()
    other.locator("#exercise-start-lambda").click()
    expect(other.locator("#exercise-seen-lambda dd").first).to_contain_text(exercise.answers["lower"])
    assert len(service.comparisons(server.lab)) == len(set(service.comparisons(server.lab)))

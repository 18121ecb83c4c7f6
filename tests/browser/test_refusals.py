"""What goes wrong is said in words on the page and loses nothing; what a user typed stays text."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from rift.ui.tabs import train
from tests.browser.actions import drop, field, kinds, only_rift, settings, start, state, tab, upload, zipped

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=alert(1)>"
FORMULA = "{{7*7}} ${7*7}"


def test_a_bad_zip_is_told_with_its_code_and_loses_nothing(page):
    upload(page, "good.zip", zipped(kinds(30)))
    alert = page.locator("#data-problem [role=alert]")
    one = {name: data for name, data in kinds(30).items() if name.startswith("dark")}
    for name, data, code, words in (
        ("garbage.zip", b"PK\3\4 but nothing of a zip follows", "data.archive", "zip"),
        ("single.zip", zipped(one), "data.one_class", "dark"),
    ):
        drop(page, "upload", name, data)
        expect(alert.locator("code")).to_have_text(code)
        expect(alert).to_contain_text(words)
        expect(page.locator("#data-summary h2")).to_have_text("good")
    upload(page, "better.zip", zipped(kinds(31)))
    expect(alert).to_have_count(0)


@pytest.mark.slow
def test_names_from_outside_stay_text(page, server):
    names = (HOSTILE, FORMULA)
    upload(page, "hostile.zip", zipped(kinds(32, names=names, prefix=FORMULA)))
    rows = page.locator("#data-summary tbody th")
    expect(rows).to_have_count(2)
    shown = "".join(rows.all_inner_texts())
    assert HOSTILE in shown and FORMULA in shown
    assert page.locator("#data-summary img[onerror]").count() == 0
    assert FORMULA in page.locator("#data-summary img").last.get_attribute("title")
    settings(page, epochs=1, batch_size=4)
    only_rift(page)
    start(page)
    expect(page.locator("#status .state")).to_have_text("Finished", timeout=120_000)
    tab(page, "Compare")
    expect(page.locator("#compare-heading h2")).to_contain_text("hostile")
    for name in ("Accuracy", "Drift", "PCA", "Zero-shot"):
        tab(page, name)
        page.locator(".js-plotly-plot .main-svg:visible").first.wait_for()
    tab(page, "Accuracy")
    expect(page.locator("#figure-accuracy")).to_contain_text("<img sr…lert(1)>")
    assert page.locator("img[onerror]").count() == 0 and page.get_by_text("49 49").count() == 0
    words = page.locator("#words-zero_shot textarea, #words-zero_shot input")
    tab(page, "Zero-shot")
    words.fill(f"cat, dog, {HOSTILE}")
    page.locator("#ask-zero_shot").click()
    expect(page.locator("#answer-zero_shot")).to_contain_text(f"Not known, and so not scored: {HOSTILE}")
    assert page.locator("img[onerror]").count() == 0


def test_a_wrong_setting_is_told_and_start_is_off(page, server):
    settings(page)
    strength, epochs = page.locator("#strength input"), field(page, "Epochs")
    for place, wrong, right, words in (
        (strength, "-1", "1", "Give a strength between 0 and 1000000"),
        (epochs, "0", "3", "epochs = 0 is not allowed"),
    ):
        place.fill(wrong)
        expect(page.locator("#cost .problem")).to_contain_text(words)
        expect(page.locator("#start")).to_be_disabled()
        place.fill(right)
        expect(page.locator("#cost .problem")).to_have_count(0)
        expect(page.locator("#start")).to_be_enabled()
    assert not [run for run in server.lab.runs() if run.experiment.strength < 0]
    state(page, "Example")


def test_settings_are_kept_only_once_those_of_before_were_asked_for(page):
    kept = "localStorage.getItem('rift-lab-train')"
    page.wait_for_function("window.riftRecalled")
    page.evaluate("localStorage.removeItem('rift-lab-train'); window.riftRecalled = undefined")
    page.evaluate(train.KEEP, "defaults of a page that is slow to load")
    assert page.evaluate(kept) is None
    page.evaluate(train.RECALLED, "first")
    page.evaluate(train.KEEP, "then")
    assert page.evaluate(kept) == "then"


@pytest.mark.slow
def test_cost_and_command_follow_every_setting(page):
    settings(page)
    page.get_by_role("button", name="The same on the command line").click()
    cost, command = page.locator("#cost"), page.locator("#command .cm-content")
    expect(cost).to_contain_text("2 runs of phantoms-blood-smear, 80 steps in all, 120 training images")
    expect(command).to_contain_text("rift compare sample:phantoms --out result")
    tab(page, "Train")
    page.get_by_label("Quick").check()
    expect(cost).to_contain_text("24 steps in all")
    expect(command).to_contain_text("--set epochs=3")
    field(page, "Batch size").fill("10")
    expect(cost).to_contain_text("72 steps in all")
    expect(command).to_contain_text("--set batch_size=10")
    page.locator("#strength input").fill("0.25")
    expect(command).to_contain_text("--strength 0.25")
    only_rift(page)
    expect(cost).to_contain_text("1 run of")
    field(page, "Seeds").fill("3")
    expect(cost).to_contain_text("3 runs of")
    expect(command).to_contain_text("--seeds 3")
    field(page, "Finetuning method").click()
    page.get_by_role("option", name="lora", exact=True).click()
    expect(command).to_contain_text("--arm lora+rift@0.25")

"""One photo, of one's own or at hand, put to the pretrained model and both arms side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
import sklearn
from playwright.sync_api import expect

from tests.browser.actions import drop, tab

pytestmark = pytest.mark.browser
PHOTO = Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg"


@pytest.mark.slow
def test_a_photo_and_words_of_ones_own_are_asked_of_three_models(page, server):
    tab(page, "Compare")
    tab(page, "Zero-shot")
    page.get_by_label("A photo of your own").check()
    drop(page, "photo-zero_shot", "china.jpg", PHOTO)
    mine = page.locator("#own-zero_shot img[alt='your photo']")
    mine.wait_for()
    page.wait_for_function("one => one.naturalWidth > 0", arg=mine.element_handle())
    page.get_by_label("Words to choose from").fill("palace, boat; flower, snorfblat")
    page.locator("#ask-zero_shot").click()
    answer = page.locator("#answer-zero_shot")
    expect(answer).to_contain_text("Of these 3 words")
    for model in ("pretrained", "none", "rift"):
        expect(answer).to_contain_text(f"{model} says")
    expect(answer).to_contain_text("Not known, and so not scored: snorfblat.")
    expect(page.locator("#look-zero_shot .js-plotly-plot .barlayer .trace")).to_have_count(3)
    assert not [path for path in server.uploads.rglob("*.jpg")], "the photo has left Gradio's cache"


@pytest.mark.slow
def test_natural_photos_and_test_images_are_at_hand(page):
    tab(page, "Compare")
    tab(page, "Zero-shot")
    preview = page.locator("#preview-zero_shot")
    expect(preview).to_contain_text("1 of 11: cat")
    page.get_by_label("number input for Which one").fill("2")
    expect(preview).to_contain_text("2 of 11")
    page.get_by_label("A test image of this set").check()
    expect(preview).to_contain_text("1 of 40")
    page.wait_for_function("() => document.querySelector('#preview-zero_shot img').naturalWidth > 0")
    page.locator("#ask-zero_shot").click()
    expect(page.locator("#answer-zero_shot")).to_contain_text("pretrained says")


def test_what_is_no_photo_is_told(page):
    tab(page, "Compare")
    tab(page, "Zero-shot")
    page.get_by_label("A photo of your own").check()
    drop(page, "photo-zero_shot", "no.jpg", b"GIF, or so it says")
    expect(page.locator("#own-zero_shot [role=alert] code")).to_have_text("data.image")
    page.locator("#ask-zero_shot").click()
    expect(page.locator(".toast-body")).to_contain_text("Drop a photo first")

"""Pictures class by class: dropped, refused, kept over a reload, taken by webcam, used; tables, patients and few shots."""

from __future__ import annotations

import shutil

import pytest
from playwright.sync_api import expect

from tests.browser.actions import kinds, reload, tab

pytestmark = pytest.mark.browser
SUMMARY = "#data-summary table.classes tbody tr"


def give(page, where: str, files: dict[str, bytes]) -> None:
    some = [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in files.items()]
    page.locator(f"#{where} input[type=file]").set_input_files(some)


def of(kind: str, seed: int, each: int = 8) -> dict[str, bytes]:
    return {name.rpartition("/")[2]: data for name, data in kinds(seed, each).items() if name.startswith(kind)}


def count(page, place: int, many: int) -> None:
    expect(page.locator(f"#class-pictures-{place} .count")).to_have_text(f"{many} pictures" if many else "No pictures yet")


@pytest.mark.slow
def test_classes_are_filled_reloaded_and_used(page, server):
    give(page, "class-drop-0", of("dark", 60) | {"broken.png": b"GIF89a"})
    count(page, 0, 8)
    expect(page.locator("#class-pictures-0 .refused")).to_contain_text("broken.png: The file is a GIF")
    name = page.get_by_label("Name of class 1")
    name.fill("<b>dark</b>")
    name.press("Enter")
    give(page, "class-drop-1", of("light", 60))
    count(page, 1, 8)
    page.locator("#add-class").click()
    expect(page.get_by_label("Name of class 3")).to_be_visible()

    reload(page)
    count(page, 0, 8)
    expect(page.get_by_label("Name of class 1")).to_have_value("<b>dark</b>")
    page.wait_for_function("() => [...document.querySelectorAll('#class-pictures-0 img')].every(one => one.naturalWidth > 0)")
    assert page.locator("#class-pictures-0 img").count() == 8
    page.locator("#class-remove-2").click()
    expect(page.get_by_label("Name of class 3")).not_to_be_visible()
    page.locator("#use-classes").click()
    expect(page.locator("#data-summary h2")).to_have_text("my pictures")
    expect(page.locator(SUMMARY)).to_have_count(2)
    expect(page.locator("#data-summary")).to_contain_text("<b>dark</b>")
    expect(page.locator("#data-summary .remarks img")).to_have_count(3)
    assert not [path for path in server.uploads.rglob("*") if path.is_file() and path.stat().st_size]

    page.locator("#shots input").fill("2")
    page.locator("#shots input").press("Enter")
    expect(page.locator("#data-summary table.classes thead")).to_contain_text("train (2 drawn)")
    expect(page.locator(f"{SUMMARY} >> nth=0").locator("td").first).to_have_text("2")
    tab(page, "Train")
    expect(page.locator("#cost")).to_contain_text("4 training images")
    tab(page, "Data")
    page.locator("#class-clear-0").click()
    count(page, 0, 0)


def test_too_little_is_told_in_words(page):
    page.locator("#use-classes").click()
    expect(page.locator("#data-problem [role=alert]")).to_contain_text("There is no picture yet")
    expect(page.locator("#data-summary h2")).to_have_text("phantoms-blood-smear")


@pytest.mark.slow
def test_a_table_and_its_pictures_are_dropped_and_a_column_names_the_patient(page):
    tab(page, "Zip, or table with pictures")
    files = {f"pic ({i}).png": data for i, data in enumerate(of("dark", 61, 24).values())}
    rows = "".join(f"pic ({i}).png,{'ab'[i % 2]},person {i // 2 % 6}\n" for i in range(24))
    give(page, "upload", files)
    expect(page.locator("#data-problem [role=alert]")).to_contain_text("These are 24 files and 0 tables")
    give(page, "upload", files | {"labels.csv": f"file,label,who\n{rows}".encode()})
    expect(page.locator("#data-summary h2")).to_have_text("labels")
    page.get_by_label("Patients are told by").click()
    page.get_by_role("option", name="the column 'who' (6 patients)").click()
    expect(page.locator("#data-summary")).to_contain_text("Patients: ")
    reload(page)
    expect(page.get_by_label("Patients are told by")).to_have_value("the column 'who' (6 patients)")


@pytest.mark.slow
def test_the_webcam_takes_pictures_into_a_class(chromium, server):
    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    browser = chromium.browser_type.launch(executable_path=path, args=flags)
    try:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(server.url)
        page.locator("#status .state").wait_for()
        page.locator("#open-camera").click()
        page.wait_for_function("() => document.querySelector('#camera video')?.videoWidth > 0")
        page.locator("#camera-into label").nth(1).click()
        page.locator("#take-one").click()
        expect(page.locator("#class-pictures-1 .count")).to_have_text("1 picture")
        page.locator("#take-ten").click()
        expect(page.locator("#class-pictures-1 img")).to_have_count(8)
        count(page, 1, 11)
        assert not [one for one in server.uploads.rglob("*") if one.is_file() and one.stat().st_size], "never a file of Gradio's"
    finally:
        browser.close()

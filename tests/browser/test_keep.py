"""Keeping: the history and what can be done in it, links that others open, bundles, and the end of all data."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from rift import bundle, naming, service, sharing
from rift.runs import Lab
from tests.browser.actions import drop, kinds, settings, start, state, tab, upload, zipped

pytestmark = pytest.mark.browser
LONG_MS = 360_000


def keep(page, name: str) -> None:
    """Open a sub-tab of Keep."""
    tab(page, "Keep")
    page.get_by_role("tab", name=name, exact=True).first.click()


def rows(page):
    return page.locator("#history tbody tr:not([hidden])")


def under_way(page) -> None:
    """Wait until a worker has taken the run up."""
    expect(page.locator("#status .message")).to_contain_text(re.compile("^(Preparing|Training)"), timeout=LONG_MS)


def example(server) -> tuple[Lab, str]:
    lab = Lab(server.root / "example")
    return lab, service.comparisons(lab)[0]


@pytest.mark.slow
def test_a_link_shows_numbers_to_others_and_no_pictures_until_it_is_revoked(page, server, visit, chromium):
    keep(page, "Share")
    page.locator("#share").click()
    link = page.locator("#link textarea, #link input")
    expect(link).to_have_value(re.compile(r"/rift/shared/[A-Za-z0-9_-]{22}$"), timeout=LONG_MS)
    address = link.input_value()
    assert address.startswith(server.url + "/"), "built from where the page was asked for"
    context = chromium.new_context()
    try:
        other = context.new_page()
        asked = []
        other.on("request", lambda request: asked.append(request.url))
        assert other.goto(address, timeout=LONG_MS).status == 200
        expect(other.locator("h1")).to_have_text("phantoms-blood-smear")
        expect(other.locator("#arms")).to_contain_text("Balanced accuracy")
        expect(other.locator(".plot .main-svg").first).to_be_attached(timeout=LONG_MS)
        assert other.locator("img").count() == 0 and "0000.png" not in other.content()
        assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [address], "one page and nothing else"
        assert "gradio" not in other.content().casefold()
        expect(page.locator("#shares tbody tr")).to_have_count(len(sharing.shares(server.lab)))
        page.locator("#shares").get_by_role("button", name="Revoke").first.click()
        expect(page.locator("#link")).not_to_be_visible()
        assert other.goto(address).status == 404
        expect(other.locator("h1")).to_have_text("There is nothing under this link")
    finally:
        context.close()


@pytest.mark.slow
def test_a_bundle_opens_read_only_is_shown_and_closed(page, server, tmp_path):
    made = bundle.write(*example(server), tmp_path / "other.rift.zip")
    keep(page, "History")
    expect(rows(page).filter(has_text="the example")).to_have_count(1)
    page.get_by_role("button", name="Open a bundle").click()
    drop(page, "bundle", "other.rift.zip", b"PK\3\4 no bundle")
    page.locator("#bundle-problem [role=alert]").wait_for()
    drop(page, "bundle", "other.rift.zip", made)
    expect(page.locator("#bundle-problem")).to_contain_text("Opened, read-only", timeout=LONG_MS)
    row = rows(page).filter(has_text="opened, read-only")
    expect(row).to_have_count(1)
    state(page, "Opened")
    row.get_by_role("button", name="Open").click()
    expect(page.locator("#compare-heading h2")).to_contain_text("phantoms-blood-smear")
    expect(page.locator("#verdicts li")).not_to_have_count(0)
    expect(page.locator("#stop")).not_to_be_visible()
    page.locator("#compare-heading").get_by_role("button", name="All comparisons").click()
    row.get_by_role("button", name="Rename").click()
    page.get_by_label("New name").fill("<b>From a colleague</b>")
    page.locator("#save-name").click()
    expect(row).to_contain_text("<b>From a colleague</b>")
    row.get_by_role("button", name="Close").click()
    expect(page.locator("#history-sure [role=alert]")).to_contain_text("untouched")
    page.locator("#sure-delete").click()
    expect(row).to_have_count(0)
    state(page, "Example")
    assert not list((server.root / "opened").glob("*/opened.json"))


@pytest.mark.slow
def test_comparisons_are_found_pinned_compared_and_deleted_while_one_runs(page, server):
    upload(page, "kinds31.zip", zipped(kinds(31)))
    settings(page, batch_size=4, epochs=400)
    start(page)
    under_way(page)
    name = service.comparisons(server.lab)[0]
    own = f"kinds31: {' and '.join(arm.name for arm in service.arms(server.lab, name))}"
    keep(page, "History")
    row = rows(page).filter(has_text=own)
    expect(row).to_contain_text("on show")
    page.get_by_label("Search").fill("KINDS31 rift")
    expect(rows(page)).to_have_count(1)
    expect(page.locator("#history .found")).to_contain_text("1 of")
    page.get_by_label("Search").fill("no such thing")
    expect(rows(page)).to_have_count(0)
    page.get_by_label("Search").fill("")
    row.get_by_role("button", name="Pin").click()
    expect(rows(page).first).to_contain_text("kinds31")
    expect(row).to_contain_text("pinned")
    assert naming.label_of(server.lab, name).pinned

    runs = service.runs(service.arms(server.lab, name))
    row.get_by_role("button", name="Delete").click()
    expect(page.locator("#history-sure [role=alert]")).to_contain_text("stopped first")
    expect(page.locator("#keep-it")).to_be_focused()
    page.locator("#keep-it").click()
    expect(page.locator("#history-sure")).not_to_be_visible()
    assert name in service.comparisons(server.lab), "nothing is deleted before the second word"
    row.get_by_role("button", name="Delete").click()
    page.locator("#sure-delete").click()
    expect(row).to_have_count(0, timeout=LONG_MS)
    state(page, "Example")
    assert name not in service.comparisons(server.lab) and not [run for run in runs if run.path.exists()]


@pytest.mark.slow
def test_everything_can_be_taken_away(page, server, tmp_path):
    _, name = example(server)
    keep(page, "Take away")
    for what, ending in (("All numbers (CSV)", "numbers.csv"), ("Predictions (CSV)", "predictions.csv")):
        with page.expect_download() as download:
            page.locator("#take-files").get_by_role("link", name=what).click()
        assert download.value.suggested_filename == ending
        assert download.value.path().read_text().startswith("arm,run,seed,")
    page.get_by_label("with the finetuned weights").check()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the bundle").click()
    assert bundle.open_(Lab(tmp_path / "lab"), download.value.path())[1] == name
    page.locator("#weights").get_by_role("button").click()
    with page.expect_download() as download:
        page.locator("#weights").get_by_role("link", name="load.py").first.click()
    assert "model.load_state_dict(load_file(" in download.value.path().read_text()
    with page.expect_download() as download:
        page.locator("#weights").get_by_role("link", name="finetuned.safetensors").first.click()
    assert download.value.path().stat().st_size > 10_000_000


@pytest.mark.slow
def test_all_data_go_at_once_and_the_page_stands_as_new(own_server, visit):
    server = own_server
    page = visit(server)
    upload(page, "kinds32.zip", zipped(kinds(32)))
    settings(page, batch_size=4, epochs=400)
    start(page)
    under_way(page)
    keep(page, "Your data")
    expect(page.locator("#stored")).to_contain_text("Image sets")
    page.locator("#erase").click()
    page.locator("#keep-data").click()
    assert service.comparisons(server.lab)
    page.locator("#erase").click()
    key = page.evaluate("localStorage['rift-lab-draft']")
    page.locator("#sure-erase").click()
    page.wait_for_url("**/?deleted=1", timeout=LONG_MS)
    state(page, "Example")
    expect(page.locator("#data-summary h2")).to_have_text("phantoms-blood-smear")
    assert not service.comparisons(server.lab) and not server.lab.runs()
    assert key and page.evaluate("localStorage['rift-lab-draft']") != key, "what the browser kept goes as well"
    assert not [path for path in server.lab.data.iterdir() if "kinds32" in (path / "manifest.json").read_text()]
    keep(page, "History")
    expect(rows(page)).to_have_count(1)

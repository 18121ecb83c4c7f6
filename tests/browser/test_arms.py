"""Arms at will on the Train tab, and settings that are saved, loaded and still there after a reload."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from tests.browser.actions import field, reload, tab

pytestmark = pytest.mark.browser


@pytest.mark.slow
def test_arms_are_added_changed_removed_saved_and_loaded(page, tmp_path):
    tab(page, "Train")
    arms, command = page.locator("#arms-list label"), page.locator("#command .cm-content")
    page.get_by_role("button", name="The same on the command line").click()
    expect(arms).to_have_count(2)
    page.locator("#add-arm").click()
    expect(arms.nth(2)).to_contain_text("rift, strength 10 (full)")
    page.locator("#same-method input").uncheck()
    field(page, "Finetuning method").click()
    page.get_by_role("option", name="lora", exact=True).click()
    expect(arms.nth(2)).to_contain_text("(lora)")
    expect(command).to_contain_text("--arm full+none --arm full+rift@1 --arm lora+rift@10")
    expect(page.locator("#cost")).to_contain_text("3 runs of")

    page.locator("#same-method input").check()  # all are lora again, the third as strong as the second: no two alike
    page.locator("#strength input").fill("1")
    expect(page.locator("#cost .problem")).to_contain_text("Start is off: Two arms are the same")
    expect(page.locator("#start")).to_be_disabled()
    page.locator("#strength input").fill("0")
    expect(page.locator("#cost .problem")).to_contain_text("changes nothing")
    page.locator("#strength input").fill("3")
    expect(page.locator("#start")).to_be_enabled()
    field(page, "Task").click()
    page.get_by_role("option", name="Make the images again").click()
    expect(command).to_contain_text("--task reconstruction")

    with page.expect_download() as download:
        page.locator("#save-settings").click()
    saved = json.loads(download.value.path().read_text())
    assert [one["strength"] for one in saved["arms"]] == [0, 1, 3] and saved["task"]["name"] == "reconstruction"
    reload(page)
    tab(page, "Train")
    expect(arms).to_have_count(3)
    expect(page.locator("#cost")).to_contain_text("3 runs of")

    changed = saved | {"arms": saved["arms"][1:2], "seeds": 4, "training": saved["training"] | {"epochs": 7}}
    for name, text, words in (("wrong.json", "{}", "no settings of RIFT Lab"), ("good.json", json.dumps(changed), "")):
        path = tmp_path / name
        path.write_text(text)
        with page.expect_file_chooser() as chooser:
            page.locator("#load-settings").click()
        chooser.value.set_files(path)
        if words:
            expect(page.locator("#train-problem [role=alert]")).to_contain_text(words)
    expect(arms).to_have_count(1)
    expect(page.locator("#cost")).to_contain_text("4 runs of")
    expect(page.locator("#train-problem [role=alert]")).to_have_count(0)

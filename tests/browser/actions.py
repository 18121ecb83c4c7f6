"""What a person does on the page, in the words of the tests."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import numpy as np
from playwright.sync_api import Error, Locator, Page, expect

from rift import images
from rift.ui.diagnostic import title
from rift.ui.tabs import compare

TABS = ("Data", "Train", "Watch", "Compare", "Keep", "Learn")


def kinds(seed: int, each: int = 8, names: tuple[str, ...] = ("dark", "light"), prefix: str = "") -> dict[str, bytes]:
    """Return small images of kinds that differ in brightness, another set for each seed."""
    draw = np.random.default_rng(seed)
    files = {}
    for place, name in enumerate(names):
        for number in range(each):
            low = 40 + 120 * place // max(1, len(names) - 1)
            pixels = draw.integers(low, low + 60, (24, 24, 3), np.uint8)
            files[f"{name}/{prefix}{number}.png"] = images.encode(pixels)
    return files


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


FAMILY = {title(name): family for family, names in compare.families().items() for name in names}


def tab(page: Page, name: str) -> None:
    """Open a tab; that of a diagnostic within its family."""
    if name in FAMILY:
        tab(page, FAMILY[name])
    page.locator("#tabs").get_by_role("tab", name=name).first.click()


def drop(page: Page, where: str, name: str, data: bytes | Path) -> None:
    """Give a file to an upload field."""
    if where == "upload":
        tab(page, "Data")
        tab(page, "Zip, or table with pictures")
    content = data.read_bytes() if isinstance(data, Path) else data
    file = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    page.locator(f"#{where} input[type=file]").set_input_files(file)


def upload(page: Page, name: str, data: bytes | Path) -> None:
    """Upload a zip on the Data tab and wait until its summary is there."""
    drop(page, "upload", name, data)
    expect(page.locator("#data-summary h2")).to_have_text(name.removesuffix(".zip"))


def settings(page: Page, **values: object) -> None:
    """Fill settings of the Train tab by their labels."""
    tab(page, "Train")
    opened = page.get_by_label("Epochs", exact=True)
    if not opened.is_visible():
        page.get_by_role("button", name="All training settings").click()
    for label, value in values.items():
        field(page, label.replace("_", " ").capitalize()).fill(str(value))


def field(page: Page, label: str) -> Locator:
    return page.get_by_label(label, exact=True)


def only_rift(page: Page) -> None:
    """Take the arm without a regularizer away."""
    tab(page, "Train")
    page.locator("#arms-list label").first.click()
    expect(field(page, "Regularizer")).to_have_value("none")
    page.locator("#remove-arm").click()
    expect(page.locator("#arms-list label")).to_have_count(1)
    expect(field(page, "Regularizer")).to_have_value("rift")


def start(page: Page) -> None:
    """Press Start and wait until the page has moved on to Watch."""
    page.locator("#start").click()
    expect(page.get_by_role("tab", name="3 Watch")).to_have_attribute("aria-selected", "true")


def state(page: Page, word: str | re.Pattern) -> None:
    """Wait for the word of the status bar."""
    expect(page.locator("#status .state")).to_have_text(word)


def message(page: Page, text: str | re.Pattern) -> None:
    """Wait for the sentence of the status bar."""
    expect(page.locator("#status .message")).to_contain_text(text)


def reload(page: Page) -> None:
    """Reload a page, or take that it does so by itself."""
    try:
        page.reload()
    except Error as error:  # a server that is back makes Gradio's page reload itself, and of two reloads one is given up
        if "ERR_ABORTED" not in error.message:
            raise
        page.wait_for_load_state("load")

"""Everybody can use it: axe-core finds nothing serious on any tab, the keyboard is enough, and fingers hit what they aim at."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.actions import FAMILY, TABS, settings, state, tab

pytestmark = pytest.mark.browser
AXE = resources.files("axe_playwright_python").joinpath("axe.min.js")  # axe-core (MPL-2.0), for tests only
GRAVE = ("serious", "critical")
COLORS = ("color-contrast", "link-in-text-block")  # all that another theme, and with SIZES another width, can change
SIZES = ("scrollable-region-focusable",)  # how large targets are is looked at below
TARGET = 43.5  # px: 44, but for rounding; WCAG 2.2 asks for 24 (AA), thumbs for more
SMALL = """least => {
  const found = []
  for (const one of document.querySelectorAll('button, summary, label > input')) {
    if (!one.checkVisibility() || one.closest('.js-plotly-plot, [role=listbox], .toast-body')) continue
    const box = one.closest('label') ?? one, {height, width} = box.getBoundingClientRect()
    if (height > 1 && width > 1 && height < least) found.push(`${one.tagName} ${one.id} ${box.innerText.slice(0, 30)} ${height}`)
  }
  return found
}"""


def violations(page: Page, *rules: str) -> list[str]:
    """Return what axe-core finds serious or critical on the page as it stands, by all of its rules or by these."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(f"{AXE.read_text()}\n;0")
    # Gradio's own: a figure that is on its way is a box with a label and no role
    where = "{include: [document], exclude: [['.empty[aria-label=\"Empty value\"]']]}"
    only = f", runOnly: {list(rules)}" if rules else ""
    found = page.evaluate(f"axe.run({where}, {{resultTypes: ['violations']{only}}})")["violations"]
    return [f"{one['id']}: {node['html'][:160]}" for one in found if one["impact"] in GRAVE for node in one["nodes"]]


def every_place(page: Page) -> Iterator[str]:
    """Go to every tab, and to every one within Compare that has something to show."""
    for name in TABS:
        tab(page, name)
        yield name
        if name == "Train":
            settings(page)
            yield "Train, all settings"
        for inner in ("Verdict", *FAMILY, "Trade-off", "Photos") if name == "Compare" else ():
            tab(page, inner)
            yield inner
        if name == "Learn":
            page.locator("#exercise-rate button").first.click()
            expect(page.locator("#exercise-cost-rate p")).to_be_visible()
            page.locator("#toy-rotated_embedding button").first.click()
            page.locator("#toy-rotated_embedding .main-svg").first.wait_for()
            yield "Learn, opened"


def test_axe_finds_nothing_serious_at_first_sight(page):
    assert not violations(page)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theme", "wide", "rules"), [("light", 1280, ()), ("dark", 1280, COLORS), ("light", 390, (*COLORS, *SIZES))]
)
def test_axe_finds_nothing_serious_on_any_tab(server, visit, theme, wide, rules):
    page = visit(server, f"/?__theme={theme}", wide=wide)
    found = {f"{place}: {one}" for place in every_place(page) for one in violations(page, *rules)}
    assert not found, "\n".join(sorted(found))


def focused(page: Page) -> dict[str, Any]:
    """What has the focus, and whether a person can see that it has."""
    return page.evaluate("""() => {
      const one = document.activeElement, look = [one, one.parentElement, one.nextElementSibling].filter(Boolean)
      const seen = node => {
        const s = getComputedStyle(node)
        return (s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0) || s.boxShadow !== 'none'
      }
      const words = (one.innerText || '').trim(), within = one.closest('[id]')?.id
      return {id: one.id, tag: one.tagName, within, words, seen: look.some(seen)}
    }""")


def reach(page: Page, selector: str, key: str = "Tab", most: int = 90) -> None:
    """Press a key until what is looked for has the focus; every stop on the way can be seen."""
    unseen = []
    for _ in range(most):
        page.keyboard.press(key)
        here = focused(page)
        if here["tag"] != "BODY" and not here["seen"]:
            unseen.append(here)
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            assert not unseen, unseen
            return
    raise AssertionError(f"{selector} was not reached by {key}")


@pytest.mark.slow
def test_from_the_sample_to_start_and_stop_without_a_mouse(own_server, visit):
    page = visit(own_server)
    reach(page, "#tab-ready-made-button")
    page.keyboard.press("Enter")
    reach(page, "#take-sample")
    page.keyboard.press("Enter")
    taken = "[...document.querySelectorAll('.memory textarea, .memory input')].some(one => one.value.includes('sample:phantoms'))"
    page.wait_for_function(taken)  # the example's summary looks the same
    reach(page, "#tab-train-button", key="Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("tab", name="2 Train")).to_have_attribute("aria-selected", "true")
    reach(page, "input[type=radio][value=Quick]")
    page.keyboard.press("Space")  # Gradio puts each radio in the order of Tab; its arrows do nothing
    expect(page.get_by_label("Quick")).to_be_checked()
    expect(page.locator("#cost")).to_contain_text("24 steps in all")
    reach(page, "#start")
    page.keyboard.press("Enter")
    expect(page.get_by_role("tab", name="3 Watch")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#stop")).to_be_visible()
    reach(page, "#stop")
    page.keyboard.press("Enter")
    state(page, "Stopped")
    expect(page.locator("#resume")).to_be_visible()


@pytest.mark.slow
def test_fingers_hit_what_they_aim_at(server, visit):
    page = visit(server, wide=390)
    small = []
    for name in TABS:
        tab(page, name)
        small += page.evaluate(SMALL, TARGET)
    assert not small, "\n".join(sorted(set(small)))

"""Light, dark and small: what is written can be read, and no page scrolls sideways."""

from __future__ import annotations

import pytest

from tests.browser.actions import TABS, settings, tab

pytestmark = pytest.mark.browser
INNER = ("Verdict", "Accuracy", "Drift", "PCA", "Zero-shot", "Photos")
LEAST = 4.5  # WCAG 2.2, AA, for text of ordinary size

# Contrast of every visible text with what lies behind it, from computed styles; a canvas turns any color notation into bytes.
# Colors with an alpha are laid over what is below them. What is switched off (disabled, an arm hidden by its legend) is exempt.
CONTRAST = """least => {
  const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
  const known = new Map()
  const bytes = color => {
    if (!known.has(color)) {
      pen.clearRect(0, 0, 1, 1); pen.fillStyle = color; pen.fillRect(0, 0, 1, 1)
      const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data
      known.set(color, [r, g, b, a / 255])
    }
    return known.get(color)
  }
  const over = (top, alpha, below) => [0, 1, 2].map(i => top[i] * alpha + below[i] * (1 - alpha))
  const light = color => {
    const [r, g, b] = color.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const behind = node => {
    const chain = []
    for (let one = node; one; one = one.parentElement) chain.unshift(bytes(getComputedStyle(one).backgroundColor))
    return chain.reduce((below, [r, g, b, a]) => over([r, g, b], a, below), [255, 255, 255])
  }
  const found = {low: [], html: 0, figures: 0}
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement, words = walk.currentNode.data.trim()
    if (!words || !node.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue
    if (node.closest('style, script, [disabled], .hoverlayer, .visually-hidden, .traces[style*="opacity: 0.5"]')) continue
    const style = getComputedStyle(node), svg = node.closest('svg'), below = behind(node)
    const [r, g, b, a] = bytes(svg ? style.fill : style.color)
    let alpha = svg ? a * style.fillOpacity : a
    for (let one = node; one; one = one.parentElement) alpha *= getComputedStyle(one).opacity
    const [x, y] = [light(over([r, g, b], alpha, below)), light(below)]
    const ratio = (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05)
    found[svg ? 'figures' : 'html'] += 1
    const marks = node.className.baseVal ?? node.className
    if (ratio < least) found.low.push(`${ratio.toFixed(2)} ${words.slice(0, 40)} <${node.tagName} ${marks}>`)
  }
  return found
}"""


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_and_every_figure_can_be_read(server, visit, theme):
    page = visit(server, f"/?__theme={theme}")
    assert ("dark" in (page.locator("body").get_attribute("class") or "")) == (theme == "dark")
    low, texts, figures = [], 0, 0
    for name in TABS:
        tab(page, name)
        for inner in INNER if name == "Compare" else ("",):
            if inner:
                tab(page, inner)
            if name == "Watch" or inner in ("Accuracy", "Drift", "PCA", "Zero-shot"):
                page.locator(".js-plotly-plot .main-svg text:visible").first.wait_for()
            found = page.evaluate(CONTRAST, LEAST)
            low += [f"{name} {inner}: {one}" for one in found["low"]]
            texts, figures = texts + found["html"], figures + found["figures"]
    assert texts > 300 and figures > 100, "the texts were looked at"
    assert not low, "\n".join(sorted(set(low)))


@pytest.mark.slow
def test_no_tab_scrolls_sideways_on_a_phone(server, visit):
    page = visit(server, wide=390)
    for name in TABS:
        tab(page, name)
        for inner in INNER if name == "Compare" else ("",):
            if inner:
                tab(page, inner)
            assert wide(page) <= 390, f"{name} {inner}"
    settings(page)
    assert wide(page) <= 390, "with all training settings open"


def wide(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth")

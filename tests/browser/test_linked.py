"""Linked views: a click on a figure or a picture leads to images, and all of it can be done with the keyboard."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from rift import linked, service
from rift.runs import Lab
from tests.browser.actions import tab

pytestmark = [pytest.mark.browser, pytest.mark.slow]
# The middle of a confusion cell, or of a point, on the page; Plotly knows where its axes put a value.
CELL = """([column, x, y]) => {
  const plot = document.querySelector('#figure-accuracy .js-plotly-plot'), layout = plot._fullLayout;
  const box = plot.getBoundingClientRect();
  const axis = layout['xaxis' + column], other = layout['yaxis' + column];
  return [box.x + axis._offset + axis.c2p(x), box.y + other._offset + other.c2p(y)]
}"""
POINT = """([figure, image]) => {
  const plot = document.querySelector(figure + ' .js-plotly-plot'), layout = plot._fullLayout, box = plot.getBoundingClientRect();
  for (const trace of plot._fullData) {
    const place = trace.customdata ? [...trace.customdata].indexOf(image) : -1;
    if (place < 0 || trace.xaxis !== 'x2') continue;
    return [box.x + layout.xaxis2._offset + layout.xaxis2.c2p(trace.x[place]),
            box.y + layout.yaxis2._offset + layout.yaxis2.c2p(trace.y[place])]
  }
}"""


@pytest.fixture
def found(server):
    lab = Lab(server.root / "example")
    (name,) = service.comparisons(lab)
    return lab, name, linked.answers(lab, name)


def drawn(page, name: str):
    figure = page.locator(f"#figure-{name} .js-plotly-plot .main-svg").first
    expect(figure).to_be_visible()
    return page.locator(f"#figure-{name}")


def press(page, place: list[float]) -> None:
    """Click as a hand does: come over the figure, then press."""
    page.mouse.move(place[0] - 3, place[1] - 3)
    page.mouse.move(*place)
    page.wait_for_timeout(300)  # Plotly looks what is below the pointer some 20 times a second
    page.mouse.click(*place)


def choose(page, where: str, option: str) -> None:
    """Choose with the keyboard alone."""
    page.locator(f"#{where} input").focus()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(option)
    page.get_by_role("option", name=option, exact=True).wait_for()
    page.keyboard.press("Enter")


def test_a_click_on_a_confusion_cell_shows_its_images_and_one_of_them_in_all_models(page, found):
    lab, name, answers = found
    tab(page, "Compare")
    tab(page, "Accuracy")
    drawn(page, "accuracy").scroll_into_view_if_needed()
    expect(page.locator("#cell-images .says")).to_be_visible()
    press(page, page.evaluate(CELL, ["2", 1, 1]))  # of the first arm: its matrix is the second panel
    inside = linked.cell(answers, "none", 1, 1)
    expect(page.locator("#cell-images .says")).to_contain_text(
        f"{len(inside)} of 40 test images: true sickle_cells, none calls them"
    )
    pictures = page.locator("#cell-images button")
    expect(pictures).to_have_count(len(inside))
    expect(pictures.first).to_contain_text("✓ none: sickle_cells")
    expect(pictures.first).to_contain_text("rift:")
    page.wait_for_function("one => one.naturalWidth > 0", arg=pictures.first.locator("img").element_handle())
    pictures.nth(1).focus()
    page.keyboard.press("Enter")
    i = int(inside[1])
    panel = page.locator("#one-panel-accuracy")
    expect(panel).to_contain_text(f"Test image {i + 1} of 40")
    expect(panel).to_contain_text(answers.ids[i])
    expect(panel.locator(".models section")).to_have_count(3)
    near, _ = linked.neighbors(lab, name, answers, i)
    expect(panel.locator(".near img")).to_have_count(sum(map(len, near.values())))


def test_fixed_and_broken_are_counted_for_the_pair_that_is_chosen(page, found):
    _, _, answers = found
    tab(page, "Compare")
    tab(page, "Accuracy")
    says = page.locator("#exchange-images .says")
    fixed, broken = linked.exchanged(answers, "rift", "none")
    expect(says).to_contain_text(f"rift gets {len(fixed)} right that none gets wrong, and {len(broken)} the other way")
    expect(page.locator("#exchange-images section").nth(1).locator("button")).to_have_count(len(broken))
    choose(page, "exchange-arm", "none")
    expect(says).to_have_text("Choose two different arms.")
    choose(page, "exchange-baseline", "rift")
    expect(says).to_contain_text(f"none gets {len(broken)} right that rift gets wrong")
    expect(says).to_contain_text(f"looks at these {len(fixed) + len(broken)}")


@pytest.mark.slow
def test_a_point_of_the_pca_is_its_image_and_the_arrow_keys_go_on(page, found):
    _, _, answers = found
    tab(page, "Compare")
    tab(page, "PCA")
    drawn(page, "pca").scroll_into_view_if_needed()
    panel = page.locator("#one-panel-pca")
    expect(panel).to_contain_text("Test image 1 of 40")
    press(page, page.evaluate(POINT, ["#figure-pca", 17]))
    number = re.compile(r"Test image \d+ of 40")
    expect(panel).to_contain_text(number)
    expect(panel).not_to_contain_text("Test image 1 of 40")
    page.locator("#one-number-pca input[type=range]").focus()
    page.keyboard.press("Home")
    expect(panel).to_contain_text(answers.ids[0])
    page.keyboard.press("ArrowRight")
    expect(panel).to_contain_text(answers.ids[1])
    expect(panel.locator("h4").filter(has_text="pretrained")).to_be_visible()
    expect(panel).to_contain_text("no head for these classes")


@pytest.mark.slow
def test_the_sliders_say_their_numbers_and_move_a_ring(page):
    chosen = "data.filter(one => one.name === 'chosen').map(one => one.x[0])"
    ring = f"name => document.querySelector(`#figure-${{name}} .js-plotly-plot`).{chosen}"
    tab(page, "Compare")
    tab(page, "Trade-off")
    drawn(page, "tradeoff")
    says = page.locator("#strength-said .says")
    expect(says).to_contain_text("λ = 0, none: balanced accuracy")
    before = page.evaluate(ring, "tradeoff")
    page.locator("#strength input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    expect(says).to_contain_text("λ = 1, rift: balanced accuracy")
    expect(says).to_contain_text("n = 11")
    page.wait_for_function(f"([name, was]) => String(({ring})(name)) !== String(was)", arg=["tradeoff", before])

    tab(page, "Interpolation")
    drawn(page, "interpolation")
    numbers = page.locator("#alpha-numbers")
    expect(numbers).to_contain_text("Measured at α = 0, 0.1, 0.2")
    page.locator("#alpha input[type=number]").fill("0.43")
    expect(numbers.locator("tbody tr").first.locator("td").first).to_have_text("0.4")
    page.wait_for_function(f"name => ({ring})(name).length === 3", arg="interpolation")


def test_a_strangers_click_leads_nowhere(page):
    tab(page, "Compare")
    tab(page, "Accuracy")
    says = page.locator("#cell-images .says")
    expect(says).to_be_visible()
    before = says.inner_text()
    for value in (
        "accuracy 99 0 none",
        "accuracy 0 0 <img src=x onerror=alert(1)>",
        "image-accuracy -1",
        "image-nothing 1",
        "image-pca 1e9",
    ):
        page.evaluate("value => window.riftPick(value)", value)
    page.wait_for_timeout(1500)
    assert says.inner_text() == before
    expect(page.locator("#one-panel-accuracy")).to_contain_text("Test image 1 of 40")

"""The page as a stranger finds it: full at once, without an upload, a download or a training."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from rift import catalog, example
from rift.ui.diagnostic import title
from tests.browser.actions import state, tab

pytestmark = pytest.mark.browser
LOADED = "images => images.every(one => one.complete && one.naturalWidth > 0)"


def all_loaded(page, selector: str) -> int:
    """Wait until every picture is there, scrolled to so that a lazy one is fetched, and return how many."""
    for one in page.locator(selector).all():
        one.scroll_into_view_if_needed()
    page.wait_for_function(f"""selector => ({LOADED})([...document.querySelectorAll(selector)])""", arg=selector)
    return page.locator(selector).count()


@pytest.mark.slow
def test_the_example_fills_every_tab_with_nothing_uploaded(page, server):
    before = {run.id for run in server.lab.runs()}
    state(page, "Example")
    assert all_loaded(page, "#data-summary img") == 30, "six of each of the five kinds"
    expect(page.locator("#data-summary")).to_contain_text("not pictures of patients")

    tab(page, "Train")
    expect(page.locator("#cost")).to_contain_text("2 runs of phantoms-blood-smear")
    tab(page, "Watch")
    for key in ("task_loss", "penalty", "validation_accuracy", "cka_debiased"):
        expect(page.locator(f"#curve-{key} .js-plotly-plot .trace.scatter")).to_have_count(2)
    tab(page, "Compare")
    expect(page.locator("#verdicts li")).to_have_count(5)
    expect(page.locator("#verdicts")).to_contain_text("n = 40 images")
    expect(page.locator("#arms tbody tr").first).to_contain_text("Accuracy")
    for name in catalog.names("diagnostics"):
        tab(page, title(name))
        if list(example.PATH.glob(f"runs/*/measures/{name}.json")):
            expect(page.locator(f"#figure-{name} .js-plotly-plot .main-svg").first).to_be_visible()
        else:
            expect(page.locator(f"#measure-{name}")).to_be_visible()
        if (gallery := page.locator(f"#gallery-{name} img")).count():
            gallery.last.scroll_into_view_if_needed()
            page.wait_for_function("one => one.naturalWidth > 0", arg=gallery.last.element_handle())
    tab(page, "Photos")
    expect(page.locator("#photos article")).to_have_count(11)
    assert all_loaded(page, "#photos img") == 11
    tab(page, "Learn")
    expect(page.get_by_role("heading", name="Is a difference real?")).to_be_visible()
    assert {run.id for run in server.lab.runs()} == before, "nothing was trained for it"


def test_what_draws_figures_is_there_before_the_first_figure_is_asked_for(page):
    all_loaded(page, "#data-summary img")
    assert page.locator(".js-plotly-plot").count() == 0
    page.wait_for_function("performance.getEntriesByType('resource').some(one => one.name.includes('/PlotlyPlot-'))")


@pytest.mark.slow
def test_a_page_that_nobody_touches_asks_for_nothing(page):
    all_loaded(page, "#data-summary img")
    page.wait_for_timeout(3000)  # what comes with the opening
    asked = []
    page.on("request", lambda request: asked.append(request.post_data) if "/queue/join" in request.url else None)
    page.wait_for_timeout(5000)
    assert not asked

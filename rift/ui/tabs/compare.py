"""What the arms can do and what they forgot: the verdict, the numbers, and one page for each diagnostic of the menu."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import gradio as gr

from rift import catalog, dataset, measuring, naming, overview, report, service
from rift.ui import linked
from rift.ui.diagnostic import Page, title
from rift.ui.sliders import Strengths
from rift.ui.state import App, Shown
from rift.ui.widgets import PRIVATE, html, join, told

TITLE, ORDER = "4 Compare", 4
MARK = '<div class="rift">{part}</div>'
POLL_SECONDS = 1.0
# A diagnostic that is not named here says where it belongs with FAMILY = one of these titles, else it comes last.
FAMILIES = {
    "What it can do": ("accuracy", "reliability", "corruption"),
    "What it forgot": ("drift", "zero_shot", "pca", "retrieval", "attention", "stir", "spread"),
    "Weights": ("sharpness",),
    "Trade-off": ("interpolation",),
}
OTHERS = "More"
TRADEOFF = "tradeoff"  # the page of all runs of the lab, before the diagnostics of its family


def families() -> dict[str, list[str]]:
    """Return the diagnostics of the menu by family, in their order."""
    found: dict[str, list[str]] = {title: [] for title in (*FAMILIES, OTHERS)}
    named = {name: title for title, names in FAMILIES.items() for name in names}
    order = {name: place for place, name in enumerate(named)}
    for name in sorted(catalog.names("diagnostics"), key=lambda name: (order.get(name, len(order)), name)):
        family = named.get(name) or getattr(catalog.module("diagnostics", name), "FAMILY", OTHERS)
        found[family if family in found else OTHERS].append(name)
    return {family: names for family, names in found.items() if names}


def build(app: App) -> None:
    """Fill the tab; a diagnostic becomes a sub-tab by being in the menu."""
    heading = gr.HTML(elem_id="compare-heading")
    app.show.append(([heading], lambda here: [_heading(app, here)]))
    timer = gr.Timer(POLL_SECONDS, active=False)
    with gr.Tabs(overflow_behavior="wrap"):
        with gr.Tab("Verdict"):
            verdicts = gr.HTML(elem_id="verdicts")
            table = gr.HTML(elem_id="arms")
            app.show.append(([verdicts, table], _numbers))
        pages: dict[str, Page | Strengths] = {}
        tabs, groups = {}, {}
        for place, (family, names) in enumerate(families().items()):
            with gr.Tab(family, elem_id=f"family-{place}") as group, gr.Tabs(overflow_behavior="wrap"):
                groups[family] = (group, [TRADEOFF, *names] if family == "Trade-off" else names)
                if family == "Trade-off":
                    with gr.Tab("Runs and strength", id=TRADEOFF, elem_id="tab-tradeoff") as tabs[TRADEOFF]:
                        pages[TRADEOFF] = Strengths(app)
                for name in names:
                    with gr.Tab(title(name), id=name, elem_id=f"tab-{name}") as tabs[name]:
                        pages[name] = Page(app, name)
        with gr.Tab("Photos", elem_id="tab-photos"):
            photos = gr.HTML(elem_id="photos")
            app.show.append(([photos], lambda here: [_photos(app, here)]))
    _connect(app, timer, pages, tabs, groups)
    linked.connect(app, {name: page for name, page in pages.items() if isinstance(page, Page)})


def _connect(app: App, timer: gr.Timer, pages: dict[str, Page | Strengths], tabs: dict[str, Any], groups: dict[str, Any]) -> None:
    """Draw a page when it is opened, and again when another comparison is looked at or something new was measured.

    A page that is not open is drawn when it is: so a visit costs what is looked at, however many diagnostics there are.
    """
    opened = gr.State({})  # the diagnostic that was opened last in each family; under "" the one that is open
    drawn = gr.State({})  # for each page the comparison that it shows, and which version of it
    missed = gr.State(0.0)  # when a page was opened before it was known what is looked at; nothing would draw that one
    everything = [component for page in pages.values() for component in page.outputs]

    def look(ready: str, name: str, drawn: dict[str, str]) -> tuple[Any, dict[str, str], list[Any]]:
        """Return timer, what is drawn and the values of one page."""
        here = app.of(ready)
        if here is None:
            return gr.Timer(active=False), drawn, [gr.skip()] * len(pages[name].outputs)
        version = f"{here.key} {pages[name].version(here)}"
        values = pages[name].follow(here) if drawn.get(name) == version else pages[name].draw(here)
        return gr.Timer(active=bool(measuring.active(here.lab, here.id))), {**drawn, name: version}, values

    def again(ready: str, opened: dict[str, str], drawn: dict[str, str]) -> list[Any]:
        """Return timer, what is drawn and values for every page, of which only the open one moves."""
        name = opened.get("", "")
        if not name:
            return [gr.Timer(active=False), drawn, *[gr.skip()] * len(everything)]
        first, drawn, values = look(ready, name, drawn)
        return [first, drawn, *spread(pages, name, values)]

    def early(ready: str) -> Any:
        return time.monotonic() if app.of(ready) is None else gr.skip()

    def on_tab(family: str, name: str) -> Any:
        def select(ready: str, opened: dict[str, str], drawn: dict[str, str]) -> list[Any]:
            first, drawn, values = look(ready, name, drawn)
            return [{**opened, "": name, family: name}, early(ready), first, drawn, *values]

        return told(select)

    def on_family(family: str, names: list[str]) -> Any:
        def select(ready: str, opened: dict[str, str], drawn: dict[str, str]) -> list[Any]:
            name = opened.get(family, names[0])
            first, drawn, values = look(ready, name, drawn)
            return [{**opened, "": name}, early(ready), first, drawn, *spread(names, name, values)]

        return told(select)

    def spread(names: Iterable[str], name: str, values: list[Any]) -> list[Any]:
        """Return values for the pages of these names, of which only one moves."""
        return [v for one in names for v in (values if one == name else [gr.skip()] * len(pages[one].outputs))]

    inputs, moved = [app.ready, opened, drawn], [timer, drawn, *everything]
    for family, (group, names) in groups.items():
        theirs = [component for name in names for component in pages[name].outputs]
        group.select(on_family(family, names), inputs, [opened, missed, timer, drawn, *theirs], **PRIVATE)
        for name in names:
            tabs[name].select(on_tab(family, name), inputs, [opened, missed, timer, drawn, *pages[name].outputs], **PRIVATE)
            if isinstance(page := pages[name], Page):
                _press(app, page, inputs, [opened, missed, timer, drawn, *page.outputs], on_tab(family, name))
    for event in (app.ready.change, missed.change, timer.tick):
        event(told(again), inputs, moved, concurrency_limit=None, **PRIVATE)


def _press(app: App, page: Page, inputs: list[Any], outputs: list[Any], look: Any) -> None:
    """Connect the three buttons of a page."""

    def acting(act: Any) -> Any:
        def handler(ready: str, *values: Any) -> None:
            if (here := app.of(ready)) is not None:
                act(here, values)

        return told(handler)

    def halt(here: Shown, _: Any) -> None:
        measuring.stop(here.lab, here.id, page.name)

    def go_on(here: Shown, _: Any) -> None:
        measuring.go_on(app.lab, here.lab, here.id, page.name, device=app.device)

    for button, act, more in ((page.measure, page.start, page.inputs), (page.stop, halt, []), (page.resume, go_on, [])):
        pressed = button.click(acting(act), [app.ready, *more], None, concurrency_limit=None, **PRIVATE)
        pressed.then(look, inputs, outputs, **PRIVATE)


def _heading(app: App, here: Shown) -> Any:
    """Say what is shown, and link what can be taken away."""
    about = naming.about(here.lab, here.id)
    links = [
        {"address": app.files.document(here.home, here.id, name), "what": what}
        for name, what in (("report.html", "Report (one page, works offline)"), ("comparison.json", "All numbers (JSON)"))
    ]
    note = "This is the example that comes with the app: synthetic drawings, not patients. " if here.home == "example" else ""
    return html(
        '<div class="rift"><h2>{title}</h2><p class="about">{note}{about}</p><p class="links">{links}'
        '<button type="button" class="plain" data-keep="history">All comparisons</button></p></div>',
        title=naming.title(here.lab, here.id),
        note=note,
        about=about,
        links=join('<a href="{address}" target="_blank" rel="noopener" download>{what}</a>', links),
    )


def _numbers(here: Shown) -> list[Any]:
    document = service.result(here.lab, here.id)
    found = overview.verdicts(document)
    nothing = '<div class="rift"><p>There is nothing to compare: it takes two finished arms.</p></div>'
    about = f"Differences of the arms with their 95 % intervals; the thin line is no difference. {overview.spoken_of(document)}"
    verdicts = html(
        '<div class="rift"><p class="about">{about}</p>{part}</div>', about=about, part=report.part("verdicts", found)
    )
    seeds = max(len(arm["runs"]) for arm in document["arms"])
    spread = (
        f"mean ± standard error over {seeds} seeds"
        if seeds > 1
        else "below a share, its 95 % interval over images; one seed, so the chance of training itself is in no interval"
    )
    table = html(
        '<div class="rift"><h3>Numbers</h3><p class="about">Last epoch of every arm; {spread}.</p>{part}{trials}</div>',
        spread=spread,
        trials=report.part("tunings", document),
        part=report.part("arms", document, overview.table(document, service.measures(here.lab, here.id))),
    )
    return [verdicts if found else nothing, table]


def _photos(app: App, here: Shown) -> Any:
    """Return a dozen natural photos with what each model calls them."""
    natural = service.order_of(here.lab, here.id)[0].natural
    there = dataset.load(here.lab.data / natural).has_pictures  # not where a bundle came without them
    found = report.photos(service.measures(here.lab, here.id)) if there else []
    rows = [{**one, "uri": app.files.picture(here.home, natural, one["index"], 160)} for one in found]
    about = (
        "What each model calls the same photo, with the probability among the labels it knows. The photos are evenly spaced "
        "over the set; none was picked for its answer."
    )
    return html('<div class="rift"><p class="about">{about}</p>{part}</div>', about=about, part=report.part("photos", rows))

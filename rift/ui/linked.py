"""What a click leads to: the images of a confusion cell, what one arm fixed and broke, and one image in every model.

Everything that can be clicked can be chosen too: with a drop-down, or with a slider that the arrow keys move. What a click says
is a stranger's text; `rift.linked` makes a known image or cell of it, or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from markupsafe import Markup

from rift import linked
from rift.linked import Answers
from rift.ui.one import SMALL, One, picture
from rift.ui.sliders import Alpha
from rift.ui.state import App, Shown
from rift.ui.widgets import PRIVATE, html, join, told

MOST = 24  # pictures in one gallery
# Plotly tells of clicks only to whom it knows, so a figure is asked when the pointer first comes over it; a new drawing of it is
# another `on`. A button in a gallery says its image itself.
HEAR = """
const pages = ['accuracy', 'pca', 'retrieval'];
window.riftPick = value => { props.value = value; trigger('click'); };
if (!window.riftHears) {
  window.riftHears = true;
  document.addEventListener('pointerover', event => {
    const plot = event.target.closest?.('.js-plotly-plot'), home = plot?.closest('[id^="figure-"]');
    const page = home?.id.slice(7);
    if (!pages.includes(page) || !plot.on || plot.heard === plot.on) return;
    plot.heard = plot.on;
    plot.on('plotly_click', found => {
      const one = found.points[0]?.customdata;
      if (typeof one === 'number' || typeof one === 'string') window.riftPick(page + ' ' + one);
    });
  });
  document.addEventListener('click', event => {
    const button = event.target.closest?.('button[data-image]'), home = button?.closest('[data-page]');
    if (home) window.riftPick('image-' + home.dataset.page + ' ' + button.dataset.image);
  });
}
"""
# A moment later, so that the answer is there when it comes into view.
SHOW = """where => {
  const behavior = matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth';
  if (where) setTimeout(() => document.getElementById(where)?.scrollIntoView({behavior, block: 'start'}), 60);
}"""


def pictures(app: App, here: Shown, found: Answers, images: Sequence[int], page: str, notes: Sequence[str] = ()) -> Markup:
    """Return a gallery of test images with every model's answer below; each is a button that opens the image in all models."""
    data, places = linked.places(here.lab, here.id)
    cells = []
    for one in linked.captions(found, images[:MOST], notes[:MOST]):
        place = places.get(one["id"])
        lines = join(
            '<span class="{kind}">{mark} {arm}: {what} {p}</span>',
            [
                {"kind": "good" if ok else "bad", "mark": "✓" if ok else "✗", "arm": arm, "what": what, "p": p}
                for arm, what, p, ok in one["said"]
            ],
        )
        cells.append(
            {
                "image": one["image"],
                "picture": picture(app, here, data, place, SMALL, ""),
                "label": one["label"],
                "lines": lines,
                "note": html("<span>{note}</span>", note=one["note"]) if one["note"] else "",
            }
        )
    cell = (
        '<button type="button" data-image="{image}" title="Show it in all models">{picture}<b>{label}</b>{note}{lines}</button>'
    )
    more = html('<p class="about">The first {most} of {n} are shown.</p>', most=MOST, n=len(images)) if len(images) > MOST else ""
    return html('<div class="cells" data-page="{page}">{cells}</div>{more}', page=page, cells=join(cell, cells), more=more)


class Cells:
    """The images of one cell of a confusion matrix: those that show one class and that a model calls another."""

    def __init__(self, app: App, page: str):
        self.app, self.page = app, page
        with gr.Column(visible=False, elem_id="cell-part") as self.whole:
            about = "Click a cell of a matrix above, or choose one here."
            gr.HTML(html('<div class="rift"><h3>The images of a cell</h3><p class="about">{about}</p></div>', about=about))
            with gr.Row():
                self.arm = gr.Dropdown([], label="Model", elem_id="cell-arm", min_width=160)
                self.true = gr.Dropdown([], label="True class", elem_id="cell-true", min_width=160)
                self.called = gr.Dropdown([], label="Called", elem_id="cell-called", min_width=160)
            self.images = gr.HTML(elem_id="cell-images")
        self.choice = [self.arm, self.true, self.called]
        self.outputs = [self.whole, *self.choice, self.images]
        for one in self.choice:
            one.input(told(self._chosen), [app.ready, *self.choice], self.images, **PRIVATE)

    def draw(self, here: Shown) -> list[Any]:
        """Return everything for the cell with most errors."""
        found = linked.answers(here.lab, here.id)
        if not found.arms or not found.classes:
            return [gr.Column(visible=False), *[gr.skip()] * 4]
        return [gr.Column(visible=True), *self.at(here, found, *linked.most_confused(found))]

    def at(self, here: Shown, found: Answers, arm: str, true: int, called: int) -> list[Any]:
        """Return the choice of one cell, and its images."""
        truths, calls = linked.cells(found)
        drops = [
            gr.Dropdown(list(found.arms), value=arm),
            gr.Dropdown([(one, i) for i, one in enumerate(truths)], value=true),
            gr.Dropdown([(one, i) for i, one in enumerate(calls)], value=called),
        ]
        return [*drops, self._gallery(here, found, arm, true, called)]

    def _chosen(self, ready: str, arm: str, true: Any, called: Any) -> Any:
        here = self.app.of(ready)
        found = linked.answers(here.lab, here.id) if here else None
        picked = linked.picked_cell(found, f"{true} {called} {arm}") if found else None
        return self._gallery(here, found, *picked) if here and found and picked else gr.skip()

    def _gallery(self, here: Shown, found: Answers, arm: str, true: int, called: int) -> Any:
        images, (truths, calls) = linked.cell(found, arm, true, called), linked.cells(found)
        n = len(images)
        words = f"{n} of {len(found)} test images: true {truths[true]}, {arm} calls {'it' if n == 1 else 'them'} {calls[called]}."
        return html(
            '<div class="rift linked"><p class="says" role="status">{words}</p>{part}</div>',
            words=words,
            part=pictures(self.app, here, found, list(images), self.page),
        )


class Exchange:
    """What one arm gets right and another wrong, the other way round, and where the two disagree most."""

    def __init__(self, app: App, page: str):
        self.app, self.page = app, page
        with gr.Column(visible=False, elem_id="exchange-part") as self.whole:
            gr.HTML('<div class="rift"><h3>Fixed and broken</h3></div>')
            with gr.Row():
                self.arm = gr.Dropdown([], label="Arm", elem_id="exchange-arm", min_width=160)
                self.baseline = gr.Dropdown([], label="Compared with", elem_id="exchange-baseline", min_width=160)
            self.images = gr.HTML(elem_id="exchange-images")
        self.outputs = [self.whole, self.arm, self.baseline, self.images]
        for one in (self.arm, self.baseline):
            one.input(told(self._chosen), [app.ready, self.arm, self.baseline], self.images, **PRIVATE)

    def draw(self, here: Shown) -> list[Any]:
        """Return everything for the last arm against the first."""
        found = linked.answers(here.lab, here.id)
        if len(found.arms) < 2 or not found.classes:
            return [gr.Column(visible=False), *[gr.skip()] * 3]
        names = list(found.arms)
        pair = names[-1], names[0]
        drops = [gr.Dropdown(names, value=one) for one in pair]
        return [gr.Column(visible=True), *drops, self._gallery(here, found, *pair)]

    def _chosen(self, ready: str, arm: str, baseline: str) -> Any:
        here = self.app.of(ready)
        found = linked.answers(here.lab, here.id) if here else None
        if not here or not found or arm not in found.arms or baseline not in found.arms:
            return gr.skip()
        return self._gallery(here, found, arm, baseline)

    def _gallery(self, here: Shown, found: Answers, arm: str, baseline: str) -> Any:
        if arm == baseline:
            return html('<div class="rift linked"><p class="says" role="status">Choose two different arms.</p></div>')
        fixed, broken = linked.exchanged(found, arm, baseline)
        apart = linked.disagreements(found, arm, baseline)
        notes = [f"true class {100 * gap:+.0f} points" for _, gap in apart]
        parts = [
            (f"Fixed by {arm} ({len(fixed)})", list(fixed), [], f"None: {arm} gets no image right that {baseline} gets wrong."),
            (
                f"Broken by {arm} ({len(broken)})",
                list(broken),
                [],
                f"None: {arm} gets no image wrong that {baseline} gets right.",
            ),
            (f"Top disagreements: {arm} against {baseline}", [i for i, _ in apart], notes, "None: the two say the same."),
        ]
        rows = [
            {
                "title": title,
                "part": pictures(self.app, here, found, images, self.page, more) if images else html("<p>{no}</p>", no=no),
            }
            for title, images, more, no in parts
        ]
        return html(
            '<div class="rift linked"><p class="says" role="status">{words}</p>{sections}</div>',
            words=linked.exchanged_said(found, arm, baseline),
            sections=join("<section><h4>{title}</h4>{part}</section>", rows),
        )


PARTS: dict[str, tuple[type, ...]] = {
    "accuracy": (Cells, Exchange, One),
    "pca": (One,),
    "retrieval": (One,),
    "interpolation": (Alpha,),
}


def connect(app: App, pages: dict[str, Any]) -> None:
    """Build what hears the clicks, and lead each to its part; outside the tabs, since what is in a closed one is not there."""
    pick = gr.HTML("", html_template="<i hidden></i>", js_on_load=HEAR, elem_id="pick", visible="hidden")
    where = gr.Textbox(visible="hidden", elem_id="picked")
    ones = {name: part for name, page in pages.items() for part in page.parts if isinstance(part, One)}
    cells = next(part for page in pages.values() for part in page.parts if isinstance(part, Cells))
    sliders = [one.number for one in ones.values()]

    def picked(value: Any, ready: str) -> list[Any]:
        kind, _, what = str(value or "").partition(" ")
        here = app.of(ready)
        nothing: list[Any] = [gr.skip()] * (1 + len(cells.outputs) - 1 + len(sliders))
        if here is None:
            return nothing
        found = linked.answers(here.lab, here.id)
        if kind == "accuracy" and found.classes and (cell := linked.picked_cell(found, what)):
            return ["cell-part", *cells.at(here, found, *cell), *[gr.skip()] * len(sliders)]
        page, i = kind.removeprefix("image-"), linked.picked(found, what)
        if page not in ones or i is None:
            return nothing
        moved = [i + 1 if name == page else gr.skip() for name in ones]
        return [f"one-part-{page}", *[gr.skip()] * (len(cells.outputs) - 1), *moved]

    outputs = [where, *cells.outputs[1:], *sliders]
    heard = pick.click(told(picked), [pick, app.ready], outputs, **PRIVATE)
    heard.then(None, where, None, js=SHOW)

"""Two sliders that move a ring over a figure: through the strengths of one regularizer, and along the line between two models."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr
from markupsafe import Markup

from rift import measuring, report, strengths, tradeoff
from rift.diagnostics import interpolation
from rift.tradeoff import Point
from rift.ui.state import App, Shown
from rift.ui.widgets import PRIVATE, html, join, told

# The ring is added on the page itself: a figure that came anew at each step would flicker.
RING = """text => {
  if (!text) return;
  const {figure, traces} = JSON.parse(text), plot = document.querySelector('#' + figure + ' .js-plotly-plot');
  if (!plot?.data || !window.Plotly) return;
  window.Plotly.react(plot, [...plot.data.filter(one => one.name !== 'chosen'), ...traces], plot.layout);
}"""
LAST: dict[str, Any] = {**PRIVATE, "trigger_mode": "always_last"}


def ringed(name: str, traces: list[dict[str, Any]]) -> str:
    """Return what the page adds to the figure of this name."""
    return json.dumps({"figure": f"figure-{name}", "traces": traces})


class Alpha:
    """A slider along the straight line between the two models; it stops at what was measured there."""

    def __init__(self, app: App, page: str):
        self.app, self.page = app, page
        with gr.Column(visible=False, elem_id="alpha-part") as self.whole:
            info = "0 is the pretrained model, 1 the finetuned one; the nearest measured value is shown."
            self.alpha = gr.Slider(0, 1, 1, step=0.01, label="α, share of the finetuned weights", info=info, elem_id="alpha")
            self.table = gr.HTML(elem_id="alpha-numbers")
        ring = gr.Textbox(visible="hidden", elem_id="alpha-ring")
        self.outputs = [self.whole, self.alpha, self.table]
        moved = self.alpha.change(told(self._moved), [app.ready, self.alpha], [self.table, ring], **LAST)
        moved.then(None, ring, None, js=RING)

    def draw(self, here: Shown) -> list[Any]:
        """Return the slider where there is something to move through."""
        found = measuring.results(here.lab, here.id, self.page)
        if not interpolation.at(found, 1.0):
            return [gr.Column(visible=False), gr.skip(), gr.skip()]
        return [gr.Column(visible=True), gr.Slider(value=1), self._numbers(found, 1.0)]

    def _moved(self, ready: str, alpha: Any) -> list[Any]:
        here = self.app.of(ready)
        found = measuring.results(here.lab, here.id, self.page) if here else {}
        chosen = min(1.0, max(0.0, float(alpha or 0.0)))
        if not interpolation.at(found, chosen):
            return [gr.skip(), ""]
        return [self._numbers(found, chosen), ringed(self.page, interpolation.ring(found, chosen))]

    def _numbers(self, found: dict[str, Any], alpha: float) -> Markup:
        rows = interpolation.at(found, alpha)
        measured = {arm: [f"{one:.2g}" for one in numbers["alphas"]] for arm, numbers in found.items() if numbers.get("alphas")}
        grids = {", ".join(one) for one in measured.values()}
        said = (
            f"α = {next(iter(grids))}"
            if len(grids) == 1
            else "; ".join(f"{arm} α = {', '.join(one)}" for arm, one in measured.items())
        )
        cells = [
            {"arm": row["arm"], "alpha": f"{row['alpha']:.3g}"}
            | {key: _with_interval(row, key) for key in ("accuracy", "natural_accuracy", "cka_debiased")}
            for row in rows
        ]
        line = '<tr><th scope="row">{arm}</th><td>{alpha}</td>'
        line += "<td>{accuracy}</td><td>{natural_accuracy}</td><td>{cka_debiased}</td></tr>"
        return html(
            '<div class="rift"><div class="scroll" tabindex="0" role="region" aria-label="Numbers at this α">'
            '<table class="numbers small"><thead><tr><th scope="col">Arm</th><th scope="col">α</th>'
            '<th scope="col">Accuracy<small>n = {n}</small></th>'
            '<th scope="col">Natural accuracy<small>n = {n_natural}</small></th>'
            '<th scope="col">Debiased CKA</th></tr></thead><tbody>{rows}</tbody></table></div>'
            '<p class="about" role="status">Measured at {said}. Intervals are 95 %, over images.</p></div>',
            n=rows[0]["n"],
            n_natural=rows[0]["n_natural"],
            rows=join(line, cells),
            said=said,
        )


def _with_interval(row: dict[str, Any], key: str) -> Markup:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    small = (
        ""
        if low is None or high is None
        else html("<small>{text}</small>", text=f"{report.number(low)} to {report.number(high)}")
    )
    return html("{value}{small}", value=report.number(row[key]), small=small)


class Strengths:
    """All finished runs of the lab on these images, and a slider through the strengths of one method and regularizer."""

    def __init__(self, app: App):
        self.app = app
        about = (
            "All finished arms of this lab on the same images and backbone, in whatever comparison they were trained: what each "
            "can do against what it kept. Dotted: the front, arms that no other one beats in both."
        )
        gr.HTML(html('<p class="rift about">{text}</p>', text=about))
        self.sentence = gr.HTML(elem_id="tradeoff-sentence")
        self.plot = gr.Plot(show_label=False, container=False, elem_id="figure-tradeoff", elem_classes=["wide"])
        with gr.Column(visible=False, elem_id="strength-part") as self.whole, gr.Row():
            self.path = gr.Dropdown([], label="Method and regularizer", elem_id="strength-path", min_width=240)
            info = "From no penalty to the strongest; the arrow keys move it."
            self.place = gr.Slider(1, 2, 1, step=1, label="Strength λ", info=info, elem_id="strength", min_width=240)
        self.said = gr.HTML(elem_id="strength-said")
        with gr.Accordion("Data", open=False):
            self.data = gr.HTML()
        ring = gr.Textbox(visible="hidden", elem_id="strength-ring")
        self.outputs = [self.sentence, self.plot, self.whole, self.path, self.place, self.said, self.data]
        inputs, outputs = [app.ready, self.path, self.place], [self.said, ring]
        self.place.change(told(self._moved), inputs, outputs, **LAST).then(None, ring, None, js=RING)
        taken = self.path.input(told(self._taken), inputs[:2], [self.place, *outputs], **PRIVATE)
        taken.then(None, ring, None, js=RING)

    def version(self, here: Shown) -> str:
        """Return what changes when there is more to show."""
        return str(strengths.stamp(here.lab))

    def follow(self, here: Shown) -> list[Any]:
        """Return nothing new: all of it stays while nothing is trained."""
        return [gr.skip()] * len(self.outputs)

    def draw(self, here: Shown) -> list[Any]:
        """Return everything, the slider at no penalty."""
        arms = strengths.arms(here.lab, here.id)
        found = tradeoff.paths(arms)
        words = html('<p class="rift says">{text}</p>', text=tradeoff.sentence(arms))
        plot = tradeoff.figure(arms)
        section = {"title": "Trade-off", "arms": [arm.name for arm in arms], "rows": tradeoff.table(arms)}
        data = html('<div class="rift">{part}</div>', part=report.part("data", section))
        if not found:
            return [words, gr.update(value=plot), gr.Column(visible=False), gr.skip(), gr.skip(), "", data]
        first = next(iter(found))
        short = {group: f"{path[-1].method} with {path[-1].regularizer}" for group, path in found.items()}
        names = list(short.values()) if len(set(short.values())) == len(short) else list(found)
        path = gr.Dropdown(list(zip(names, found, strict=True)), value=first)
        figure = gr.update(value=plot.add_traces(tradeoff.ring(arms, found[first][0])))
        return [
            words,
            figure,
            gr.Column(visible=True),
            path,
            self._slider(found[first], 1),
            self._words(here, arms, found[first][0]),
            data,
        ]

    def _slider(self, path: list[Point], place: int) -> Any:
        values = ", ".join(one.strength if isinstance(one.strength, str) else f"{one.strength:g}" for one in path)
        label = f"Strength, from left to right λ = {values}"
        return gr.Slider(maximum=max(2, len(path)), value=place, label=label)

    def _taken(self, ready: str, group: str) -> list[Any]:
        """Return the slider of another method and regularizer, at no penalty."""
        path = self._found(ready, group)[2]
        return [self._slider(path, 1) if path else gr.skip(), *self._moved(ready, group, 1)]

    def _moved(self, ready: str, group: str, place: Any) -> list[Any]:
        here, arms, path = self._found(ready, group)
        if here is None or not path:
            return [gr.skip(), ""]
        chosen = path[min(len(path), max(1, int(place or 1))) - 1]
        return [self._words(here, arms, chosen), ringed("tradeoff", tradeoff.ring(arms, chosen))]

    def _found(self, ready: str, group: str) -> tuple[Shown | None, list[Point], list[Point]]:
        here = self.app.of(ready)
        arms = strengths.arms(here.lab, here.id) if here else []
        return here, arms, tradeoff.paths(arms).get(str(group), [])

    def _words(self, here: Shown, arms: list[Point], chosen: Point) -> Markup:
        text = tradeoff.said(arms, chosen, strengths.intervals(here.lab, chosen))
        return html('<p class="rift says" role="status">{text}</p>', text=text)

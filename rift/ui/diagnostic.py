"""The page of one diagnostic: its figure, sentence, pictures and data, and what measures it from here."""

from __future__ import annotations

import functools
import json
from typing import Any

import gradio as gr
from gradio.components.plot import PlotData

from rift import catalog, linked, measuring, report
from rift.config import Choice
from rift.ui.files import Files
from rift.ui.linked import PARTS, One
from rift.ui.photo import Asker
from rift.ui.state import App, Shown, duration
from rift.ui.widgets import Form, html, join

MARK = '<div class="rift">{part}</div>'
WORDS = {
    "queued": "Waiting",
    "evaluating": "Measuring",
    "done": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
    "lost": "Interrupted",
}


def title(name: str) -> str:
    """Return what a diagnostic's sub-tab is called."""
    return getattr(catalog.module("diagnostics", name), "TITLE", name.replace("_", " ").capitalize())


class Page:
    """One sub-tab; `outputs` are its moving parts, `follow` gives values for those that move while it measures."""

    def __init__(self, app: App, name: str):
        self.app, self.name = app, name
        gr.HTML(html('<p class="rift about">{text}</p>', text=catalog.summary("diagnostics", name)))
        with gr.Row(elem_classes="measuring"):
            self.status = gr.HTML(elem_id=f"measuring-{name}", scale=8, min_width=240)
            self.stop = gr.Button("Stop", variant="stop", size="sm", visible=False, scale=0, min_width=96, elem_id=f"halt-{name}")
            self.resume = gr.Button("Go on", size="sm", visible=False, scale=0, min_width=96, elem_id=f"resume-{name}")
        sentence = gr.HTML()
        plot = gr.Plot(show_label=False, container=False, visible=False, elem_id=f"figure-{name}")
        self.parts = [part(app, name) for part in PARTS.get(name, ())]
        pictures = gr.HTML(visible=False, elem_id=f"gallery-{name}")
        with gr.Accordion("Data", open=False, visible=False) as numbers:
            data = gr.HTML()
        about = gr.HTML(visible=False, elem_id=f"measured-{name}")
        with gr.Accordion("Measure", open=False) as door:
            plan = gr.HTML(elem_id=f"plan-{name}")
            self.form = self._form()
            self.measure = gr.Button("Measure all arms", variant="primary", elem_id=f"measure-{name}")
            command = gr.HTML()
        module = catalog.module("diagnostics", name)
        if hasattr(module, "look"):
            Asker(app, name, module)
        self._moving = [self.status, self.stop, self.resume, self.measure]
        self._still = [sentence, plot, pictures, numbers, data, about, door, plan, command]
        self.outputs = [*self._moving, *self._still, *(one for part in self.parts for one in part.outputs)]

    def _form(self) -> Form | None:
        """Build the choice of a preset, which fills in the settings, and the settings themselves."""
        model, presets = catalog.settings("diagnostics", self.name), measuring.forms(self.name)
        first = next(iter(presets))
        if len(presets) > 1:
            about = "What is set below follows the choice."
            pick = gr.Radio(list(presets), value=first, label="Preset", info=about, elem_id=f"preset-{self.name}")
        if not model.model_fields:
            return None
        with gr.Accordion("Settings", open=False):
            form = Form(model, values=presets[first])
        if len(presets) > 1:
            values = {preset: form.show(one) for preset, one in presets.items()}
            one = "" if len(form.inputs) > 1 else "[0]"  # what fills a single control is no list
            pick.change(None, pick, form.inputs, js=f"preset => ({json.dumps(values)})[preset]{one}")
        return form

    @property
    def inputs(self) -> list[Any]:
        """The controls that say how to measure."""
        return self.form.inputs if self.form else []

    def start(self, here: Shown, values: tuple[Any, ...]) -> None:
        """Ask for a measurement with these values of `inputs`."""
        asked = Choice(name=self.name, options=self.form.read(values) if self.form else {})
        measuring.start(self.app.lab, here.lab, here.id, asked, device=self.app.device)

    def follow(self, here: Shown) -> list[Any]:
        """Return how far the measurement is, and leave all else as it is."""
        return [*self._moved(here), *[gr.skip()] * (len(self.outputs) - len(self._moving))]

    def version(self, here: Shown) -> str:
        """Return what changes when this was measured anew."""
        return measuring.version(here.lab, here.id, self.name)

    def draw(self, here: Shown) -> list[Any]:
        """Return everything as it is now."""
        kept = _drawn(self.app.files, here, self.name, self.version(here))
        drawn = [dict(one) if isinstance(one, dict) else one for one in kept]  # Gradio takes an update apart
        plan = html('<p class="rift about">{text}</p>', text=measuring.plan(here.lab, here.id, self.name))
        parts = [value for part in self.parts for value in part.draw(here)]
        return [*self._moved(here), *drawn, plan, self._command(here), *parts]

    def _command(self, here: Shown) -> Any:
        lines = html("<pre><code>{text}</code></pre>", text="\n".join(measuring.commands(here.lab, here.id, self.name)))
        template = '<details class="rift"><summary>The same from the command line</summary>{lines}</details>'
        return html(template, lines=html(MARK, part=lines))

    def _moved(self, here: Shown) -> list[Any]:
        status = measuring.status(self.app.lab, here.lab, here.id, self.name, device=self.app.device)
        bar = html(
            '<progress max="1" value="{progress}" aria-label="Progress"></progress><span class="left">{left}</span>'
            "<small>Safe to close this tab: the work goes on.</small>",
            progress=f"{status.progress:.3f}",
            left="" if status.seconds_left is None else f"about {duration(status.seconds_left)} left",
        )
        problems = join(
            '<div class="rift problem" role="alert"><b>{arm}: {what}</b> <code>{code}</code></div>',
            [{"arm": arm, "what": what, "code": code} for arm, what, code in status.problems],
        )
        said = html(
            '<div class="rift status {state}"><b class="state" aria-live="polite">{word}</b>'
            '<span class="message">{message}</span>{bar}</div>{problems}',
            state=status.state,
            word=WORDS.get(status.state, ""),
            message=status.message,
            bar=bar if status.active else "",
            problems=problems,
        )
        quiet = not status.state or (status.state == "done" and not problems)
        unfinished = status.state in ("stopped", "failed", "lost")
        return [
            "" if quiet else said,
            gr.Button(visible=status.active),
            gr.Button(visible=unfinished),
            gr.Button(interactive=not status.active),
        ]


@functools.lru_cache(maxsize=64)
def _drawn(files: Files, here: Shown, name: str, version: str) -> list[Any]:
    """Return sentence, figure, pictures, data and what was measured; kept while nothing is measured anew: it takes a second."""
    found = measuring.results(here.lab, here.id, name)
    section = next(report.sections({arm: {name: one} for arm, one in found.items()}), None)
    door = gr.update(label="Measure again" if found else "Measure", open=not found)
    if section is None:
        text = "Not measured on these runs yet: it runs the models again, and only when asked."
        if not catalog.captures(name):
            text = "Not measured on these runs yet: they are older than this page, or came without what it needs."
        words, hidden = html('<p class="rift says">{text}</p>', text=text), gr.update(visible=False)
        return [words, hidden, hidden, hidden, "", hidden, door]
    words = html('<p class="rift says">{text}</p>', text=section["sentence"])
    wide = ["wide"] if section["min_width"] else []
    plot = gr.update(value=PlotData(type="plotly", plot=section["figure"].to_json()), elem_classes=wide, visible=True)
    about = html('<p class="rift about">{text}</p>', text=measuring.about(here.lab, here.id, name))
    data = html(MARK, part=report.part("data", section))
    shown = _gallery(files, here, name, found)
    pictures = gr.update(value=shown, visible=bool(shown))  # one that is empty would leave a gap
    return [words, plot, pictures, gr.update(visible=True), data, gr.update(value=about, visible=True), door]


def _gallery(files: Files, here: Shown, name: str, found: dict[str, Any]) -> Any:
    """Return the rows of small pictures that the diagnostic asks for; one of a test image opens it where the page can."""
    places = linked.numbers(here.lab, here.id) if any(part is One for part in PARTS.get(name, ())) else {}
    rows = []
    for row in measuring.pictures(here.lab, here.id, name, found):
        cells = []
        for cell in row["pictures"]:
            kind, *place = cell["place"]
            address = files.picture(here.home, *place) if kind == "set" else files.captured(here.home, *place)
            image = html('<img loading="lazy" src="{address}" alt="{caption}">', address=address, caption=cell["caption"])
            if (number := places.get(tuple(place))) is not None:
                button = '<button type="button" data-image="{number}" title="Show it in all models">{image}</button>'
                image = html(button, number=number, image=image)
            cells.append({"image": image, "caption": cell["caption"]})
        cell = "<figure>{image}<figcaption>{caption}</figcaption></figure>"
        rows.append({"caption": row["caption"], "pictures": join(cell, cells)})
    whole = join('<section><h3>{caption}</h3><div class="pictures">{pictures}</div></section>', rows)
    return html('<div class="rift gallery" data-page="{name}">{whole}</div>', name=name, whole=whole) if rows else ""

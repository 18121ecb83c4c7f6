"""Asking all models about one photo: a natural one, a test image of the set, or one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from rift import ask, catalog
from rift.errors import UserError
from rift.ui.state import App, Shown
from rift.ui.widgets import PRIVATE, Form, html, problem, told

WORDS = "cat, dog, bird, lion, car, ship, coffee, palace"
SOURCES = [("A natural photo", "natural"), ("A test image of this set", "test"), ("A photo of your own", "own")]
PREVIEW_PIXELS = 192


class Asker:
    """The part of a diagnostic's page that puts one photo to all models, as the diagnostic's `look` does it."""

    def __init__(self, app: App, name: str, module: Any):
        self.app, self.name, self.module = app, name, module
        gr.HTML('<div class="rift"><h3>Ask about one photo</h3></div>')
        with gr.Row():
            with gr.Column(min_width=320):
                self.source = gr.Radio(SOURCES, value="natural", label="Photo", elem_id=f"source-{name}")
                self.number = gr.Slider(1, 2, 1, step=1, label="Which one", elem_id=f"number-{name}")
                self.file = gr.File(label="Drop a photo", height=110, visible=False, elem_id=f"photo-{name}")
                self.preview = gr.HTML(elem_id=f"preview-{name}")
                self.own = gr.HTML(visible=False, elem_id=f"own-{name}")
                wordy = getattr(module, "LOOK_WORDS", True)
                about = "separated by commas"
                words = gr.Textbox(WORDS, label="Words to choose from", info=about, visible=wordy, elem_id=f"words-{name}")
                settings = catalog.look_settings(name)
                self.form = Form(settings) if settings.model_fields else None
                button = gr.Button("Ask all models", elem_id=f"ask-{name}")
            with gr.Column(min_width=320):
                sentence = gr.HTML(elem_id=f"answer-{name}")
                plot = gr.Plot(show_label=False, container=False, visible=False, elem_id=f"look-{name}")
        self.kept = gr.State("")
        chosen, shown = [app.ready, self.source], [self.number, self.preview]
        # what is seen follows the choice on the page itself, and one's own photo has a field of its own, so that no late
        # answer shows anything of another source
        seen = "({__type__: 'update', visible: one %s 'own'})"
        js = f"one => [{', '.join([seen % '!=='] * 2 + [seen % '==='] * 2)}]"
        self.source.input(None, self.source, [self.number, self.preview, self.file, self.own], js=js)
        gr.on([self.source.input, app.ready.change], self._first, chosen, shown, **PRIVATE)
        self.number.change(self._preview, [*chosen, self.number], self.preview, **PRIVATE)
        self.file.upload(self._keep, self.file, [self.file, self.kept, self.own], **PRIVATE)
        asked = [*chosen, self.kept, self.number, words, *(self.form.inputs if self.form else [])]
        busy = {**PRIVATE, "show_progress": "minimal", "show_progress_on": None}
        gr.on([button.click, words.submit], told(self._answer), asked, [sentence, plot], **busy)

    def _first(self, ready: str, source: str) -> list[Any]:
        """Return number and preview as a source opens: its first image."""
        here = self.app.of(ready)
        if here is None or source == "own":
            return [gr.skip(), gr.skip()]
        count = len(ask.shelf(here.lab, here.id, source)[1])
        return [gr.Slider(maximum=max(2, count), value=1), self._of_set(here, source, 1)]

    def _preview(self, ready: str, source: str, number: int) -> Any:
        here = self.app.of(ready)
        return gr.skip() if here is None or source == "own" else self._of_set(here, source, number)

    def _of_set(self, here: Shown, source: str, number: int) -> Any:
        try:
            digest, index, said = ask.picked(here.lab, here.id, source, int(number or 0))
        except UserError as error:
            return problem(error)
        address = self.app.files.picture(here.home, digest, index, 2 * PREVIEW_PIXELS)
        return html(
            '<div class="rift"><img class="rift photo" src="{address}" alt="{said}"><small>{said}</small></div>',
            address=address,
            said=said,
        )

    def _keep(self, path: str | None) -> tuple[Any, Any, Any]:
        """Take the photo into the lab and out of Gradio's cache."""
        if not path:
            return gr.skip(), gr.skip(), gr.skip()
        try:
            key = ask.keep_photo(self.app.door(), Path(path).read_bytes())
        except UserError as error:
            return None, "", problem(error)
        finally:
            Path(path).unlink(missing_ok=True)
        address = self.app.files.photo("lab", key)
        return None, key, html('<img class="rift photo" src="{address}" alt="your photo">', address=address)

    def _answer(self, ready: str, source: str, kept: str, number: int, text: str, *values: Any) -> tuple[Any, Any]:
        here = self.app.of(ready)
        if here is None:
            return html('<p class="rift about">There is no comparison to ask yet.</p>'), gr.skip()
        labels = [word for part in (text or "").replace(";", ",").split(",") if (word := part.strip())]
        own = source == "own"
        photo = ask.photo(self.app.lab, kept) if own else ask.of_set(here.lab, here.id, source, int(number or 0))
        settings = self.form.read(values) if self.form else {}
        found = ask.look(here.lab, here.id, self.name, photo, labels, settings)
        figure = gr.Plot(self.module.look_figure(found), visible=True)
        return html('<p class="rift says">{text}</p>', text=self.module.look_sentence(found)), figure

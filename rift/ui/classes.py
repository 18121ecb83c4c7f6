"""Two to six classes that a person fills with pictures, by dropping files or by webcam; they are drafts of the lab until used.

Which draft is this browser's is kept in the browser alone. Files leave Gradio's cache as soon as they were read; pictures of the
webcam are never files at all: they come as text and go straight into the draft.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from rift import drafts
from rift.errors import DataError, UserError
from rift.review import Item
from rift.ui.state import App
from rift.ui.widgets import PRIVATE, dropped, html, join, problem

SHOWN, MOST_REMARKS = 8, 5  # pictures of a class on its card, the newest; and pictures that were not taken
MOST_SHOTS, MOST_SHOT_BYTES = 12, 4_000_000
HOW = """
<div class="rift"><p class="about">Name each class, and drop pictures in or take them with the webcam. Three in each are the
least; thirty make a fair test. What you drop stays here over a reload, on the machine that runs this page.</p></div>
"""
CAMERA = """
<div class="rift camera"><video autoplay playsinline muted aria-label="What the webcam sees"></video>
<p class="said" role="status">Pictures taken in a row look alike. If you take many, choose below that their names tell what
belongs together, so that twins do not stand on both sides of the test.</p></div>
"""
# 128 random bits, made on the page: nobody else can know or guess them
KEY = """() => {
  const make = () => [...crypto.getRandomValues(new Uint8Array(16))].map(b => b.toString(16).padStart(2, '0')).join('')
  try { return [localStorage['rift-lab-draft'] ??= make()] } catch { return [make()] }
}"""
OPEN = """async () => {
  const film = document.querySelector('#camera video'), said = document.querySelector('#camera .said')
  try { film.srcObject = await navigator.mediaDevices.getUserMedia({video: {width: 640, height: 480}}) }
  catch (error) {
    const secure = navigator.mediaDevices ? 'it was refused or is in use' : 'browsers allow it on this machine or over https only'
    said.textContent = 'The webcam cannot be opened: ' + secure + '. Pictures can still be dropped.'
  }
}"""
CLOSE = """() => {
  const film = document.querySelector('#camera video')
  film?.srcObject?.getTracks().forEach(track => track.stop())
  if (film) film.srcObject = null
}"""
TAKE = """async (key, into, _) => {
  const film = document.querySelector('#camera video'), taken = []
  if (!film?.videoWidth) return [key, into, '[]']
  const canvas = document.createElement('canvas')
  canvas.width = film.videoWidth; canvas.height = film.videoHeight
  for (let i = 0; i < MANY; i++) {
    if (i) await new Promise(done => setTimeout(done, 200))
    canvas.getContext('2d').drawImage(film, 0, 0)
    taken.push(canvas.toDataURL('image/jpeg', 0.92))
  }
  return [key, into, JSON.stringify(taken)]
}"""


class Cards:
    """The cards of all classes; `shown` are the components that `render` gives values for."""

    def __init__(self, app: App):
        self.app = app
        self.key = gr.Textbox(visible="hidden", elem_id="draft-key")
        self.slot = gr.Textbox(visible="hidden", elem_id="draft-shots")
        self.cards: list[Any] = []
        self.names: list[Any] = []
        self.files: list[Any] = []
        self.thumbs: list[Any] = []
        self.buttons: list[tuple[Any, Any]] = []
        gr.HTML(HOW)
        with gr.Row(elem_classes="class-cards"):
            for place in range(drafts.MOST):
                with gr.Column(min_width=250, visible=place < drafts.FEWEST, elem_id=f"class-{place}") as card:
                    self._card(place)
                self.cards.append(card)
        with gr.Row():
            self.more = gr.Button("Add a class", elem_id="add-class")
            self.open = gr.Button("Use the webcam", elem_id="open-camera")
            self.use = gr.Button("Use these images", variant="primary", elem_id="use-classes")
        with gr.Column(visible=False) as self.camera:
            gr.HTML(CAMERA, elem_id="camera")
            self.into = gr.Radio([("Class 1", 0), ("Class 2", 1)], value=0, label="Put the pictures into", elem_id="camera-into")
            with gr.Row():
                self.one = gr.Button("Take a picture", variant="primary", elem_id="take-one")
                self.ten = gr.Button("Take ten in a row", elem_id="take-ten")
                self.close = gr.Button("Close the webcam", elem_id="close-camera")
        self.trouble = gr.HTML(elem_id="class-problem")
        self.shown = [*self.cards, *self.names, *self.thumbs, self.into, self.trouble]

    def _card(self, place: int) -> None:
        name = gr.Textbox(f"Class {place + 1}", label=f"Name of class {place + 1}", max_lines=1, elem_id=f"class-name-{place}")
        self.names.append(name)
        file = dropped(label="Drop pictures here", file_count="multiple", height=110, elem_id=f"class-drop-{place}")
        self.files.append(file)
        self.thumbs.append(gr.HTML(elem_id=f"class-pictures-{place}"))
        with gr.Row():
            clear = gr.Button("Empty it", size="sm", min_width=80, elem_id=f"class-clear-{place}")
            remove = gr.Button("Remove", size="sm", min_width=80, elem_id=f"class-remove-{place}")
        self.buttons.append((clear, remove))

    def connect(self) -> None:
        """Let every control act on the draft; each answers with all cards as they then are."""
        app, more = self.app, {**PRIVATE, "concurrency_limit": None}
        self.app.blocks.load(lambda key: [key, *self.render(key)], self.key, [self.key, *self.shown], js=KEY, **PRIVATE)
        for place in range(drafts.MOST):
            name, file, (clear, remove) = self.names[place], self.files[place], self.buttons[place]
            taken = [file, *self.shown]
            file.upload(self._taker(place), [self.key, file], taken, api_visibility="private", show_progress_on=file)
            rename = self._acting(lambda key, text, place=place: drafts.rename(app.lab, key, place, text or ""))
            gr.on([name.blur, name.submit], rename, [self.key, name], self.shown, **more)
            clear.click(self._acting(lambda key, place=place: drafts.clear(app.lab, key, place)), self.key, self.shown, **more)
            remove.click(self._acting(lambda key, place=place: drafts.remove(app.lab, key, place)), self.key, self.shown, **more)
        self.more.click(self._acting(lambda key: drafts.append(app.lab, key)), self.key, self.shown, **more)
        self.open.click(lambda: gr.Column(visible=True), None, self.camera, **PRIVATE).then(None, None, None, js=OPEN)
        self.close.click(lambda: gr.Column(visible=False), None, self.camera, js=CLOSE, **PRIVATE)
        for button, many in ((self.one, 1), (self.ten, 10)):
            shots = [self.key, self.into, self.slot]
            button.click(self._shots, shots, self.shown, js=TAKE.replace("MANY", str(many)), **more)

    def render(self, key: str, trouble: Any = "") -> list[Any]:
        """Return the cards of a draft as they are now, in the order of `shown`."""
        classes = drafts.read(self.app.lab, key or "").classes
        padded = [*classes, *[None] * (drafts.MOST - len(classes))]
        into = gr.Radio(choices=[(one.name, place) for place, one in enumerate(classes)])
        return [
            *[gr.Column(visible=one is not None) for one in padded],
            *[gr.skip() if one is None else one.name for one in padded],
            *["" if one is None else self._thumbs(key, one) for one in padded],
            into,
            trouble,
        ]

    def _thumbs(self, key: str, group: drafts.Group) -> Markup:
        many = len(group.pictures)
        files = self.app.files
        pictures = join(
            '<img loading="lazy" width="48" height="48" src="{address}" alt="{name}" title="{name}">',
            [{"address": files.draft("lab", key, one.hash), "name": one.name} for one in group.pictures[: -SHOWN - 1 : -1]],
        )
        count = f"{many} picture{'' if many == 1 else 's'}" if many else "No pictures yet"
        refused = _not_taken(group.remarks) if group.remarks else ""
        page = '<div class="rift thumbs"><p class="count" role="status">{n}</p>{all}{refused}</div>'
        return html(page, n=count, all=pictures, refused=refused)

    def _acting(self, act: Callable[..., Any]) -> Callable[..., list[Any]]:
        def handler(key: str, *values: Any) -> list[Any]:
            try:
                act(key, *values)
                return self.render(key)
            except UserError as error:
                return self.render(key, problem(error))

        return handler

    def _taker(self, place: int) -> Callable[..., list[Any]]:
        def take(key: str, files: Sequence[tuple[str, Path]]) -> list[Any]:
            try:
                pictures = [(name, path.read_bytes()) for name, path in files]
            finally:
                for _, path in files:
                    path.unlink(missing_ok=True)
            return [None, *self._acting(lambda key: drafts.add(self.app.door(), key, place, pictures))(key)]

        return take

    def _shots(self, key: str, into: int | None, text: str) -> list[Any]:
        """Put what the webcam took into a class; the shots of one click share the beginning of their names."""

        def act(key: str) -> list[Item]:
            stamp = f"camera {time.strftime('%H-%M-%S')} {time.time_ns() // 10**6 % 1000:03d}"
            shots = _decoded(text)
            pictures = [(f"{stamp}_{i:02d}.jpg", one) for i, one in enumerate(shots)]
            return drafts.add(self.app.door(), key, int(into or 0), pictures)

        return self._acting(act)(key)


def _decoded(text: str) -> list[bytes]:
    """Return the pictures of a list of data URLs; `data.image` for anything else."""
    if not text or text == "[]":
        raise DataError("data.image", "The webcam shows nothing yet; allow it in the browser and wait for its picture.")
    try:
        shots = [base64.b64decode(one.removeprefix("data:image/jpeg;base64,"), validate=True) for one in json.loads(text)]
    except (ValueError, TypeError, AttributeError, binascii.Error):
        shots = []
    if not 1 <= len(shots) <= MOST_SHOTS or max(map(len, shots)) > MOST_SHOT_BYTES:
        raise DataError("data.image", f"The webcam's pictures could not be read; at most {MOST_SHOTS} are taken at once.")
    return shots


def _not_taken(remarks: Sequence[Item]) -> Markup:
    """Return what was not taken of the pictures that came last, each with its reason."""
    rows = [{"file": one.file, "message": one.message, "code": one.code} for one in remarks[:MOST_REMARKS]]
    listed = join("<li><b>{file}</b>: {message} <code>{code}</code></li>", rows)
    more = f"and {len(remarks) - MOST_REMARKS} more" if len(remarks) > MOST_REMARKS else ""
    return html('<div class="refused" role="alert"><p>Not taken:</p><ul>{rows}</ul>{more}</div>', rows=listed, more=more)

"""One test image in every model: what each calls it, and what each puts nearest to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from markupsafe import Markup

from rift import figures, linked
from rift.linked import Answers
from rift.ui.state import App, Shown
from rift.ui.widgets import PRIVATE, html, join, told

NOTHING = "No predictions were kept with these runs, so that their images cannot be shown one by one."
PIXELS, SMALL = 256, 144  # twice what is shown, for fine screens


def picture(app: App, here: Shown, data: str, place: int | None, size: int, alt: str) -> Markup:
    """Return a picture of the image set, or the words for one that was deleted."""
    if place is None:
        return Markup('<span class="nothing">picture deleted</span>')
    return html(
        '<img loading="lazy" src="{address}" alt="{alt}">', address=app.files.picture(here.home, data, place, size), alt=alt
    )


class One:
    """One test image in all models: what each calls it, and its nearest neighbors under each."""

    def __init__(self, app: App, page: str):
        self.app, self.page = app, page
        how = {
            "pca": "Click a point above, or move the slider (the arrow keys do).",
            "retrieval": "Click a picture below, or move the slider (the arrow keys do).",
        }.get(page, "Click a picture above, or move the slider (the arrow keys do).")
        with gr.Column(visible=False, elem_id=f"one-part-{page}") as self.whole:
            gr.HTML(
                html(
                    '<div class="rift" id="one-{page}"><h3>One image in all models</h3><p class="about">{how}</p></div>',
                    page=page,
                    how=how,
                )
            )
            self.number = gr.Slider(1, 2, 1, step=1, label="Test image", elem_id=f"one-number-{page}")
            self.panel = gr.HTML(elem_id=f"one-panel-{page}")
        self.outputs = [self.whole, self.number, self.panel]
        self.number.change(told(self._moved), [app.ready, self.number], self.panel, trigger_mode="always_last", **PRIVATE)

    def draw(self, here: Shown) -> list[Any]:
        """Return the slider, and the first image."""
        found = linked.answers(here.lab, here.id)
        if not found.arms:
            return [gr.Column(visible=True), gr.Slider(visible=False), html('<p class="rift about">{text}</p>', text=NOTHING)]
        return [
            gr.Column(visible=True),
            gr.Slider(maximum=max(2, len(found)), value=1, visible=True),
            self._shown(here, found, 0),
        ]

    def _moved(self, ready: str, number: Any) -> Any:
        here = self.app.of(ready)
        found = linked.answers(here.lab, here.id) if here else None
        i = linked.picked(found, int(number or 1) - 1) if found else None
        return self._shown(here, found, i) if here and found and i is not None else gr.skip()

    def _shown(self, here: Shown, found: Answers, i: int) -> Any:
        data, places = linked.places(here.lab, here.id)
        near, missing = linked.neighbors(here.lab, here.id, found, i)
        models = [self._model(here, found, i, name, near.get(name), data, places) for name in ("pretrained", *found.arms)]
        label = found.label(i) if found.classes else ""
        return html(
            '<div class="rift linked one"><div class="subject">{picture}<div><h4>{label}</h4><p>Test image {number} of {n}</p>'
            '<p class="file">{id}</p></div></div><div class="models">{models}</div>{missing}</div>',
            picture=picture(self.app, here, data, places.get(found.ids[i]), PIXELS, f"test image {i + 1}: {label}"),
            label=f"Label: {label}" if label else "",
            number=i + 1,
            n=len(found),
            id=found.ids[i],
            models=Markup("").join(models),
            missing=html('<p class="about">{text}</p>', text=missing) if missing else "",
        )

    def _model(self, here: Shown, found: Answers, i: int, name: str, near: Any, data: str, places: dict[str, int]) -> Markup:
        """Return one column: what a model calls the image, and what it puts nearest to it."""
        if name == "pretrained":
            said = Markup("<p>It has no head for these classes, so it calls the image nothing.</p>")
        elif not found.classes:
            said = html("<p>Reconstruction error {error}</p>", error=linked.said(found, i)[list(found.arms).index(name)][2])
        else:
            rows = [
                {"name": f"{one}{' ✓' if ok else ''}", "kind": "right" if ok else "", "p": linked.percent(p), "share": f"{p:.3f}"}
                for one, p, ok in linked.likeliest(found, name, i)
            ]
            meter = '<meter min="0" max="1" value="{share}" aria-hidden="true"></meter>'
            line = '<li class="{kind}"><span>{name}</span><b>{p}</b>' + meter + "</li>"
            said = html("<ol>{rows}</ol>", rows=join(line, rows))
        return html(
            '<section><h4><i style="background:{color}"></i>{name}</h4>{said}{near}</section>',
            color=figures.color(name, list(found.arms)),
            name=name,
            said=said,
            near=self._near(here, name, near, data, places) if near else "",
        )

    def _near(self, here: Shown, name: str, near: Sequence[linked.Neighbor], data: str, places: dict[str, int]) -> Markup:
        cells = [
            {
                "picture": picture(self.app, here, data, places.get(one.id), SMALL, ""),
                "said": f"{'✓' if one.same else '✗'} {one.label}",
                "more": f"{one.distance:.3f}{' · kept' if one.kept else ''}",
            }
            for one in near
        ]
        same, kept = sum(one.same for one in near), sum(one.kept for one in near)
        also = "" if name == "pretrained" else f", {kept} are the pretrained model's too (kept)"
        cell = "<figure>{picture}<figcaption>{said}<br>{more}</figcaption></figure>"
        return html(
            '<p class="about">Nearest {n}, with 1 - cosine: {same} show the same{also}.</p><div class="near">{cells}</div>',
            n=len(near),
            same=same,
            also=also,
            cells=join(cell, cells),
        )

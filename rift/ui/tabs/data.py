"""Bring images or take a sample, and see what was kept, changed and skipped before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from markupsafe import Markup

from rift import catalog, dataset, report, upload
from rift.config import Training
from rift.errors import UserError
from rift.review import PARTS
from rift.ui.state import App
from rift.ui.widgets import PRIVATE, Menu, html, join, problem

TITLE, ORDER = "1 Data", 1
THUMBNAILS = 6  # of each class
MOST_CLASSES = 24  # shown with pictures
PROGRESS = gr.Progress()  # Gradio looks for one among a handler's defaults

HOW = """
<div class="rift"><h2>Your images</h2><p class="about">A zip with one folder for each class,
<code>my_set.zip/benign/01.png</code>. Also: folders train, val and test around them, a table (CSV) beside
the images with a column <code>label</code>, or a column of 0 and 1 for each finding, or a MedMNIST file
(.npz). At least two classes with three images each; thirty each make a fair test. They stay on the machine
that runs this page.</p></div>
"""


def build(app: App) -> None:
    """Fill the tab: two ways in, then the summary of the chosen set; below, the natural images."""
    with gr.Row():
        with gr.Column(min_width=320):
            gr.HTML(HOW)
            file = gr.File(label="Drop a zip here", height=132, elem_id="upload")
            small = gr.Checkbox(label="Leave out classes with fewer than three images")
        with gr.Column(min_width=320):
            gr.HTML('<div class="rift"><h2>Or a sample</h2></div>')
            sample = Menu("samples", "phantoms", "Sample")
            take = gr.Button("Take this sample", elem_id="take-sample")
    trouble, summary = gr.HTML(elem_id="data-problem"), gr.HTML(elem_id="data-summary", min_height=200)

    with gr.Accordion("Natural images: what must not be forgotten", open=False):
        gr.HTML(
            '<div class="rift"><p class="about">Everyday photos that no arm is trained on. After finetuning, each model names '
            "them again from words alone. The bundled dozen needs no download and is too small for a verdict; take 200 or more "
            "for one.</p></div>"
        )
        with gr.Row():
            with gr.Column(min_width=320):
                natural = Menu("natural", "bundled", "Set of natural images")
                take_natural = gr.Button("Take this set")
            with gr.Column(min_width=320):
                natural_file = gr.File(label="Or a zip with one folder for each word", height=132)
        natural_summary = gr.HTML()

    reading: dict[str, Any] = {"show_progress": "full", "show_progress_on": summary, "api_visibility": "private"}
    got = [app.memory, file, trouble]
    file.upload(_reader(app, "data"), [app.memory, small, file], got, **reading)
    take.click(_taker(app, "data", sample), [app.memory, *sample.inputs], got, **reading)
    got_natural = [app.memory, natural_file, trouble]
    natural_file.upload(_reader(app, "natural"), [app.memory, small, natural_file], got_natural, **reading)
    take_natural.click(_taker(app, "natural", natural), [app.memory, *natural.inputs], got_natural, **reading)
    app.mark.change(lambda memory: _summaries(app, memory), app.memory, [summary, natural_summary], **PRIVATE)
    app.blocks.load(lambda memory: _summaries(app, memory), app.memory, [summary, natural_summary], **PRIVATE)


def _reader(app: App, kind: str) -> Callable[..., Any]:
    """Return the handler of an upload; the file leaves Gradio's cache as soon as it was read."""

    def read(memory: dict[str, str], leave_out_small: bool, path: str | None, progress: Any = PROGRESS) -> Any:
        if not path:
            return gr.skip(), gr.skip(), gr.skip()
        floor: dict[str, Any] = (
            {"least": 1, "least_classes": 1, "findings": False} if kind == "natural" else {"leave_out_small": leave_out_small}
        )

        def tell(done: int, total: int) -> None:
            progress((done, total), desc="Reading images")

        try:
            return _remember(memory, kind, upload.read(Path(path), app.lab.data, progress=tell, **floor), Path(path).name)
        except UserError as error:
            return gr.skip(), None, problem(error)
        finally:
            Path(path).unlink(missing_ok=True)

    return read


def _taker(app: App, kind: str, menu: Menu) -> Callable[..., Any]:
    """Return the handler of a sample or a natural set: drawn, or downloaded."""

    def take(memory: dict[str, str], *values: Any) -> Any:
        try:
            choice = menu.read(values)
            images = catalog.door(menu.menu, choice.name)(app.lab.data, **choice.options)
        except UserError as error:
            return gr.skip(), None, problem(error)
        options = ",".join(f"{key}={value}" for key, value in catalog.changed(menu.menu, choice).items())
        name = f"{choice.name}:{options}" if options else choice.name
        return _remember(memory, kind, images, f"sample:{name}" if kind == "data" else name)

    return take


def _remember(memory: dict[str, str], kind: str, images: dataset.ImageSet, source: str) -> tuple[dict[str, str], None, str]:
    """Make a set the chosen one, once it is known that it can be split."""
    if kind == "data":
        dataset.split(images, Training().split_seed)
        return {**memory, "data": images.digest, "source": source}, None, ""
    return {**memory, "natural": images.digest, "natural_source": source}, None, ""


def _summaries(app: App, memory: dict[str, str]) -> tuple[str, str]:
    home, digest, _ = app.data(memory)
    first = summary(app, home, digest) if digest else ""
    natural = (memory or {}).get("natural", "")
    there = bool(natural) and (app.lab.data / natural).exists()
    return first, summary(app, "lab", natural, parts=False) if there else ""


def summary(app: App, home: str, digest: str, *, parts: bool = True) -> str:
    """Return what is in a set: counts, pictures of each class, and every file that was changed or skipped."""
    images = dataset.load(app.labs[home].data / digest)
    split = dataset.split(images, Training().split_seed) if parts else None
    counts = {part: getattr(split, part) for part in PARTS} if split else {}
    members = [images.of(index) for index in range(len(images.classes))]
    several = images.task == "multi_label"
    heads = join('<th scope="col">{part}</th>', [{"part": part} for part in counts])
    rows = join(
        '<tr><th scope="row">{name}<small>{n} images</small></th>{cells}<td class="thumbs">{pictures}</td></tr>',
        [
            {
                "name": name,
                "n": int(members[index].sum()),
                "cells": join("<td>{n}</td>", [{"n": int(members[index][chosen].sum())} for chosen in counts.values()]),
                "pictures": _thumbnails(app, home, images, members[index]) if index < MOST_CLASSES else "",
            }
            for index, name in enumerate(images.classes)
        ],
    )
    about = html('<p class="about">{about}</p>', about=images.about) if images.about else ""
    files = {
        kind: report.files([item.model_dump() for item in getattr(images.report, kind)])
        for kind in ("warnings", "changed", "skipped")
    }
    return html(
        '<div class="rift"><h2>{name}</h2>{about}<p>{kept} images in {classes} {kinds}; {changed} changed on the way in, '
        "{skipped} skipped, {warnings} warnings.</p>{files}"
        '<div class="scroll" role="region" tabindex="0" aria-label="Classes">'
        '<table class="numbers classes"><thead><tr><th scope="col">{kind}</th>'
        '{heads}<th scope="col" class="thumbs">Pictures</th></tr></thead><tbody>{rows}</tbody></table></div></div>',
        name=images.name,
        about=about,
        kept=len(images),
        classes=len(images.classes),
        kinds="findings, of which an image may show several or none" if several else "classes",
        kind="Finding" if several else "Class",
        **{kind: found["count"] for kind, found in files.items()},
        files=Markup("".join(report.part("files", kind.capitalize(), found) for kind, found in files.items())),
        heads=heads,
        rows=rows,
    )


def _thumbnails(app: App, home: str, images: dataset.ImageSet, members: np.ndarray) -> Markup:
    """Return the first of these pictures, each under a token."""
    chosen = np.flatnonzero(members)[:THUMBNAILS]
    return join(
        '<img loading="lazy" width="56" height="56" src="{address}" alt="{name}" title="{name}">',
        [{"address": app.files.picture(home, images.digest, i), "name": images.ids[i]} for i in chosen],
    )

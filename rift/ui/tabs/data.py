"""Bring images or take a sample, and see what was kept, changed and skipped before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from markupsafe import Markup

from rift import cage, catalog, dataset, drafts, patients, quota, visitors
from rift.archive import plain
from rift.config import Training
from rift.errors import DataError, UserError
from rift.review import PARTS
from rift.ui import remarks
from rift.ui.classes import Cards
from rift.ui.state import App
from rift.ui.widgets import PRIVATE, Menu, dropped, html, join, problem

TITLE, ORDER = "1 Data", 1
THUMBNAILS = 6  # of each class
MOST_CLASSES = 24  # shown with pictures
PROGRESS = gr.Progress()  # Gradio looks for one among a handler's defaults
TABLES = (".csv", ".tsv")

HOW = """
<div class="rift"><p class="about">A zip with one folder for each class, <code>my_set.zip/benign/01.png</code>; folders train,
val and test may stand around them. Or a table and its pictures, dropped together or in a zip: a CSV with a column
<code>file</code> and a column <code>label</code>, or instead of that one a column of 0 and 1 for each finding;
<code>patient</code> and <code>split</code> are read where they are there. Or a MedMNIST file (.npz). At least two classes with
three images each; thirty each make a fair test. They stay on the machine that runs this page. Of DICOM files only the pixels are
kept; names written into the picture stay in it, and file names are shown.</p></div>
"""
SHOTS = "Few-shot: train on so many images of each class only, drawn by the seed; 0 takes all. Validation and test stay."
PRIVACY = (
    "This is a public server, no place for pictures by which a patient could be recognized. What you bring is kept apart from "
    "everybody else's, is never shown to others unless you share it, and is deleted 24 hours after you were last here, or at "
    "once under Keep. The samples need no permission."
)
MAY = "I may use the pictures that I bring here, and nobody can be recognized in them."
PATIENTS = "Images of one patient stay on one side of the test, so that it cannot flatter. Another choice is another split."


def build(app: App) -> None:
    """Fill the tab: three ways in, then what the chosen set is and how it is split; below, the natural images."""
    gr.HTML('<div class="rift"><h2>Your images</h2></div>')
    if app.apart:
        _ask(app)
    with gr.Tabs(elem_id="ways", selected="classes", overflow_behavior="wrap"):
        with gr.Tab("Class by class", id="classes", render_children=True):
            cards = Cards(app)
        with gr.Tab("Zip, or table with pictures", id="zip", render_children=True):
            gr.HTML(HOW)
            file = dropped(
                label="Drop a zip, or a table (CSV) and its pictures", file_count="multiple", height=132, elem_id="upload"
            )
            small = gr.Checkbox(label="Leave out classes with fewer than three images", elem_id="leave-out-small")
        with gr.Tab("A ready-made set", id="sample", elem_id="tab-ready-made", render_children=True):
            sample = Menu("samples", "phantoms", "Sample")
            take = gr.Button("Take this sample", elem_id="take-sample")
    trouble = gr.HTML(elem_id="data-problem")
    with gr.Row():
        shots = gr.Number(0, precision=0, label="Training images of each class", info=SHOTS, elem_id="shots", min_width=260)
        told_by = gr.Dropdown(visible=False, label="Patients are told by", info=PATIENTS, elem_id="patients", min_width=260)
    summary = gr.HTML(elem_id="data-summary", min_height=200)

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
                natural_file = dropped(label="Or a zip with one folder for each word", height=132)
        natural_summary = gr.HTML()

    cards.connect()
    reading: dict[str, Any] = {"show_progress": "full", "show_progress_on": summary, "api_visibility": "private"}
    got = [app.memory, file, trouble]
    file.upload(_reader(app, "data"), [app.memory, small, file], got, **reading)
    take.click(_taker(app, "data", sample), [app.memory, *sample.inputs], got, **reading)
    cards.use.click(_user(app), [app.memory, cards.key], got, **reading)
    got_natural = [app.memory, natural_file, trouble]
    natural_file.upload(_reader(app, "natural"), [app.memory, small, natural_file], got_natural, **reading)
    take_natural.click(_taker(app, "natural", natural), [app.memory, *natural.inputs], got_natural, **reading)
    gr.on([shots.blur, shots.submit], _few, [app.memory, shots], [app.memory, trouble], **PRIVATE)
    told_by.input(_grouper(app), [app.memory, told_by], got, **reading)
    shown = [summary, natural_summary, shots, told_by]
    seen = app.remembered("[memory?.data, memory?.natural, memory?.shots]")  # not all else
    seen.change(lambda memory: _summaries(app, memory), app.memory, shown, **PRIVATE)
    app.blocks.load(lambda memory: _summaries(app, memory), app.memory, shown, **PRIVATE)


def _ask(app: App) -> None:
    """Ask a visitor of a public server, before anything of theirs comes, whether it may."""
    gr.HTML(html('<p class="rift about" id="privacy">{text}</p>', text=PRIVACY))
    box = gr.Checkbox(label=MAY, elem_id="consent")
    box.input(lambda given: visitors.consent(app.lab, bool(given)), box, None, **PRIVATE)
    app.blocks.load(lambda: visitors.consented(app.lab), None, box, **PRIVATE)


def _reader(app: App, kind: str) -> Callable[..., Any]:
    """Return the handler of an upload; the files leave Gradio's cache as soon as they were read."""

    def read(memory: dict[str, Any], leave_out_small: bool, files: Sequence[tuple[str, Path]], progress: Any = PROGRESS) -> Any:
        if not files:
            return gr.skip(), gr.skip(), gr.skip()
        more: dict[str, Any] = {"leave_out_small": leave_out_small}
        if kind == "natural":
            more = {"least": 1, "least_classes": 1, "findings": False}
        more["limits"] = quota.limits(app.lab)

        def tell(done: int, total: int, file: str) -> None:
            progress((done, total), desc="Reading images")

        try:
            app.door()
            if len(files) == 1 and not files[0][0].lower().endswith(TABLES):
                name = plain(Path(files[0][0]).stem)
                found = cage.read(files[0][1], app.lab.data, name=name, progress=tell, **more)
                return _remember(memory, kind, found, plain(files[0][0]))
            table = _table(files)
            with drafts.gathered(app.lab, files) as folder:
                return _remember(memory, kind, cage.read(folder, app.lab.data, name=table, progress=tell, **more), "")
        except UserError as error:
            return gr.skip(), None, problem(error)
        finally:
            for _, path in files:
                path.unlink(missing_ok=True)

    return read


def _table(files: Sequence[tuple[str, Path]]) -> str:
    """Return the name of the one table among loose files; `data.label` says what else to do with files that have none."""
    tables = [name for name, _ in files if name.lower().endswith(TABLES)]
    if len(files) > 1 and len(tables) == 1:
        return plain(Path(tables[0]).stem)
    got = f"These are {len(files)} files and {len(tables)} tables" if len(files) > 1 else "This is a table without its pictures"
    ways = "drop one zip, or one CSV together with its pictures; pictures alone go under 'Class by class'"
    raise DataError("data.label", f"{got}: {ways}.")


def _user(app: App) -> Callable[..., Any]:
    """Return the handler that makes the classes of the cards the chosen set."""

    def use(memory: dict[str, Any], key: str, progress: Any = PROGRESS) -> Any:
        try:
            return _remember(memory, "data", drafts.use(app.door(), key), "")
        except UserError as error:
            return gr.skip(), gr.skip(), problem(error)

    return use


def _few(memory: dict[str, Any], shots: float | None) -> tuple[Any, Any]:
    """Remember how few images of each class train."""
    most = 10_000
    if shots is None or not 0 <= shots <= most:
        return gr.skip(), html(
            '<p class="rift problem">Give 0 to {most} training images of each class; 0 takes all.</p>', most=most
        )
    return {**(memory or {}), "shots": int(shots)}, ""


def _grouper(app: App) -> Callable[..., Any]:
    """Return the handler that tells the patients of the chosen set in another way."""

    def group(memory: dict[str, Any], key: str) -> Any:
        home, digest, source = app.data(memory)
        try:
            return _remember(memory, "data", patients.choose(dataset.load(app.labs[home].data / digest), key), source)
        except UserError as error:
            return gr.skip(), gr.skip(), problem(error)

    return group


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


def _remember(memory: dict[str, Any], kind: str, images: dataset.ImageSet, source: str) -> tuple[dict[str, Any], None, str]:
    """Make a set the chosen one, once it is known that it can be split."""
    if kind == "data":
        dataset.split(images, Training().split_seed)
        return {**memory, "data": images.digest, "source": source}, None, ""
    return {**memory, "natural": images.digest, "natural_source": source}, None, ""


def _summaries(app: App, memory: dict[str, Any]) -> tuple[Any, ...]:
    home, digest, _ = app.data(memory)
    shots = int((memory or {}).get("shots") or 0)
    first = summary(app, home, digest, shots=shots) if digest else ""
    natural = (memory or {}).get("natural", "")
    there = bool(natural) and (app.lab.data / natural).exists()
    images = dataset.load(app.labs[home].data / digest) if digest and home == "lab" else None
    offers = patients.offers(images) if images is not None else {}
    ways = [(f"{one.said} ({one.patients} patients)" if one.groups else one.said, key) for key, one in offers.items()]
    told_by = gr.Dropdown(choices=ways, value=patients.chosen(images) if images and offers else None, visible=bool(offers))
    return first, summary(app, "lab", natural, parts=False) if there else "", shots, told_by


def summary(app: App, home: str, digest: str, *, parts: bool = True, shots: int = 0) -> str:
    """Return what is in a set: how it is split, pictures of each class, and every file that was changed or skipped."""
    images = dataset.load(app.labs[home].data / digest)
    split = dataset.parts(images, Training(shots=shots), 0) if parts else None
    counts = {part: getattr(split, part) for part in PARTS} if split else {}
    members = [images.of(index) for index in range(len(images.classes))]
    several = images.task == "multi_label"
    names = {part: f"{part} ({shots} drawn)" if shots and part == "train" else part for part in counts}
    heads = join('<th scope="col">{part}</th>', [{"part": name} for name in names.values()])
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
    seen = images.report
    return html(
        '<div class="rift"><h2>{name}</h2>{about}<p>{kept} images in {classes} {kinds}; {changed} changed on the way in, '
        "{skipped} skipped, {warnings} warnings.{patients}</p>{files}"
        '<div class="scroll" role="region" tabindex="0" aria-label="Classes">'
        '<table class="numbers classes"><thead><tr><th scope="col">{kind}</th>'
        '{heads}<th scope="col" class="thumbs">Pictures</th></tr></thead><tbody>{rows}</tbody></table></div></div>',
        name=images.name,
        about=about,
        kept=len(images),
        classes=len(images.classes),
        kinds="findings, of which an image may show several or none" if several else "classes",
        kind="Finding" if several else "Class",
        **{kind: len(getattr(seen, kind)) for kind in remarks.KINDS},
        patients=_patients(images, counts),
        files=remarks.tables(app, home, images),
        heads=heads,
        rows=rows,
    )


def _patients(images: dataset.ImageSet, counts: dict[str, np.ndarray]) -> str:
    """Return how many patients are on each side of the split."""
    if images.groups is None or not counts:
        return ""
    sides = ", ".join(f"{len(np.unique(images.groups[chosen]))} in {part}" for part, chosen in counts.items())
    return f" Patients: {sides}."


def _thumbnails(app: App, home: str, images: dataset.ImageSet, members: np.ndarray) -> Markup:
    """Return the first of these pictures, each under a token."""
    chosen = np.flatnonzero(members)[:THUMBNAILS]
    return join(
        '<img loading="lazy" width="56" height="56" src="{address}" alt="{name}" title="{name}">',
        [{"address": app.files.picture(home, images.digest, i), "name": images.ids[i]} for i in chosen],
    )

"""What is measured here, what it can and cannot say, and where it comes from."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import gradio as gr
from markupsafe import Markup

from rift import catalog, example, lessons, overview, report
from rift.backbones import embedded
from rift.config import Choice
from rift.ui import exercise
from rift.ui.state import App
from rift.ui.widgets import PRIVATE, html, join

TITLE, ORDER = "6 Learn", 6
ABOUT = """
<div class="rift"><h2>Limits</h2><ul class="limits">{limits}</ul>
<h2>Glossary</h2><dl class="glossary">{glossary}</dl>
<h2>For a lecturer</h2><p class="about">{lesson}</p>
<h2>Sources</h2><h3>Papers</h3><ul class="limits">{papers}</ul><h3>Images and models</h3><ul class="limits">{data}</ul>
<h3>Libraries and their licenses</h3><p class="about">{libraries}. This app: Apache-2.0.</p>
<h2>Privacy</h2><p>Images, models and results stay in a folder of the machine that runs this page. The page asks no other host for
anything, counts nobody, and keeps in your browser only which images and which comparison you last looked at, and what you
predicted in an exercise.</p></div>
"""

MEASURED = """
<div class="rift"><h2>Measured on real sets</h2><p class="about">{model} on {n} medical sets that are not part of
the app, {seeds} seeds, {natural} photos of {photos}; mean ± standard error. Only these numbers are shipped, no picture.</p>
<div class="scroll" role="region" tabindex="0" aria-label="Measured on real sets">
<table class="numbers"><thead><tr><th scope="col">Set</th><th scope="col">Arm</th>{heads}</tr></thead>
<tbody>{rows}</tbody></table></div>
<details><summary>All {many} verdicts in words</summary><ul>{verdicts}</ul></details></div>
"""
COLUMNS = (
    ("balanced_accuracy", "Balanced accuracy"),
    ("cka_debiased", "CKA, medical"),
    ("cka_natural_debiased", "CKA, natural"),
    ("natural_accuracy", "Natural accuracy"),
)


def build(app: App) -> None:
    """Fill the tab: cards, exercises, toys, what was measured on real sets, and the small print. Only the exercises need runs."""
    cards = [{"title": title, "text": text} for title, text in lessons.CARDS]
    gr.HTML(
        html(
            '<div class="rift"><h2>Six ideas</h2></div><div class="rift cards">{cards}</div>',
            cards=join("<section><h3>{title}</h3><p>{text}</p></section>", cards),
        )
    )
    gr.HTML(
        '<div class="rift"><h2>Break it</h2><p class="about">Four exercises. Predict first, then train it for real on the chosen '
        "images, then see what these runs say; they may contradict the expectation.</p></div>"
    )
    exercise.build(app)
    gr.HTML('<div class="rift"><h2>Try it</h2><p class="about">Small models that run in this page; move the slider.</p></div>')
    for name in catalog.names("toys"):
        _toy(name)
    gr.HTML(_measured())
    gr.HTML(_about())


def _about() -> Markup:
    """Return limits, glossary, lesson plan and sources."""

    def listed(sources: tuple[lessons.Source, ...]) -> Markup:
        return join("<li>{name}: {about}</li>", [one._asdict() for one in sources])

    return html(
        ABOUT,
        limits=join("<li><b>{head}</b> {text}</li>", [{"head": head, "text": text} for head, text in lessons.LIMITS]),
        glossary=join(
            "<div><dt>{term}</dt><dd>{text}</dd></div>", [{"term": term, "text": text} for term, text in lessons.GLOSSARY.items()]
        ),
        lesson=lessons.LESSON,
        papers=listed(lessons.PAPERS),
        data=listed(lessons.DATA),
        libraries=", ".join(f"{name} ({terms})" for name, terms in lessons.LIBRARIES.items()),
    )


def _toy(name: str) -> None:
    """A toy with its three sentences, one slider for its one setting, its figure and what the figure says; run when opened."""
    toy = catalog.module("toys", name)
    ((key, field),) = catalog.settings("toys", name).model_fields.items()
    low, high = (next(getattr(bound, end) for bound in field.metadata if hasattr(bound, end)) for end in ("ge", "le"))
    with gr.Accordion(toy.TITLE, open=False, elem_id=f"toy-{name}") as box:
        gr.HTML(html('<p class="rift about">{text}</p>', text=catalog.summary("toys", name)))
        slider = gr.Slider(low, high, field.default, step=(high - low) / 36, label=str(field.description).capitalize())
        says = gr.HTML()
        plot = gr.Plot(show_label=False, container=False)

    def run(value: float) -> tuple[Any, Any]:
        found = toy.run(**catalog.check("toys", Choice(name=name, options={key: value})).options)
        drawn = toy.figure(found)
        wide = ["wide"] if (drawn.layout.meta or {}).get("min_width") else []
        return html('<p class="rift says">{text}</p>', text=toy.sentence(found)), gr.Plot(drawn, elem_classes=wide)

    box.expand(run, slider, [says, plot], **PRIVATE)
    gr.on([slider.release, slider.change], run, slider, [says, plot], **PRIVATE, trigger_mode="always_last")


def _measured() -> Any:
    """Return the table of numbers that were measured on real sets before this app was shipped."""
    if not example.MEASURED.exists():
        return ""
    sets = json.loads(example.MEASURED.read_text())["sets"]
    now = hashlib.sha256(embedded.PATH.read_bytes()).hexdigest()
    rows = [_row(one, arm) for one in sets for arm in one["arms"]]
    verdicts = [
        {"text": f"{one['name']}: {found['sentence']}"} for one in sets for found in overview.verdicts(one) if found["verdict"]
    ]
    return html(
        MEASURED,
        model=(
            "The embedded model" if all(one["weights"] == now for one in sets) else "An earlier version of the embedded model"
        ),
        n=len(sets),
        seeds=sets[0]["arms"][0]["seeds"],
        natural=sets[0]["natural"]["images"],
        photos=sets[0]["natural"]["name"],
        heads=join('<th scope="col">{name}</th>', [{"name": name} for _, name in COLUMNS]),
        rows=Markup("").join(rows),
        many=len(verdicts),
        verdicts=join("<li>{text}</li>", verdicts),
    )


def _row(one: dict[str, Any], arm: dict[str, Any]) -> Markup:
    """Return an arm's numbers; the first one names the set for all arms of it."""
    cells = [
        {
            "mean": report.number(arm["mean"][key]),
            "error": "" if arm["standard_error"][key] is None else f"± {report.number(arm['standard_error'][key])}",
        }
        for key, _ in COLUMNS
    ]
    head = html(
        '<th scope="rowgroup" rowspan="{arms}">{name}<small>{n}</small></th>',
        arms=len(one["arms"]),
        name=one["name"],
        n=f"{one['classes']} classes, {one['counts']['test']} test images",
    )
    return html(
        "<tr>{head}<td>{arm}</td>{cells}</tr>",
        head=head if arm is one["arms"][0] else "",
        arm=arm["name"],
        cells=join("<td>{mean}<small>{error}</small></td>", cells),
    )

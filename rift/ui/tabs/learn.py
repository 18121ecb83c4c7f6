"""What is measured here, what it can and cannot say, and where it comes from."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import gradio as gr
from markupsafe import Markup

from rift import catalog, example, overview, report
from rift.backbones import embedded
from rift.config import Choice
from rift.ui.state import App
from rift.ui.widgets import PRIVATE, html, join

TITLE, ORDER = "6 Learn", 6
CARDS = (
    (
        "What finetuning does",
        "A model that has seen millions of everyday photos is trained on a few hundred medical images. It learns them, and "
        "on the way its picture of the world moves. Nothing in the medical loss asks it to remember.",
    ),
    (
        "What RIFT adds",
        "A penalty: the covariance of the model's embeddings should stay as it was, up to a rotation. Images then keep their "
        "arrangement to each other. The paper is arXiv 2503.07399; its full text and code were not at hand, so the reading is "
        "ours, and each place where we chose is named in the help of the regularizer.",
    ),
    (
        "Similarity: CKA",
        "1 means that the finetuned model arranges the same images in the same way as the pretrained one, rotation and scale "
        "aside; about 0 means unrelated. It does not say that predictions are right. The debiased one is shown, because the "
        "plain one is high by chance when images are few.",
    ),
    (
        "PCA",
        "A shadow of the embeddings in two dimensions, the same basis and axes for every model. Much of the spread is lost, so "
        "distances can mislead; the axes say how much is left.",
    ),
    (
        "Zero-shot",
        "Can the model still name everyday things that finetuning never showed it? Here the word means predicted from text, "
        "never trained on during finetuning. The embedded model saw photos of 200 of its 1000 names when it was made.",
    ),
    (
        "Is a difference real?",
        "With 20 test images, one image is five points. Every number has its n and its interval, and 'not distinguishable' is "
        "an answer: it does not mean equal. One seed speaks of two runs, two of nothing; three or more speak of the methods.",
    ),
)
LIMITS = """
<div class="rift"><h2>Limits</h2><ul class="limits">
<li><b>Not for clinical use.</b> This compares models on the images it is given. It diagnoses nothing.</li>
<li>RIFT may lose. Where it does, the verdict says so in the same words as where it wins.</li>
<li>The example is synthetic: drawings made by code, so that nobody's images are in it.</li>
<li>A low penalty is a brake, not proof that old abilities are intact. That is why they are measured apart.</li></ul>
<h2>Sources</h2><ul class="limits">
<li>Representation Invariance FineTuning (RIFT), arXiv 2503.07399</li>
<li>What Happens During Finetuning of Vision Transformers, arXiv 2307.06006</li>
<li>Similarity of Neural Network Representations Revisited (CKA), arXiv 1905.00414</li></ul>
<h2>Privacy</h2><p>Images, models and results stay in a folder of the machine that runs this page. The page asks no other host for
anything, counts nobody, and keeps in your browser only which images and which comparison you last looked at.</p></div>
"""


MEASURED = """
<div class="rift"><h2>Measured on real sets</h2><p class="about">{model} on {n} medical sets that are not part of
the app, {seeds} seeds, {natural} photos of {photos}; mean ± standard error. Only these numbers are shipped, no picture.</p>
<div class="scroll"><table class="numbers"><thead><tr><th scope="col">Set</th><th scope="col">Arm</th>{heads}</tr></thead>
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
    """Fill the tab with cards, and with what was measured on real sets; nothing in it depends on a run."""
    cards = [{"title": title, "text": text} for title, text in CARDS]
    gr.HTML(html('<div class="rift cards">{cards}</div>', cards=join("<section><h3>{title}</h3><p>{text}</p></section>", cards)))
    gr.HTML('<div class="rift"><h2>Try it</h2><p class="about">Small models that run in this page; move the slider.</p></div>')
    for name in catalog.names("toys"):
        _toy(name)
    gr.HTML(_measured())
    gr.HTML(LIMITS)


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
    rows = [_row(one, arm, first=i == 0) for one in sets for i, arm in enumerate(one["arms"])]
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


def _row(one: dict[str, Any], arm: dict[str, Any], first: bool) -> Markup:
    cells = [
        {
            "mean": report.number(arm["mean"][key]),
            "error": "" if arm["standard_error"][key] is None else f"± {report.number(arm['standard_error'][key])}",
        }
        for key, _ in COLUMNS
    ]
    return html(
        '<tr><th scope="row">{name}<small>{n}</small></th><td>{arm}</td>{cells}</tr>',
        name=one["name"] if first else "",
        n=f"{one['classes']} classes, {one['counts']['test']} test images" if first else "",
        arm=arm["name"],
        cells=join("<td>{mean}<small>{error}</small></td>", cells),
    )

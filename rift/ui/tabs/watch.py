"""Both arms while they learn: task loss, penalty, accuracy, and how much of the pretrained representation is left."""

from __future__ import annotations

from typing import Any

import gradio as gr

from rift import figures, naming, service
from rift.ui.state import App, Shown
from rift.ui.widgets import html, join

TITLE, ORDER = "3 Watch", 3
HEADLINE = "validation_accuracy"
# event, value, title, what it means, name of the axis
CURVES = (
    ("step", "task_loss", "Task loss", "How wrong the medical answers are on the training batches; lower is better.", None),
    ("step", "penalty", "Penalty", "How far the covariance is from the pretrained one, before the strength is applied.", None),
    (
        "epoch",
        HEADLINE,
        "Accuracy",
        "On validation images, after each epoch; where an image may show several findings, their mean average precision (mAP). "
        "Of a reconstruction, the mean absolute error of a pixel: lower is better.",
        [0, 1.02],
    ),
    (
        "epoch",
        "cka_debiased",
        "Similarity to the pretrained model",
        "Debiased CKA on validation images: 1 arranges the same images the same way, about 0 is unrelated.",
        [-0.05, 1.05],
    ),
)


def build(app: App) -> None:
    """Fill the tab; it follows the comparison on show."""
    heading = gr.HTML()
    plots = []
    for pair in (CURVES[:2], CURVES[2:]):
        with gr.Row():
            for _, key, title, meaning, _ in pair:
                with gr.Column(min_width=320):
                    gr.HTML(
                        html(
                            '<div class="rift"><h3>{title}</h3><p class="about">{meaning}</p></div>', title=title, meaning=meaning
                        )
                    )
                    plots.append(gr.Plot(show_label=False, container=False, elem_id=f"curve-{key}", min_width=300))
    log = gr.HTML(elem_id="log")
    app.follow.append(([heading, *plots, log], render))


def render(here: Shown) -> list[Any]:
    """Return heading, the four figures and the log of a comparison as it stands."""
    curves = service.curves(here.lab, here.id)
    plots = []
    for kind, key, title, _, span in CURVES:
        series = {}
        for arm, events in curves.items():
            found = [(event[kind], y) for event in events if event["event"] == kind and (y := _value(event, key)) is not None]
            if found:
                x, y = zip(*found, strict=True)
                series[arm] = (x, y)
        waiting = (
            "The first point comes with the first step." if kind == "step" else "The first point comes after the first epoch."
        )
        if key == HEADLINE and any("validation_reconstruction_error" in event for events in curves.values() for event in events):
            title, span = "reconstruction error", None
        plots.append(figures.curves(series, kind, title.lower(), span) if series else figures.empty(waiting))
    name = html('<div class="rift"><h2>{name}</h2></div>', name=naming.title(here.lab, here.id))
    return [name, *plots, _log(curves)]


def _value(event: dict[str, Any], key: str) -> Any:
    """Return a value of an event; for accuracy the mean average precision or the reconstruction error, where there is one."""
    others = ("validation_average_precision", "validation_reconstruction_error") if key == HEADLINE else ()
    return next((event[other] for other in others if event.get(other) is not None), event.get(key))


def _log(curves: dict[str, list[dict[str, Any]]]) -> str:
    """Return the epochs in words, newest first."""
    rows = [
        {
            "arm": arm,
            "epoch": f"{event['epoch']} of {event['epochs']}",
            "accuracy": f"{_value(event, 'validation_accuracy'):.3f}",
            "cka": "–" if event.get("cka_debiased") is None else f"{event['cka_debiased']:.3f}",
        }
        for arm, events in curves.items()
        for event in events
        if event["event"] == "epoch"
    ]
    lines = join("<tr><td>{arm}</td><td>{epoch}</td><td>{accuracy}</td><td>{cka}</td></tr>", rows[::-1])
    return html(
        '<div class="rift"><details><summary>Epochs as a table</summary>'
        '<div class="scroll" role="region" tabindex="0" aria-label="Epochs">'
        '<table class="plain"><thead><tr>'
        '<th scope="col">Arm</th><th scope="col">Epoch</th><th scope="col">Validation accuracy, mAP or reconstruction error</th>'
        '<th scope="col">Debiased CKA</th>'
        "</tr></thead><tbody>{lines}</tbody></table></div></details></div>",
        lines=lines,
    )

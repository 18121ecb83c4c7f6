"""Both arms while they learn: task loss, penalty, score, what is left of the pretrained view, a map that moves, and a log."""

from __future__ import annotations

import datetime
from typing import Any

import gradio as gr

from rift import figures, naming, watching
from rift.ui.moving import Map
from rift.ui.state import App, Shown
from rift.ui.widgets import html, join

TITLE, ORDER = "3 Watch", 3
HEADLINE = "validation_accuracy"
# event, value, title, what it means, name of the axis; the headline's come from the task
CURVES = (
    ("step", "task_loss", "Task loss", "How wrong the medical answers are on the training batches; lower is better.", None),
    ("step", "penalty", "Penalty", "How far the covariance is from the pretrained one, before the strength is applied.", None),
    ("epoch", HEADLINE, "", "", [0, 1.02]),
    (
        "epoch",
        "cka_debiased",
        "Similarity to the pretrained model",
        "Debiased CKA on validation images: 1 arranges the same images the same way, about 0 is unrelated.",
        [-0.05, 1.05],
    ),
)
HEAD = '<div class="rift"><h3>{title}</h3><p class="about">{meaning}</p></div>'
SHOWN, MOST_LINES = 12, 400


def build(app: App) -> None:
    """Fill the tab; it follows the comparison on show."""
    heading = gr.HTML()
    plots, headline = [], gr.HTML(render=False)
    for pair in (CURVES[:2], CURVES[2:]):
        with gr.Row():
            for _, key, title, meaning, _ in pair:
                with gr.Column(min_width=320):
                    if key == HEADLINE:
                        headline.render()
                    else:
                        gr.HTML(html(HEAD, title=title, meaning=meaning))
                    plots.append(gr.Plot(show_label=False, container=False, elem_id=f"curve-{key}", min_width=300))
    moving = Map(app)
    log, table = gr.HTML(elem_id="story"), gr.HTML(elem_id="log")
    app.follow.append(([heading, headline, *plots, moving.reached, log, table], render))


def render(here: Shown) -> list[Any]:
    """Return headings, the four figures, what the map has reached, the log and the table of a comparison as it stands."""
    curves = watching.curves(here.lab, here.id)
    name, meaning, judged = watching.headline(here.lab, here.id)
    plots = []
    for kind, key, title, _, span in CURVES:
        if key == HEADLINE:
            key, title, span = judged, name, None if judged.endswith("error") else span
        series = {}
        for arm, events in curves.items():
            found = [(event[kind], event[key]) for event in events if event["event"] == kind and event.get(key) is not None]
            if found:
                x, y = zip(*found, strict=True)
                series[arm] = (x, y)
        waiting = (
            "The first point comes with the first step." if kind == "step" else "The first point comes after the first epoch."
        )
        plots.append(figures.curves(series, kind, title.lower(), span) if series else figures.empty(waiting))
    heading = html('<div class="rift"><h2>{name}</h2></div>', name=naming.title(here.lab, here.id))
    epochs = [event["epoch"] for events in curves.values() for event in events if event["event"] == "epoch"]
    reached = f"{here.key} {max(epochs, default=0)} {len(epochs)}"
    return [heading, html(HEAD, title=name, meaning=meaning), *plots, reached, _log(here), _table(curves, name, judged)]


def _log(here: Shown) -> str:
    """Return what happened in words, newest first."""
    lines = watching.log(here.lab, here.id)[:MOST_LINES]
    rows = [
        {
            "kind": "bad" if line.problem else "",
            "mark": "Problem: " if line.problem else "",
            "iso": (when := datetime.datetime.fromtimestamp(line.time, datetime.UTC)).isoformat(timespec="seconds"),
            "clock": when.strftime("%H:%M:%S"),
            "text": line.text,
        }
        for line in lines
    ]
    one = '<li class="{kind}"><time datetime="{iso}">{clock}</time> <span><b>{mark}</b>{text}</span></li>'
    first, more = join(one, rows[:SHOWN]), join(one, rows[SHOWN:])
    earlier = html("<details><summary>{n} earlier</summary><ol>{more}</ol></details>", n=len(rows) - SHOWN, more=more)
    return html(
        '<div class="rift story"><h3>What happened</h3><p class="about">Newest first; times are UTC.</p><ol>{first}</ol>'
        "{earlier}</div>",
        first=first or html("<li>Nothing yet: it waits for its turn.</li>"),
        earlier=earlier if more else "",
    )


def _table(curves: dict[str, list[dict[str, Any]]], name: str, judged: str) -> str:
    """Return the epochs' numbers, newest first."""
    rows = [
        {
            "arm": arm,
            "epoch": f"{event['epoch']} of {event['epochs']}",
            "score": "–" if event.get(judged) is None else f"{event[judged]:.3f}",
            "cka": "–" if event.get("cka_debiased") is None else f"{event['cka_debiased']:.3f}",
        }
        for arm, events in curves.items()
        for event in events
        if event["event"] == "epoch"
    ]
    lines = join("<tr><td>{arm}</td><td>{epoch}</td><td>{score}</td><td>{cka}</td></tr>", rows[::-1])
    return html(
        '<div class="rift"><details><summary>Epochs as a table</summary>'
        '<div class="scroll" role="region" tabindex="0" aria-label="Epochs">'
        '<table class="plain"><thead><tr>'
        '<th scope="col">Arm</th><th scope="col">Epoch</th><th scope="col">{name}, validation</th>'
        '<th scope="col">Debiased CKA</th>'
        "</tr></thead><tbody>{lines}</tbody></table></div></details></div>",
        name=name,
        lines=lines,
    )

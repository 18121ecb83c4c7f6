"""What lies on the straight line between the pretrained weights and the finetuned ones, point by point?
θ(α) = (1 - α) θ_pretrained + α θ_finetuned, α from 0 to 1: WiSE-FT (Wortsman 2022, arXiv 2109.01903), which trains nothing more.

Stated by the paper: such averages of a zero-shot and a finetuned model keep the accuracy on the new task and regain much of what
was lost under distribution shift. Its published code averages all weights, those of the classification head too, whose start is
made of text. What is our choice: the backbone alone moves, under the head as it was trained. That head began at zero, so that an
averaged one would be itself times α and give every image the same answer. It was fitted to finetuned embeddings and never saw
those in between, so low values of α are harder here than in the paper. Only a run whose weights are all weights of the
pretrained model has such a line; an adapter has parts that the pretrained model lacks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from pydantic import Field

from rift import figures
from rift.captures import Arrays, Data, Images
from rift.errors import SettingError
from rift.model import Backbone, Classifier
from rift.similarity import debiased_cka
from rift.statistics import proportion_interval
from rift.tasks.reconstruction import NO_CLASS

TITLE = "Interpolation"
POINT = 0.01  # of accuracy: what `sentence` counts as kept, our choice


def capture(
    pretrained: Backbone,
    finetuned: Classifier,
    data: Data,
    *,
    points: Annotated[int, Field(ge=2, le=31, description="evenly spaced values of α, 0 and 1 among them")] = 11,
) -> Arrays:
    """Return for each α what the head makes of the test images, what the natural head makes of natural ones, and CKA.

    `logits` `(points, n, k)`, k = 0 for a run that names no class, `named` `(points, n_natural)` as indices into the natural
    classes (-1 without a head), and `cka_…` `(points,)`, nan where undefined. Raises `setting.range` for a run with weights that
    the pretrained model lacks.
    """
    start, end = pretrained.state_dict(), finetuned.backbone.state_dict()
    if more := sorted(start.keys() ^ end.keys()):
        raise SettingError(
            "setting.range",
            f"interpolation: this run's method does not only change weights of the pretrained model, it has others (such as "
            f"{more[0]}), so no line leads from one to the other; measure a run of full, last_blocks, bias or lp_ft.",
        )
    model, alphas = copy.deepcopy(pretrained), np.linspace(0, 1, points)
    before = [_embed(model, data, images) for images in (data.test, data.natural)]

    def at(alpha: float) -> Arrays:
        model.load_state_dict({key: ((1 - alpha) * start[key] + alpha * end[key]).to(start[key].dtype) for key in start})
        test, natural = (_embed(model, data, images) for images in (data.test, data.natural))
        return {
            "logits": _logits(finetuned, data, test),
            "named": _named(data, natural),
            "cka_debiased": np.array(_cka(before[0], test)),
            "cka_natural_debiased": np.array(_cka(before[1], natural)),
        }

    found = []
    for place, alpha in enumerate(alphas):
        data.progress(place, points, "points on the line")
        found.append(data.part(f"point-{place}", lambda alpha=alpha: at(float(alpha))))  # type: ignore[misc]
    fixed = {"alphas": alphas, "labels": data.test.labels, "natural_labels": data.natural.labels, "scored": _scored(data)}
    classes = np.array(data.test.classes, dtype=np.str_)
    return fixed | {"classes": classes} | {key: np.stack([one[key] for one in found]) for key in found[0]}


def _embed(model: Backbone, data: Data, images: Images) -> np.ndarray:
    with torch.inference_mode():
        return torch.cat([model(batch).float().cpu() for batch in data.batches(images)]).numpy()


def _logits(finetuned: Classifier, data: Data, embeddings: np.ndarray) -> np.ndarray:
    if finetuned.reads_tokens:
        return np.zeros((len(embeddings), 0), np.float32)
    with torch.inference_mode():
        return finetuned.head(torch.from_numpy(embeddings).to(data.device)).float().cpu().numpy()


def _named(data: Data, embeddings: np.ndarray) -> np.ndarray:
    head = data.natural_head
    if head is None or not head.classes:
        return np.full(len(embeddings), -1)
    places = np.array([data.natural.classes.index(label) for label in head.classes])
    return places[head.logits(torch.from_numpy(embeddings)).argmax(1).numpy()]


def _scored(data: Data) -> np.ndarray:
    """Which natural images have a label that the natural head knows."""
    known = data.natural_head.classes if data.natural_head else ()
    return np.isin(data.natural.labels, [data.natural.classes.index(label) for label in known])


def _cka(before: np.ndarray, after: np.ndarray) -> float:
    try:
        return debiased_cka(before, after)
    except ValueError:
        return np.nan


def measure(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return along α, each `(points,)`: accuracies in [0, 1] with 95 % Wilson intervals, balanced accuracy and debiased CKA.

    `n` test and `n_natural` natural images are scored. What is undefined is nan or None, and `<name>_reason` says why.
    """
    labels, alphas = np.asarray(arrays["labels"]), np.asarray(arrays["alphas"])
    known, scored = labels >= 0, np.asarray(arrays["scored"], bool)
    no_class = arrays["logits"].shape[2] == 0
    known, unknown = (known & False, NO_CLASS) if no_class else (known, "no test image has a known label")
    right = np.zeros((len(alphas), 0)) if no_class else (arrays["logits"].argmax(2) == labels)[:, known]
    result: dict[str, Any] = {
        "n": int(known.sum()),
        "n_natural": int(scored.sum()),
        "alphas": alphas,
        "entries": np.array([f"α = {alpha:.3g}" for alpha in alphas], dtype=np.str_),  # names the rows of the data table
    }
    result |= _shares("accuracy", right, unknown)
    no_natural = "no natural image has a label that the natural head knows, or there is no such head"
    result |= _shares("natural_accuracy", (arrays["named"] == arrays["natural_labels"])[:, scored], no_natural)
    if known.any():
        recalls = [right[:, labels[known] == c].mean(1) for c in np.unique(labels[known])]
        result["balanced_accuracy"] = np.mean(recalls, axis=0)
    else:
        result |= {"balanced_accuracy": None, "balanced_accuracy_reason": unknown}
    for name, few in (("cka_debiased", "test"), ("cka_natural_debiased", "natural")):
        values = np.asarray(arrays[name])
        result[name] = values if np.isfinite(values).any() else None
        if not np.isfinite(values).all():
            result[f"{name}_reason"] = f"CKA is undefined where the {few} images are too few or are all embedded alike"
    return result


def _shares(name: str, right: np.ndarray, reason: str) -> dict[str, Any]:
    n = right.shape[1]
    if not n:
        names = [f"{name}{end}" for end in ("", "_low", "_high")]
        return dict.fromkeys(names) | {f"{one}_reason": reason for one in names}
    low, high = np.transpose([proportion_interval(int(row.sum()), n) for row in right])
    return {name: right.mean(1), f"{name}_low": low, f"{name}_high": high}


def kept(one: Mapping[str, Any]) -> int | None:
    """Return the place of the α that names most natural images among those within a point of α = 1 on the test images.

    The largest such α where several name as many; None where either accuracy is missing.
    """
    if one.get("accuracy") is None or one.get("natural_accuracy") is None:
        return None
    accuracy, natural = figures.numbers(one["accuracy"]), figures.numbers(one["natural_accuracy"])
    allowed = np.flatnonzero(accuracy >= accuracy[-1] - POINT - 1e-9)
    return int(allowed[natural[allowed] >= natural[allowed].max() - 1e-9].max())


def nearest(one: Mapping[str, Any], alpha: float) -> int:
    """Return the place of the measured α that is nearest."""
    return int(np.abs(figures.numbers(one["alphas"]) - alpha).argmin())


def at(results: Mapping[str, dict], alpha: float) -> list[dict[str, Any]]:
    """Return for each arm the numbers at the measured α nearest to this one; None where one was not measured."""
    rows = []
    for arm, one in results.items():
        if one.get("alphas") is None:
            continue
        place = nearest(one, alpha)
        row: dict[str, Any] = {"arm": arm, "alpha": float(one["alphas"][place]), "n": one["n"], "n_natural": one["n_natural"]}
        for key in ("accuracy", "natural_accuracy", "cka_debiased"):
            for name in (key, f"{key}_low", f"{key}_high"):
                row[name] = None if one.get(name) is None else one[name][place]
        rows.append(row)
    return rows


def ring(results: Mapping[str, dict], alpha: float) -> list[dict[str, Any]]:
    """Return traces that mark in the figure what was measured nearest to an α: a ring on each curve, and a line."""
    rows = [row for row in at(results, alpha) if row["accuracy"] is not None]
    both = [(row["natural_accuracy"], row["accuracy"]) for row in rows if row["natural_accuracy"] is not None]
    lines = [figures.ring([row["alpha"]] * 2, [0.0, 1.0], 2, line=True) for row in rows]
    return [figures.ring([x for x, _ in both], [y for _, y in both], 1), *lines]


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Left, accuracy against natural accuracy along α, one curve an arm; right, both and debiased CKA against α."""
    arms = {arm: one for arm, one in results.items() if one.get("accuracy") is not None}
    if not arms:
        reasons = (one.get("accuracy_reason") for one in results.values())
        return figures.empty(next(filter(None, reasons), "no arm was measured"))
    plot = make_subplots(cols=2, horizontal_spacing=0.1, column_widths=[0.5, 0.5])
    for arm, one in arms.items():
        _path(plot, arm, one, list(results))
        _against_alpha(plot, arm, one, list(results))
    for label, dash in (("accuracy", "solid"), ("natural accuracy", "dash"), ("debiased CKA", "dot")):
        line = {"color": figures.GREY, "dash": dash, "width": 2}
        plot.add_trace(go.Scatter(x=[None], y=[None], mode="lines", name=label, line=line, hoverinfo="skip"), row=1, col=2)
    plot.update_xaxes(title_text="natural accuracy", row=1, col=1)
    plot.update_yaxes(title_text="accuracy", row=1, col=1)
    plot.update_xaxes(title_text="α (0 pretrained, 1 finetuned)", range=[-0.03, 1.03], row=1, col=2)
    plot.update_yaxes(range=[-0.03, 1.05], row=1, col=2)
    return figures.style(plot, 440).update_layout(meta={"min_width": 640})


def _path(plot: go.Figure, arm: str, one: dict, arms: list[str]) -> None:
    """The curve of an arm through its points; its ends and the middle are named."""
    if one.get("natural_accuracy") is None:
        return
    alphas = figures.numbers(one["alphas"])
    color = figures.color(arm, arms)
    named = {0, int(np.abs(alphas - 0.5).argmin()), len(alphas) - 1}
    plot.add_trace(
        go.Scatter(
            x=figures.numbers(one["natural_accuracy"]),
            y=figures.numbers(one["accuracy"]),
            mode="lines+markers+text",
            name=figures.text(arm),
            legendgroup=arm,
            text=[f"α {alpha:.2g}" if place in named else "" for place, alpha in enumerate(alphas)],
            textposition="top right",
            customdata=alphas,
            line={"color": color, "width": 2},
            marker={"symbol": figures.symbol(arm, arms), "size": 8, "color": color},
            hovertemplate="α = %{customdata:.2f}: natural %{x:.3f}, medical %{y:.3f}",
        ),
        row=1,
        col=1,
    )


def _against_alpha(plot: go.Figure, arm: str, one: dict, arms: list[str]) -> None:
    color = figures.color(arm, arms)
    for key, dash in (("accuracy", "solid"), ("natural_accuracy", "dash"), ("cka_debiased", "dot")):
        if one.get(key) is None:
            continue
        plot.add_trace(
            go.Scatter(
                x=figures.numbers(one["alphas"]),
                y=figures.numbers(one[key]),
                mode="lines+markers",
                name=figures.text(arm),
                legendgroup=arm,
                showlegend=key == "accuracy" and one.get("natural_accuracy") is None,
                line={"color": color, "dash": dash, "width": 2},
                marker={"symbol": figures.symbol(arm, arms), "size": 6, "color": color},
                hovertemplate=f"{key.replace('_', ' ')} %{{y:.3f}}",
            ),
            row=1,
            col=2,
        )


def sentence(results: Mapping[str, dict]) -> str:
    """Say for each arm which α keeps the accuracy within a point of α = 1, and what natural accuracy it has there."""
    arms = {arm: one for arm, one in results.items() if one.get("accuracy") is not None}
    if not arms:
        reasons = (one.get("accuracy_reason") for one in results.values())
        return f"Nothing lies between the two models: {next(filter(None, reasons), 'nothing was measured')}."
    first = next(iter(arms.values()))
    parts = "; ".join(_said(arm, one) for arm, one in arms.items())
    counts = f"{first['n']} test and {first['n_natural']} natural images"
    return f"{parts}. Picked by looking at these {counts} themselves, so it describes them and promises nothing about others."


def _said(arm: str, one: Mapping[str, Any]) -> str:
    place, accuracy = kept(one), figures.numbers(one["accuracy"])
    if place is None:
        within = figures.numbers(one["alphas"])[accuracy >= accuracy[-1] - POINT - 1e-9].min()
        return f"{arm} stays within one point of its accuracy {accuracy[-1]:.3f} at α = {within:.2g}; it has no natural accuracy"
    natural, alpha = figures.numbers(one["natural_accuracy"]), figures.numbers(one["alphas"])[place]
    if natural[place] <= natural[-1] + 1e-9:
        return (
            f"{arm} gains nothing: no α that keeps the accuracy within one point of {accuracy[-1]:.3f} names more natural "
            f"images rightly than the finetuned model itself ({natural[-1]:.3f})"
        )
    return (
        f"{arm} at α = {alpha:.2g} keeps the accuracy within one point ({accuracy[place]:.3f}, {accuracy[-1]:.3f} at α = 1) "
        f"and names {natural[place]:.3f} of the natural images rightly instead of {natural[-1]:.3f}"
    )

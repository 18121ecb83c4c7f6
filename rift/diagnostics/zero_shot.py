"""Can the model still name everyday things that it was not retrained on?

Natural images are named by the cosine of their embedding with the pretrained model's rows for words (or for classes it once
learned), which finetuning never sees: argmax_c cos(z, t_c). `natural_accuracy` takes the finetuned embeddings as they are,
as one who swaps the model in would. `natural_accuracy_unrotated` first undoes the mean and the rotation, fitted without
labels on the other half of the images; the gap between the two is drift in orientation alone. Our protocol, for every arm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import plotly.graph_objects as go
from pydantic import Field
from scipy.special import softmax

from rift import figures
from rift.errors import DataError, ModelError
from rift.similarity import unrotate
from rift.snapshot import Snapshot
from rift.statistics import proportion_interval

if TYPE_CHECKING:
    from torch import Tensor

    from rift.model import Backbone

TITLE = "Zero-shot"
MOST_WORDS = 12  # shown of one photo
Result = dict[str, Any]
BARS = ("natural_accuracy", "natural_accuracy_unrotated")
SHARES = (*BARS, "natural_agreement")
NUMBERS = [*(f"{name}{end}" for name in SHARES for end in ("", "_low", "_high")), "natural_top5"]
PRETRAINED = [f"pretrained_natural_{name}" for name in ("accuracy", "accuracy_low", "accuracy_high", "top5")]
UNKNOWN = "no natural image has a label that the natural head knows"
ARRAYS = [f"{model}{name}" for model in ("", "pretrained_") for name in ("top5", "top5_probability", "margin")]


def measure(
    before: Snapshot,
    after: Snapshot,
    *,
    seed: Annotated[int, Field(ge=0, lt=2**31, description="which halves of the images undo each other's rotation")] = 0,
) -> Result:
    """Return natural accuracies in [0, 1], and for all images the five likeliest labels `(n, 5)`, best first.

    `n` images are scored; `n_unscored` have a label that has no row. `natural_agreement` is over all of them. `margin` `(n,)`
    is the probability of the first label minus that of the second; both are a softmax over the known labels only.
    """
    natural = after.sets.get("natural")
    reason = _missing(before, after)
    if reason or natural is None:
        n_unscored = 0 if natural is None else len(natural.labels)
        names = NUMBERS + PRETRAINED + ARRAYS
        return {"n": 0, "n_unscored": n_unscored} | dict.fromkeys(names) | {f"{name}_reason": reason for name in names}
    assert before.rows is not None  # `_missing` looked
    known = np.flatnonzero(np.isfinite(before.rows).all(1))
    rows, scale, labels = before.rows[known].astype(np.float64), before.scale, natural.labels
    scored = np.isin(labels, known)
    original = before.sets["natural"].embeddings
    was, now = (_name(z, rows, known, scale) for z in (original, natural.embeddings))
    result: Result = {"n": int(scored.sum()), "n_unscored": int((~scored).sum()), "scored": scored, "labels": labels}
    result |= {"ids": natural.ids, "natural_classes": np.array(after.natural_classes, dtype=np.str_)}
    result |= now | {f"pretrained_{name}": value for name, value in was.items()}
    result |= _score("natural_agreement", was["top5"][:, 0] == now["top5"][:, 0])
    for prefix, one in (("", now), ("pretrained_", was)):
        result |= _score(f"{prefix}natural_accuracy", one["top5"][scored, 0] == labels[scored])
        result |= _top5(f"{prefix}natural_top5", (one["top5"][scored] == labels[scored, None]).any(1), len(known))
    try:
        restored = _name(unrotate(original, natural.embeddings, seed), rows, known, scale)
    except ValueError as error:
        return result | _nothing("natural_accuracy_unrotated", str(error))
    return result | _score("natural_accuracy_unrotated", restored["top5"][scored, 0] == labels[scored])


def _missing(before: Snapshot, after: Snapshot) -> str:
    if "natural" not in before.sets or "natural" not in after.sets or not len(after.sets["natural"].labels):
        return "there are no natural images"
    if before.rows is None:
        return "this backbone has no natural head: neither a text tower nor a classifier of its own"
    if not np.isfinite(before.rows).all(1).any():
        return "the natural head knows none of the labels"
    return "" if np.isfinite(after.sets["natural"].embeddings).all() else "the embeddings are not finite: the training diverged"


def _name(embeddings: np.ndarray, rows: np.ndarray, known: np.ndarray, scale: float) -> dict[str, np.ndarray]:
    """The likeliest labels of embeddings `(n, d)`, as indices into all natural classes, best first."""
    wide = embeddings.astype(np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    probabilities = softmax(scale * unit @ rows.T, axis=1)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    sure = np.take_along_axis(probabilities, best, axis=1)
    margin = sure[:, 0] - sure[:, 1] if len(known) > 1 else sure[:, 0]
    return {"top5": known[best], "top5_probability": sure, "margin": margin}


def _score(name: str, right: np.ndarray) -> Result:
    if not len(right):
        return _nothing(name, UNKNOWN)
    low, high = proportion_interval(int(right.sum()), len(right))
    return {name: float(right.mean()), f"{name}_low": low, f"{name}_high": high}


def _top5(name: str, right: np.ndarray, known: int) -> Result:
    if not len(right) or known <= 5:
        few = f"only {known} labels have a row, so five guesses are always right"
        return {name: None, f"{name}_reason": few if len(right) else UNKNOWN}
    return {name: float(right.mean())}


def _nothing(name: str, reason: str) -> Result:
    result: Result = {f"{name}{end}": None for end in ("", "_low", "_high")}
    return result | {f"{name}{end}_reason": reason for end in ("", "_low", "_high")}


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Natural accuracy of each arm, as it is and with mean and rotation undone; the line is the pretrained model."""
    arms = {arm: one for arm, one in results.items() if arm != "pretrained" and one.get("natural_accuracy") is not None}
    if not arms:
        reasons = (one.get("natural_accuracy_reason") for one in results.values())
        return figures.empty(next(filter(None, reasons), "only the pretrained model was measured"))
    plot = go.Figure()
    colors = [figures.color(arm, list(results)) for arm in arms]
    for name, label, alpha in ((BARS[0], "as it is", 0.5), (BARS[1], "mean and rotation undone", 0.12)):
        values, low, high = (figures.numbers([one.get(f"{name}{end}") for one in arms.values()]) for end in ("", "_low", "_high"))
        if not np.isfinite(values).any():
            continue
        plot.add_bar(
            x=np.arange(len(arms)),
            y=values,
            name=label,
            offsetgroup=name,
            legendgroup=name,
            showlegend=False,
            marker={"color": [figures.faded(color, alpha) for color in colors], "line": {"color": colors, "width": 1.5}},
            error_y={"type": "data", "array": high - values, "arrayminus": values - low, "thickness": 2, "color": figures.GREY},
            hovertemplate="%{y:.3f}",
        )
        # The bars have their arms' colors; the legend explains the filling alone, in grey.
        grey = {"color": figures.faded(figures.GREY, alpha), "line": {"color": figures.GREY, "width": 1.5}}
        plot.add_bar(x=[None], y=[None], name=label, offsetgroup=name, legendgroup=name, marker=grey)
    reference = next(iter(arms.values())).get("pretrained_natural_accuracy")
    if reference is not None:
        line = {"color": figures.color("pretrained"), "dash": "dot", "width": 2}
        ends = [-0.5, len(arms) - 0.5]
        plot.add_scatter(x=ends, y=[reference] * 2, mode="lines", name="pretrained", line=line, hovertemplate="%{y:.3f}")
    ticks = np.arange(len(arms))
    plot.update_xaxes(tickvals=ticks, ticktext=[figures.text(arm) for arm in arms], range=[-0.5, len(arms) - 0.5])
    plot.update_yaxes(title_text="natural accuracy", rangemode="tozero")
    plot.update_layout(barmode="group", bargap=0.4, bargroupgap=0.08)
    return figures.style(plot)


def sentence(results: Mapping[str, dict]) -> str:
    """Say how many natural images each arm still names right, beside the pretrained model."""
    arms = {arm: one for arm, one in results.items() if arm != "pretrained" and one.get("natural_accuracy") is not None}
    if not arms:
        reasons = (one.get("natural_accuracy_reason") for one in results.values())
        return f"There is no natural accuracy: {next(filter(None, reasons), 'nothing ran')}."
    first = next(iter(arms.values()))
    parts = []
    for arm, one in arms.items():
        undone = one.get("natural_accuracy_unrotated")
        more = f", {undone:.3f} with mean and rotation undone" if undone is not None else ""
        interval = f"{one['natural_accuracy_low']:.3f} to {one['natural_accuracy_high']:.3f}"
        parts.append(f"{arm} {one['natural_accuracy']:.3f} ({interval}{more})")
    unscored = f" {first['n_unscored']} images have a label without a row and are not scored." if first["n_unscored"] else ""
    return (
        f"Of {first['n']} natural images the pretrained model names {first['pretrained_natural_accuracy']:.3f} right; "
        f"after finetuning: {'; '.join(parts)}.{unscored}"
    )


def look(backbones: Mapping[str, Backbone], image: Tensor, labels: Sequence[str]) -> Result:
    """Return how each model divides one photo `(3, s, s)` among words: `probabilities` `(models, words)`, rows sum to 1.

    A word without a row is in `unknown` and never scored. Raises `data.label` where fewer than two words are left.
    """
    import torch

    pretrained = next(iter(backbones.values()))
    head = pretrained.natural_head(list(dict.fromkeys(labels)))
    if head is None:
        raise ModelError(
            "model.unknown", "This backbone has neither a text tower nor a classifier of its own to name photos with."
        )
    if len(head.classes) < 2:
        lost = f"; it does not know {', '.join(head.unknown)}" if head.unknown else ""
        raise DataError("data.label", f"Give at least two words that the model knows{lost}.")
    with torch.inference_mode():
        rows = [head.logits(backbone(image[None])).softmax(1)[0].tolist() for backbone in backbones.values()]
    return {
        "models": list(backbones),
        "words": list(head.classes),
        "probabilities": np.array(rows),
        "unknown": list(head.unknown),
    }


def look_figure(result: Mapping[str, Any]) -> go.Figure:
    """Bars of each word's probability, one color a model, on one scale."""
    plot = go.Figure()
    order = np.argsort(-np.asarray(result["probabilities"]).max(0), kind="stable")[:MOST_WORDS][::-1]
    words = [figures.text(result["words"][i]) for i in order]
    for model, row in reversed(list(zip(result["models"], np.asarray(result["probabilities"]), strict=True))):
        plot.add_bar(
            x=row[order],
            y=words,
            orientation="h",
            name=figures.text(model),
            marker={"color": figures.color(model, result["models"])},
            hovertemplate="%{x:.3f}",
        )
    plot.update_layout(barmode="group", bargap=0.3, legend={"traceorder": "reversed"})
    plot.update_xaxes(title_text="probability among these words", range=[0, 1])
    return figures.style(plot, 150 + 22 * len(words) * max(1, len(result["models"])))


def look_sentence(result: Mapping[str, Any]) -> str:
    """Say what each model calls the photo, and which words it does not know."""
    best = [
        f"{model} says {result['words'][int(np.argmax(row))]} ({float(np.max(row)):.2f})"
        for model, row in zip(result["models"], np.asarray(result["probabilities"]), strict=True)
    ]
    unknown = f" Not known, and so not scored: {', '.join(result['unknown'])}." if result["unknown"] else ""
    return f"Of these {len(result['words'])} words, {'; '.join(best)}.{unknown} One photo is an anecdote, not a measurement."

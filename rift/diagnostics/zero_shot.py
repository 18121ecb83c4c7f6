"""Can the model still name everyday things that it was not retrained on?

Natural images are named by the cosine of their embedding with rows of the pretrained model that finetuning never sees:
argmax_c cos(z, t_c). The rows are directions of words (text tower), of classes it once learned (classifier) or, where a model
has neither, the mean pretrained embeddings of each class in the other half of the images (nearest mean); `natural_head` says
which. `natural_accuracy` takes the finetuned embeddings as they are, as one who swaps the model in would.
`natural_accuracy_unrotated` first undoes the mean and the rotation, fitted without labels on the other half of the images; the
gap between the two is drift in orientation alone. `natural_knn_accuracy` lets the five nearest pretrained embeddings of the
other half vote, for every model alike; it knows its classes from labels, as nearest mean does, so neither is zero-shot. Ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import plotly.graph_objects as go
from pydantic import Field
from scipy.special import softmax

from rift import figures
from rift.diagnostics import _judge
from rift.errors import DataError, ModelError
from rift.similarity import halves, unrotate
from rift.snapshot import Arrays, Judge, Snapshot
from rift.statistics import proportion_interval

if TYPE_CHECKING:
    from torch import Tensor

    from rift.model import Backbone

TITLE = "Zero-shot"
MOST_WORDS = 12  # shown of one photo
Result = dict[str, Any]
BARS = ("natural_accuracy", "natural_accuracy_unrotated")
SHARES = (*BARS, "natural_agreement", "natural_knn_accuracy")
NEIGHBORS = 5
NUMBERS = [*(f"{name}{end}" for name in SHARES for end in ("", "_low", "_high")), "natural_top5"]
PRETRAINED = [f"pretrained_natural_{name}{end}" for name in ("accuracy", "knn_accuracy") for end in ("", "_low", "_high")]
PRETRAINED += ["pretrained_natural_top5"]
UNKNOWN = "no natural image has a label that the natural head knows"
WAYS = {
    "text": "They are named by the text tower's directions of words.",
    "classifier": "They are named by the rows of the pretrained model's own classifier.",
    "nearest mean": "This backbone has neither text tower nor classifier: each image gets the class whose mean pretrained "
    "embedding, over the other half of the images, is nearest",
}
ARRAYS = [f"{model}{name}" for model in ("", "pretrained_") for name in ("top5", "top5_probability", "margin")]


def measure(
    before: Snapshot,
    after: Snapshot,
    *,
    seed: Annotated[
        int, Field(ge=0, lt=2**31, description="which halves of the images undo each other's rotation and lend means")
    ] = 0,
) -> Result:
    """Return natural accuracies in [0, 1], and for all images the five likeliest labels `(n, 5)`, best first.

    `n` images are scored; `n_unscored` have a label that has no row. `natural_agreement` is over all of them. `margin` `(n,)`
    is the probability of the first label minus that of the second; both are a softmax over the known labels only.
    """
    natural = after.sets.get("natural")
    judge = before.judge(seed) if "natural" in before.sets else None
    reason = _missing(judge, natural)
    if reason or natural is None or judge is None:
        n_unscored = 0 if natural is None else len(natural.labels)
        names = [*NUMBERS, *PRETRAINED, *ARRAYS, "natural_head"]
        return {"n": 0, "n_unscored": n_unscored} | dict.fromkeys(names) | {f"{name}_reason": reason for name in names}
    known, labels, original = judge.known, natural.labels, before.sets["natural"].embeddings
    scored = np.isin(labels, known)
    was, now = (_name(z, judge) for z in (original, natural.embeddings))
    result: Result = {"n": int(scored.sum()), "n_unscored": int((~scored).sum()), "scored": scored, "labels": labels}
    result |= {"natural_head": judge.way or None}
    if not judge.way:
        result["natural_head_reason"] = "these arrays come from an earlier version, which did not keep it"
    result |= {"ids": natural.ids, "natural_classes": np.array(after.natural_classes, dtype=np.str_)}
    result |= now | {f"pretrained_{name}": value for name, value in was.items()}
    result |= _score("natural_agreement", was["top5"][:, 0] == now["top5"][:, 0])
    for prefix, one in (("", now), ("pretrained_", was)):
        result |= _score(f"{prefix}natural_accuracy", one["top5"][scored, 0] == labels[scored])
        result |= _top5(f"{prefix}natural_top5", (one["top5"][scored] == labels[scored, None]).any(1), len(known))
        queries = original if prefix else natural.embeddings
        result |= _neighbors(f"{prefix}natural_knn_accuracy", before.sets["natural"], queries, seed)
    try:
        restored = _name(unrotate(original, natural.embeddings, seed), judge)
    except ValueError as error:
        return result | _nothing("natural_accuracy_unrotated", str(error))
    return result | _score("natural_accuracy_unrotated", restored["top5"][scored, 0] == labels[scored])


def _missing(judge: Judge | None, natural: Arrays | None) -> str:
    if judge is None or natural is None or not len(natural.labels):
        return "there are no natural images"
    if judge.way == "nearest mean" and len(judge.known) < 2:
        headless = "this backbone has no natural head, neither a text tower nor a classifier of its own"
        return f"{headless}, and nearest mean takes two images of each of at least two labels"
    if not len(judge.known):
        return "the natural head knows none of the labels"
    return "" if np.isfinite(natural.embeddings).all() else "the embeddings are not finite: the training diverged"


def _name(embeddings: np.ndarray, judge: Judge) -> dict[str, np.ndarray]:
    """The likeliest labels of embeddings `(n, d)`, as indices into all natural classes, best first."""
    known, probabilities = judge.known, softmax(_judge.logits(embeddings, judge), axis=1)
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


def _neighbors(name: str, before: Arrays, queries: np.ndarray, seed: int) -> Result:
    """Score the vote of the nearest pretrained embeddings in the other half of the images, by cosine."""
    from sklearn.neighbors import KNeighborsClassifier  # takes a second to import

    half, labels = halves(before.labels, seed), before.labels
    if half.max(initial=0) == 0:
        return _nothing(name, "no natural label has two images, and an image is named by the labels of others")
    hits = np.zeros(len(labels), bool)
    for fold in (0, 1):
        known, asked = (half != fold) & (labels >= 0), (half == fold) & (labels >= 0)
        vote = KNeighborsClassifier(min(NEIGHBORS, int(known.sum())), metric="cosine")
        vote.fit(before.embeddings[known], labels[known])
        hits[asked] = vote.predict(queries[asked]) == labels[asked]
    twice = np.isin(labels, labels[half == 1]) & (labels >= 0)  # a label with one image has no other to be found by
    return _score(name, hits[twice])


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
        f"after finetuning: {'; '.join(parts)}.{unscored}{_way(arms)}"
    )


def _way(arms: Mapping[str, dict]) -> str:
    """Say what the images were named by; of nearest mean also what the neighbors say, who ask for no single mean."""
    first = next(iter(arms.values()))
    way = first.get("natural_head")
    if way != "nearest mean":
        return f" {WAYS[way]}" if way in WAYS else ""
    votes = "; ".join(f"{arm} {one['natural_knn_accuracy']:.3f}" for arm, one in arms.items())
    before = f"pretrained {first['pretrained_natural_knn_accuracy']:.3f}"
    return f" {WAYS[way]}. By the vote of its {NEIGHBORS} nearest neighbors there: {before}; {votes}."


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

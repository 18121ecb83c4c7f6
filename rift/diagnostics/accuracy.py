"""How often the finetuned model names the right medical class, over all images and class by class.

Recall of class c = (images of c called c) / (images of c); balanced accuracy is the mean recall of the classes that have
test images. AUROC and average precision are the mean over those classes of one against the rest (macro), from softmax
probabilities. Intervals are 95 % Wilson intervals (Wilson 1927): they speak of new images, not of new training seeds.

Where an image may show several findings, the headline is the mean average precision (mAP) over the findings that some test
images show and some do not, from sigmoid probabilities; a finding is named where its probability is at least 0.5 (our choice).
Accuracy is then the share of right answers over all images and findings. The intervals of these are from a jackknife over
images. There is no balanced accuracy.

A run that reconstructs images names no class: none of these numbers exists, and the reconstruction error stands in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from pydantic import Field
from scipy.special import softmax

from rift import figures
from rift.diagnostics import _findings, _pixels
from rift.snapshot import Arrays, Snapshot
from rift.statistics import mean_proportion_interval, proportion_interval
from rift.tasks.reconstruction import NO_CLASS

Result = dict[str, float | np.ndarray | str | None]
NUMBERS = [*(f"{name}{end}" for name in ("accuracy", "balanced_accuracy") for end in ("", "_low", "_high")), "auroc"]
NUMBERS += ["average_precision"]
ARRAYS = ["confusion", "recall", "recall_low", "recall_high", "predictions", "labels", "confidence"]
DIVERGED = "the model's outputs are not finite numbers: its training diverged"
MOST_CLASSES = 30  # drawn; the numbers cover all


def measure(
    before: Snapshot,
    after: Snapshot,
    *,
    images: Annotated[Literal["test", "validation"], Field(description="which images are scored")] = "test",
) -> Result:
    """Return accuracies in [0, 1], the confusion matrix `(k, k)` with true classes as rows, and predictions `(n,)`.

    Images without a known label (-1) are not scored: their prediction stays, `n` leaves them out. A class without test
    images has recall nan and is left out of every mean; `recall_reason` names it. Of findings, predictions, labels and
    `probabilities` are `(n, k)`, there is no confusion matrix, and `finding_average_precision` and `finding_auroc` are `(k,)`.
    """
    result: Result = {"classes": np.array(after.classes, dtype=np.str_)}
    reason = _missing(after.sets.get(images), images)
    if reason:
        return result | {"n": 0} | dict.fromkeys(NUMBERS + ARRAYS) | {f"{name}_reason": reason for name in NUMBERS + ARRAYS}
    arrays = after.sets[images]
    if arrays.errors is not None:
        nothing = dict.fromkeys(NUMBERS + ARRAYS) | {f"{name}_reason": NO_CLASS for name in NUMBERS + ARRAYS}
        return result | nothing | _pixels.measure(arrays)
    assert arrays.logits is not None  # `_missing` looked
    if arrays.labels.ndim == 2:
        return result | _findings.measure(arrays, after.classes, images)
    from sklearn.metrics import confusion_matrix  # takes a second to import

    probabilities = softmax(arrays.logits.astype(np.float64), axis=1)
    predictions, known = probabilities.argmax(1), arrays.labels >= 0
    labels = arrays.labels[known]
    k = probabilities.shape[1]
    confusion = confusion_matrix(labels, predictions[known], labels=np.arange(k))
    hits, totals = confusion.diagonal(), confusion.sum(1)
    present = totals > 0
    recall = np.divide(hits, totals, out=np.full(k, np.nan), where=present)
    intervals = np.array([_interval(hit, total) for hit, total in zip(hits, totals, strict=True)])
    low, high = proportion_interval(int(hits.sum()), int(totals.sum()))
    balanced_low, balanced_high = mean_proportion_interval(hits[present], totals[present])
    result |= {
        "n": int(known.sum()),
        "accuracy": float(hits.sum() / totals.sum()),
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": float(recall[present].mean()),
        "balanced_accuracy_low": balanced_low,
        "balanced_accuracy_high": balanced_high,
        "confusion": confusion,
        "recall": recall,
        "recall_low": intervals[:, 0],
        "recall_high": intervals[:, 1],
        "predictions": predictions,
        "labels": arrays.labels,
        "confidence": probabilities.max(1),
    }
    if not present.all():
        absent = ", ".join(after.classes[i] for i in np.flatnonzero(~present)[:10])
        result["recall_reason"] = f"no {images} image of {absent}"
    return result | _ranking(labels, probabilities[known], np.flatnonzero(present), images)


def _missing(arrays: Arrays | None, images: str) -> str:
    if arrays is None or not len(arrays.labels):
        return f"there are no {images} images"
    if arrays.errors is not None:
        return "" if np.isfinite(arrays.errors).all() else DIVERGED
    if arrays.logits is None:
        return "the pretrained model has no head for these classes"
    if not np.isfinite(arrays.logits).all():
        return DIVERGED
    return "" if (arrays.labels >= 0).any() else f"no {images} image has a known label"


def _interval(hits: int, total: int) -> tuple[float, float]:
    return proportion_interval(int(hits), int(total)) if total else (np.nan, np.nan)


def _ranking(labels: np.ndarray, probabilities: np.ndarray, present: np.ndarray, images: str) -> Result:
    """AUROC and average precision, one against the rest, over the classes that have images; each needs two of them."""
    if len(present) < 2:
        reason = f"all {images} images are of one class"
        return {"auroc": None, "auroc_reason": reason, "average_precision": None, "average_precision_reason": reason}
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth = [labels == c for c in present]
    scores = [probabilities[:, c] for c in present]
    return {
        "auroc": float(np.mean([roc_auc_score(t, s) for t, s in zip(truth, scores, strict=True)])),
        "average_precision": float(np.mean([average_precision_score(t, s) for t, s in zip(truth, scores, strict=True)])),
    }


def changed(baseline: Mapping, other: Mapping) -> dict[str, np.ndarray]:
    """Return the indices of images that `other` gets right and `baseline` wrong (`fixed`), and the reverse (`broken`)."""
    if baseline.get("predictions") is None or other.get("predictions") is None:
        return {"fixed": np.array([], dtype=int), "broken": np.array([], dtype=int)}
    labels = np.asarray(other["labels"])
    was, now = (np.asarray(one["predictions"]) == labels for one in (baseline, other))
    if labels.ndim == 2:  # an image of several findings is right where all answers are
        was, now = was.all(1), now.all(1)
    return {"fixed": np.flatnonzero(now & ~was), "broken": np.flatnonzero(was & ~now)}


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Recall of each class with its interval, by arm, above the arms' confusion matrices on one color scale."""
    if any(one.get("finding_auroc") is not None for one in results.values()):
        return _findings.figure(results)
    if any(one.get("errors") is not None for one in results.values()):
        return _pixels.figure(results)
    arms = {arm: one for arm, one in results.items() if one.get("confusion") is not None}
    if not arms:
        reasons = (one.get("confusion_reason") for one in results.values())
        return figures.empty(next(filter(None, reasons), "no arm was measured"))
    totals = np.asarray(next(iter(arms.values()))["confusion"]).sum(1)
    shown = np.sort(np.argsort(-totals, kind="stable")[:MOST_CLASSES])
    classes = next(iter(arms.values()))["classes"]
    names = figures.texts([classes[i] for i in shown], 16)
    plot = make_subplots(
        rows=2,
        cols=len(arms),
        specs=[[{"colspan": len(arms)}] + [None] * (len(arms) - 1), [{}] * len(arms)],
        subplot_titles=["", *(f"{figures.text(arm)}: called →" for arm in arms)],
        vertical_spacing=0.3,  # for the names of the classes, which are long
        row_heights=[0.4, 0.6],
        horizontal_spacing=0.03,
    )
    for place, (arm, one) in enumerate(arms.items()):
        _recall(plot, arm, one, shown, (place - (len(arms) - 1) / 2) * min(0.16, 0.7 / len(arms)), list(results))
        _confusion(plot, arm, one, names, shown, place + 1)
    plot.update_xaxes(tickvals=np.arange(len(shown)), row=1, col=1, range=[-0.6, len(shown) - 0.4])
    counted = [f"{name}<br>({totals[i]})" for name, i in zip(names, shown, strict=True)]
    plot.update_xaxes(ticktext=counted, tickangle=-40 if max(map(len, names)) > 8 else 0, tickfont={"size": 12}, row=1, col=1)
    plot.update_yaxes(range=[-0.04, 1.06], title_text="recall", row=1, col=1)
    plot.update_yaxes(title_text="true class", row=2, col=1)
    plot.update_annotations(font_size=13)
    return figures.style(plot, 680 + 16 * len(shown)).update_layout(meta={"min_width": 220 + 170 * len(arms)})


def _recall(plot: go.Figure, arm: str, one: dict, shown: np.ndarray, offset: float, arms: list[str]) -> None:
    recall, low, high = (figures.numbers(one[name])[shown] for name in ("recall", "recall_low", "recall_high"))
    look = {"color": figures.color(arm, arms), "symbol": figures.symbol(arm, arms), "size": 10}
    plot.add_trace(
        go.Scatter(
            x=np.arange(len(shown)) + offset,
            y=recall,
            error_y={"type": "data", "array": high - recall, "arrayminus": recall - low, "thickness": 1.5, "width": 3},
            mode="markers",
            marker=look,
            name=figures.text(arm),
            customdata=np.stack([low, high], axis=1),
            hovertemplate="recall %{y:.2f} (%{customdata[0]:.2f} to %{customdata[1]:.2f})",
        ),
        row=1,
        col=1,
    )


def _confusion(plot: go.Figure, arm: str, one: dict, names: list[str], shown: np.ndarray, column: int) -> None:
    counts = np.asarray(one["confusion"])[np.ix_(shown, shown)]
    share = counts / np.maximum(np.asarray(one["confusion"]).sum(1)[shown][:, None], 1)
    plot.add_trace(
        go.Heatmap(
            z=share,
            zmin=0,
            zmax=1,
            colorscale=figures.SEQUENTIAL,
            showscale=False,
            text=counts,
            texttemplate="%{text}" if len(shown) <= 12 else None,
            customdata=[[f"{true} {called} {arm}" for called in shown] for true in shown],  # a click says which cell of which arm
            hovertemplate="true %{y}, called %{x}: %{text} images<extra></extra>",
            xgap=1,
            ygap=1,
        ),
        row=2,
        col=column,
    )
    ticks = {"tickvals": np.arange(len(shown)), "ticktext": names, "showgrid": False}
    plot.update_xaxes(**ticks, tickangle=-40, row=2, col=column)
    plot.update_yaxes(**ticks, autorange="reversed", showticklabels=column == 1, row=2, col=column)


def sentence(results: Mapping[str, dict]) -> str:
    """Say each arm's accuracy with its interval and the number of images, and which it fixed and broke."""
    if any(one.get("errors") is not None for one in results.values()):
        return _pixels.sentence(results)
    arms = {arm: one for arm, one in results.items() if one.get("accuracy") is not None}
    if not arms:
        reasons = (one.get("accuracy_reason") for one in results.values())
        return f"No arm has an accuracy: {next(filter(None, reasons), 'nothing ran')}."
    if any(one.get("finding_auroc") is not None for one in arms.values()):
        return _findings.sentence(arms)
    parts = [
        f"{arm} {one['accuracy']:.3f} of {one['n']} images "
        f"(95 % interval {one['accuracy_low']:.3f} to {one['accuracy_high']:.3f}; balanced {one['balanced_accuracy']:.3f})"
        for arm, one in arms.items()
    ]
    missing = next((f" Left out of the means: {one['recall_reason']}." for one in arms.values() if one.get("recall_reason")), "")
    return f"Named right: {'; '.join(parts)}.{_exchanged(arms)}{missing}"


def _exchanged(arms: Mapping[str, dict]) -> str:
    """Say how many images each further arm fixed and broke, counted against the first."""
    (first, baseline), *others = arms.items()
    counts = [(arm, changed(baseline, one)) for arm, one in others if len(one["labels"]) == len(baseline["labels"])]
    parts = [
        f"{arm} fixed {len(which['fixed'])} images that {first} got wrong and broke {len(which['broken'])}"
        for arm, which in counts
    ]
    return f" {'; '.join(parts)}." if parts else ""

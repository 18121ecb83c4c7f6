"""Accuracy where an image may show several findings: what `accuracy` measures, draws and says of such sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.special import expit

from rift import figures, findings
from rift.snapshot import Arrays
from rift.statistics import folds, leave_out, paired_statistic_difference, proportion_interval

Result = dict[str, float | np.ndarray | str | None]
MOST = 40  # findings drawn; the numbers cover all
PANELS = (("finding_average_precision", "average precision"), ("finding_auroc", "AUROC"))


def measure(arrays: Arrays, names: Sequence[str], images: str) -> Result:
    """Return numbers in [0, 1] and, by finding, arrays `(k,)`; a finding that all or no image shows is nan and in no mean."""
    assert arrays.logits is not None
    truth, probabilities = arrays.labels > 0, expit(arrays.logits.astype(np.float64))
    named = probabilities >= 0.5
    judged = findings.both(truth)
    bounds = [proportion_interval(int(hit), int(of)) if of else (np.nan, np.nan) for hit, of in _counts(named & truth, truth)]
    result: Result = {
        "n": len(truth),
        "finding_average_precision": findings.average_precision(truth, probabilities),
        "finding_auroc": findings.auroc(truth, probabilities),
        "prevalence": truth.mean(0),
        "recall": _shares(named & truth, truth),
        "recall_low": np.array([low for low, _ in bounds]),
        "recall_high": np.array([high for _, high in bounds]),
        "specificity": _shares(~named & ~truth, ~truth),
        "predictions": named.astype(np.uint8),
        "labels": arrays.labels.astype(np.uint8),
        "probabilities": probabilities,
    }
    for name in ("confusion", "confidence", "balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high"):
        result |= {name: None, f"{name}_reason": "an image may show several findings"}
    if len(judged) < truth.shape[1]:
        absent = ", ".join(str(names[j]) for j in np.setdiff1d(np.arange(truth.shape[1]), judged)[:10])
        result["recall_reason"] = f"all or no {images} images show {absent}"
    return result | _means(truth, probabilities, named, judged, images)


def _means(truth: np.ndarray, probabilities: np.ndarray, named: np.ndarray, judged: np.ndarray, images: str) -> Result:
    """Return what is counted over all images and findings, each with its interval."""

    def accuracy(kept: np.ndarray) -> float:
        return float((named == truth)[kept].mean())

    def precision(kept: np.ndarray) -> float:
        return float(findings.average_precision(truth[kept][:, judged], probabilities[kept][:, judged]).mean())

    def area(kept: np.ndarray) -> float:
        return float(findings.auroc(truth[kept][:, judged], probabilities[kept][:, judged]).mean())

    result = _number("accuracy", accuracy, len(truth))
    for name, function in (("average_precision", precision), ("auroc", area)):
        if len(judged):
            result |= _number(name, function, len(truth))
            continue
        reason = f"every finding is shown by all or by no {images} images"
        result |= {name: None, f"{name}_reason": reason} | _without_interval(name, reason)
    return result


def _number(name: str, function: Callable[[np.ndarray], float], n: int) -> Result:
    """Return a number of all images and its interval, or why it has none: one group left out may hold all of a finding."""
    value = function(np.arange(n))
    if n > 1:
        each = leave_out(function, folds(n))
        found = paired_statistic_difference(each, np.zeros_like(each), n)
        if found.low is not None and found.high is not None and np.isfinite([found.low, found.high]).all():
            return {name: value, f"{name}_low": max(0.0, found.low), f"{name}_high": min(1.0, found.high)}
    return {name: value} | _without_interval(name, "there are too few images of a finding for an interval")


def _without_interval(name: str, reason: str) -> Result:
    return {f"{name}_low": None, f"{name}_low_reason": reason, f"{name}_high": None, f"{name}_high_reason": reason}


def _counts(hits: np.ndarray, totals: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(hits.sum(0), totals.sum(0), strict=True))


def _shares(hits: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return the share of hits by column `(k,)`; nan where there is nothing to hit."""
    return np.array([hit / total if total else np.nan for hit, total in _counts(hits, totals)])


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Average precision and AUROC of each finding, by arm; the grey bar is what a random order gives."""
    arms = {arm: one for arm, one in results.items() if one.get("finding_auroc") is not None}
    first = next(iter(arms.values()))
    prevalence = figures.numbers(first["prevalence"])
    shown = np.sort(np.argsort(-prevalence, kind="stable")[:MOST])
    plot = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for row, ((key, title), chance) in enumerate(zip(PANELS, (prevalence, np.full(len(prevalence), 0.5)), strict=True), 1):
        bar = {"symbol": "line-ew-open", "size": 22, "color": figures.GREY, "line": {"width": 2}}
        _points(plot, row, chance[shown], "random order", bar, title, 0.0)
        for place, (arm, one) in enumerate(arms.items()):
            look = {"color": figures.color(arm, list(results)), "symbol": figures.symbol(arm, list(results)), "size": 10}
            offset = (place - (len(arms) - 1) / 2) * min(0.16, 0.7 / len(arms))
            _points(plot, row, figures.numbers(one[key])[shown], figures.text(arm), look, title, offset)
        plot.update_yaxes(title_text=title, range=[-0.04, 1.06], row=row, col=1)
    names = figures.texts([first["classes"][i] for i in shown], 16)
    ticks = [f"{name} ({share:.0%})" for name, share in zip(names, prevalence[shown], strict=True)]
    plot.update_xaxes(tickvals=np.arange(len(shown)), range=[-0.6, len(shown) - 0.4])
    plot.update_xaxes(ticktext=ticks, title_text="finding (share of images that show it)", row=2, col=1)
    return figures.style(plot, 620).update_layout(meta={"min_width": 160 + 60 * len(shown)})


def _points(plot: go.Figure, row: int, values: np.ndarray, name: str, marker: dict, title: str, offset: float) -> None:
    more = {"legendgroup": name, "showlegend": row == 1, "hovertemplate": f"{title} %{{y:.2f}}"}
    x = np.arange(len(values)) + offset
    plot.add_trace(go.Scatter(x=x, y=values, mode="markers", name=name, marker=marker, **more), row=row, col=1)


def sentence(arms: Mapping[str, dict]) -> str:
    """Say each arm's mAP with its interval, AUROC and accuracy, and which findings are in no mean."""
    first = next(iter(arms.values()))
    judged = int(np.isfinite(figures.numbers(first["finding_auroc"])).sum())
    missing = f" Left out of the means: {first['recall_reason']}." if first.get("recall_reason") else ""
    parts = [f"{arm} {_said(one)}" for arm, one in arms.items()]
    return f"Mean average precision (mAP) of {judged} findings on {first['n']} images: {'; '.join(parts)}.{missing}"


def _said(one: Mapping) -> str:
    if one.get("average_precision") is None:
        return f"cannot be computed, as {one['average_precision_reason']}"
    low, high = one.get("average_precision_low"), one.get("average_precision_high")
    interval = "" if low is None or high is None else f"95 % interval {low:.3f} to {high:.3f}; "
    return f"{one['average_precision']:.3f} ({interval}AUROC {one['auroc']:.3f}, accuracy {one['accuracy']:.3f})"

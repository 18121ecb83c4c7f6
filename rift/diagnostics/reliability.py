"""Does a model that says 80 % sure turn out right in 80 % of such cases? ECE = sum over bins of n_b / n · |right_b - sure_b|,
with a bin's share of right answers and its mean confidence (Naeini 2015, AAAI; Guo 2017, arXiv 1706.04599); 0 is perfect.

Bins are of equal width and, beside it, of equally many answers. A medical image counts with its likeliest class; where it may
show several findings, each finding counts with the probability that it is there. Natural images count with the judge's likeliest
name; where nearest means judge, the scale of its logits is ours. `mce` is the largest gap of a bin (Naeini); `confidence_gap` is
mean confidence minus share right, above 0 for overconfident. Brier score (1950): mean of Σ_c (p_c - y_c)², in [0, 2], of findings
of (p - y)², in [0, 1]. Log loss: mean of -log p of what is true. These two also fall as a model knows more.

ECE is never 0: with few images the shares miss the confidences by chance alone. What a perfectly calibrated model with the same
confidences would show is simulated (each answer right with the stated probability: consistency resampling, Bröcker and Smith
2007) and stands beside it, as mean and 95th percentile (our choice). Intervals: Wilson in each bin, as if answers were
independent; jackknife for ECE; Student's t for means over images.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from pydantic import Field
from scipy.special import expit, log_expit, log_softmax

from rift import figures
from rift.diagnostics import _judge
from rift.diagnostics._intervals import Result, mean, nothing, number, statistic
from rift.snapshot import Snapshot
from rift.statistics import proportion_interval

TITLE = "Calibration"
DRAWS = 1000  # perfectly calibrated models simulated
NUMBERS = [
    *number("ece"),
    "ece_expected",
    "ece_expected_high",
    *number("ece_mass"),
    "ece_mass_expected",
    "ece_mass_expected_high",
]
NUMBERS += ["mce", *(key for name in ("confidence_gap", "brier", "log_loss") for key in number(name))]
BINS = [f"bin_{name}" for name in ("confidence", "share", "low", "high", "count")]


def measure(
    before: Snapshot,
    after: Snapshot,
    *,
    images: Annotated[Literal["test", "validation"], Field(description="which medical images are judged")] = "test",
    bins: Annotated[
        int, Field(ge=2, le=50, description="bins of confidence, both of equal width and of equally many images")
    ] = 10,
    seed: Annotated[int, Field(ge=0, lt=2**31, description="draws of the perfectly calibrated model")] = 0,
) -> Result:
    """Return the numbers of the medical images, with `natural_` of the natural ones and `pretrained_natural_` before finetuning.

    `ece`, `ece_mass`, `mce` and all `bin_…` `(bins,)`, of equal width, lie in [0, 1]; a bin without images is nan in all but
    `bin_count`. `…_expected` is the mean, `…_expected_high` the 95th percentile of the perfectly calibrated models. The interval
    of `ece` speaks of the same number of other images and so holds the same bias. Of findings there are `finding_ece`,
    `finding_ece_expected`, `finding_brier` and `finding_log_loss` `(k,)`, and `n_judged` images times findings in the bins.
    """
    edges = np.linspace(0, 1, bins + 1)
    result: Result = {
        "n_bins": bins,
        "entries": [f"{low:.2f} to {high:.2f}" for low, high in pairwise(edges)],
    }
    found = _medical(after, images, bins, seed)
    result |= {"n": 0} | _without("", found) if isinstance(found, str) else found
    for prefix, snapshot in (("natural_", after), ("pretrained_natural_", before)):
        seen = _natural(before, snapshot)
        result |= (
            {f"n_{prefix[:-1]}": 0} | _without(prefix, seen) if isinstance(seen, str) else _scores(prefix, *seen, bins, seed)
        )
    if result.get("finding_ece") is not None:
        result["findings"] = np.array(after.classes, dtype=np.str_)
        result["entries"] = list(after.classes) if len(after.classes) != bins else []
    return result


def _medical(after: Snapshot, images: str, bins: int, seed: int) -> Result | str:
    arrays = after.sets.get(images)
    if arrays is None or not len(arrays.labels):
        return f"there are no {images} images"
    if arrays.logits is None:
        return "the pretrained model has no head for these classes"
    logits, labels = arrays.logits.astype(np.float64), arrays.labels
    if not np.isfinite(logits).all():
        return "the model's outputs are not finite numbers: its training diverged"
    if labels.ndim == 2:
        return _findings(logits, labels > 0, bins, seed)
    known = labels >= 0
    return _scores("", logits[known], labels[known], bins, seed) if known.any() else f"no {images} image has a known label"


def _natural(before: Snapshot, snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray] | str:
    """Return the judge's logits `(n, k)` of the natural images that it can judge, and their labels among its k classes."""
    natural = snapshot.sets.get("natural")
    if natural is None or "natural" not in before.sets or not len(natural.labels):
        return "there are no natural images"
    judge = before.judge()
    if len(judge.known) < 2:
        return "the natural head knows fewer than two of the labels"
    if not np.isfinite(natural.embeddings).all():
        return "the embeddings are not finite: the training diverged"
    scored = np.isin(natural.labels, judge.known)
    if not scored.any():
        return "no natural image has a label that the natural head knows"
    return _judge.logits(natural.embeddings, judge)[scored], np.searchsorted(judge.known, natural.labels[scored])


def _without(prefix: str, reason: str) -> Result:
    return nothing([prefix + name for name in [*NUMBERS, *BINS]], reason)


def _scores(prefix: str, logits: np.ndarray, labels: np.ndarray, bins: int, seed: int) -> Result:
    """Return all numbers of one answer an image: the likeliest class of logits `(n, k)`."""
    logs, n = log_softmax(logits, axis=1), len(labels)
    probabilities = np.exp(logs)
    truth = np.eye(logits.shape[1])[labels]
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    result = {f"n_{prefix[:-1]}" if prefix else "n": n}
    result |= _gaps(prefix, sure[:, None], right[:, None], bins, seed)
    result |= mean(f"{prefix}brier", np.square(probabilities - truth).sum(1), least=0)
    return result | mean(f"{prefix}log_loss", -logs[np.arange(n), labels], least=0)


def _findings(logits: np.ndarray, truth: np.ndarray, bins: int, seed: int) -> Result:
    """Return all numbers of every finding's probability in every image `(n, k)`, and by finding."""
    sure = expit(logits)
    square, losses = np.square(sure - truth), -np.where(truth, log_expit(logits), log_expit(-logits))
    result: Result = {"n": len(truth), "n_judged": truth.size} | _gaps("", sure, truth, bins, seed)
    each = [
        _ece(sure[:, j : j + 1], truth[:, j : j + 1], _equal_width(sure[:, j : j + 1], bins), seed) for j in range(truth.shape[1])
    ]
    result |= {"finding_ece": np.array([one[0] for one in each]), "finding_ece_expected": np.array([one[1] for one in each])}
    result |= {"finding_brier": square.mean(0), "finding_log_loss": losses.mean(0)}
    return result | mean("brier", square.mean(1), least=0) | mean("log_loss", losses.mean(1), least=0)


def _gaps(prefix: str, sure: np.ndarray, right: np.ndarray, bins: int, seed: int) -> Result:
    """Return what compares confidences with answers, both `(n, a)` for a answers an image."""
    result: Result = {}
    for name, which in (("ece", _equal_width(sure, bins)), ("ece_mass", _equal_mass(sure, bins))):
        value = _jackknifed(f"{prefix}{name}", sure, right, which)
        _, expected, high = _ece(sure, right, which, seed)
        result |= value | {f"{prefix}{name}_expected": expected, f"{prefix}{name}_expected_high": high}
    which = _equal_width(sure, bins).ravel()
    count = np.bincount(which, minlength=bins)
    hits, total = (np.bincount(which, weights=one.ravel(), minlength=bins) for one in (right, sure))
    filled = count > 0
    stated, shares, below, above = (np.full(bins, np.nan) for _ in range(4))
    stated[filled], shares[filled] = total[filled] / count[filled], hits[filled] / count[filled]
    for b in np.flatnonzero(filled):
        below[b], above[b] = proportion_interval(int(hits[b]), int(count[b]))
    arrays = dict(zip(BINS, (stated, shares, below, above, count), strict=True))
    result |= {f"{prefix}{name}": value for name, value in arrays.items()}
    if not filled.all():
        result |= {f"{prefix}{name}_reason": f"{int((~filled).sum())} of {bins} bins hold no image" for name in BINS[:-1]}
    result[f"{prefix}mce"] = float(np.abs(stated - shares)[filled].max())
    return result | mean(f"{prefix}confidence_gap", (sure - right).mean(1))


def _jackknifed(name: str, sure: np.ndarray, right: np.ndarray, which: np.ndarray) -> Result:
    gaps, bins = sure - right, int(which.max()) + 1

    def ece(kept: np.ndarray) -> float:
        return float(np.abs(np.bincount(which[kept].ravel(), gaps[kept].ravel(), bins)).sum() / gaps[kept].size)

    if len(sure) < 2:
        return {name: ece(np.arange(len(sure)))} | nothing(number(name)[1:], "an interval needs at least two images")
    return statistic(name, ece, len(sure), (0.0, 1.0))


def _ece(sure: np.ndarray, right: np.ndarray, which: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Return ECE in given bins, and its mean and 95th percentile where each answer is right with the stated probability."""
    member = np.eye(int(which.max()) + 1, dtype=np.float32)[which.ravel()]
    flat, random = sure.ravel().astype(np.float32), np.random.default_rng(seed)
    step = max(1, 1_000_000 // flat.size)  # some 4 MB at a time
    found = []
    for start in range(0, DRAWS, step):
        drawn = random.random((min(step, DRAWS - start), flat.size), dtype=np.float32) < flat
        found.append(np.abs((flat - drawn) @ member).sum(1) / flat.size)
    null = np.concatenate(found)
    value = np.abs((sure - right).ravel() @ member.astype(np.float64)).sum() / flat.size
    return float(value), float(null.mean()), float(np.quantile(null, 0.95))


def _equal_width(sure: np.ndarray, bins: int) -> np.ndarray:
    """Return each confidence's bin; one on an edge belongs below, as in Guo 2017, and 0 to the first."""
    return np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)


def _equal_mass(sure: np.ndarray, bins: int) -> np.ndarray:
    """Return each confidence's bin of nearly equally many, by rank; equal confidences share the bin of their first."""
    ordered = np.sort(sure, axis=None)
    return np.searchsorted(ordered, sure, side="left") * min(bins, sure.size) // sure.size


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Share right against confidence with intervals, by arm, above how many answers each bin holds; dotted is perfect."""
    medical = {arm: one for arm, one in results.items() if one.get("bin_share") is not None}
    natural = {arm: one for arm, one in results.items() if arm != "pretrained" and one.get("natural_bin_share") is not None}
    columns = [
        (title, arms, prefix) for title, arms, prefix in (("medical", medical, ""), ("natural", natural, "natural_")) if arms
    ]
    if not columns:
        reasons = (one.get("ece_reason") for one in results.values())
        return figures.empty(next(filter(None, reasons), "no arm was measured"))
    titles = [f"{title} images" for title, *_ in columns]
    shape = {"rows": 2, "cols": len(columns), "row_heights": [0.74, 0.26], "vertical_spacing": 0.06, "horizontal_spacing": 0.1}
    plot = make_subplots(**shape, shared_xaxes=True, subplot_titles=titles)
    for column, (_, arms, prefix) in enumerate(columns, 1):
        line = {"color": figures.GREY, "dash": "dot", "width": 1.5}
        perfect = go.Scatter(x=[0, 1], y=[0, 1], mode="lines", name="perfectly calibrated", legendgroup="perfect", line=line)
        plot.add_trace(perfect.update(showlegend=column == 1, hoverinfo="skip"), row=1, col=column)
        first = next(iter(arms.values()))
        models = (
            {"pretrained": (first, f"pretrained_{prefix}")} if prefix and first.get("pretrained_natural_ece") is not None else {}
        )
        for arm, (one, key) in (models | {arm: (one, prefix) for arm, one in arms.items()}).items():
            _curve(plot, arm, one, key, column, list(results))
        plot.update_xaxes(title_text=_confidence(first, prefix), row=2, col=column)
        plot.update_yaxes(title_text=_share(first, prefix), row=1, col=column)
    plot.update_xaxes(range=[-0.02, 1.02])
    plot.update_yaxes(range=[-0.04, 1.04], row=1)
    plot.update_yaxes(rangemode="tozero", row=2)
    plot.update_yaxes(title_text="share of all", row=2, col=1)
    plot.update_annotations(font_size=13)
    figures.style(plot, 520).update_layout(meta={"min_width": 120 + 270 * len(columns)}, margin={"t": 96})
    return plot.update_layout(legend={"y": 1.07})


def _confidence(one: dict, prefix: str) -> str:
    return "probability of a finding" if not prefix and one.get("finding_ece") is not None else "confidence"


def _share(one: dict, prefix: str) -> str:
    return "share that shows it" if not prefix and one.get("finding_ece") is not None else "share right"


def _curve(plot: go.Figure, arm: str, one: dict, prefix: str, column: int, arms: list[str]) -> None:
    stated, share, low, high, count = (figures.numbers(one[f"{prefix}{name}"]) for name in BINS)
    filled = count > 0
    look = {"color": figures.color(arm, arms), "dash": figures.dash(arm, arms), "width": 1.5}
    name = figures.text(arm)
    common = {"name": name, "legendgroup": name}
    bars = {"type": "data", "array": (high - share)[filled], "arrayminus": (share - low)[filled], "thickness": 1.2, "width": 3}
    points = go.Scatter(
        x=stated[filled],
        y=share[filled],
        error_y=bars,
        mode="lines+markers",
        line=look,
        marker={"symbol": figures.symbol(arm, arms), "size": 9},
        customdata=np.stack([low, high, count], axis=1)[filled],
        hovertemplate="sure %{x:.2f}, right %{y:.2f} (%{customdata[0]:.2f} to %{customdata[1]:.2f}) of %{customdata[2]:.0f}",
        showlegend=name not in {trace.name for trace in plot.data},
    )
    plot.add_trace(points.update(common), row=1, col=column)
    edges = np.repeat(np.linspace(0, 1, len(count) + 1), 2)[1:-1]
    steps = go.Scatter(x=edges, y=np.repeat(count / count.sum(), 2), mode="lines", line=look, showlegend=False, hoverinfo="skip")
    plot.add_trace(steps.update(common), row=2, col=column)


def sentence(results: Mapping[str, dict]) -> str:
    """Say each arm's ECE beside what chance alone gives, and whether it claims too much or too little."""
    arms = {arm: one for arm, one in results.items() if one.get("ece") is not None}
    natural = {arm: one for arm, one in results.items() if arm != "pretrained" and one.get("natural_ece") is not None}
    if not arms and not natural:
        reasons = (one.get("ece_reason") for one in results.values())
        return f"Calibration cannot be judged: {next(filter(None, reasons), 'nothing ran')}."
    parts = []
    if arms:
        first = next(iter(arms.values()))
        of = f"{first['n']} medical images" + (f" ({first['n_judged']} answers)" if first.get("n_judged") else "")
        parts.append(f"ECE on {of}: {'; '.join(f'{arm} {_said(one, str())}' for arm, one in arms.items())}.")
    if natural:
        first = next(iter(natural.values()))
        said = [f"pretrained {_said(first, 'pretrained_natural_')}"] if first.get("pretrained_natural_ece") is not None else []
        said += [f"{arm} {_said(one, 'natural_')}" for arm, one in natural.items()]
        parts.append(f"On {first['n_natural']} natural images: {'; '.join(said)}.")
    chance = "By chance is what a perfectly calibrated model with the same confidences shows: mean, and 95th percentile."
    return " ".join([*parts, chance])


def _said(one: Mapping, prefix: str) -> str:
    ece, expected, high = (one[f"{prefix}ece{end}"] for end in ("", "_expected", "_expected_high"))
    low, top = one.get(f"{prefix}confidence_gap_low"), one.get(f"{prefix}confidence_gap_high")
    gap = one[f"{prefix}confidence_gap"]
    way = (
        "" if low is None or top is None or low <= 0 <= top else f", {'over' if gap > 0 else 'under'}confident by {abs(gap):.3f}"
    )
    verdict = "more than chance" if ece > high else "may be chance"
    return f"{ece:.3f} (by chance {expected:.3f}, up to {high:.3f}: {verdict}{way})"

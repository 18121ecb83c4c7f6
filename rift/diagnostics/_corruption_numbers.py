"""What `corruption` makes of what it captured: scores, their means over corruptions and severities, and jackknife intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rift.diagnostics._corruptions import SEVERITIES, scores
from rift.statistics import folds, mean_proportion_interval, paired_statistic_difference, proportion_interval
from rift.tasks.reconstruction import NO_CLASS

FEW = "there are too few images for an interval"


def task(arrays: Mapping[str, np.ndarray], labels: np.ndarray, known: np.ndarray) -> dict[str, Any]:
    """Return everything that compares what the task's head says with the labels; `known` are the images that have one."""
    multi, truth, shape = labels.ndim == 2, labels[known], arrays["logits"].shape[:2]
    flat = arrays["logits"].reshape(np.prod(shape), *arrays["logits"].shape[2:])
    logits = np.concatenate([arrays["clean_logits"][None], flat])[:, known]
    unknown = "no test image has a known label" if arrays["logits"].shape[-1] else NO_CLASS
    reason = "" if len(known) else unknown
    reason = reason or ("" if np.isfinite(logits).all() else "the model's outputs are not finite numbers: its training diverged")
    result: dict[str, Any] = {}
    for place, name in enumerate(("average_precision", "accuracy") if multi else ("accuracy", "balanced_accuracy")):
        why = reason or f"{name} is undefined where every finding is shown by all or by no test image"
        found = each(lambda kept, name=name: _score(logits, truth, kept, name), 0 if reason else len(known), (len(logits),))  # type: ignore[misc]
        result |= summary(name, found[:, 1:].reshape(-1, *shape), arrays["severities"], why)
        result |= with_interval(f"clean_{name}", found[:, 0], why)
        if not place:
            result |= _errors(found[:, 0], found[:, 1:].mean(1), why)
    if reason:
        return result | {"image_score": None, "image_score_reason": reason}
    right = (logits[1:] >= 0) == (truth > 0) if multi else logits[1:].argmax(2) == truth
    result["image_score"] = np.full(len(labels), -1.0)
    result["image_score"][known] = right.mean((0, 2) if multi else 0)
    return result if multi else result | _counted(logits.argmax(2) == truth, truth, shape)


def _errors(clean: np.ndarray, corrupted: np.ndarray, reason: str) -> dict[str, Any]:
    """Mean corruption error, alone and relative to the clean one, and what of the score is lost; from `(1 + folds,)`."""
    result = with_interval("mean_corruption_error", 1 - corrupted, reason)
    result |= with_interval("mean_drop", clean - corrupted, reason, low=-1.0)
    error = 1 - clean[0]
    relative = np.array((1 - corrupted[0]) / error if error else np.nan)
    return result | put("relative_corruption_error", relative, reason if error else "there is no error on clean images")


def _score(logits: np.ndarray, truth: np.ndarray, kept: np.ndarray, name: str) -> np.ndarray:
    """One score `(m,)` of some of the images; nan where a class is missing among them that all of them have."""
    if name == "balanced_accuracy" and len(np.unique(truth[kept])) < len(np.unique(truth)):
        return np.full(len(logits), np.nan)
    return scores(logits[:, kept], truth[kept])[name]


def _counted(right: np.ndarray, truth: np.ndarray, shape: tuple[int, ...]) -> dict[str, Any]:
    """From right answers `(1 + c · v, n)`, the clean ones first: Wilson intervals of accuracies and MOVER's of balanced ones.

    They hold near 0 and 1, as a jackknife does not.
    """
    totals = np.array([(truth == label).sum() for label in np.unique(truth)])
    hits = np.array([[row[truth == label].sum() for label in np.unique(truth)] for row in right])
    wilson = np.array([proportion_interval(int(row.sum()), row.size) for row in right])
    mover = np.array([mean_proportion_interval(row, totals) for row in hits])
    result: dict[str, Any] = {}
    for name, bounds in (("accuracy", wilson), ("balanced_accuracy", mover)):
        for side, end in enumerate(("low", "high")):
            result[f"clean_{name}_{end}"] = float(bounds[0, side])
            result[f"{name}_{end}"] = bounds[1:, side].reshape(shape)
    return result


def each(function: Callable[[np.ndarray], np.ndarray], n: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return `(1 + folds, …)`: what the function, which takes the kept ones, says of n images, and without each fold.

    Nan of `shape` where there is no image.
    """
    if n < 2:
        return np.stack([function(np.arange(n)) if n else np.full(shape, np.nan)])
    fold = folds(n)
    return np.stack([function(np.arange(n)), *(function(np.flatnonzero(fold != one)) for one in range(fold.max() + 1))])


def summary(name: str, found: np.ndarray, severities: np.ndarray, reason: str, low: float = 0.0) -> dict[str, Any]:
    """Return a number by corruption and severity, from `(1 + folds, c, v)` of it, and its means, each with its interval."""
    over = np.full((len(found), SEVERITIES), np.nan)
    over[:, severities - 1] = found.mean(1)
    asked = reason if np.isnan(found[0]).any() else "not every severity was asked for"
    return (
        with_interval(name, found, reason, low)
        | with_interval(f"corruption_{name}", found.mean(2), reason, low)
        | with_interval(f"severity_{name}", over, asked, low)
        | with_interval(f"mean_{name}", found.mean((1, 2)), reason, low)
    )


def with_interval(name: str, found: np.ndarray, reason: str, low: float = 0.0) -> dict[str, Any]:
    """Return a number, or an array of them, from `(1 + folds, …)`, with its 95 % jackknife interval within [low, 1]."""
    rows = found.reshape(len(found), -1).T
    bounds = np.full((len(rows), 2), np.nan)
    if len(found) > 2:
        pairs = [paired_statistic_difference(row, np.zeros_like(row), 1) for row in rows]
        bounds = np.clip([(one.low, one.high) for one in pairs], low, 1.0)
    result, why = put(name, found[0], reason), reason if np.isnan(found[0]).any() else FEW
    for side, end in enumerate(("low", "high")):
        result |= put(f"{name}_{end}", bounds[:, side].reshape(found.shape[1:]), why)
    return result


def put(name: str, value: np.ndarray, reason: str) -> dict[str, Any]:
    """Return a number or an array under its name; where none of it is finite None, and where not all of it is, why."""
    finite = np.isfinite(value)
    kept = value if np.ndim(value) else float(value)
    return {name: kept if finite.any() else None} | ({} if finite.all() else {f"{name}_reason": reason})

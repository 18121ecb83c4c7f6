"""Numbers of images that may show several findings: labels and scores are `(n, k)`, one column per finding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike


def both(labels: ArrayLike) -> np.ndarray:
    """Return the indices of the findings that some images show and some do not: only these can be judged."""
    truth = np.asarray(labels) > 0
    return np.flatnonzero(truth.any(0) & ~truth.all(0))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """Return each finding's average precision `(k,)` in [0, 1]: sum over ranks of recall gained x precision; else nan.

    Its mean is the mAP. A random order gives about the finding's share of images.
    """
    from sklearn.metrics import average_precision_score

    return _each(average_precision_score, labels, scores)


def auroc(labels: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """Return each finding's area under the ROC curve `(k,)` in [0, 1]; a random order gives 0.5, else nan."""
    from sklearn.metrics import roc_auc_score

    return _each(roc_auc_score, labels, scores)


def _each(function: Callable[..., float], labels: ArrayLike, scores: ArrayLike) -> np.ndarray:
    truth, values = np.asarray(labels) > 0, np.asarray(scores)
    found = np.full(truth.shape[1], np.nan)
    for j in both(truth):
        found[j] = function(truth[:, j], values[:, j])
    return found


def one_each(labels: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return one class per image `(n,)` and the names: its finding where it has one only, else "several" or "no finding"."""
    counts = (labels > 0).sum(1)
    several, none = len(names), len(names) + 1
    single = np.where(counts == 1, (labels > 0).argmax(1), several)
    return np.where(counts == 0, none, single), (*names, "several findings", "no finding")

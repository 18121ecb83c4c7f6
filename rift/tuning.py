"""A setting chosen on validation images by a short path of trials, never on test images: what `strength="auto"` does.

The RIFT paper's RIFT* may be a strength chosen for each data set (our reading; its reviewers speak of a grid search, Table A2).
The rule here is ours: the largest strength whose validation task loss is within one standard error of the best one's, image by
image, and whose balanced accuracy is at most one point lower. `none` has no strength; it gets as many trials for its
learning rate, of which the lowest validation loss wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rift import stratify
from rift.errors import SettingError

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
RATES = (0.25, 0.5, 1.0, 2.0, 4.0)  # times the asked learning rate: as many trials for the arm without a penalty
FEW, FOLDS = 50, 5  # validation images below which all known images take turns in being validated on, and in how many turns
COST = 1.8  # runs that a path may take; with the pretrained model's pass and the final run, under three
POINT = 0.01  # how much balanced accuracy a larger strength may cost


WHAT = {"strength": STRENGTHS, "learning_rate": RATES}


@dataclass(frozen=True)
class Path:
    """Which values are tried, for how many epochs each, in how many folds (1: on the ordinary validation images)."""

    values: tuple[float, ...]
    epochs: int
    folds: int

    @property
    def trials(self) -> int:
        """How many short trainings the path takes."""
        return len(self.values) * self.folds


def plan(what: str, epochs: int, train: int, validation: int) -> Path:
    """Return the path that `COST` runs of `epochs` pay for: five values or, where that is too dear, every other one.

    `what` is tried: "strength", or "learning_rate" of an arm without a penalty. `train` and `validation` count images. Raises
    `setting.range` where the epochs are too few even for three values.
    """
    folds = 1 if validation >= FEW else FOLDS
    known = train if folds == 1 else (train + validation) * (folds - 1)  # images of one epoch of all folds
    needed = epochs
    for tried in (WHAT[what], WHAT[what][::2]):
        each = len(tried) * known / train  # epochs of the final run that one epoch of the trials costs
        if (short := int(COST * epochs / each)) >= 1:
            return Path(tried, short, folds)
        needed = int(np.ceil(each / COST))
    raise SettingError(
        "setting.range",
        f"strength=auto needs at least {needed} epochs here, since each of its short trials takes one; not {epochs}.",
    )


def tuned(regularizer: str) -> str:
    """Return what is tried for an arm: its strength or, where it has no penalty, its learning rate."""
    return "learning_rate" if regularizer == "none" else "strength"


def folds(labels: np.ndarray, groups: np.ndarray | None, seed: int) -> list[np.ndarray]:
    """Divide images into `FOLDS` of like labels, those of one patient together; returns indices of each fold's images."""
    units, shares = np.arange(len(labels)) if groups is None else groups, np.full(FOLDS, 1 / FOLDS)
    for columns in (stratify.columns_of(labels), np.ones((len(labels), 1), bool)):  # a class too rare for all folds: as they come
        part = stratify.cut(columns, units, shares, np.random.default_rng(seed), rarest_first=labels.ndim == 2)
        if part is not None:
            return [np.flatnonzero(part == fold) for fold in range(FOLDS)]
    raise SettingError("setting.range", f"strength=auto needs at least {FOLDS} images or patients to take turns.")


def strongest(values: Sequence[float], losses: np.ndarray, scores: Sequence[float | None]) -> dict[str, Any]:
    """Choose the largest value that costs the task nothing that these images could show.

    `losses` `(values, n)` are task losses of the same n images, `scores` balanced accuracies in [0, 1], None for a task that has
    none. Returns the `chosen` value and the whole `path`: each value's mean loss, its excess over the best one's with the
    standard error of that paired difference, its score, and whether it was allowed.
    """
    best = int(losses.mean(1).argmin())
    path: list[dict[str, Any]] = []
    for value, loss, score in zip(values, losses, scores, strict=True):
        gap = loss - losses[best]
        error = float(gap.std(ddof=1) / np.sqrt(len(gap)))
        path.append(
            {
                "value": value,
                "task_loss": float(loss.mean()),
                "excess": float(gap.mean()),
                "standard_error": error,
                "score": None if score is None else float(score),
                "allowed": bool(gap.mean() <= error and (score or 0.0) >= (scores[best] or 0.0) - POINT),
            }
        )
    return {"chosen": max(row["value"] for row in path if row["allowed"]), "path": path}


def lowest(values: Sequence[float], losses: np.ndarray, scores: Sequence[float | None]) -> dict[str, Any]:
    """Choose the value of the lowest mean loss; the same document as that of `strongest`."""
    found = strongest(values, losses, scores)
    best = min(found["path"], key=lambda row: row["task_loss"])
    return {"chosen": best["value"], "path": [{**row, "allowed": row is best} for row in found["path"]]}

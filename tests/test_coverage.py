"""How often the intervals hold the truth, counted on synthetic data with fixed seeds; the docstrings state what is measured here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rift.similarity import debiased_cka
from rift.statistics import Difference, folds, leave_out, paired_difference, paired_statistic_difference

Draw = Callable[[np.random.Generator], Difference]


def covered(draw: Draw, truth: float, times: int) -> float:
    random = np.random.default_rng(0)
    found = [draw(random) for _ in range(times)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def features(random: np.random.Generator, patients: int, each: int, width: int = 12) -> np.ndarray:
    """Embeddings `(patients * each, width)`: the images of a patient are alike, and a third of the directions holds most variance."""
    scale = np.linspace(2, 0.5, width)
    shared = np.repeat(random.normal(size=(patients, width)), each, axis=0)
    return scale * (shared * (each > 1) + random.normal(size=(patients * each, width)))


def finetuned(random: np.random.Generator, x: np.ndarray, drift: float, spread: float) -> np.ndarray:
    """What a seed makes of embeddings: a linear map of its own, and a change of each image that no map explains."""
    turn = np.eye(x.shape[1]) + spread * random.normal(size=(x.shape[1],) * 2)
    return x @ turn + drift * np.abs(x).mean(1, keepdims=True) * random.normal(size=x.shape)


def cka_draw(patients: int, each: int, seeds: int, spread: float, *, clustered: bool = True) -> Draw:
    groups = np.repeat(np.arange(patients), each) if each > 1 and clustered else None

    def draw(random: np.random.Generator) -> Difference:
        x = features(random, patients, each)
        fold = folds(len(x), groups)
        a, b = (
            np.stack(
                [
                    leave_out(lambda kept, z=finetuned(random, x, drift, spread): debiased_cka(x[kept], z[kept]), fold)
                    for _ in range(seeds)
                ]
            )
            for drift in (0.6, 1.0)
        )
        return paired_statistic_difference(a, b, len(x))

    return draw


def cka_truth(each: int, spread: float, seeds: int = 300) -> float:
    random = np.random.default_rng(9)
    x = features(random, 3000, each)
    return float(np.mean([np.subtract(*(debiased_cka(x, finetuned(random, x, d, spread)) for d in (0.6, 1.0))) for _ in range(seeds)]))

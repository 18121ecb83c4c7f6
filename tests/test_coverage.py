"""How often the intervals hold the truth, counted on synthetic data with fixed seeds; the docstrings state what this measures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rift.similarity import debiased_cka
from rift.statistics import Difference, Statistic, folds, leave_out, paired_difference, paired_statistic_difference

WIDTH = 12
Draw = Callable[[np.random.Generator], Difference]


def covered(draw: Draw, truth: float, times: int) -> float:
    random = np.random.default_rng(0)
    found = [draw(random) for _ in range(times)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def features(random: np.random.Generator, patients: int, each: int) -> np.ndarray:
    """Embeddings `(patients * each, WIDTH)`, the images of a patient nearly alike."""
    shared = np.repeat(random.normal(size=(patients, WIDTH)), each, axis=0)
    return np.linspace(2, 0.5, WIDTH) * (shared + 0.3 * random.normal(size=shared.shape))


def finetuned(random: np.random.Generator, x: np.ndarray, each: int, drift: float, spread: float) -> np.ndarray:
    """What a seed makes of embeddings: a linear map of its own, and a change of each patient that no map explains."""
    turn = np.eye(WIDTH) + spread * random.normal(size=(WIDTH, WIDTH))
    change = np.repeat(random.normal(size=(len(x) // each, WIDTH)), each, axis=0)
    return x @ turn + drift * np.abs(x).mean(1, keepdims=True) * change


def number(x: np.ndarray, z: np.ndarray) -> Statistic:
    return lambda kept: debiased_cka(x[kept], z[kept])


def cka_draw(patients: int, each: int, seeds: int, spread: float, *, clustered: bool = True) -> Draw:
    groups = np.repeat(np.arange(patients), each) if clustered else None

    def draw(random: np.random.Generator) -> Difference:
        x = features(random, patients, each)
        fold = folds(len(x), groups)
        arms = (
            [leave_out(number(x, finetuned(random, x, each, drift, spread)), fold) for _ in range(seeds)] for drift in (0.6, 1.0)
        )
        return paired_statistic_difference(*arms, len(x))

    return draw


def cka_truth(each: int, spread: float, seeds: int) -> float:
    random = np.random.default_rng(9)
    x = features(random, 4000, each)
    both = [[debiased_cka(x, finetuned(random, x, each, drift, spread)) for drift in (0.6, 1.0)] for _ in range(seeds)]
    return float(np.subtract(*np.mean(both, axis=0)))


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "each"), [(40, 1), (120, 1), (40, 3)])
def test_the_jackknife_of_debiased_cka_covers_for_one_seed(patients: int, each: int) -> None:
    """Measured: see `paired_statistic_difference`."""
    found = covered(cka_draw(patients, each, 1, 0.0), cka_truth(each, 0.0, 4), 500)
    print(f"\n{patients} patients of {each}: {found}")
    assert 0.92 <= found <= 0.99


@pytest.mark.slow
def test_a_jackknife_over_images_would_not_cover_where_patients_have_several() -> None:
    found = covered(cka_draw(40, 3, 1, 0.0, clustered=False), cka_truth(3, 0.0, 4), 500)
    print(f"\nas if no patient were known: {found}")
    assert found < 0.85


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_jackknife_of_debiased_cka_covers_for_several_seeds(seeds: int) -> None:
    found = covered(cka_draw(60, 1, seeds, 0.15), cka_truth(1, 0.15, 200), 200)
    print(f"\n{seeds} seeds: {found}")
    assert found >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.0), (3, 0.3), (5, 0.0), (5, 0.3)])
def test_accuracies_of_patients_are_covered(seeds: int, spread: float) -> None:
    """Patients and seeds both move the answers; an interval over images as if they were alone does not cover."""

    def scores(random: np.random.Generator, ease: np.ndarray, better: float) -> np.ndarray:
        return ease + better + random.normal(0, spread, (seeds, 1)) + random.normal(0, 0.5, (seeds, len(ease))) > 0

    def drawn(random: np.random.Generator, groups: np.ndarray | None) -> Difference:
        own = np.repeat(random.normal(0.5, 0.7, (2, 40)), 4, axis=1)  # the two arms' patients differ, as methods may
        return paired_difference(scores(random, own[0], 0.3), scores(random, own[1], 0.0), groups=groups)

    patients = np.repeat(np.arange(40), 4)
    random = np.random.default_rng(5)
    total = np.sqrt(0.7**2 + spread**2 + 0.5**2)
    wide = random.normal(0, total, 2_000_000)
    truth = float((wide > -0.8).mean() - (wide > -0.5).mean())
    found = covered(lambda one: drawn(one, patients), truth, 400)
    print(f"\n{seeds} seeds, spread {spread}: {found}")
    assert found >= 0.945

"""Intervals, paired tests and the verdict in plain words; every interval is a 95 % one.

Arms are compared on the same images and, where several were run, over the same seeds. Nothing is corrected for the number
of metrics and arms that one looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

RESAMPLES = 2000
SMALLEST = 20  # images below which we give no verdict: the bootstrap's intervals are then too short (our choice)
SMALLEST_NATURAL = 200  # natural images below which there is no verdict
Verdict = Literal["higher", "lower", "not distinguishable"]
Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Difference:
    """An arm's number minus the baseline's, with its 95 % interval; None where it could not be computed."""

    difference: float | None
    low: float | None
    high: float | None
    n: int  # images
    seeds: int
    p_value: float | None  # two-sided


@dataclass(frozen=True)
class Estimate:
    """A number of one set of images with its standard error and 95 % interval."""

    value: float
    standard_error: float
    low: float
    high: float


def proportion_interval(hits: int, n: int) -> tuple[float, float]:
    """Return the Wilson 1927 interval, within [0, 1], of a share, seen as `hits` of n; ValueError unless 0 <= hits <= n."""
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"a share needs 0 <= hits <= n and n >= 1, not {hits} of {n}")
    interval = stats.binomtest(int(hits), int(n)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mean_proportion_interval(hits: ArrayLike, totals: ArrayLike) -> tuple[float, float]:
    """Return the 95 % interval of the mean of independent shares `(k,)`, as balanced accuracy is one of its recalls.

    Zou and Donner 2008 (MOVER): the distances to the Wilson bounds of the shares, added in quadrature.
    """
    hits, totals = np.asarray(hits), np.asarray(totals)
    shares = hits / totals
    bounds = np.array([proportion_interval(int(hit), int(total)) for hit, total in zip(hits, totals, strict=True)])
    below, above = (np.linalg.norm(shares - bounds[:, side]) / len(shares) for side in (0, 1))
    return max(0.0, float(shares.mean() - below)), min(1.0, float(shares.mean() + above))


def balanced_weights(labels: ArrayLike) -> np.ndarray:
    """Return weights `(n,)` of mean 1 with which the mean of weight · correct is the balanced accuracy of the classes present."""
    _, which, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return len(which) / (len(counts) * counts[which])


def paired_difference(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Difference:
    """Compare two arms by their scores of the same images, `(seeds, n)` or `(n,)`: the mean of a - b.

    The interval is a percentile bootstrap over images crossed with seeds, widened by Student's t because seeds are few; with
    one seed it speaks of these two trained models only. The p-value tests whether swapping the arms at single images would
    change nothing, seeds averaged: exact (McNemar) where all differences but 0 have one size, else random sign flips.
    ValueError unless both are of one shape and finite.
    """
    a, b = np.atleast_2d(np.asarray(a, np.float64)), np.atleast_2d(np.asarray(b, np.float64))
    if a.shape != b.shape or a.ndim != 2 or not a.size:
        raise ValueError(f"paired scores must be two arrays (seeds, n) of one shape, not {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("paired scores must be finite")
    gaps = a - b
    seeds, n = gaps.shape
    value, over_seeds = float(gaps.mean()), gaps.mean(0)
    _, freedom = _pooled([(float(over_seeds.var()) / n, max(1, n - 1)), *_between_seeds(gaps.mean(1))])
    widened = stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975)
    low, high = value + (np.percentile(_bootstrap_means(gaps, seed), [2.5, 97.5]) - value) * widened
    return Difference(value, float(low), float(high), n, seeds, _sign_flip(over_seeds, seed))


def paired_statistic_difference(a: Sequence[Statistic], b: Sequence[Statistic], n: int, *, seed: int = 0) -> Difference:
    """Compare two arms by a number of the whole set, such as debiased CKA; one function of the kept images per seed and arm.

    Each function takes indices into the n images and returns the number of those. The grouped jackknife drops the same
    images from both arms; the variance between seeds is added to it, degrees of freedom after Welch and Satterthwaite.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"each arm needs one function per seed, not {len(a)} and {len(b)}")
    pairs = list(zip(a, b, strict=True))

    def gaps(kept: np.ndarray) -> np.ndarray:
        return np.array([f(kept) - g(kept) for f, g in pairs])

    each = gaps(np.arange(n))
    value, seeds = float(each.mean()), len(pairs)
    replicates = _leave_group_out(lambda kept: float(gaps(kept).mean()), n, 20, seed)
    variance, freedom = _pooled([(_jackknife_variance(replicates), len(replicates) - 1), *_between_seeds(each)])
    if variance == 0:
        return Difference(value, value, value, n, seeds, 1.0 if value == 0 else 0.0)
    error = np.sqrt(variance)
    low, high = stats.t.interval(0.95, freedom, value, error)
    return Difference(value, float(low), float(high), n, seeds, float(2 * stats.t.sf(abs(value) / error, freedom)))


def grouped_jackknife(function: Statistic, n: int, *, groups: int = 20, seed: int = 0) -> Estimate:
    """Estimate the interval of a smooth number of n images by leaving out one of `groups` random groups at a time (t interval).

    `function` takes indices of the images kept and returns the number of those. ValueError for fewer than 2 images.
    """
    value = float(function(np.arange(n)))
    replicates = _leave_group_out(function, n, groups, seed)
    error = float(np.sqrt(_jackknife_variance(replicates)))
    reach = float(stats.t.ppf(0.975, len(replicates) - 1)) * error
    return Estimate(value, error, value - reach, value + reach)


def verdict(difference: Difference | None, *, smallest: int = SMALLEST) -> Verdict | None:
    """Say whether the arm's number is higher or lower than the baseline's; None for a null number or below `smallest` images.

    Higher or lower needs an interval without 0 and, where there is a p-value, p <= 0.05 as well.
    """
    if difference is None or difference.n < smallest:
        return None
    if difference.difference is None or difference.low is None or difference.high is None:
        return None
    if difference.low <= 0 <= difference.high or (difference.p_value is not None and difference.p_value > 0.05):
        return "not distinguishable"
    return "higher" if difference.difference > 0 else "lower"


def sentence(metric: str, arm: str, baseline: str, difference: Difference | None, *, smallest: int = SMALLEST) -> str:
    """Return the verdict as one sentence, in the same words whether the arm wins or loses."""
    metric = metric[:1].upper() + metric[1:]
    found = verdict(difference, smallest=smallest)
    if difference is None or difference.difference is None or difference.low is None or difference.high is None:
        return f"{metric}: no verdict on {arm} against {baseline}, because a number is missing."
    seeds = f", {difference.seeds} seeds" if difference.seeds > 1 else ""
    numbers = (
        f"{_signed(difference.difference)} (95 % interval {_signed(difference.low)} to {_signed(difference.high)}, "
        f"n = {difference.n} images{seeds})"
    )
    if found is None:
        return f"{metric}: no verdict on {arm} against {baseline}, because it takes at least {smallest} images: {numbers}."
    if found == "not distinguishable":
        return f"{metric} with {arm} is not distinguishable from that with {baseline}: {numbers}."
    return f"{metric} is {found} with {arm} than with {baseline}: {numbers}."


def mean_and_standard_error(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Return mean and standard error of the values that are not None; None for what too few of them cannot give."""
    known = np.array([value for value in values if value is not None], np.float64)
    mean = float(known.mean()) if len(known) else None
    return mean, float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None


def _between_seeds(values: np.ndarray) -> list[tuple[float, int]]:
    """Return what seeds add to the variance of the mean of `(seeds,)`, with its degrees of freedom; nothing for one seed."""
    seeds = len(values)
    return [(float(values.var(ddof=1)) / seeds, seeds - 1)] if seeds > 1 else []


def _pooled(parts: list[tuple[float, int]]) -> tuple[float, float]:
    """Add variances; degrees of freedom of the sum after Welch and Satterthwaite."""
    variance = sum(part for part, _ in parts)
    return variance, variance**2 / sum(part**2 / of for part, of in parts) if variance else float(parts[0][1])


def _bootstrap_means(gaps: np.ndarray, seed: int) -> np.ndarray:
    """Draw seeds and images with replacement, RESAMPLES times: means of `(seeds, n)`."""
    seeds, n = gaps.shape
    if seeds > 1:  # drawing from few seeds understates their variance by (seeds - 1) / seeds; stretch their deviations
        center = gaps.mean(0)
        gaps = center + (gaps - center) * np.sqrt(seeds / (seeds - 1))
    random = np.random.default_rng(seed)
    means = []
    step = max(1, 1_000_000 // n)  # some 10 MB at a time
    for start in range(0, RESAMPLES, step):
        draws = min(step, RESAMPLES - start)
        shares = random.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
        images = random.integers(0, n, (draws, n))
        means.append(np.take_along_axis(shares @ gaps, images, axis=1).mean(1))
    return np.concatenate(means)


def _sign_flip(gaps: np.ndarray, seed: int) -> float:
    """Return the two-sided p-value of a mean of 0 when each of `(n,)` might as well have the other sign."""
    sizes = np.abs(gaps)
    tolerance = 1e-9 * sizes.max()
    gaps, sizes = gaps[sizes > tolerance], sizes[sizes > tolerance]
    if not len(gaps):
        return 1.0
    if np.ptp(sizes) <= tolerance:
        return float(stats.binomtest(int((gaps > 0).sum()), len(gaps)).pvalue)
    random = np.random.default_rng(seed)
    step = max(1, 1_000_000 // len(gaps))
    extreme = 0
    for start in range(0, RESAMPLES, step):
        signs = random.integers(0, 2, (min(step, RESAMPLES - start), len(gaps))) * 2 - 1
        extreme += int((np.abs(signs @ gaps) >= abs(gaps.sum()) - tolerance).sum())
    return (extreme + 1) / (RESAMPLES + 1)


def _leave_group_out(function: Statistic, n: int, groups: int, seed: int) -> np.ndarray:
    if n < 2 or groups < 2:
        raise ValueError(f"the jackknife needs at least 2 images and 2 groups, not {n} and {groups}")
    order = np.random.default_rng(seed).permutation(n)
    folds = np.array_split(order, min(groups, n))
    return np.array([function(np.setdiff1d(order, fold)) for fold in folds])


def _jackknife_variance(replicates: np.ndarray) -> float:
    return float((len(replicates) - 1) * replicates.var())


def _signed(value: float) -> str:
    """Three decimals; one significant digit where those would hide that the value is not 0."""
    return f"{value:+.3f}" if value == 0 or abs(value) >= 0.0005 else f"{value:+.1g}"

"""Numbers with their 95 % intervals as the entries of a result: `name`, `name_low`, `name_high`; or None, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import special

from rift.statistics import Statistic, folds, leave_out, paired_statistic_difference

Result = dict[str, Any]
ENDS = ("_low", "_high")


def nothing(names: Iterable[str], reason: str) -> Result:
    """Return None for each of these entries, and why."""
    names = list(names)
    return dict.fromkeys(names) | {f"{name}_reason": reason for name in names}


def number(name: str) -> list[str]:
    """Return the entries of a number with an interval."""
    return [name, *(f"{name}{end}" for end in ENDS)]


def mean(name: str, values: np.ndarray, *, least: float = -np.inf) -> Result:
    """Return the mean of one value an image `(n,)`, with Student's t interval from `least`; none for fewer than two images."""
    n, value = len(values), float(values.mean())
    if n < 2:
        return {name: value} | nothing(number(name)[1:], "an interval needs at least two images")
    reach = float(special.stdtrit(n - 1, 0.975) * values.std(ddof=1) / np.sqrt(n))
    return {name: value, f"{name}_low": max(least, value - reach), f"{name}_high": value + reach}


def share(name: str, values: np.ndarray) -> Result:
    """Return the mean of one share in [0, 1] an image `(n,)`, with Wilson's interval (1927) of n images, within [0, 1].

    Wilson's holds for hits and misses. A share of several neighbors varies at most as much, so for it the interval errs on the
    wide side (our choice: it does not shrink to nothing where all images agree).
    """
    n, p, z = len(values), float(values.mean()), float(special.ndtri(0.975))
    center, reach = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((center + way * reach) / (1 + z * z / n) for way in (-1, 1))
    return {name: p, f"{name}_low": max(0.0, float(low)), f"{name}_high": min(1.0, float(high))}


def statistic(name: str, function: Statistic, n: int, span: tuple[float, float]) -> Result:
    """Return a number of a whole set and the interval of a delete-a-group jackknife, within `span`.

    `function` takes the indices of the images that are kept. A draw with replacement would count an image's own copy as a
    second image, and a bias that falls with n would be there twice. Raises what `function` raises on all images.
    """
    value = float(function(np.arange(n)))
    try:
        each = leave_out(function, folds(n))
        found = paired_statistic_difference(each, np.zeros_like(each), n)
    except ValueError as error:
        return {name: value} | nothing(number(name)[1:], f"without a part of the images it cannot be computed: {error}")
    return {name: value, f"{name}_low": max(span[0], float(found.low)), f"{name}_high": min(span[1], float(found.high))}

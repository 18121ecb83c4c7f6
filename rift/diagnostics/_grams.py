"""Linear CKA from centred Gram matrices `(n, n)`, biased and debiased, each with its values when one image is left out.

With many features per image (all tokens) the Gram matrix is the small one; and leaving image i out needs no new one: of rows
that sum to zero, each sum over the others is minus an entry. So all n left-out values cost O(n²) together, not O(n³).
"""

from __future__ import annotations

import numpy as np

CHUNK = 1 << 14  # features that are turned to float64 at a time


def gram(features: np.ndarray) -> np.ndarray:
    """Return X Xᵀ `(n, n)` in float64 of features `(n, d)`, of which the mean is taken first."""
    found = np.zeros((len(features), len(features)))
    for start in range(0, features.shape[1], CHUNK):
        part = features[:, start : start + CHUNK].astype(np.float64)
        part -= part[0]  # exactly 0 where constant, which the mean's rounding would hide
        part -= part.mean(0)
        found += part @ part.T
    return found


def cka(k: np.ndarray, l: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # noqa: E741 - the names in the equation
    """Return linear CKA and its debiased form, `(2,)`, and both with each image left out, `(2, n)`; nan where undefined.

    Kornblith 2019 (arXiv 1905.00414) Section 3; debiased: HSIC_1 of Song 2012, Eq. 5, which takes four images.
    """
    values, without = np.full(2, np.nan), np.full((2, len(k)), np.nan)
    for place, terms in enumerate((_biased, _debiased)):
        if len(k) < (2, 4)[place]:
            continue
        (kl, kl_out), (kk, kk_out), (ll, ll_out) = terms(k, l), terms(k, k), terms(l, l)
        values[place] = _ratio(kl, kk, ll, k, l)
        if len(k) > (2, 4)[place]:
            without[place] = _ratio(kl_out, kk_out, ll_out, k, l)
    return values, without


def permuted(k: np.ndarray, l: np.ndarray, draws: int, seed: int = 0) -> np.ndarray:  # noqa: E741
    """Return `(2, draws)` values of CKA between images and images of another order: what unrelated rows have."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(k)) for _ in range(draws)]
    return np.transpose([cka(k, l[np.ix_(order, order)])[0] for order in orders])


def deviation(without: np.ndarray) -> np.ndarray:
    """Return the jackknife's standard deviation of a number from its values with each image left out `(…, n)`."""
    n = without.shape[-1]
    return np.sqrt((n - 1) / n * np.square(without - without.mean(-1, keepdims=True)).sum(-1))


def _ratio(kl: np.ndarray, kk: np.ndarray, ll: np.ndarray, k: np.ndarray, l: np.ndarray) -> np.ndarray:  # noqa: E741
    """kl / √(kk ll), nan where one of the models puts all images in one place or each in a direction of its own."""
    defined = (kk > 1e-12 * np.vdot(k, k)) & (ll > 1e-12 * np.vdot(l, l))
    safe = np.where(defined, kk * ll, 1.0)
    return np.where(defined, kl / np.sqrt(safe), np.nan)


def _biased(k: np.ndarray, l: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # noqa: E741
    """tr(K L), and with each image left out."""
    m, product, ends = len(k) - 1, (k * l).sum(1), np.diag(k) * np.diag(l)
    total = product.sum()
    return total, total - 2 * product + ends - 2 / m * (product - ends) + ends / m**2


def _debiased(k: np.ndarray, l: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # noqa: E741
    """m (m - 3) HSIC_1 of centred Gram matrices, and with each image left out."""
    n, (inner, inner_out) = len(k), _biased(k, l)
    value = _song(inner, np.diag(k) @ np.diag(l), np.trace(k) * np.trace(l), n)
    a, b = _diagonals(k), _diagonals(l)
    if n < 5:
        return value, np.full(n, np.nan)
    return value, _song(inner_out, (a * b).sum(1), a.sum(1) * b.sum(1), n - 1)


def _song(inner: np.ndarray, diagonals: np.ndarray, traces: np.ndarray, m: int) -> np.ndarray:
    return inner - m / (m - 2) * diagonals + traces / ((m - 1) * (m - 2))


def _diagonals(k: np.ndarray) -> np.ndarray:
    """The diagonal, centred again, of K without image i: row i of `(n, n)`, 0 at i itself."""
    m, diagonal = len(k) - 1, np.diag(k)
    found = diagonal[None] + 2 / m * k + diagonal[:, None] / m**2
    np.fill_diagonal(found, 0)
    return found

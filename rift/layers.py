"""CKA of every layer of one model with every layer of another, in few matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from rift.similarity import centered

BLOCK = 256  # images: the blocks of all Gram matrices that are in memory at a time have BLOCK x BLOCK entries
ROWS = 4096  # images whose covariance is summed in the features' own precision


def cross_cka(xs: Sequence[ArrayLike], ys: Sequence[ArrayLike], *, debiased: bool = False) -> np.ndarray:
    """Return the linear CKA `(l, m)` of each of l layers `(n, d)` with each of m layers `(n, e)` of the same images.

    Entry by entry `similarity.cka` or `similarity.debiased_cka`; an array `(l, n, d)` is l layers. Every ⟨K, L⟩ comes from
    blocks of the Gram matrices or from the cross-covariances, whichever takes fewer multiplications, so that memory grows with
    n, not with n². Features of single precision are multiplied in it; all sums are of double precision.
    ValueError, naming the layer, where one of the entries is undefined.
    """
    l, single = len(xs), all(np.asarray(one).dtype == np.float32 for one in (*xs, *ys))  # noqa: E741 - layers
    layers, squares = _centered(xs, ys, single)
    m = squares.shape[1]
    cross, own = _inner(layers, squares, l)
    both = squares @ squares.T
    return ratio(cross, own, squares.sum(1), both[:l, l:], both.diagonal(), m, debiased=debiased)


def ratio(
    cross: np.ndarray, own: np.ndarray, sums: np.ndarray, both: np.ndarray, each: np.ndarray, m: int, *, debiased: bool
) -> np.ndarray:
    """Return CKA `(l, k)` of l with k layers of centered features of m images, from their sums over images.

    `cross` `(l, k)` is ⟨K, L⟩ and `own` `(l + k,)` ⟨K, K⟩; with the rows' squares r and s, `sums` is Σ r `(l + k,)`, `both` Σ r s
    `(l, k)` and `each` Σ r² `(l + k,)`. ValueError where the debiased form is undefined.
    """
    l = len(cross)  # noqa: E741 - layers
    if debiased and m < 4:
        raise ValueError(f"debiased CKA needs at least 4 images, not {m}")
    if debiased:  # HSIC_1 (Song 2012, Eq. 5) of centered features, as in `similarity`
        biased = own
        own = own - m / (m - 2) * each + sums**2 / ((m - 1) * (m - 2))
        cross = cross - m / (m - 2) * both + np.outer(sums[:l], sums[l:]) / ((m - 1) * (m - 2))
        for place in np.flatnonzero(own <= 1e-12 * biased)[:1]:
            raise ValueError(
                f"{named(place, l)}: debiased CKA is undefined: each of the {m} images lies in a direction of its own"
            )
    return cross / np.sqrt(np.outer(own[:l], own[l:]))


def _centered(xs: Sequence[ArrayLike], ys: Sequence[ArrayLike], single: bool) -> tuple[list[np.ndarray], np.ndarray]:
    """Return each layer's centered features, of unit size so that single precision holds them, and their rows' squares."""
    if not len(xs) or not len(ys):
        raise ValueError(f"the {'second' if len(xs) else 'first'} model has no layers")
    layers, squares = [], []
    for place, given in enumerate((*xs, *ys)):
        try:
            layer = centered(given)
        except ValueError as error:
            raise ValueError(f"{named(place, len(xs))}: {error}") from None
        rows = np.einsum("ij,ij->i", layer, layer)
        layers.append(np.empty(layer.shape, np.float32 if single else np.float64))
        np.divide(layer, np.sqrt(rows.mean()), out=layers[-1], casting="same_kind")
        squares.append(rows / rows.mean())
    counts = sorted({len(layer) for layer in layers})
    if len(counts) > 1:
        raise ValueError(f"all layers must hold the same images, but there are {' and '.join(map(str, counts))} rows")
    return layers, np.stack(squares)


def named(place: int, l: int) -> str:  # noqa: E741
    """Say which layer of both models, l of the first and then those of the second, is meant."""
    return f"layer {place + 1} of the first" if place < l else f"layer {place - l + 1} of the second"


def _inner(layers: list[np.ndarray], squares: np.ndarray, l: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: E741
    """Return ⟨K, L⟩ of each of the first l layers with each of the rest, and ⟨K, K⟩ of all, by the cheaper of two ways."""
    n, widths = len(layers[0]), np.array([layer.shape[1] for layer in layers])
    by_images = n**2 / 2 * (widths.sum() + len(layers) ** 2)
    by_features = n * (widths[:l].sum() * widths[l:].sum() + np.square(widths).sum())
    if by_images < by_features:
        table = _by_images(layers) + squares @ squares.T  # the diagonals apart, where rounding would weigh most
        return table[:l, l:], table.diagonal()

    def product(x: np.ndarray, y: np.ndarray) -> float:
        parts = (slice(start, start + ROWS) for start in range(0, n, ROWS))
        return float(np.square(sum(np.matmul(x[part].T, y[part]).astype(np.float64) for part in parts)).sum())

    cross = np.array([[product(x, y) for y in layers[l:]] for x in layers[:l]])
    return cross, np.array([product(x, x) for x in layers])


def _by_images(layers: list[np.ndarray]) -> np.ndarray:
    """Return ⟨K, L⟩ of all pairs without the diagonals of K and L; blocks below the diagonal mirror those above it."""
    n, k = len(layers[0]), len(layers)
    side = min(n, BLOCK)
    table, products, precise = np.zeros((k, k)), np.empty((k, side**2), layers[0].dtype), np.empty((k, side**2))
    for top in range(0, n, side):
        for left in range(top, n, side):
            height, width = min(side, n - top), min(side, n - left)
            used = slice(height * width)
            for x, flat in zip(layers, products[:, used], strict=True):
                block = flat.reshape(height, width)
                np.matmul(x[top : top + side], x[left : left + side].T, out=block)
                if left == top:
                    np.fill_diagonal(block, 0)
            precise[:, used] = products[:, used]
            table += (1 if left == top else 2) * (precise[:, used] @ precise[:, used].T)
    return table

"""How alike two sets of embeddings of the same images are; pure numpy in float64 on arrays `(n, d)`, rows are images.

Every measure raises ValueError, never returns nan, where it is undefined: unequal numbers of images, too few images,
non-finite values, or features that do not vary. All centre the features first, so a shift of the mean changes none of them.

| measure                    | rotation | scale     | mean shift | which image is which |
| -------------------------- | -------- | --------- | ---------- | -------------------- |
| cka, debiased_cka          | ignores  | ignores   | ignores    | matters              |
| procrustes, mutual_knn     | ignores  | ignores   | ignores    | matters              |
| cosine with the pretrained | sees     | ignores   | sees       | matters              |
| RIFT with Q = I            | sees     | sees      | ignores    | does not matter      |
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


def cka(x: ArrayLike, y: ArrayLike) -> float:
    """Return the linear CKA of `(n, d)` and `(n, e)`, in [0, 1] (Kornblith 2019, arXiv 1905.00414, Section 3).

    It is biased upwards: unrelated isotropic features have about d / (n + d), so with few images prefer `debiased_cka`.
    """
    return _cka(*_pair(x, y), debiased=False)


def debiased_cka(x: ArrayLike, y: ArrayLike) -> float:
    """Return the linear CKA of `(n, d)` and `(n, e)` with HSIC_1 (Song 2012, Eq. 5) for HSIC: in [-1, 1], about 0 when unrelated.

    A negative value means "no similarity that these images can show" and is not clamped. ValueError for fewer than 4 images.
    """
    return _cka(*_pair(x, y), debiased=True)


def layer_cka(xs: ArrayLike, ys: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the biased and the debiased CKA, each `(l,)`, of every layer of activations `(l, n, d)` and `(l, n, e)`."""
    before, after = np.asarray(xs), np.asarray(ys)
    if before.ndim != 3 or after.ndim != 3 or before.shape[:2] != after.shape[:2]:
        raise ValueError(f"layers need two arrays (l, n, d) with the same l and n, not {before.shape} and {after.shape}")
    pairs = [_pair(x, y) for x, y in zip(before, after, strict=True)]
    biased, debiased = ([_cka(x, y, debiased=way) for x, y in pairs] for way in (False, True))
    return np.array(biased), np.array(debiased)


def procrustes(x: ArrayLike, y: ArrayLike) -> float:
    """Return how well one rotation and one scale turn `(n, d)` into `(n, e)`, in [0, 1]: ‖XᵀY‖_* / (‖X‖_F ‖Y‖_F).

    In-sample: unrelated Gaussians have .75 at n = d and still .47 at n = 3 d, so it takes many more images than dimensions.
    """
    x, y = (_narrow(a) for a in _pair(x, y))
    overlap = np.linalg.svd(x.T @ y, compute_uv=False).sum()
    return min(1.0, float(overlap / (np.linalg.norm(x) * np.linalg.norm(y))))


def mutual_knn(x: ArrayLike, y: ArrayLike, k: int = 10) -> float:
    """Return the mean share of each image's k nearest others (Euclidean) that `(n, d)` and `(n, e)` have in common, in [0, 1].

    After Huh 2024 (arXiv 2405.07987), which takes inner products; we take distances because they ignore a mean shift.
    Unrelated features share about k / (n - 1).
    """
    from sklearn.neighbors import NearestNeighbors  # takes a second to import

    x, y = _pair(x, y)
    if not 1 <= k < len(x):
        raise ValueError(f"k = {k} neighbors need 1 <= k < n, and there are n = {len(x)} images")
    near = [NearestNeighbors(n_neighbors=k, algorithm="brute").fit(a).kneighbors(return_distance=False) for a in (x, y)]
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(*near, strict=True)]) / k)


def rotation(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Return the orthogonal Q `(d, d)`, reflections included, for which centred x Q is nearest to centred y, both `(n, d)`.

    Q = U Wᵀ of the SVD of XᵀY (Schönemann 1966). With fewer images than dimensions it is arbitrary outside their span.
    """
    return _polar(_cross(x, y))


def shrunk_rotation(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Return `rotation`, pulled towards the identity where n images say little.

    The polar factor of C + (d / n) · mean σ(C) · I with C = XᵀY. Our choice: a rotation fitted on about as many images as
    dimensions adds more error than it undoes.
    """
    cross = _cross(x, y)
    n, d = np.shape(x)
    mean_singular_value = np.linalg.svd(cross, compute_uv=False).mean()
    return _polar(cross + d / n * mean_singular_value * np.eye(d))


def unrotate(before: ArrayLike, after: ArrayLike, seed: int = 0) -> np.ndarray:
    """Return `after` `(n, d)` with the mean and the rotation that finetuning added undone: (z - μ_after) Qᵀ + μ_before.

    Label-free and cross-fitted: means and the shrunk rotation of each half of the images (drawn from `seed`) come from the
    other half, so no image corrects itself. The scale is left alone. ValueError below 2 d images: a half would have fewer than d.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.shape != after.shape or before.ndim != 2:
        raise ValueError(f"embeddings must be two arrays (n, d) of one shape, not {before.shape} and {after.shape}")
    n, d = before.shape
    if n < 2 * d:
        raise ValueError(f"{n} images are too few to undo a rotation in {d} dimensions; it takes at least {2 * d}")
    order = np.random.default_rng(seed).permutation(n)
    halves = order[: n // 2], order[n // 2 :]
    restored = np.empty_like(after)
    for fit, apply in (halves, halves[::-1]):
        turn = shrunk_rotation(before[fit], after[fit])
        restored[apply] = (after[apply] - after[fit].mean(0)) @ turn.T + before[fit].mean(0)
    return restored


def halves(labels: ArrayLike, seed: int = 0) -> np.ndarray:
    """Return 0 or 1 for each of the labels `(n,)`: a random half of the images of every class, the odd one in half 0."""
    labels, random = np.asarray(labels), np.random.default_rng(seed)
    half = np.zeros(len(labels), int)
    for label in np.unique(labels):
        half[random.permutation(np.flatnonzero(labels == label))[1::2]] = 1
    return half


def class_means(x: ArrayLike, labels: ArrayLike, classes: int) -> np.ndarray:
    """Return the mean direction `(classes, d)` of each class's embeddings `(n, d)`: the L2-normalized mean of L2-normalized rows.

    A class without an image is nan; a label below 0 counts for none.
    """
    unit = np.asarray(x, np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    labels = np.asarray(labels)
    means = np.full((classes, unit.shape[1]), np.nan)
    for label in np.unique(labels[labels >= 0]):
        mean = unit[labels == label].mean(0)
        means[label] = mean / max(np.linalg.norm(mean), 1e-12)
    return means


class Pca(NamedTuple):
    """Principal axes; coordinates of images are `(x - mean) @ basis`."""

    basis: np.ndarray  # (d, k), orthonormal columns, by falling variance
    mean: np.ndarray  # (d,)
    variance: np.ndarray  # (k,), with 1 / (n - 1)
    share: np.ndarray  # (k,), of the total variance, in [0, 1]


def pca(x: ArrayLike, k: int = 2) -> Pca:
    """Return the first k principal axes of `(n, d)`; each axis points so that its largest entry is positive.

    ValueError unless 1 <= k <= min(n - 1, d).
    """
    centred = _centred(x)
    n, d = centred.shape
    if not 1 <= k <= min(n - 1, d):
        raise ValueError(f"k = {k} axes need 1 <= k <= {min(n - 1, d)} with {n} images of {d} features")
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:k]
    axes *= np.sign(axes[np.arange(k), np.abs(axes).argmax(1)])[:, None]
    variance = singular**2 / (n - 1)
    return Pca(axes.T, np.asarray(x, np.float64).mean(0), variance[:k], variance[:k] / variance.sum())


def _cka(x: np.ndarray, y: np.ndarray, *, debiased: bool) -> float:
    if debiased and len(x) < 4:
        raise ValueError(f"debiased CKA needs at least 4 images, not {len(x)}")
    hsic = _hsic1 if debiased else _inner
    xx, yy = hsic(x, x), hsic(y, y)
    for self_term, a in ((xx, x), (yy, y)):
        if self_term <= 1e-12 * _inner(a, a):
            raise ValueError(f"debiased CKA is undefined: each of the {len(a)} images lies in a direction of its own")
    return float(hsic(x, y) / np.sqrt(xx * yy))


def _hsic1(x: np.ndarray, y: np.ndarray) -> float:
    """Return m (m - 3) HSIC_1 of centred features; the factor cancels in CKA.

    With K = X Xᵀ of centred X all rows of K sum to 0, so with k its diagonal Eq. 5 of Song 2012 shrinks to this line.
    """
    m, k, l = len(x), np.square(x).sum(1), np.square(y).sum(1)  # noqa: E741 - the names in the equation
    return _inner(x, y) - m / (m - 2) * (k @ l) + k.sum() * l.sum() / ((m - 1) * (m - 2))


def _inner(x: np.ndarray, y: np.ndarray) -> float:
    """Return tr(X Xᵀ Y Yᵀ) = ‖XᵀY‖²_F, through whichever of the n × n and the d × e matrices is cheaper."""
    if len(x) < min(x.shape[1], y.shape[1]):
        return float(np.vdot(x @ x.T, y @ y.T))
    return float(np.square(x.T @ y).sum())


def _narrow(x: np.ndarray) -> np.ndarray:
    """Rotate centred features into the at most n dimensions that they span."""
    return np.transpose(np.linalg.qr(x.T, mode="r")) if len(x) < x.shape[1] else x


def _cross(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    x, y = _pair(x, y)
    if x.shape != y.shape:
        raise ValueError(f"a rotation needs two arrays of one shape, not {x.shape} and {y.shape}")
    return x.T @ y


def _polar(matrix: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(matrix)
    return left @ right


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = _centred(x), _centred(y)
    if len(x) != len(y):
        raise ValueError(f"both arrays must hold the same images, but one has {len(x)} rows and the other {len(y)}")
    return x, y


def _centred(x: ArrayLike) -> np.ndarray:
    """Return float64 features minus their mean; refuse what no similarity is defined for."""
    given = np.asarray(x)
    if given.ndim != 2 or len(given) < 2:
        raise ValueError(f"features must be an array (n, d) with at least 2 images, not {given.shape}")
    wide = given.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ValueError("features hold values that are not finite")
    shifted = wide - wide[0]  # exactly 0 where constant, which the mean's rounding would hide
    centred = shifted - shifted.mean(0)
    rounding = np.finfo(given.dtype).eps if given.dtype.kind == "f" else np.finfo(np.float64).eps
    if np.linalg.norm(centred) <= 4 * rounding * np.linalg.norm(wide):
        raise ValueError(f"features are constant: all {len(given)} images have the same {given.shape[1]} values up to rounding")
    return centred

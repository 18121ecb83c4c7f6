"""How alike two sets of embeddings of the same images are; pure numpy in float64 on arrays `(n, d)`, rows are images.

Every measure raises ValueError, never returns nan, where it is undefined: unequal numbers of images, too few images,
non-finite values, or features that do not vary. All but `cosine` centre the features first, so a shift of the mean changes
none of them. CKA of many layers with many is in `layers.py`.

| measure                    | rotation | scale     | mean shift | which image is which |
| -------------------------- | -------- | --------- | ---------- | -------------------- |
| cka, debiased_cka          | ignores  | ignores   | ignores    | matters              |
| procrustes                 | ignores  | ignores   | ignores    | matters              |
| mutual_knn, cknna          | ignores  | ignores   | ignores    | matters              |
| cosine with the pretrained | sees     | ignores   | sees       | matters              |
| RIFT with Q = I            | sees     | sees      | ignores    | does not matter      |
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

BLOCK = 512  # images: of Gram matrices at most so many rows are in memory at a time


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


def shuffled_cka(x: ArrayLike, y: ArrayLike, *, debiased: bool = True, shuffles: int = 100, seed: int = 0) -> np.ndarray:
    """Return the CKA `(shuffles,)` of `(n, d)` and `(n, e)` when it is shuffled, each time anew, which image is which.

    It is what features of these spectra show with nothing in common: their floor. Products are of single precision, which moves
    a floor by less than 1e-4. ValueError where the CKA is undefined.
    """
    one, two = (a / np.linalg.norm(a) for a in map(_narrow, _pair(x, y)))
    scale = _scale(one, two, debiased=debiased)
    hsic, random = _hsic1 if debiased else _inner, np.random.default_rng(seed)
    one, two = one.astype(np.float32), two.astype(np.float32)
    return np.array([hsic(one, two[random.permutation(len(two))]) for _ in range(shuffles)], np.float64) / scale


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


def cknna(x: ArrayLike, y: ArrayLike, k: int = 10) -> float:
    """Return the debiased CKA of `(n, d)` and `(n, e)` that counts near neighbors only, about in [-1, 1] (Huh 2024, Section B).

    Kernels are inner products of unit rows. Of both, only those entries count where j is among the k nearest others of i in x
    and in y; HSIC_1 (Song 2012, Eq. 5) of the masked kernels stands in for HSIC, as in the authors' code. The joint mask is not
    symmetric, so swapping x and y moves it a little. Centering before the rows get unit length is our choice: it ignores a
    mean shift. At k = n - 1 it is the debiased CKA of the unit rows. ValueError unless 2 <= k < n, and for fewer than 4 images.
    """
    x, y = _pair(x, y)
    n = len(x)
    if n < 4 or not 2 <= k < n:
        raise ValueError(f"CKNNA with k = {k} neighbors needs 2 <= k < n and at least 4 images, and there are n = {n}")
    units = [a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12) for a in (x, y)]

    def aligned(a: Any, b: Any) -> float:
        return float((a * b.T).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a.sum(0) @ b.sum(1)))

    kernels = _masked(units, k)
    own = [aligned(one, one) for one in kernels[2:]]
    if min(own) <= 1e-12:
        raise ValueError(f"CKNNA is undefined: among {n} images the {k} nearest neighbors show no structure")
    return aligned(*kernels[:2]) / float(np.sqrt(own[0] * own[1]))


def cosine(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Return the cosine `(n,)` in [-1, 1] of each image's rows of `(n, d)` and `(n, d)`: 1 where it kept its direction.

    ValueError unless both are of one shape, finite, and without a row of zeros.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 2 or not x.size:
        raise ValueError(f"a cosine needs two arrays (n, d) of one shape, not {x.shape} and {y.shape}")
    sizes = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    if not np.isfinite(sizes).all():
        raise ValueError("features hold values that are not finite")
    if not sizes.all():
        raise ValueError(f"the cosine of {int((sizes == 0).sum())} of {len(x)} images is undefined: their features are all 0")
    return np.clip((x * y).sum(1) / sizes, -1.0, 1.0)


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
    centred = centered(x)
    n, d = centred.shape
    if not 1 <= k <= min(n - 1, d):
        raise ValueError(f"k = {k} axes need 1 <= k <= {min(n - 1, d)} with {n} images of {d} features")
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:k]
    axes *= np.sign(axes[np.arange(k), np.abs(axes).argmax(1)])[:, None]
    variance = singular**2 / (n - 1)
    return Pca(axes.T, np.asarray(x, np.float64).mean(0), variance[:k], variance[:k] / variance.sum())


def _cka(x: np.ndarray, y: np.ndarray, *, debiased: bool) -> float:
    scale = _scale(x, y, debiased=debiased)
    return float((_hsic1 if debiased else _inner)(x, y) / scale)


def _scale(x: np.ndarray, y: np.ndarray, *, debiased: bool) -> float:
    """Return what CKA divides by: the geometric mean of both self-terms."""
    if debiased and len(x) < 4:
        raise ValueError(f"debiased CKA needs at least 4 images, not {len(x)}")
    biased = [_inner(a, a) for a in (x, y)]
    own = [_hsic1(a, a, inner) for a, inner in zip((x, y), biased, strict=True)] if debiased else biased
    if any(one <= 1e-12 * whole for one, whole in zip(own, biased, strict=True)):
        raise ValueError(f"debiased CKA is undefined: each of the {len(x)} images lies in a direction of its own")
    return float(np.sqrt(own[0] * own[1]))


def _hsic1(x: np.ndarray, y: np.ndarray, inner: float | None = None) -> float:
    """Return m (m - 3) HSIC_1 of centred features, of which ⟨K, L⟩ may be known; the factor cancels in CKA.

    With K = X Xᵀ of centred X all rows of K sum to 0, so with k its diagonal Eq. 5 of Song 2012 shrinks to this line.
    """
    m, (k, l) = len(x), (np.einsum("ij,ij->i", a, a) for a in (x, y))  # noqa: E741 - the names in the equation
    return (_inner(x, y) if inner is None else inner) - m / (m - 2) * (k @ l) + k.sum() * l.sum() / ((m - 1) * (m - 2))


def _inner(x: np.ndarray, y: np.ndarray) -> float:
    """Return tr(X Xᵀ Y Yᵀ) = ‖XᵀY‖²_F, from blocks of the n × n or from the d × e matrices, whichever is cheaper."""
    if len(x) >= min(x.shape[1], y.shape[1]):
        return float(np.square(x.T @ y).sum())
    parts = [slice(start, start + BLOCK) for start in range(0, len(x), BLOCK)]
    pairs = ((a, b, 1 + (i < j)) for j, b in enumerate(parts) for i, a in enumerate(parts[: j + 1]))  # the others mirror these
    return float(sum(times * float(np.vdot(x[a] @ x[b].T, y[a] @ y[b].T)) for a, b, times in pairs))


def _masked(units: list[np.ndarray], k: int) -> list[Any]:
    """Return sparse kernels `(n, n)` of two sets of unit rows: both where near in both, then each where near in itself."""
    from scipy import sparse

    found = []
    for start in range(0, len(units[0]), BLOCK):
        kernels = [unit[start : start + BLOCK] @ unit.T for unit in units]
        masks = [np.zeros(kernel.shape, bool) for kernel in kernels]
        for kernel, mask in zip(kernels, masks, strict=True):
            others = -kernel
            np.fill_diagonal(others[:, start:], np.inf)
            np.put_along_axis(mask, np.argpartition(others, k - 1, axis=1)[:, :k], True, axis=1)
        joint = masks[0] & masks[1]
        found.append([sparse.csr_array(kernel * mask) for kernel, mask in zip(2 * kernels, (joint, joint, *masks), strict=True)])
    return [sparse.vstack(parts, "csr") for parts in zip(*found, strict=True)]


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
    x, y = centered(x), centered(y)
    if len(x) != len(y):
        raise ValueError(f"both arrays must hold the same images, but one has {len(x)} rows and the other {len(y)}")
    return x, y


def centered(x: ArrayLike) -> np.ndarray:
    """Return features `(n, d)` minus their mean as float64; ValueError for what no similarity is defined for."""
    given = np.asarray(x)
    if given.ndim != 2 or len(given) < 2:
        raise ValueError(f"features must be an array (n, d) with at least 2 images, not {given.shape}")
    wide = given.astype(np.float64)
    size = np.linalg.norm(wide)
    if not np.isfinite(size) and not np.isfinite(wide).all():
        raise ValueError("features hold values that are not finite")
    wide -= wide[0].copy()  # exactly 0 where constant, which the mean's rounding would hide
    wide -= wide.mean(0)
    rounding = np.finfo(given.dtype).eps if given.dtype.kind == "f" else np.finfo(np.float64).eps
    if np.linalg.norm(wide) <= 4 * rounding * size:
        raise ValueError(f"features are constant: all {len(given)} images have the same {given.shape[1]} values up to rounding")
    return wide

"""Similarity measures against slow independent references, their invariances, and every error."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
from PIL import Image
from scipy.stats import ortho_group

from rift.similarity import (
    cka,
    class_means,
    debiased_cka,
    halves,
    mutual_knn,
    pca,
    procrustes,
    rotation,
    shrunk_rotation,
    unrotate,
)

MEASURES = [cka, debiased_cka, procrustes, mutual_knn]


def related(n: int, d: int, noise: float = 0.7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two feature sets `(n, d)` that agree in part, with unequal variances and a mean."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, d)) * np.linspace(2, 0.2, d) + 3
    return x, x + noise * random.normal(size=(n, d))


def slow_cka(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    k, l = (h @ np.array([[np.dot(a, b) for b in z] for a in z]) @ h for z in (x, y))  # noqa: E741
    return float(np.trace(k @ l) / np.sqrt(np.trace(k @ k) * np.trace(l @ l)))


def slow_hsic1(x: np.ndarray, y: np.ndarray) -> float:
    """Song 2012 Eq. 3: the unbiased estimate as what it is, a mean over all ordered quadruples of different images."""
    k, l = x @ x.T, y @ y.T  # noqa: E741
    quadruples = itertools.permutations(range(len(x)), 4)
    return float(np.mean([k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in quadruples]))


@pytest.mark.parametrize("d", [3, 30])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cka_agrees_with_slow_gram_form(d: int, seed: int) -> None:
    x, y = related(12, d, seed=seed)
    assert cka(x, y[:, : d - 1]) == pytest.approx(slow_cka(x, y[:, : d - 1]), abs=1e-12)


@pytest.mark.parametrize("d", [3, 30])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_debiased_cka_agrees_with_sum_over_quadruples(d: int, seed: int) -> None:
    x, y = related(8, d, seed=seed)
    expected = slow_hsic1(x, y) / np.sqrt(slow_hsic1(x, x) * slow_hsic1(y, y))
    assert debiased_cka(x, y) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("measure", [cka, debiased_cka])
def test_gram_and_feature_form_agree(measure: Callable) -> None:
    x, y = related(20, 19)  # feature form; columns of zeros make it the Gram form and change nothing else
    wide = [np.hstack([z, np.zeros((20, 40))]) for z in (x, y)]
    assert measure(x, y) == pytest.approx(measure(*wide), abs=1e-12)
    assert procrustes(x, y) == pytest.approx(procrustes(*wide), abs=1e-12)


@pytest.mark.parametrize("n, d", [(40, 6), (12, 60)])
def test_procrustes_and_rotation_agree_with_scipy(n: int, d: int) -> None:
    x, y = (z - z.mean(0) for z in related(n, d))
    q, scale = scipy.linalg.orthogonal_procrustes(x, y)
    assert procrustes(x, y) == pytest.approx(scale / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-12)
    np.testing.assert_allclose(x @ rotation(x + 5, y), x @ q, atol=1e-8)


@pytest.mark.parametrize("n, d", [(60, 8), (20, 50)])
@pytest.mark.parametrize("measure", MEASURES)
def test_rotation_scale_shift_and_order_of_images_change_nothing(measure: Callable, n: int, d: int) -> None:
    x, y = related(n, d)
    q = ortho_group.rvs(d, random_state=1)
    shuffled = np.random.default_rng(2).permutation(n)
    value = measure(x, y)
    for other in (y @ q, 7 * y, y - 40, y[:, ::-1]):
        assert measure(x, other) == pytest.approx(value, abs=1e-9)
    assert measure(x[shuffled], y[shuffled]) == pytest.approx(value, abs=1e-9)
    assert measure(y, x) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_exact_rotation_is_one_and_shuffled_images_are_not(measure: Callable) -> None:
    x, _ = related(600, 8)
    assert measure(x, 3 * x @ ortho_group.rvs(8, random_state=0) + 1) == pytest.approx(1, abs=1e-9)
    assert measure(x, x) <= 1
    assert measure(x, np.random.default_rng(0).permutation(x)) < 0.2


@pytest.mark.parametrize("n, d", [(32, 96), (64, 96), (400, 96)])
def test_unrelated_features_debiased_zero_biased_d_over_n_plus_d(n: int, d: int) -> None:
    draws = np.random.default_rng(0).normal(size=(20, 2, n, d))
    assert np.mean([cka(*pair) for pair in draws]) == pytest.approx(d / (n + d), abs=0.01)
    debiased = [debiased_cka(*pair) for pair in draws]
    assert abs(np.mean(debiased)) < 0.01
    assert min(debiased) < 0  # not clamped


def test_procrustes_overfits_in_sample_and_not_out_of_sample() -> None:
    for n, expected in ((64, 0.75), (192, 0.47)):
        x, y = np.random.default_rng(0).normal(size=(2, 2 * n, 64))
        assert procrustes(x[:n], y[:n]) == pytest.approx(expected, abs=0.02)
        held_out = np.sum((x[n:] @ rotation(x[:n], y[:n])) * y[n:]) / np.linalg.norm(x[n:]) / np.linalg.norm(y[n:])
        assert abs(held_out) < 0.05


@pytest.mark.parametrize("measure", MEASURES)
def test_float32_gives_the_same_number(measure: Callable) -> None:
    x, y = related(50, 12)
    assert measure(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(measure(x, y), abs=1e-5)


@pytest.mark.parametrize("measure", [cka, debiased_cka, procrustes])
def test_a_large_common_mean_costs_no_accuracy(measure: Callable) -> None:
    x, y = related(50, 12)
    assert measure(x + 1e6, y - 1e6) == pytest.approx(measure(x, y), abs=1e-7)


def test_mutual_knn_by_brute_force() -> None:
    x, y = related(40, 5)
    near = [np.argsort(scipy.spatial.distance.cdist(z, z) + np.diag(np.full(40, np.inf)))[:, :4] for z in (x, y)]
    expected = np.mean([len(set(a) & set(b)) / 4 for a, b in zip(*near, strict=True)])
    assert 0 < mutual_knn(x, y, 4) == pytest.approx(expected)
    with pytest.raises(ValueError, match="k = 40 neighbors need 1 <= k < n"):
        mutual_knn(x, y, 40)


def test_pca_agrees_with_the_covariance_and_has_one_sign() -> None:
    x, _ = related(50, 6)
    found = pca(x, 3)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    np.testing.assert_allclose(found.variance, values[::-1][:3])
    np.testing.assert_allclose(found.share, values[::-1][:3] / values.sum())
    np.testing.assert_allclose(np.abs(found.basis), np.abs(vectors[:, ::-1][:, :3]), atol=1e-9)
    np.testing.assert_allclose(((x - found.mean) @ found.basis).var(0, ddof=1), found.variance)
    assert (found.basis[np.abs(found.basis).argmax(0), np.arange(3)] > 0).all()
    np.testing.assert_allclose(pca(2 * found.mean - x, 3).basis, found.basis, atol=1e-9)  # mirrored images, same axes
    with pytest.raises(ValueError, match="1 <= k <= 6"):
        pca(x, 7)
    with pytest.raises(ValueError, match="1 <= k <= 3"):
        pca(x[:4], 4)


def zero_shot(embeddings: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> float:
    return float(((embeddings @ rows.T).argmax(1) == labels).mean())


def toy(n: int = 4000, d: int = 24, classes: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings with a large common mean, class directions and labels, as a CLIP model has them."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(classes, d))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = random.integers(0, classes, n)
    return rows[labels] + 0.1 * random.normal(size=(n, d)), rows, labels


def test_rotation_breaks_zero_shot_and_undoing_it_restores() -> None:
    before, rows, labels = toy()
    q = ortho_group.rvs(before.shape[1], random_state=3)
    after = before @ q + 0.5
    assert cka(before, after) == pytest.approx(1)
    original = zero_shot(before, rows, labels)
    assert original > 0.9 > 0.3 > zero_shot(after, rows, labels)
    np.testing.assert_allclose((after - after.mean(0)) @ rotation(before, after).T + before.mean(0), before, atol=1e-6)
    assert zero_shot(unrotate(before, after), rows, labels) == pytest.approx(original, abs=0.01)


def test_unrotate_changes_nothing_where_nothing_turned() -> None:
    before, *_ = toy(200)
    np.testing.assert_allclose(unrotate(before, before), before, atol=1e-12)
    np.testing.assert_allclose(unrotate(before, before + 2.5), before, atol=1e-12)


def test_unrotate_is_seeded_and_no_image_corrects_itself() -> None:
    before, *_ = toy(200)
    after = before + 0.3 * np.random.default_rng(1).normal(size=before.shape)
    np.testing.assert_array_equal(unrotate(before, after, seed=4), unrotate(before, after, seed=4))
    assert not np.allclose(unrotate(before, after, seed=4), unrotate(before, after, seed=5))
    changed = before.copy()
    changed[0] += 10  # what was before of image 0 decides about the other half alone
    moved = np.abs(unrotate(before, after) - unrotate(changed, after)).max(1) > 1e-9
    assert not moved[0] and moved.sum() == 100


def test_shrinking_helps_where_images_are_few_and_vanishes_where_many() -> None:
    before, *_ = toy(8000)
    random = np.random.default_rng(2)
    after = before + 0.5 * random.normal(size=before.shape)  # noise and no rotation: every rotation found is an error
    error = {f: np.linalg.norm(f(before[:48], after[:48]) - np.eye(24)) for f in (rotation, shrunk_rotation)}
    assert error[shrunk_rotation] < 0.7 * error[rotation]
    q = ortho_group.rvs(24, random_state=0)
    assert np.linalg.norm(shrunk_rotation(before, before @ q) - q) < 0.05
    x, y = before[:48] - before[:48].mean(0), after[:48] - after[:48].mean(0)
    cross = x.T @ y
    expected, _ = scipy.linalg.polar(cross + 24 / 48 * scipy.linalg.svdvals(cross).mean() * np.eye(24))
    np.testing.assert_allclose(shrunk_rotation(before[:48], after[:48]), expected, atol=1e-9)
    np.testing.assert_allclose(shrunk_rotation(before[:48], 9 * after[:48]), expected, atol=1e-9)


def test_too_few_images_to_undo_a_rotation() -> None:
    x, y = related(19, 10)
    with pytest.raises(ValueError, match="19 images are too few to undo a rotation in 10 dimensions; it takes at least 20"):
        unrotate(x, y)
    with pytest.raises(ValueError, match="two arrays \\(n, d\\) of one shape"):
        unrotate(x, y[:, :5])


@pytest.mark.parametrize("measure", [*MEASURES, rotation, shrunk_rotation])
def test_undefined_is_an_error_and_never_nan(measure: Callable) -> None:
    x, y = related(30, 5)
    for dtype in (np.float64, np.float32, np.int64):
        with pytest.raises(ValueError, match="features are constant: all 30 images have the same 5 values"):
            measure(x, np.full((30, 5), 7.1).astype(dtype))
    with pytest.raises(ValueError, match="not finite"):
        measure(x, np.where(y > y[3, 3], np.nan, y))
    with pytest.raises(ValueError, match="one has 30 rows and the other 29"):
        measure(x, y[:29])
    with pytest.raises(ValueError, match=r"must be an array \(n, d\) with at least 2 images, not \(30,\)"):
        measure(x[:, 0], y)


def test_debiased_cka_needs_four_images_and_some_structure() -> None:
    x, y = related(4, 5)
    assert -1 <= debiased_cka(x, y) <= 1
    with pytest.raises(ValueError, match="at least 4 images, not 3"):
        debiased_cka(x[:3], y[:3])
    with pytest.raises(ValueError, match="each of the 6 images lies in a direction of its own"):
        debiased_cka(np.eye(6), np.random.default_rng(0).normal(size=(6, 3)))
    with pytest.raises(ValueError, match="one shape"):
        rotation(x, y[:, :3])


def test_real_pictures(shared) -> None:
    """Pixels of 60 natural pictures against the same in gray: similar but not the same, by the slow forms too."""
    with np.load(shared / "data" / "natural_tiny_imagenet_val_25pc_64px.npz") as stored:
        data, offsets = stored["data"], stored["offsets"]
    pick = np.random.default_rng(0).choice(len(offsets) - 1, 60, replace=False)
    pictures = [Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]].tobytes())).convert("RGB").resize((8, 8)) for i in pick]
    color = np.stack([np.asarray(picture, np.float32).ravel() for picture in pictures])
    gray = np.stack([np.asarray(picture.convert("L"), np.float32).ravel() for picture in pictures])
    assert cka(color, gray) == pytest.approx(slow_cka(color.astype(float), gray.astype(float)), abs=1e-6)
    shuffled = gray[np.random.default_rng(1).permutation(60)]
    assert 0.9 < debiased_cka(color, gray) < cka(color, gray) < 0.9999
    assert cka(color, shuffled) > 0.05 > abs(debiased_cka(color, shuffled))
    assert mutual_knn(color, gray) > 0.5 > 0.3 > mutual_knn(color, shuffled)


def test_halves_split_every_class_and_follow_their_seed() -> None:
    labels = np.array([0] * 7 + [1] * 4 + [2] + [-1] * 2)
    one, again, other = halves(labels, 3), halves(labels, 3), halves(labels, 4)
    assert [int(one[labels == label].sum()) for label in (0, 1, 2, -1)] == [3, 2, 0, 1]
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_class_means_are_directions() -> None:
    x = np.array([[2.0, 0.0], [0.0, 5.0], [3.0, 4.0], [9.0, 9.0]])
    means = class_means(x, [0, 0, 2, -1], 3)
    assert means[0] == pytest.approx(np.sqrt([0.5, 0.5])) and means[2] == pytest.approx([0.6, 0.8]) and np.isnan(means[1]).all()

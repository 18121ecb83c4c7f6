"""CKA of all layers with all, CKNNA, cosine and the floor of shuffled images, against slow forms and another's package."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import ortho_group

from rift import layers, similarity
from rift.layers import cross_cka
from tests.test_similarity import related, slow_cka


def slow_song(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741 - the names in the equation
    """Song 2012, Eq. 5, word for word: zero diagonals, a trace of a product, ones."""
    m, one = len(k), np.ones(len(k))
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    found = np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((m - 1) * (m - 2)) - 2 / (m - 2) * (one @ k @ l @ one)
    return float(found / (m * (m - 3)))


def slow_debiased(x: np.ndarray, y: np.ndarray) -> float:
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return slow_song(k, l) / np.sqrt(slow_song(k, k) * slow_song(l, l))


def stacks(n: int, d: int, e: int, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Three and four layers that agree less and less, with means of their own."""
    first = [related(n, d, noise, seed=2)[1] for noise in (0.1, 1, 5)]
    second = [related(n, max(d, e), noise, seed=2)[0][:, :e] * (1 + noise) + noise for noise in (0.2, 2, 4, 9)]
    second = [one + np.random.default_rng(9).normal(size=one.shape) * 0.3 * i for i, one in enumerate(second)]
    return np.stack(first).astype(dtype), np.stack(second).astype(dtype)


@pytest.mark.parametrize("block", [7, 64])
@pytest.mark.parametrize("n, d, e", [(40, 5, 9), (40, 90, 60), (6, 50, 3)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_pair_of_layers_agrees_with_the_slow_gram_form(n, d, e, dtype, block, monkeypatch) -> None:
    monkeypatch.setattr(layers, "BLOCK", block)
    xs, ys = stacks(n, d, e, dtype)
    precise = xs.astype(np.float64), ys.astype(np.float64)
    for debiased, slow in ((False, slow_cka), (True, slow_debiased)):
        expected = [[slow(x, y) for y in precise[1]] for x in precise[0]]
        found = cross_cka(xs, ys, debiased=debiased)
        assert found.shape == (3, 4) and found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 if dtype == np.float32 else 1e-10)


@pytest.mark.parametrize("n, d", [(20, 4000), (300, 40)])
def test_single_precision_holds_for_many_dimensions_and_a_large_mean(n: int, d: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, n, d)).astype(np.float32) + np.float32(30)
    expected = similarity.debiased_cka(x[0].astype(np.float64), x[1].astype(np.float64))
    assert cross_cka(x[:1], x[1:], debiased=True)[0, 0] == pytest.approx(expected, abs=1e-6)
    huge = x * np.float32(1e15)
    assert cross_cka(huge[:1], huge[1:])[0, 0] == pytest.approx(cross_cka(x[:1], x[1:])[0, 0], abs=1e-6)


def test_both_ways_to_multiply_give_the_same_and_each_is_taken(monkeypatch) -> None:
    taken = []
    by_images = layers._by_images
    monkeypatch.setattr(layers, "_by_images", lambda given: taken.append(len(given[0])) or by_images(given))
    for n in (30, 3000):
        xs, ys = stacks(n, 20, 15)
        expected = [[similarity.debiased_cka(x, y) for y in ys] for x in xs]
        np.testing.assert_allclose(cross_cka(xs, ys, debiased=True), expected, atol=1e-10)
    assert taken == [30], "few images: Gram matrices; many: covariances"


@pytest.mark.parametrize("debiased", [False, True])
def test_rotation_scale_and_shift_change_nothing_and_layers_may_differ_in_width(debiased: bool) -> None:
    xs, ys = stacks(50, 9, 6)
    turned = [3 * y @ ortho_group.rvs(6, random_state=1) - 4 for y in ys]
    np.testing.assert_allclose(cross_cka(xs, turned, debiased=debiased), cross_cka(xs, ys, debiased=debiased), atol=1e-10)
    own = cross_cka(xs, xs, debiased=debiased)
    np.testing.assert_allclose(own, own.T, atol=1e-12)
    np.testing.assert_allclose(own.diagonal(), 1, atol=1e-12)
    np.testing.assert_allclose(
        cross_cka([xs[0], ys[0]], [ys[1]], debiased=debiased)[1], cross_cka(ys[:1], ys[1:2], debiased=debiased)[0]
    )


@pytest.mark.parametrize("debiased", [False, True])
def test_memory_does_not_grow_with_the_square_of_the_images(debiased: bool) -> None:
    def peak(n: int) -> int:
        xs, ys = np.random.default_rng(0).normal(size=(2, 2, n, 400)).astype(np.float32)
        tracemalloc.start()
        cross_cka(xs, ys, debiased=debiased)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(300), peak(1200)
    assert large < 4.5 * small, "four times the images took more than four times the memory"


def test_undefined_layers_are_named() -> None:
    xs, ys = stacks(12, 5, 4)
    flat = ys.copy()
    flat[2] = 7
    with pytest.raises(ValueError, match="layer 3 of the second: features are constant"):
        cross_cka(xs, flat)
    with pytest.raises(ValueError, match="layer 2 of the first: debiased CKA is undefined"):
        cross_cka([xs[0], np.eye(12)], ys, debiased=True)
    with pytest.raises(ValueError, match="the same images, but there are 11 and 12 rows"):
        cross_cka(xs, ys[:, 1:])
    with pytest.raises(ValueError, match="needs at least 4 images, not 3"):
        cross_cka(xs[:, :3], ys[:, :3], debiased=True)
    with pytest.raises(ValueError, match="the second model has no layers"):
        cross_cka(xs, [])
    assert cross_cka(xs[:, :3], ys[:, :3]).shape == (3, 4), "the biased form needs no four"


@pytest.fixture(scope="module")
def package() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch_cka", reason="the package torch_cka is not installed")


def test_debiased_form_is_that_of_the_package_torch_cka(package) -> None:
    from tests.benchmarks.similarity import theirs

    xs, ys = (one.astype(np.float32) - one.mean(1, keepdims=True).astype(np.float32) for one in stacks(60, 20, 15))
    np.testing.assert_allclose(theirs(xs, ys), cross_cka(xs, ys, debiased=True), atol=1e-4)


def slow_cknna(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """As the authors' code has it, one entry at a time; nearest are the largest inner products of unit rows."""
    n, kernels, near = len(x), [], []
    for z in (x, y):
        unit = z - z.mean(0)
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        kernels.append(unit @ unit.T)
        near.append([set(sorted((j for j in range(n) if j != i), key=lambda j: -kernels[-1][i, j])[:k]) for i in range(n)])

    def aligned(a: int, b: int) -> float:
        joint = np.array([[float(j in near[a][i] and j in near[b][i]) for j in range(n)] for i in range(n)])
        return slow_song(kernels[a] * joint, kernels[b] * joint)

    return aligned(0, 1) / np.sqrt(aligned(0, 0) * aligned(1, 1))


@pytest.mark.parametrize("k", [2, 5, 12])
def test_cknna_by_brute_force(k: int) -> None:
    x, y = related(40, 6)
    assert similarity.cknna(x, y, k) == pytest.approx(slow_cknna(x, y, k), abs=1e-10)
    assert similarity.cknna(x, 2 * x @ ortho_group.rvs(6, random_state=0) + 3, k) == pytest.approx(1, abs=1e-9)
    unrelated = [similarity.cknna(x, np.random.default_rng(seed).permutation(y), k) for seed in range(20)]
    assert max(unrelated) < similarity.cknna(x, y, k)


@pytest.mark.parametrize("n, d", [(41, 90), (41, 6)])
def test_a_gram_matrix_in_blocks_is_the_whole_one(n: int, d: int, monkeypatch) -> None:
    x, y = related(n, d)
    measures = {
        "debiased": lambda: similarity.debiased_cka(x, y),
        "biased": lambda: similarity.cka(x, y),
        "near": lambda: similarity.cknna(x, y, 5),
        "all but one": lambda: similarity.cknna(x, y, n - 2),
    }
    whole = {name: measure() for name, measure in measures.items()}
    assert whole["debiased"] == pytest.approx(slow_debiased(*(z - z.mean(0) for z in (x, y))), abs=1e-12)
    assert whole["near"] == pytest.approx(slow_cknna(x, y, 5), abs=1e-12)
    for block in (1, 7, 40):
        monkeypatch.setattr(similarity, "BLOCK", block)
        assert {name: measure() for name, measure in measures.items()} == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("measure", [similarity.debiased_cka, similarity.cka, similarity.cknna])
def test_no_gram_matrix_is_held_whole(measure: Callable, monkeypatch) -> None:
    n = 1200
    x, y = np.random.default_rng(0).normal(size=(2, n, 2 * n if measure is not similarity.cknna else 8))
    monkeypatch.setattr(similarity, "BLOCK", 64)
    monkeypatch.setattr(similarity, "_pair", lambda x, y: (x, y))  # centering copies the input, which is wider than n here
    measure(x[:50], y[:50])  # what it imports
    tracemalloc.start()
    measure(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.4 * n**2 * 8


def test_cknna_of_all_neighbors_is_debiased_cka_of_unit_rows() -> None:
    x, y = related(30, 6)
    units = [(z - z.mean(0)) / np.linalg.norm(z - z.mean(0), axis=1, keepdims=True) for z in (x, y)]
    assert similarity.cknna(x, y, 29) == pytest.approx(slow_debiased(*units), abs=1e-10)


def test_cknna_sees_neighborhoods_where_cka_sees_the_widest_direction() -> None:
    random = np.random.default_rng(0)
    place, x = np.repeat([[-50.0], [50.0]], 100, axis=0), random.normal(size=(200, 8))
    far = [np.hstack([place, one]) for one in (x, random.normal(size=x.shape))]
    assert similarity.debiased_cka(*far) > 0.98 and similarity.mutual_knn(*far) < 0.2 and similarity.cknna(*far) < 0.3


def test_cknna_says_what_it_needs() -> None:
    x, y = related(12, 4)
    for k in (1, 12):
        with pytest.raises(ValueError, match=f"k = {k} neighbors needs 2 <= k < n and at least 4 images"):
            similarity.cknna(x, y, k)
    with pytest.raises(ValueError, match="n = 3"):
        similarity.cknna(x[:3], y[:3], 2)
    with pytest.raises(ValueError, match="neighbors show no structure"):
        similarity.cknna(np.eye(12), y, 11)


def test_cosine_is_that_of_each_image() -> None:
    x, y = related(9, 4)
    found = similarity.cosine(x, y)
    assert found == pytest.approx([a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(x, y, strict=True)])
    assert similarity.cosine(x, 5 * x) == pytest.approx(np.ones(9)) and similarity.cosine(x, -x) == pytest.approx(-np.ones(9))
    for wrong, reason in (
        (y[:, :3], "of one shape"),
        (y * np.nan, "not finite"),
        (y * (np.arange(9) > 1)[:, None], "2 of 9 images"),
    ):
        with pytest.raises(ValueError, match=reason):
            similarity.cosine(x, wrong)


@pytest.mark.parametrize("n, d", [(30, 60), (200, 12)])
@pytest.mark.parametrize("debiased", [False, True])
def test_shuffled_cka_is_cka_of_shuffled_images_and_its_mean_is_known(n: int, d: int, debiased: bool) -> None:
    x, y = related(n, d)
    found = similarity.shuffled_cka(x, y, debiased=debiased, shuffles=400, seed=5)
    random, measure = np.random.default_rng(5), similarity.debiased_cka if debiased else similarity.cka
    assert found[:3] == pytest.approx([measure(x, y[random.permutation(n)]) for _ in range(3)], abs=1e-4)
    k, l = ((z - z.mean(0)) @ (z - z.mean(0)).T for z in (x, y))  # noqa: E741
    mean = 0.0 if debiased else np.trace(k) * np.trace(l) / ((n - 1) * np.linalg.norm(k) * np.linalg.norm(l))
    assert found.mean() == pytest.approx(mean, abs=4 * found.std() / 20), "E over all permutations is tr K tr L / (n - 1)"
    assert np.quantile(found, 0.95) < measure(x, y)
    with pytest.raises(ValueError, match="constant"):
        similarity.shuffled_cka(x, np.ones_like(y), debiased=debiased)

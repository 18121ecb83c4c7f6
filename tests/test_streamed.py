"""Streamed CKA and covariance against brute force in double precision: in any batches, in any order, merged from any parts."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rift import layers
from rift.streamed import Moments, cross_cka
from tests.benchmarks import similarity as benchmark
from tests.benchmarks import stir as inversions
from tests.methods_toys import images, toy
from tests.test_layers_cka import slow_debiased, stacks

Pair = tuple[np.ndarray, np.ndarray]


def cut(pair: Pair, places: Sequence[np.ndarray]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.from_numpy(pair[0][:, some]), torch.from_numpy(pair[1][:, some])) for some in places]


def gathered(batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Moments:
    moments = Moments()
    for batch in batches:
        moments.add(*batch)
    return moments


def brute(pair: Pair, debiased: bool) -> np.ndarray:
    """Every entry from the whole Gram matrices, in extended precision up to the means."""
    xs, ys = ([np.asarray(one - one.mean(0), np.float64) for one in side.astype(np.longdouble)] for side in pair)
    if debiased:
        return np.array([[slow_debiased(x, y) for y in ys] for x in xs])
    grams = [[one @ one.T / np.linalg.norm(one @ one.T) for one in side] for side in (xs, ys)]
    return np.array([[np.vdot(k, l) for l in grams[1]] for k in grams[0]])  # noqa: E741


def same(moments: Moments, pair: Pair, tolerance: float = 1e-12) -> None:
    """What was gathered gives the covariances, the cross-covariances and the CKA of all images at once."""
    n, wide = pair[0].shape[1], [one.astype(np.longdouble) for side in pair for one in side]
    wide = [one - one.mean(0) for one in wide]
    for found, one in zip(moments.covariances(), wide, strict=True):
        np.testing.assert_allclose(found, np.asarray(one.T @ one / (n - 1), float), rtol=0, atol=tolerance * float(one.var()))
    x, y = wide[1], wide[-1]
    across = np.asarray(x.T @ y / (n - 1), float)
    np.testing.assert_allclose(
        moments.cross_covariance(1, len(pair[1]) - 1), across, rtol=0, atol=tolerance * float(x.std() * y.std())
    )
    for debiased in (False, True):
        np.testing.assert_allclose(moments.cka(debiased=debiased), brute(pair, debiased), rtol=0, atol=tolerance)


PAIR = stacks(37, 6, 4)


@given(
    cuts=st.lists(st.integers(0, 37), max_size=8).map(sorted),
    order=st.permutations(range(37)),
    parts=st.integers(1, 4),
    offset=st.sampled_from([0.0, 1e3, -1e6]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_order_batches_and_parts_change_nothing(cuts, order, parts, offset, seed) -> None:
    pair = PAIR[0] + offset, PAIR[1] - 2 * offset
    batches = cut(pair, np.split(np.array(order), cuts))
    random = np.random.default_rng(seed)
    owner = random.integers(0, parts, len(batches))
    gathers = [gathered([one for one, mine in zip(batches, owner, strict=True) if mine == part]) for part in range(parts)]
    whole = Moments()
    for part in random.permutation(parts):
        whole.merge(pickle.loads(pickle.dumps(gathers[part])))  # as from a worker
    assert whole.n == 37
    same(whole, pair, 1e-11)  # of the digits that the offset leaves


@pytest.mark.parametrize("n, d, e", [(40, 5, 9), (40, 90, 60), (6, 50, 3)])
def test_every_pair_of_layers_is_that_of_whole_gram_matrices(n, d, e) -> None:
    pair = stacks(n, d, e)
    for size in (1, 4, n):
        same(gathered(cut(pair, np.split(np.arange(n), range(size, n, size)))), pair)
    for debiased in (False, True):
        found = cross_cka(cut(pair, np.array_split(np.arange(n), 3)), debiased=debiased)
        np.testing.assert_allclose(found, layers.cross_cka(*pair, debiased=debiased), rtol=0, atol=1e-12)


def test_a_mean_that_wanders_off_costs_no_digits() -> None:
    """Images come class by class, far apart; a sum about the first batch's mean would lose ten digits here."""
    xs, ys = stacks(400, 6, 4)
    where = np.zeros(400)
    where[:4] = 1e5  # the first batch lies where no later one does
    place = np.repeat(np.arange(10), 40)[:, None] * 3.0
    pair = xs + where[:, None] + place, ys - where[:, None] + place
    same(gathered(cut(pair, np.split(np.arange(400), range(4, 400, 4)))), pair)
    late = tuple(side[:, 4:] for side in pair)
    same(gathered(cut(late, np.split(np.arange(396), range(4, 396, 4)))), late)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_of_less_precision_lose_nothing_more(dtype) -> None:
    batches = [(x.to(dtype) * 1000 + 5, y.to(dtype)) for x, y in cut(PAIR, np.array_split(np.arange(37), 5))]
    exact = tuple(torch.cat([one[side] for one in batches], 1).double().numpy() for side in (0, 1))
    same(gathered(batches), exact)


def test_accuracy_of_many_images_against_extended_precision() -> None:
    found = benchmark.accuracy(20_000, d=4, batch=500)
    assert max(found[name] for name in ("covariance", "cka", "cka_debiased")) < 1e-13


def test_memory_does_not_grow_with_the_images() -> None:
    xs, ys = np.random.default_rng(0).normal(size=(2, 2, 4096, 16)).astype(np.float32)

    def peak(n: int, whole: bool = False) -> int:
        batches = benchmark.in_batches(xs[:, :n], ys[:, :n], 64)
        with benchmark.Peak() as found:
            if whole:
                batches = [tuple(torch.cat(side, 1) for side in zip(*batches, strict=True))]
            cross_cka(batches, debiased=True)
        return found.most

    assert 0 < peak(2048) == peak(4096), "twice the images took other memory"
    assert peak(4096, whole=True) > 1.8 * peak(2048, whole=True), "the measurement sees what grows"


def test_of_two_backbones_it_is_that_of_their_kept_activations() -> None:
    one, other = toy(), toy("average")
    pixels = images(one, 12)
    with torch.no_grad():
        found = cross_cka(((one.activations(some), other.activations(some)) for some in pixels.split(5)), debiased=True)
        kept = [backbone.activations(pixels).double().numpy() for backbone in (one, other)]
    np.testing.assert_allclose(found, layers.cross_cka(*kept, debiased=True), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_on_a_gpu_too() -> None:
    batches = cut(PAIR, np.array_split(np.arange(37), 5))
    same_there = gathered([(x.cuda(), y.cuda()) for x, y in batches]).cka(debiased=True)
    np.testing.assert_allclose(same_there, brute(PAIR, True), rtol=0, atol=1e-12)


def test_what_is_undefined_is_named() -> None:
    flat = PAIR[1].copy()
    flat[2] = 7.1
    with pytest.raises(ValueError, match="layer 3 of the second: features are constant: all 37 images have the same 4 values"):
        cross_cka(cut((PAIR[0], flat), np.array_split(np.arange(37), 4)))
    near = flat.astype(np.float32)
    near[2, ::3] = np.nextafter(near[2, ::3], np.float32(8))  # as rounding leaves what is constant
    with pytest.raises(ValueError, match="layer 3 of the second: features are constant"):
        cross_cka(cut((PAIR[0], near), np.array_split(np.arange(37), 4)))
    holed = PAIR[0].copy()
    holed[1, 20, 0] = np.nan
    with pytest.raises(ValueError, match="layer 2 of the first: features hold values that are not finite"):
        cross_cka(cut((holed, PAIR[1]), np.array_split(np.arange(37), 4)))
    few = tuple(side[:, :3] for side in PAIR)
    assert cross_cka(cut(few, [np.arange(3)])).shape == (3, 4)
    with pytest.raises(ValueError, match="at least 4 images, not 3"):
        cross_cka(cut(few, [np.arange(3)]), debiased=True)
    with pytest.raises(ValueError, match="at least 2 images, not 0"):
        cross_cka([])
    own = np.eye(12)[None], PAIR[1][:, :12]
    with pytest.raises(ValueError, match="layer 1 of the first: debiased CKA is undefined"):
        cross_cka(cut(own, np.array_split(np.arange(12), 3)), debiased=True)


def test_batches_and_parts_that_do_not_fit_are_refused() -> None:
    x, y = (torch.from_numpy(side) for side in PAIR)
    for xs, ys in ((x, y[:, 1:]), (x, y[:0]), (x[0], y)):
        with pytest.raises(ValueError, match=r"features \(b, d\) of the same images from layers of two models"):
            Moments().add(xs, ys)
    moments = gathered([(x, y)])
    before = copy.deepcopy(moments)
    with pytest.raises(ValueError, match="not as wide as those before"):
        moments.add(x, x)
    with pytest.raises(ValueError, match="same widths"):
        moments.merge(gathered([(x, x)]))
    moments.merge(Moments())
    moments.add(x[:, :0], y[:, :0])
    assert moments.n == 37 and np.array_equal(moments.cka(), before.cka())


def test_merging_leaves_the_other_part_as_it_is() -> None:
    parts = [gathered(cut(PAIR, [some])) for some in np.array_split(np.arange(37), 2)]
    kept = copy.deepcopy(parts[1])
    for start in (parts[0], Moments()):
        start.merge(parts[1])
        start.add(*cut(PAIR, [np.arange(5)])[0])
        assert np.array_equal(parts[1].cka(debiased=True), kept.cka(debiased=True)) and parts[1].n == kept.n


@pytest.mark.slow
def test_the_benchmark_runs_and_its_numbers_are_right(tmp_path: Path) -> None:
    benchmark.main(["--small", "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    (speed,), (accuracy,), (small, large) = found["speed"], found["accuracy"], found["memory"]
    away = speed["largest_difference_to_double"]
    assert away["ours"] < 1e-6 and away["streamed"] < 1e-12 and away["theirs"] < 1e-5
    assert away["theirs_in_batches"] > 1e-3, "a mean over batches is not CKA of all images"
    assert max(accuracy[name] for name in ("covariance", "cka", "cka_debiased")) < 1e-13
    assert large["n"] == 2 * small["n"] and large["streamed_mebibytes"] == small["streamed_mebibytes"]


@pytest.mark.slow
def test_inversions_of_layers_together_are_those_of_each(tmp_path: Path) -> None:
    inversions.main(["--images", "3", "--iterations", "2", "--rounds", "1", "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())["inversions"]
    assert [one["layers"] for one in found] == [[1, 2, 5], [1, 2, 3, 4, 5]]
    assert all(one["largest_difference_of_a_pixel"] < 1e-4 for one in found)

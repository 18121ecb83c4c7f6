"""PCA: the axes are scikit-learn's, the numbers closed forms, the turn is undone, and the contours hold what they say."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from rift import similarity
from rift.diagnostics import _shadow, pca
from rift.measures import plain
from rift.snapshot import Snapshot
from tests.test_diagnostics import finetuned, pretrained, rotation, with_set


def test_axes_and_coordinates_are_those_of_scikit_learn():
    before = pretrained()
    after = finetuned(before, rotation(0.5), 0.4)
    x, y = (one.sets["test"].embeddings.astype(float) for one in (before, after))
    for basis, fitted_on in (("pretrained", x), ("joint", np.concatenate([x, y]))):
        found, reference = pca.measure(before, after, basis=basis), PCA(2, svd_solver="full").fit(fitted_on)
        for mine, theirs in ((found["before"], reference.transform(x)), (found["after"], reference.transform(y))):
            np.testing.assert_allclose(mine * np.sign((mine * theirs).sum(0)), theirs, atol=1e-9)
        np.testing.assert_allclose(found["explained"], reference.explained_variance_ratio_, atol=1e-9)
        assert found["explained_after"] == pytest.approx(found["after"].var(0).sum() / y.var(0).sum())


def test_rotation_aligned_undoes_a_turn_and_a_shift_and_keeps_the_pretrained_axes():
    before = pretrained(n=900)  # more than two images a dimension, so cross-fitted
    turned = finetuned(before, rotation(1.1))
    turned = with_set(turned, "test", embeddings=turned.sets["test"].embeddings + 3)
    plainly, aligned = (pca.measure(before, turned, basis=basis) for basis in ("pretrained", "rotation-aligned"))
    assert plainly["displacement"] > 1 and np.abs(plainly["after"] - plainly["before"]).max() > 1
    assert aligned["displacement"] < 0.05 and aligned["cloud_overlap"] > 0.99 and "cross-fitted" in aligned["turned"]
    np.testing.assert_array_equal(aligned["before"], plainly["before"])
    np.testing.assert_array_equal(aligned["explained"], plainly["explained"])
    assert aligned["mean_shift"] is None and "moved back" in aligned["mean_shift_reason"]
    assert plainly["turned"] is None and plainly["turned_reason"]
    untouched = dataclasses.replace(before, sets={name: one.of(np.arange(20)) for name, one in before.sets.items()})
    few = pca.measure(untouched, finetuned(untouched, rotation(1.1)), basis="rotation-aligned")
    assert "in-sample" in few["turned"] and "20 images" in few["turned"] and "in-sample" in pca.sentence({"none": few})


def test_natural_images_get_the_turn_of_the_test_images():
    before = pretrained(n=90)
    after = finetuned(before, rotation(0.7))
    found = pca.measure(before, after, basis="rotation-aligned")
    x, y = (one.sets["test"].embeddings.astype(float) for one in (before, after))
    turn, axes = similarity.shrunk_rotation(x, y), similarity.pca(x, 2)
    expected = ((after.sets["natural"].embeddings - y.mean(0)) @ turn.T + x.mean(0) - axes.mean) @ axes.basis
    np.testing.assert_allclose(found["natural_after"], expected, atol=1e-6)
    assert np.abs(found["natural_after"] - found["natural_before"]).max() < 1


def test_displacement_and_mean_shift_are_in_units_of_the_pretrained_spread():
    before = pretrained()
    x = before.sets["test"].embeddings.astype(float)
    spread = np.sqrt(np.square(x - x.mean(0)).sum(1).mean())
    found = pca.measure(before, with_set(before, "test", embeddings=x + np.eye(16)[0] * 2 * spread))
    assert found["displacement"] == pytest.approx(2) == found["mean_shift"]
    assert found["displacement_low"] < 2 < found["displacement_high"]
    mirrored = pca.measure(before, with_set(before, "test", embeddings=2 * x.mean(0) - x))
    assert mirrored["mean_shift"] == pytest.approx(0, abs=1e-6)
    assert mirrored["displacement"] == pytest.approx(2 * np.linalg.norm(x - x.mean(0), axis=1).mean() / spread)
    doubled = pca.measure(*(with_set(before, "test", embeddings=2 * y) for y in (x, 2 * x.mean(0) - x)))
    assert doubled["displacement"] == pytest.approx(mirrored["displacement"]), "the unit goes along with a scale"
    still = pca.measure(before, before)
    assert still["displacement"] == 0 == still["displacement_high"] and still["cloud_overlap"] == pytest.approx(1)


def test_overlap_is_the_integral_of_the_root_of_both_densities():
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 2)) @ [[1, 0.4], [0, 0.7]]
    y = random.normal(size=(80, 2)) * [0.8, 1.5] + [1, -0.5]
    axis = np.linspace(-9, 9, 401)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    densities = [multivariate_normal(one.mean(0), np.cov(one.T)).pdf(grid) for one in (x, y)]
    integral = np.sqrt(densities[0] * densities[1]).sum() * (axis[1] - axis[0]) ** 2
    assert pca.overlap(x, y) == pytest.approx(integral, abs=1e-6) == pca.overlap(y, x)
    turn = np.array([[0, 2], [-2, 0]])
    assert pca.overlap(x @ turn + 7, y @ turn + 7) == pytest.approx(integral, abs=1e-6)
    assert pca.overlap(x, x + np.array([40, 0])) < 1e-6


def test_overlap_has_a_reason_where_a_cloud_has_no_area():
    before = pretrained()
    flat = np.outer(np.arange(90.0), np.ones(16))
    found = pca.measure(before, with_set(before, "test", embeddings=flat))
    assert found["cloud_overlap"] is None and "on no line" in found["cloud_overlap_reason"] and found["displacement"] > 0
    two = Snapshot({"test": before.sets["test"].of(np.array([0, 1, 2]))}, before.classes, before.natural_classes, None)
    found = pca.measure(two, finetuned(two, noise=0.5))
    assert found["cloud_overlap"] is not None and found["cloud_overlap_low"] is None and found["cloud_overlap_low_reason"]


def test_contours_hold_half_and_nine_tenths_of_a_density():
    from scipy.stats import gaussian_kde
    from skimage.measure import points_in_poly

    points = np.random.default_rng(1).normal(size=(400, 2)) * [3, 0.5]
    lines = _shadow.contours(points)
    ends = np.flatnonzero(np.isnan(lines[:, 0]))
    inner, outer = lines[: ends[0]], lines[ends[0] + 1 : ends[1]]
    drawn = gaussian_kde(points.T).resample(20_000, seed=0).T
    assert points_in_poly(drawn, inner).mean() == pytest.approx(0.5, abs=0.02)
    assert points_in_poly(drawn, outer).mean() == pytest.approx(0.9, abs=0.02)
    assert not len(_shadow.contours(points[:2])) and not len(_shadow.contours(np.outer(np.arange(9.0), [1, 2])))


def test_the_figure_draws_densities_and_the_same_images_arrows_in_each_panel():
    before = pretrained()
    results = {arm: pca.measure(before, finetuned(before, noise=s)) for arm, s in (("none", 0.8), ("rift", 0.2))}
    results = json.loads(json.dumps(plain(results), allow_nan=False))
    plot = pca.figure(results)
    arrows = [trace for trace in plot.data if trace.name == "from its pretrained place"]
    chosen = np.unique(np.linspace(0, 89, 24).astype(int))
    assert len(arrows) == 2
    for trace, one in zip(arrows, results.values(), strict=True):
        ways = np.stack([trace.x, trace.y], axis=1).reshape(-1, 3, 2)
        np.testing.assert_allclose(ways[:, 0], np.array(one["before"])[chosen], rtol=1e-5)
        np.testing.assert_allclose(ways[:, 1], np.array(one["after"])[chosen], rtol=1e-5)
        assert np.isnan(ways[:, 2]).all()
    densities = [trace for trace in plot.data if trace.name.startswith("density")]
    assert [trace.line.dash for trace in densities] == ["dot", "solid", "dot", "solid", "dot"]
    np.testing.assert_array_equal(densities[0].x, densities[2].x)
    legend = [trace.name for trace in plot.data if trace.showlegend]
    assert len(legend) == len(set(legend))


@pytest.mark.parametrize("basis", list(pca.BASES))
def test_the_sentence_says_what_the_basis_shows_and_hides(basis):
    before = pretrained()
    said = pca.sentence({"none": pca.measure(before, finetuned(before, noise=0.4), basis=basis)})
    assert pca.BASES[basis] in said and "hidden" in said and "24 images, evenly spaced" in said and "spread" in said


def test_results_of_an_earlier_version_are_still_drawn():
    before = pretrained()
    found = pca.measure(before, finetuned(before, noise=0.4))
    old = {key: value for key, value in found.items() if not key.startswith(("cloud", "displacement", "mean_shift", "turned"))}
    assert pca.figure({"none": old}).data and "pretrained spread" not in pca.sentence({"none": old})

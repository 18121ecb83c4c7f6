"""Intervals and tests agree with their textbook forms and with scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from rift.statistics import (
    Difference,
    balanced_weights,
    folds,
    holm,
    leave_out,
    mean_and_standard_error,
    mean_proportion_interval,
    paired_difference,
    paired_statistic_difference,
    proportion_interval,
)


def test_wilson_by_its_formula() -> None:
    z = stats.norm.ppf(0.975)
    for hits, n in ((0, 10), (7, 10), (200, 200), (81, 263)):
        p = hits / n
        center = (p + z * z / (2 * n)) / (1 + z * z / n)
        reach = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        assert proportion_interval(hits, n) == pytest.approx((max(0, center - reach), min(1, center + reach)), abs=1e-9)
    for hits, n in ((0, 0), (5, 4), (-1, 4)):
        with pytest.raises(ValueError, match=f"not {hits} of {n}"):
            proportion_interval(hits, n)


def test_balanced_weights_give_balanced_accuracy() -> None:
    random = np.random.default_rng(0)
    labels = random.choice(["a", "b", "c"], 90, p=[0.7, 0.2, 0.1])
    guesses = random.choice(["a", "b", "c"], 90)
    weights = balanced_weights(labels)
    assert (weights * (labels == guesses)).mean() == pytest.approx(balanced_accuracy_score(labels, guesses))
    assert weights.mean() == pytest.approx(1)


def test_one_seed_is_mcnemars_exact_test() -> None:
    a, b = (np.random.default_rng(seed).random(120) < share for seed, share in ((0, 0.8), (1, 0.65)))
    found = paired_difference(a, b)
    won, lost = int((a & ~b).sum()), int((b & ~a).sum())
    assert found.p_value == stats.binomtest(won, won + lost).pvalue
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert (found.n, found.seeds) == (120, 1)


def test_sign_flips_agree_with_scipys_permutation_test() -> None:
    random = np.random.default_rng(3)
    a, b = random.normal(0.25, 1, 60), random.normal(0, 1, 60)
    expected = stats.permutation_test((a - b,), np.mean, permutation_type="samples", n_resamples=5000, rng=0).pvalue
    assert 0.01 < expected < 0.6
    assert paired_difference(a, b).p_value == pytest.approx(expected, abs=0.03)


def test_one_seed_interval_is_that_of_the_t_test() -> None:
    gaps = np.random.default_rng(0).exponential(size=30) - 0.9
    expected = stats.ttest_1samp(gaps, 0).confidence_interval()
    found = paired_difference(gaps, np.zeros(30))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_seeds_without_noise_between_images_give_their_paired_t_test() -> None:
    a, b = np.array([0.9, 0.8, 0.85, 0.7]), np.array([0.7, 0.75, 0.6, 0.68])
    expected = stats.ttest_rel(a, b)
    found = paired_difference(np.repeat(a[:, None], 40, axis=1), np.repeat(b[:, None], 40, axis=1))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_image_part_and_seed_part_add_up() -> None:
    random = np.random.default_rng(2)
    gaps = random.normal(size=(3, 50)) + random.normal(size=(3, 1))
    found = paired_difference(gaps, np.zeros((3, 50)))
    variance = gaps.mean(0).var(ddof=1) / 50 + gaps.mean(1).var(ddof=1) / 3
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 2, gaps.mean(), np.sqrt(variance)))
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(gaps.mean()) / np.sqrt(variance), 2))


@pytest.mark.parametrize("seeds", [1, 3])
def test_images_of_a_patient_count_as_one(seeds: int) -> None:
    """Four copies of each image say no more than one does; without the patients they seem to."""
    random = np.random.default_rng(3)
    a, b = random.random((seeds, 60)) < 0.8, random.random((seeds, 60)) < 0.6
    once = paired_difference(a, b)
    four, groups = [np.repeat(one, 4, axis=1) for one in (a, b)], np.repeat(np.arange(60) * 7, 4)
    known, unknown = paired_difference(*four, groups=groups), paired_difference(*four)
    assert (known.low, known.high, known.p_value) == pytest.approx((once.low, once.high, once.p_value))
    assert (known.n, known.patients, unknown.patients) == (240, 60, None)
    assert unknown.p_value < known.p_value and unknown.high - unknown.low < known.high - known.low


def test_a_patient_without_a_group_of_their_own_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 2 patients"):
        paired_difference(np.ones(4), np.zeros(4), groups=[5, 5, 5, 5])
    with pytest.raises(ValueError, match="at least 2 images"):
        paired_difference([1.0], [0.0])


def test_swapping_the_arms_turns_the_sign_alone() -> None:
    random = np.random.default_rng(0)
    for seeds in (1, 3):
        a, b = random.random((seeds, 80)) < 0.8, random.random((seeds, 80)) < 0.7
        there, back = paired_difference(a, b), paired_difference(b, a)
        assert there == paired_difference(a, b)  # seeded
        assert (there.difference, there.low, there.p_value) == pytest.approx((-back.difference, -back.high, back.p_value))


def test_equal_arms_do_not_differ() -> None:
    a = np.random.default_rng(0).random(50) < 0.5
    assert paired_difference(a, a) == Difference(0.0, 0.0, 0.0, 50, 1, 1.0)
    same = paired_statistic_difference([[0.5, 0.4, 0.6]], [[0.5, 0.4, 0.6]], 50)
    assert (same.difference, same.p_value) == (0, 1)


def test_rounding_is_no_difference() -> None:
    """Embeddings that never trained have a CKA of 1 up to the last bits, and those are no effect."""
    a, b = np.full((3, 21), 1.0), np.full((3, 21), 1 - 3e-16)
    assert (paired_statistic_difference(a, b, 40).difference, paired_statistic_difference(a, b, 40).p_value) == (0, 1)


def test_scores_that_do_not_pair() -> None:
    with pytest.raises(ValueError, match=r"not \(1, 3\) and \(1, 4\)"):
        paired_difference(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="must be finite"):
        paired_difference([1, 0, np.nan], [1, 0, 1])


def mean_of(values: np.ndarray):
    return lambda kept: values[kept].mean()


def test_the_jackknife_of_a_mean_agrees_with_the_paired_t_test() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(0.2, 1, 20), random.normal(0, 1, 20)
    fold = folds(20)  # 20 folds of one image
    found = paired_statistic_difference(leave_out(mean_of(a), fold), leave_out(mean_of(b), fold), 20)
    expected = stats.ttest_rel(a, b)
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-6)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()), abs=1e-6)


def test_folds_keep_patients_together_and_are_about_equal() -> None:
    fold = folds(110)
    assert set(np.bincount(fold)) == {5, 6} and (fold == folds(110)).all() and (fold != folds(110, seed=1)).any()
    groups = np.random.default_rng(0).integers(0, 47, 300)
    fold = folds(300, groups)
    assert fold.max() == 19 and all(len(set(fold[groups == one])) == 1 for one in range(47))
    assert folds(12, np.arange(12) // 4).max() == 2  # three patients, three folds
    with pytest.raises(ValueError, match="at least 2 patients"):
        folds(12, np.zeros(12))


def test_a_set_is_looked_at_whole_and_without_each_fold() -> None:
    fold = np.array([0, 1, 0, 2])
    seen = []
    leave_out(lambda kept: seen.append(kept.tolist()) or 0.0, fold)
    assert seen == [[0, 1, 2, 3], [1, 3], [0, 2, 3], [0, 1, 2]]


def test_seeds_that_disagree_widen_the_interval() -> None:
    values = np.random.default_rng(0).normal(0.5, 1, 400)
    table = leave_out(mean_of(values), folds(400))

    def difference(shifts: list[float]) -> Difference:
        return paired_statistic_difference([table + shift for shift in shifts], np.zeros((len(shifts), len(table))), 400)

    steady, shaky = difference([0, 0, 0]), difference([-0.5, 0, 0.5])
    assert steady.difference == pytest.approx(shaky.difference)
    assert steady.low > 0 > shaky.low and steady.p_value < 0.05 < shaky.p_value


def test_holm_by_hand() -> None:
    assert holm([]) == [] and holm([0.02]) == [0.02]
    assert holm([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    adjusted = np.array(holm(ps := np.random.default_rng(0).random(30) / 20))
    assert (adjusted >= ps).all() and (np.argsort(adjusted, kind="stable")[:5] == np.argsort(ps)[:5]).all()


def test_mean_and_standard_error_skip_what_is_missing() -> None:
    assert mean_and_standard_error([1.0, None, 3.0]) == pytest.approx((2.0, 1.0))
    assert mean_and_standard_error([0.5, None]) == (0.5, None)
    assert mean_and_standard_error([None]) == (None, None)


def test_the_interval_of_a_mean_of_shares_covers_it():
    draw, totals, truth = np.random.default_rng(0), np.array([8, 15, 40, 8, 20]), np.array([0.95, 0.5, 0.8, 0.3, 0.99])
    covered = 0
    for _ in range(250):
        low, high = mean_proportion_interval(draw.binomial(totals, truth), totals)
        covered += low <= truth.mean() <= high
    assert 0.91 <= covered / 250 <= 0.996  # 0.95, and some binomial noise of 250 draws


def test_the_interval_of_one_share_is_wilsons():
    assert mean_proportion_interval([7], [9]) == pytest.approx(proportion_interval(7, 9))

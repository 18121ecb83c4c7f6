"""Intervals cover, tests agree with scipy, and the verdict uses the same words both ways."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from rift.similarity import debiased_cka
from rift.statistics import (
    Difference,
    balanced_weights,
    grouped_jackknife,
    mean_and_standard_error,
    mean_proportion_interval,
    paired_difference,
    paired_statistic_difference,
    proportion_interval,
    sentence,
    verdict,
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


def test_one_seed_interval_agrees_with_scipys_bootstrap() -> None:
    gaps = np.random.default_rng(0).exponential(size=300) - 0.9
    expected = stats.bootstrap((gaps,), np.mean, method="percentile", rng=0).confidence_interval
    found = paired_difference(gaps, np.zeros(300))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_swapping_the_arms_turns_the_sign_alone() -> None:
    random = np.random.default_rng(0)
    a, b = random.random((3, 80)) < 0.8, random.random((3, 80)) < 0.7
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there == paired_difference(a, b)  # seeded
    assert (there.difference, there.p_value) == (-back.difference, back.p_value)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=0.01)


def covered(draw, truth: float, times: int = 150) -> float:
    random = np.random.default_rng(0)
    found = [draw(random) for _ in range(times)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def test_coverage_for_one_seed() -> None:
    def draw(random: np.random.Generator) -> Difference:
        a = random.random(120) < 0.75
        return paired_difference(a, np.where(random.random(120) < 0.8, a, random.random(120) < 0.6))

    assert 0.89 <= covered(draw, 0.03) <= 1


@pytest.mark.parametrize("seeds, least", [(2, 0.86), (4, 0.89)])
def test_coverage_when_seeds_differ(seeds: int, least: float) -> None:
    """Seeds move the accuracy of each arm; an interval over images alone covers this only two times in three."""

    def scores(random: np.random.Generator, ease: np.ndarray) -> np.ndarray:
        return ease + random.normal(0, 0.3, (seeds, 1)) + random.normal(0, 0.7, (seeds, 150)) > -0.7

    def draw(random: np.random.Generator) -> Difference:
        ease = random.normal(0, 1, 150)
        return paired_difference(scores(random, ease), scores(random, ease))

    def draw_as_one(random: np.random.Generator) -> Difference:
        ease = random.normal(0, 1, 150)
        return paired_difference(scores(random, ease).mean(0), scores(random, ease).mean(0))

    assert covered(draw, 0) >= least > 0.8 > covered(draw_as_one, 0)


def test_two_seeds_without_noise_between_images_give_their_t_interval_on_one_degree_of_freedom() -> None:
    """Gaps 0.1 and 0.3: drawn twice they are two, mixed or two; stretched by √2 that is 0.2 ± 0.1414, widened by t / z."""
    found = paired_difference(np.repeat([[0.1], [0.3]], 40, axis=1), np.zeros((2, 40)))
    reach = 0.1 * np.sqrt(2) * stats.t.ppf(0.975, 1) / stats.norm.ppf(0.975)
    assert (found.low, found.high) == pytest.approx((0.2 - reach, 0.2 + reach))


def test_few_wins_that_could_be_chance_get_no_green_tick() -> None:
    """Five images of 200 won and none lost: the bootstrap's interval leaves out 0, the exact test does not agree."""
    a, b = np.zeros(200), np.zeros(200)
    a[:5] = 1
    found = paired_difference(a, b)
    assert found.low > 0 and found.p_value == pytest.approx(2 / 32)
    assert verdict(found) == "not distinguishable"
    a[:10] = 1
    assert verdict(paired_difference(a, b)) == "higher"


def test_equal_arms_are_not_distinguishable() -> None:
    a = np.random.default_rng(0).random(50) < 0.5
    assert paired_difference(a, a) == Difference(0.0, 0.0, 0.0, 50, 1, 1.0)
    assert verdict(paired_difference(a, a)) == "not distinguishable"
    same = paired_statistic_difference([np.mean], [np.mean], 50)
    assert (same.difference, same.p_value, verdict(same)) == (0, 1, "not distinguishable")


def test_scores_that_do_not_pair() -> None:
    with pytest.raises(ValueError, match=r"not \(1, 3\) and \(1, 4\)"):
        paired_difference(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="must be finite"):
        paired_difference([1, 0, np.nan], [1, 0, 1])


def test_jackknife_of_a_mean_is_the_textbook_standard_error() -> None:
    values = np.random.default_rng(0).normal(2, 3, 200)
    single = grouped_jackknife(lambda kept: values[kept].mean(), 200, groups=200)
    assert single.value == pytest.approx(values.mean())
    assert single.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(200))
    assert (single.low, single.high) == pytest.approx(stats.t.interval(0.95, 199, single.value, single.standard_error))
    grouped = grouped_jackknife(lambda kept: values[kept].mean(), 200)
    assert grouped.standard_error == pytest.approx(single.standard_error, rel=0.4)
    with pytest.raises(ValueError, match="at least 2 images"):
        grouped_jackknife(lambda kept: 0.0, 1)


def test_statistic_of_a_mean_agrees_with_the_paired_t_test() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(0.2, 1, 20), random.normal(0, 1, 20)
    found = paired_statistic_difference([lambda kept: a[kept].mean()], [lambda kept: b[kept].mean()], 20)  # 20 groups of one
    expected = stats.ttest_rel(a, b)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_seeds_that_disagree_widen_the_interval() -> None:
    values = np.random.default_rng(0).normal(0.5, 1, 400)

    def difference(shifts: list[float]) -> Difference:
        arms = [lambda kept, shift=shift: values[kept].mean() + shift for shift in shifts]
        return paired_statistic_difference(arms, [lambda kept: 0.0] * len(shifts), 400)

    steady, shaky = difference([0, 0, 0]), difference([-0.5, 0, 0.5])
    assert steady.difference == pytest.approx(shaky.difference)
    assert steady.high - steady.low < 0.3 < 1 < shaky.high - shaky.low
    assert verdict(steady) == "higher" and verdict(shaky) == "not distinguishable"
    with pytest.raises(ValueError, match="one function per seed, not 1 and 2"):
        paired_statistic_difference([np.mean], [np.mean] * 2, 10)


def test_coverage_for_debiased_cka() -> None:
    def features(random: np.random.Generator, n: int) -> list[np.ndarray]:
        x = random.normal(size=(n, 12))
        return [x, x + 0.8 * random.normal(size=(n, 12)), x + random.normal(size=(n, 12))]

    def draw(random: np.random.Generator) -> Difference:
        x, a, b = features(random, 100)
        arms = ([lambda kept, arm=arm: debiased_cka(x[kept], arm[kept])] for arm in (a, b))
        return paired_statistic_difference(*arms, 100)

    x, a, b = features(np.random.default_rng(9), 50_000)
    assert 0.88 <= covered(draw, debiased_cka(x, a) - debiased_cka(x, b)) <= 1


WON = Difference(0.0312, 0.011, 0.052, 240, 1, 0.004)
LOST = Difference(-0.0312, -0.052, -0.011, 240, 1, 0.004)


def test_same_words_whether_the_arm_wins_or_loses() -> None:
    won, lost = (sentence("balanced accuracy", "rift", "none", one) for one in (WON, LOST))
    assert (verdict(WON), verdict(LOST)) == ("higher", "lower")
    assert won == "Balanced accuracy is higher with rift than with none: +0.031 (95 % interval +0.011 to +0.052, n = 240 images)."
    assert lost == "Balanced accuracy is lower with rift than with none: -0.031 (95 % interval -0.052 to -0.011, n = 240 images)."


def test_no_difference_says_so_with_its_numbers() -> None:
    unclear = Difference(-0.0002, -0.03, 0.03, 240, 3, 0.9)
    assert sentence("CKA", "rift", "none", unclear) == (
        "CKA with rift is not distinguishable from that with none: "
        "-0.0002 (95 % interval -0.030 to +0.030, n = 240 images, 3 seeds)."
    )
    assert verdict(Difference(0.1, 0.0, 0.2, 240, 1, 0.01)) == "not distinguishable"  # an interval that touches 0


def test_no_verdict_on_few_images_or_without_a_number() -> None:
    assert verdict(WON, smallest=241) is None and verdict(WON, smallest=240) == "higher"
    few = sentence("AUROC", "rift", "none", WON, smallest=500)
    assert few.startswith("AUROC: no verdict on rift against none, because it takes at least 500 images: +0.031 (")
    for missing in (None, Difference(None, None, None, 240, 1, None)):
        assert verdict(missing) is None
        words = sentence("AUROC", "rift", "none", missing)
        assert words == "AUROC: no verdict on rift against none, because a number is missing."


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

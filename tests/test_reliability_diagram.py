"""Calibration: scikit-learn's curve and scores, answers counted by hand, and what a perfectly calibrated model shows."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy.special import expit, logit, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from rift import statistics
from rift.diagnostics import _intervals, reliability, zero_shot
from rift.measures import plain
from rift.snapshot import Snapshot
from tests.test_diagnostics import CLASSES, arrays, finetuned, pretrained, rotation


def scored(logits: np.ndarray, labels: np.ndarray, classes: tuple[str, ...] = CLASSES) -> Snapshot:
    return Snapshot({"test": arrays(np.zeros((len(labels), 2)), labels, logits)}, classes, (), None)


def calibrated(n: int, seed: int, classes: int = 3) -> Snapshot:
    """Return a model whose answers are right exactly with the probabilities that it states."""
    random = np.random.default_rng(seed)
    logits = 1.5 * random.normal(size=(n, classes))
    labels = (softmax(logits, axis=1).cumsum(1) < random.random((n, 1))).sum(1)
    return scored(logits, labels)


def measured(snapshot: Snapshot, **settings) -> dict:
    return reliability.measure(snapshot, snapshot, **settings)


@pytest.mark.parametrize("bins", [5, 10])
def test_bins_scores_and_both_errors_are_those_of_scikit_learn(bins):
    one = calibrated(300, 0).sets["test"]
    found = measured(scored(3 * one.logits, one.labels), bins=bins)
    probabilities = softmax(3 * one.logits, axis=1)
    sure, right = probabilities.max(1), probabilities.argmax(1) == one.labels
    filled = found["bin_count"] > 0
    share, stated = calibration_curve(right, sure, n_bins=bins)
    np.testing.assert_allclose(found["bin_share"][filled], share)
    np.testing.assert_allclose(found["bin_confidence"][filled], stated)
    counts = np.histogram(sure, np.linspace(0, 1, bins + 1))[0]
    assert found["bin_count"].tolist() == counts.tolist()
    gaps = np.abs(share - stated)
    assert found["ece"] == pytest.approx((counts[filled] / 300) @ gaps) and found["mce"] == pytest.approx(gaps.max())
    share, stated = calibration_curve(right, sure, n_bins=bins, strategy="quantile")
    assert found["ece_mass"] == pytest.approx(np.abs(share - stated).mean(), abs=1e-9), "300 fall into bins of one size"
    assert found["brier"] == pytest.approx(brier_score_loss(one.labels, probabilities, labels=range(3), scale_by_half=False))
    assert found["log_loss"] == pytest.approx(log_loss(one.labels, probabilities))
    assert found["confidence_gap"] == pytest.approx(sure.mean() - right.mean())


def test_a_dozen_images_by_hand():
    sure = np.array([0.8] * 5 + [0.6] * 5)
    logits = np.stack([logit(sure), np.zeros(10)], axis=1)
    labels = np.array([0, 0, 0, 0, 1, 0, 1, 1, 1, 1])
    found = measured(scored(logits, labels, ("a", "b")))
    assert found["ece"] == pytest.approx(0.5 * 0 + 0.5 * 0.4) and found["mce"] == pytest.approx(0.4)
    assert found["ece_mass"] == pytest.approx(0.2)
    assert found["confidence_gap"] == pytest.approx(0.7 - 0.5)
    assert found["bin_count"].sum() == 10 and found["bin_count"].max() == 5
    at = np.flatnonzero(found["bin_count"])
    assert [(found["bin_low"][b], found["bin_high"][b]) for b in at] == [
        statistics.proportion_interval(hits, 5) for hits in (1, 4)
    ]
    assert "8 of 10 bins hold no image" in found["bin_share_reason"] and np.isnan(found["bin_share"]).sum() == 8


@pytest.mark.parametrize("n", [40, 400])
def test_a_perfectly_calibrated_model_shows_about_what_is_expected_of_it(n):
    found = [measured(calibrated(n, seed)) for seed in range(50)]
    for name in ("ece", "ece_mass"):
        values, expected = (np.array([one[f"{name}{end}"] for one in found]) for end in ("", "_expected"))
        error = (values - expected).std() / np.sqrt(50)
        assert values.mean() == pytest.approx(expected.mean(), abs=3.5 * error) and values.mean() > 5 * error
        above = np.mean([one[name] > one[f"{name}_expected_high"] for one in found])
        assert above <= 0.15, "5 % lie above the 95th percentile"


def test_the_expected_error_falls_with_the_root_of_the_number_of_images():
    few, many = (measured(calibrated(n, 1))["ece_expected"] for n in (100, 6400))
    assert few / many == pytest.approx(8, rel=0.25)


def test_over_and_underconfidence_are_seen_and_said():
    one = calibrated(600, 2).sets["test"]
    over, under = (measured(scored(scale * one.logits, one.labels)) for scale in (4, 0.25))
    for found in (over, under):
        assert found["ece"] > found["ece_expected_high"] and found["ece_low"] < found["ece"] < found["ece_high"]
    assert over["confidence_gap_low"] > 0 > under["confidence_gap_high"]
    said = reliability.sentence({"none": over, "rift": under, "more": measured(calibrated(600, 7))})
    assert f"more than chance, overconfident by {over['confidence_gap']:.3f}" in said and "may be chance)" in said
    assert f"underconfident by {-under['confidence_gap']:.3f}" in said and "600 medical images" in said


def test_the_interval_holds_the_mean_error_of_models_of_its_kind():
    def found(seed: int) -> dict:
        one = calibrated(150, seed).sets["test"]
        return measured(scored(3 * one.logits, one.labels))

    each = [found(seed) for seed in range(60)]
    truth = np.mean([one["ece"] for one in each])
    assert np.mean([one["ece_low"] <= truth <= one["ece_high"] for one in each]) >= 0.88


def test_draws_follow_the_seed_and_do_not_touch_the_error_itself():
    one, again, other = (measured(calibrated(90, 3), seed=seed) for seed in (0, 0, 1))
    assert one["ece_expected"] == again["ece_expected"] != other["ece_expected"] and one["ece"] == other["ece"]


def findings(n: int = 120, seed: int = 0) -> Snapshot:
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(n, 4)) - 1
    return scored(logits, (random.random((n, 4)) < expit(logits)).astype(int), tuple("abcd"))


def test_each_finding_of_each_image_counts_with_its_probability():
    snapshot = findings()
    one, found = snapshot.sets["test"], measured(snapshot, bins=8)
    truth, sure = one.labels, expit(one.logits)
    assert found["n"] == 120 and found["n_judged"] == 480 and found["bin_count"].sum() == 480
    share, stated = calibration_curve(truth.ravel(), sure.ravel(), n_bins=8)
    weight = found["bin_count"][found["bin_count"] > 0] / 480
    assert found["ece"] == pytest.approx(weight @ np.abs(share - stated))
    for j in range(4):
        alone = scored(one.logits[:, j : j + 1], truth[:, j : j + 1], ("a",))
        assert found["finding_ece"][j] == pytest.approx(measured(alone, bins=8)["ece"])
        assert found["finding_brier"][j] == pytest.approx(brier_score_loss(truth[:, j], sure[:, j]))
        assert found["finding_log_loss"][j] == pytest.approx(log_loss(truth[:, j], sure[:, j]))
    assert found["brier"] == pytest.approx(found["finding_brier"].mean())
    assert found["ece"] < found["ece_expected_high"] < np.median(found["finding_ece_expected"]) + found["ece_expected_high"]
    assert found["entries"] == list("abcd") and measured(snapshot, bins=4)["entries"] == []
    plot = reliability.figure({"none": found})
    assert plot.layout.yaxis.title.text == "share that shows it" and "480 answers" in reliability.sentence({"none": found})


def test_natural_images_are_judged_as_zero_shot_judges_them():
    before = pretrained(n_natural=300)
    after = finetuned(before, rotation(0.6), 0.3)
    found, judged = reliability.measure(before, after), zero_shot.measure(before, after)
    assert found["n_natural"] == judged["n"] == 270
    for prefix in ("", "pretrained_"):
        sure = judged[f"{prefix}top5_probability"][judged["scored"], 0]
        right = judged[f"{prefix}top5"][judged["scored"], 0] == judged["labels"][judged["scored"]]
        share, stated = calibration_curve(right, sure, n_bins=10)
        count = found[f"{prefix}natural_bin_count"]
        assert found[f"{prefix}natural_ece"] == pytest.approx(count[count > 0] / 270 @ np.abs(share - stated))
    lonely = reliability.measure(dataclasses.replace(before, rows=None), dataclasses.replace(after, rows=None))
    assert lonely["n_natural"] == 300 and lonely["natural_ece"] != found["natural_ece"], "nearest means judge"
    headless = dataclasses.replace(before, rows=np.full_like(before.rows, np.nan))
    none = reliability.measure(headless, after)
    assert none["natural_ece"] is None and "fewer than two" in none["natural_ece_reason"] and none["ece"] is not None


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("no sets", "there are no test images"),
        ("no head", "no head for these classes"),
        ("not finite", "training diverged"),
        ("no labels", "no test image has a known label"),
    ],
)
def test_what_cannot_be_judged_has_a_reason(case, reason):
    snapshot = calibrated(30, 0)
    one = snapshot.sets["test"]
    changed = {
        "no sets": {},
        "no head": {"test": dataclasses.replace(one, logits=None)},
        "not finite": {"test": dataclasses.replace(one, logits=one.logits * np.nan)},
        "no labels": {"test": dataclasses.replace(one, labels=np.full(30, -1))},
    }[case]
    found = measured(dataclasses.replace(snapshot, sets=changed))
    assert found["ece"] is None and reason in found["ece_reason"] and reason in reliability.sentence({"none": found})
    assert reliability.figure({"none": found}).layout.annotations


def test_one_image_has_numbers_and_no_interval():
    found = measured(scored(np.array([[2.0, 0, 0]]), np.array([0])))
    assert found["ece"] == pytest.approx(1 - softmax([2, 0, 0])[0])
    for name in ("ece", "confidence_gap", "brier", "log_loss"):
        assert found[name] is not None and found[f"{name}_low"] is None and "two images" in found[f"{name}_low_reason"]


def test_images_without_a_label_are_not_judged():
    one = calibrated(80, 4).sets["test"]
    labels = one.labels.copy()
    labels[:20] = -1
    part = scored(one.logits[20:], one.labels[20:])
    assert measured(scored(one.logits, labels))["ece"] == measured(part)["ece"]


def test_figure_and_sentence_are_the_same_after_json():
    before = pretrained()
    results = {arm: reliability.measure(before, finetuned(before, noise=noise)) for arm, noise in (("none", 0.9), ("rift", 0.2))}
    again = json.loads(json.dumps(plain(results), allow_nan=False))
    assert reliability.sentence(results) == reliability.sentence(again)
    plot = reliability.figure(again)
    assert [a.text for a in plot.layout.annotations] == ["medical images", "natural images"]
    assert [t.name for t in plot.data if t.showlegend] == ["perfectly calibrated", "none", "rift", "pretrained"]


def test_wilson_of_shares_is_that_of_hits():
    hits = np.repeat([1.0, 0.0], [7, 5])
    found = _intervals.share("x", hits)
    assert (found["x_low"], found["x_high"]) == pytest.approx(statistics.proportion_interval(7, 12))
    assert _intervals.share("x", np.ones(3))["x_low"] < 0.5

"""What may be called a difference: by seeds, by family and by size, in the same words whether the arm wins or loses."""

from __future__ import annotations

import pytest

from rift import verdict


def row(value: float = 0.031, p: float | None = 0.004, seeds: int = 3, metric: str = "balanced_accuracy", n: int = 240, **more):
    reach = 0.02 if p is not None and p <= 0.05 else 2 * abs(value) + 0.01
    ends = {"difference": value, "low": value - reach, "high": value + reach, "p_value": p}
    return {"metric": metric, "arm": "rift", "baseline": "none", "n": n, "seeds": seeds, "patients": None, **ends, **more}


def said(*rows: dict) -> list[str]:
    return [verdict.sentence(one["metric"].replace("_", " "), one) for one in verdict.judged(rows)]


def test_same_words_whether_the_arm_wins_or_loses():
    for seeds, pattern in (
        (3, "Balanced accuracy is {} with rift than with none: {} (95 % interval {} to {}, n = 240 images, 3 seeds, "),
        (
            1,
            "Balanced accuracy of this one run with rift is {} than that of this one run with none: {} (95 % interval {} to {}, "
            "n = 240 images, one seed, ",
        ),
    ):
        won, lost = (said(row(value, seeds=seeds))[0] for value in (0.031, -0.031))
        assert won == pattern.format("higher", "+0.031", "+0.011", "+0.051") + "adjusted p = 0.004)."
        assert lost == pattern.format("lower", "-0.031", "-0.051", "-0.011") + "adjusted p = 0.004)."


def test_one_seed_speaks_of_two_runs_and_never_of_the_methods():
    (unclear,) = verdict.judged([row(0.01, 0.4, seeds=1)])
    assert (
        "Balanced accuracy of this one run with rift is not distinguishable from that of this one run with none"
        in said(unclear)[0]
    )
    (clear,) = verdict.judged([row(seeds=1)])
    assert (clear["verdict"], verdict.chip(clear)) == ("higher", "higher in this run")
    assert "these two runs, never of the methods" in verdict.about([clear]) and "split" not in verdict.about([clear])


@pytest.mark.parametrize("value", [0.4, -0.4])
def test_two_seeds_give_numbers_and_the_reason_why_there_is_no_verdict(value):
    (found,) = verdict.judged([row(value, 1e-6, seeds=2)])
    assert (found["verdict"], found["p_adjusted"], found["p_value"]) == (None, None, 1e-6)
    assert "two seeds cannot tell the methods from the chance of training" in found["verdict_reason"]
    assert f"because {found['verdict_reason']}: {value:+.3f} (95 % interval" in said(found)[0]
    assert verdict.chip(found) == "no verdict" and "Two seeds: numbers without a verdict" in verdict.about([found])


def test_three_seeds_speak_of_the_methods_for_one_split():
    words = verdict.about(verdict.judged([row(), row(metric="cka_debiased")]))
    assert words.startswith("3 seeds, paired: an interval holds the chance of images and that of seeds (Student's t")
    assert "Verdicts are on balanced accuracy and debiased CKA only" in words and "one family of 2 (Holm)" in words
    assert "chance of patients" in verdict.about(verdict.judged([row(patients=40)]))


def test_all_arms_and_metrics_are_one_family():
    """0.02 alone is a difference; among three it is 0.06."""
    assert verdict.judged([row(p=0.02)])[0]["verdict"] == "higher"
    rows = [row(p=0.02), row(p=0.3, arm="rsc"), row(p=0.6, metric="cka_debiased")]
    found = verdict.judged(rows)
    assert [one["p_adjusted"] for one in found] == pytest.approx([0.06, 0.6, 0.6])
    assert [one["p_value"] for one in found] == [0.02, 0.3, 0.6] and {one["verdict"] for one in found} == {"not distinguishable"}
    assert "adjusted p = 0.060" in said(*rows)[0]


def test_what_is_described_or_cannot_be_judged_is_not_in_the_family():
    others = [
        row(p=1e-9, metric="accuracy"),
        row(p=1e-9, metric="cka_natural_debiased", n=1000),
        row(p=1e-9, metric="natural_accuracy", n=199),
        row(p=1e-9, n=19),
        row(p=1e-9, n=100, patients=19),
        row(p=1e-9, seeds=2),
        row(p=None) | dict.fromkeys(("difference", "low", "high")) | {"difference_reason": "no seed was finished in both arms"},
    ]
    first, *found = verdict.judged([row(p=0.04), *others])
    assert first["p_adjusted"] == 0.04 and first["verdict"] == "higher" and "verdict_reason" not in first
    assert {(one["verdict"], one["p_adjusted"]) for one in found} == {(None, None)}
    assert [one["verdict_reason"] for one in found] == [
        "it is outside the family of tests and only described",
        "it is outside the family of tests and only described",
        "it takes at least 200 images",
        "it takes at least 20 images",
        "it takes at least 20 patients",
        "two seeds cannot tell the methods from the chance of training; it takes at least three",
        "no seed was finished in both arms",
    ]
    assert [verdict.chip(one) for one in found] == ["described only"] * 2 + ["no verdict"] * 5
    assert said(found[0])[0].startswith("Accuracy: no verdict on rift against none, because it is outside the family")
    assert said(found[-1])[0] == "Balanced accuracy: no verdict on rift against none, because no seed was finished in both arms."
    assert "n = 100 images of 19 patients" in said(found[4])[0]


def test_a_verdict_needs_the_interval_too():
    """Five images of 200 won, none lost: the interval leaves out 0 and the exact test does not agree; and the reverse."""
    assert verdict.judged([row(0.025, 0.0625) | {"low": 0.003, "high": 0.05}])[0]["verdict"] == "not distinguishable"
    assert verdict.judged([row(0.1, 0.01) | {"low": 0.0, "high": 0.2}])[0]["verdict"] == "not distinguishable"


def test_small_numbers_keep_a_digit():
    words = said(row(-0.0002, 0.9))[0]
    assert "-0.0002 (" in words and "adjusted p = 0.900" in words and "adjusted p < 0.001" in said(row(p=1e-5))[0]
    assert "adjusted p = 1)" in said(row(p=1.0))[0]


def test_judging_twice_changes_nothing():
    once = verdict.judged([row(p=0.02), row(p=0.001, arm="rsc"), row(metric="accuracy")])
    assert verdict.judged(once) == once

"""The check of the tests: a null arm is called different at most as often as promised, a known difference is found."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rift import calibration, cli
from rift.calibration import accuracy, check, debiased_cka
from rift.errors import SettingError
from rift.statistics import Difference

ROOT = Path(__file__).parents[1]


def arm(seeds: int = 24, n: int = 60, spread: float = 0.4, seed: int = 0) -> np.ndarray:
    """Hits `(seeds, n)` of one arm: images differ in ease, seeds in skill."""
    random = np.random.default_rng(seed)
    return random.normal(0.8, 1, n) + random.normal(0, spread, (seeds, 1)) + random.normal(0, 0.5, (seeds, n)) > 0


def embedded(seeds: int = 24, n: int = 48, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    before = random.normal(size=(n, width))
    turns = np.eye(width) + 0.3 * random.normal(size=(seeds, width, width))
    return before, before @ turns + 0.4 * random.normal(size=(seeds, n, width))


def metrics() -> dict[str, calibration.Metric]:
    hits = arm()
    return {"balanced_accuracy": accuracy(hits, np.ones(hits.shape[1])), "cka_debiased": debiased_cka(*embedded())}


def test_one_arm_against_itself_is_rarely_called_different_and_a_planted_difference_is_found():
    rows = check(metrics(), draws=300)
    assert [(row["metric"], row["seeds"]) for row in rows] == [
        (name, size) for size in (3, 5) for name in ("balanced_accuracy", "cka_debiased", "family")
    ]
    for row in rows:
        assert row["false_calls_low"] <= row["false_calls"] <= row["false_calls_high"]
        assert row["false_calls_low"] <= 0.05, row
        assert 24 // (2 * row["seeds"]) <= row["independent"] <= 300
    tests = [row for row in rows if row["metric"] != "family"]
    for row in tests:
        assert row["power"] >= 0.79 and row["found_high"] >= row["power"], row
    for three, five in zip(tests[:2], tests[2:], strict=True):
        assert abs(three["planted"]) > abs(five["planted"]) > 0.01, "more seeds find smaller differences"


def test_a_test_that_forgets_the_seeds_is_caught():
    """With one interval over images for all seeds together, seeds that differ look like arms that differ."""
    hits = arm(spread=0.8)
    honest = accuracy(hits, np.ones(60))

    def forgetful(a: np.ndarray, b: np.ndarray) -> Difference:
        gaps = np.mean(a, 0) - np.mean(b, 0)
        test = stats.ttest_1samp(gaps, 0)
        low, high = test.confidence_interval()
        return Difference(gaps.mean(), low, high, len(gaps), len(a), test.pvalue)

    for compare, sound in ((honest.compare, True), (forgetful, False)):
        row = check({"accuracy": replace(honest, compare=compare)}, sizes=[3], draws=200)[0]
        assert (row["false_calls_low"] <= 0.05) == sound, row


def test_what_is_planted_is_the_same_change_in_every_run():
    hits = arm()
    for some in (hits, ~hits):  # mostly right: answers are lost; mostly wrong: they are won
        metric = accuracy(some, np.ones(60))
        gained = metric.plant(0.1).mean(1) - metric.table.mean(1)
        assert gained == pytest.approx(np.full(24, -0.1 if some.mean() > 0.5 else 0.1))
        assert (metric.plant(0.0) == metric.table).all()
    metric = debiased_cka(*embedded())
    for less, more in ((0.0, 0.2), (0.2, 0.5)):
        assert (metric.plant(less)[:, 0] > metric.plant(more)[:, 0]).all()


def test_an_arm_whose_seeds_are_all_alike_is_never_called_different():
    same = np.tile(arm(seeds=1), (8, 1))
    row = check({"accuracy": accuracy(same, np.ones(60))}, sizes=[3], draws=50)[0]
    assert row["false_calls"] == 0 and row["independent"] == 1


def test_what_nothing_can_find_is_said():
    metric = replace(accuracy(arm(8), np.ones(60)), plant=lambda strength: arm(8) * 1.0)
    row = check({"accuracy": metric}, sizes=[3], draws=50)[0]
    assert row["planted"] is None and "no difference would be found" in row["planted_reason"]
    assert "no difference would be found" in calibration.table({"rows": [row]})


def test_too_few_seeds_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(SettingError, match="--seeds 5 is not allowed: two groups of 3 take at least 6"):
        calibration.run("nowhere.zip", tmp_path, seeds=5)


@pytest.mark.slow
def test_the_command_uses_the_ordinary_runs_of_a_lab(tmp_path, monkeypatch, capsys):
    asked = ["sample:phantoms:images_per_class=8", "--out", str(tmp_path), "--seeds", "6", "--epochs", "1", "--method", "bias"]
    command = [sys.executable, "-m", "rift", "calibrate", *asked, "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[:2] == ["metric", "K"] and "family" in done.stdout
    document = json.loads((tmp_path / "calibration.json").read_text())
    assert {row["seeds"] for row in document["rows"]} == {3} and document["arm"]["runs"] == 6
    assert {row["metric"] for row in document["rows"]} == {"balanced_accuracy", "natural_accuracy", "cka_debiased", "family"}
    monkeypatch.setattr(sys, "argv", ["rift", "calibrate", *asked, "--device", "cpu", "--json"])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("lab/runs/*/result.json")}
    assert cli.main() == 0 and len(before) == 6
    assert json.loads(capsys.readouterr().out)["rows"] == document["rows"]
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("lab/runs/*/result.json")}, "no run was repeated"

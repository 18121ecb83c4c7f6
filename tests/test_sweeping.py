"""A sweep: its table from the stored predictions, its second call, and its page of several sets."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, roc_auc_score

from rift import sweeping
from rift.errors import SettingError
from rift.runs import Lab
from tests.browser.actions import kinds, zipped

ASKED = {
    "regularizers": ["rift", "feature_l2"],
    "methods": ["linear", "full"],
    "strengths": [0.1, 1.0],
    "training": {"epochs": 1, "batch_size": 16, "views": 1},
}


def swept(root: Path, sets: list[Path], **more):
    said: list[str] = []
    document = sweeping.sweep(sets, root / "out", say=said.append, **{**ASKED, **more})
    with (root / "out" / "table.csv").open(newline="") as file:
        return document, list(csv.DictReader(file)), said


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two small sets swept into one lab."""
    root = tmp_path_factory.mktemp("sweep")
    sets = [root / "left.zip", root / "right.zip"]
    for seed, path in enumerate(sets):
        path.write_bytes(zipped(kinds(seed, each=12)))
    return root, sets, *swept(root, sets)


def recomputed(path: Path) -> dict[str, float]:
    """The numbers of a run from its stored predictions, by another library."""
    with path.open(newline="") as file:
        names, *rows = csv.reader(file)
    classes, test = names[3:], [row for row in rows if row[2] == "test"]
    truth = np.array([classes.index(row[1]) for row in test])
    scores = np.array([[float(p) for p in row[3:]] for row in test])
    each = np.eye(len(classes))[truth]
    return {
        "accuracy": accuracy_score(truth, scores.argmax(1)),
        "balanced_accuracy": balanced_accuracy_score(truth, scores.argmax(1)),
        "auroc": roc_auc_score(each, scores, average="macro"),
        "average_precision": average_precision_score(each, scores, average="macro"),
    }


@pytest.mark.slow
def test_the_table_can_be_recomputed_from_the_stored_predictions(two):
    root, _, document, rows, _ = two
    assert {row["data"] for row in rows} == {"left", "right"} == set(document["sets"])
    assert len(rows) == 2 * (1 + 1 + 2 * 2)  # linear once, since no penalty holds what never moves; full: none and 2 x 2
    for row in rows:
        for key, value in recomputed(root / "out" / "lab" / "runs" / row["run"] / "predictions.csv").items():
            assert float(row[key]) == pytest.approx(value, abs=1e-9), (row["arm"], key)


@pytest.mark.slow
def test_a_second_call_trains_nothing(two):
    root, sets, document, rows, _ = two
    before = {path: path.stat().st_mtime_ns for path in (root / "out" / "lab" / "runs").rglob("events.jsonl")}
    again, table, _ = swept(root, sets)
    assert {path: path.stat().st_mtime_ns for path in (root / "out" / "lab" / "runs").rglob("events.jsonl")} == before
    assert table == rows
    assert {name: one["arms"] for name, one in again["sets"].items()} == {n: one["arms"] for n, one in document["sets"].items()}


@pytest.mark.slow
def test_more_of_the_same_trains_only_what_is_new(two):
    root, sets, *_ = two
    lab = Lab(root / "out" / "lab")
    had = {run.id for run in lab.runs()}
    swept(root / "more", sets[:1], strengths=[0.1, 1.0, 10.0], lab=lab.root)
    new = [run.experiment for run in lab.runs() if run.id not in had]
    assert sorted((one.regularizer.name, one.strength) for one in new) == [("feature_l2", 10.0), ("rift", 10.0)]


@pytest.mark.slow
def test_the_page_of_several_sets_shows_each_trade_off(two):
    page = (two[0] / "out" / "report.html").read_text()
    assert page.count('<script type="application/json">') == 2 and "<h2>left</h2>" in page and "<h2>right</h2>" in page
    assert "No other arm is better in both" in page and "://" not in page.split("<script>")[0]
    for name in ("left", "right"):
        assert (two[0] / "out" / name / "sweep.json").exists() and (two[0] / "out" / name / "report.html").exists()


def test_sets_that_are_called_alike_are_refused(tmp_path):
    with pytest.raises(SettingError, match="called alike"):
        sweeping.sweep([tmp_path / "a" / "x.zip", tmp_path / "b" / "x.zip"], tmp_path, say=print, **ASKED)

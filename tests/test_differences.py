"""What runs keep becomes differences: the right images and patients, one pair per seed, and a reason where there is none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from rift import comparison, differences, overview, service
from rift.comparison import Arm
from rift.config import Choice, Experiment, Training
from rift.dataset import ImageSet, Split
from rift.review import Report
from rift.runs import Lab, Run, write_json
from rift.similarity import debiased_cka
from rift.snapshot import Arrays, Snapshot
from rift.statistics import paired_difference

CLASSES = ("a", "b", "c")
N, M = 60, 240  # test images, natural images
PATIENTS = np.repeat(np.arange(20), 3)
SINGLE, MULTI = Choice(name="single_label"), Choice(name="multi_label")
LABELS = np.random.default_rng(0).integers(0, 3, N)
FINDINGS = (np.random.default_rng(5).random((N, 3)) < 0.4).astype(np.uint8)
NONE, RIFT = Choice(name="none"), Choice(name="rift")


def arrays(embeddings: np.ndarray, labels: np.ndarray, logits: np.ndarray | None = None) -> Arrays:
    ids = np.arange(len(labels)).astype(str)
    return Arrays(ids, labels, embeddings.astype(np.float32), embeddings[None].astype(np.float32), logits)


@pytest.fixture
def lab(tmp_path) -> Lab:
    lab = Lab(tmp_path)
    random = np.random.default_rng(1)
    sets = {"test": arrays(random.normal(size=(N, 8)), LABELS), "natural": arrays(random.normal(size=(M, 8)), np.arange(M) % 4)}
    Snapshot(sets, CLASSES, tuple("wxyz"), None).save(lab.cache / "before.npz")
    return lab


def finish(lab: Lab, regularizer: Choice, seed: int, skill: float, drift: float, task: Choice = SINGLE) -> Run:
    """A run's files, without a training: logits that point at the label by `skill`, embeddings that drifted."""
    run = lab.submit(Experiment(data="d", natural="n", task=task, regularizer=regularizer, seed=seed, training=Training()))
    random = np.random.default_rng([seed, int(100 * drift)])
    before = Snapshot.load(lab.cache / "before.npz")
    truth = FINDINGS if task == MULTI else np.eye(3)[LABELS]
    logits = (truth - 0.5) * skill + random.normal(size=truth.shape)
    sets = {
        name: arrays(one.embeddings + drift * random.normal(size=one.embeddings.shape), one.labels)
        for name, one in before.sets.items()
    }
    labels = FINDINGS if task == MULTI else LABELS
    sets["test"] = arrays(sets["test"].embeddings, labels, logits)
    Snapshot(sets, CLASSES, tuple("wxyz"), None).save(run.path / "snapshot.npz")
    (run.path / "measures").mkdir()
    scored, named = np.arange(M) % 5 > 0, (np.arange(M) + (random.random(M) < drift / 3)) % 4
    zero_shot = {"natural_accuracy": 0.5, "scored": scored.tolist(), "top5": [[int(i)] * 4 for i in named]}
    zero_shot["labels"] = (np.arange(M) % 4).tolist()
    measured = {"accuracy": {"predictions": logits.argmax(1).tolist(), "labels": labels.tolist()}, "zero_shot": zero_shot}
    for name, values in measured.items():
        write_json(run.path / "measures" / f"{name}.json", {"runs": {run.id: values}})
    empty = {"backbone": {}, "pretrained": {}, "environment": {}}
    write_json(run.path / "result.json", {"before": "before.npz", "numbers": {}, "trainable_parameters": 1, **empty})
    return run


def two_arms(lab: Lab, seeds: int, task: Choice = SINGLE) -> list[Arm]:
    full = Choice(name="full")
    arms = [
        [finish(lab, choice, seed, skill, drift, task) for seed in range(seeds)]
        for choice, skill, drift in ((NONE, 1.0, 1.0), (RIFT, 4.0, 0.3))
    ]
    return [Arm(one.name, full, one, 1.0 * (one == RIFT), tuple(runs)) for one, runs in zip((NONE, RIFT), arms, strict=True)]


GROUPS = {"test": PATIENTS, "natural": None}


def rows_of(lab: Lab, arms: list[Arm], groups=GROUPS) -> dict[str, dict]:
    return {row["metric"]: row for row in comparison._differences(lab, arms, groups)}


def test_differences_are_those_of_the_numbers_and_know_their_patients(lab):
    none, rift = arms = two_arms(lab, 3)
    rows = rows_of(lab, arms)
    assert list(rows) == list(differences.METRICS["single_label"])

    def balanced(run: Run) -> float:
        return balanced_accuracy_score(LABELS, Snapshot.load(run.path / "snapshot.npz").sets["test"].logits.argmax(1))

    def cka(run: Run, name: str) -> float:
        one, other = (Snapshot.load(path).sets[name].embeddings for path in (lab.cache / "before.npz", run.path / "snapshot.npz"))
        return debiased_cka(one, other)

    for metric, number in (
        ("balanced_accuracy", balanced),
        ("cka_debiased", lambda run: cka(run, "test")),
        ("cka_natural_debiased", lambda run: cka(run, "natural")),
    ):
        expected = np.mean([number(a) - number(b) for a, b in zip(rift.runs, none.runs, strict=True)])
        assert rows[metric]["difference"] == pytest.approx(expected), metric
    counted = {metric: (row["n"], row["patients"], row["seeds"]) for metric, row in rows.items()}
    assert counted == dict.fromkeys(("balanced_accuracy", "accuracy", "cka_debiased"), (N, 20, 3)) | {
        "cka_natural_debiased": (M, None, 3),
        "natural_accuracy": (M * 4 // 5, None, 3),
    }
    hits = [np.stack([differences.scores(run, "accuracy") for run in arm.runs]) for arm in (rift, none)]
    by_patient = paired_difference(*hits, groups=PATIENTS)
    assert (rows["accuracy"]["low"], rows["accuracy"]["p_value"]) == (by_patient.low, by_patient.p_value)
    assert rows["cka_debiased"]["low"] != rows_of(lab, arms, {"test": None, "natural": None})["cka_debiased"]["low"]


def test_one_family_and_the_rest_described(lab):
    rows = rows_of(lab, two_arms(lab, 3))
    assert rows["balanced_accuracy"]["verdict"] == rows["cka_debiased"]["verdict"] == "higher"
    assert {metric for metric, row in rows.items() if row["p_adjusted"] is None} == {
        "accuracy",
        "cka_natural_debiased",
        "natural_accuracy",  # 192 scored images of 200
    }
    assert all(row["verdict"] is None and row["verdict_reason"] for row in rows.values() if row["p_adjusted"] is None)
    assert rows["balanced_accuracy"]["p_value"] < rows["balanced_accuracy"]["p_adjusted"]
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize(("seeds", "said"), [(1, "higher"), (2, None)])
def test_one_seed_has_a_verdict_on_two_runs_and_two_have_none(lab, seeds, said):
    row = rows_of(lab, two_arms(lab, seeds))["cka_debiased"]
    assert (row["verdict"], row["seeds"]) == (said, seeds) and row["low"] < row["difference"] < row["high"]


def test_several_findings_are_compared_by_mean_average_precision(lab):
    none, rift = arms = two_arms(lab, 3, MULTI)
    rows = rows_of(lab, arms)
    assert list(rows) == list(differences.METRICS["multi_label"])

    def precision(run: Run) -> float:
        return average_precision_score(FINDINGS, Snapshot.load(run.path / "snapshot.npz").sets["test"].logits)  # macro

    expected = np.mean([precision(a) - precision(b) for a, b in zip(rift.runs, none.runs, strict=True)])
    row = rows["average_precision"]
    assert (row["difference"], row["n"], row["patients"]) == (pytest.approx(expected), N, 20)
    assert row["p_adjusted"] is not None

    def right(run: Run) -> float:
        return ((Snapshot.load(run.path / "snapshot.npz").sets["test"].logits >= 0) == FINDINGS).mean()

    expected = np.mean([right(a) - right(b) for a, b in zip(rift.runs, none.runs, strict=True)])
    assert rows["accuracy"]["difference"] == pytest.approx(expected) and rows["accuracy"]["verdict"] is None


def test_a_seed_that_only_one_arm_finished_is_left_out_and_none_is_a_reason(lab):
    none, rift = two_arms(lab, 3)
    (rift.runs[1].path / "result.json").unlink()
    assert {row["seeds"] for row in rows_of(lab, [none, rift]).values()} == {2}
    for run in rift.runs:
        (run.path / "result.json").unlink(missing_ok=True)
    for row in rows_of(lab, [none, rift]).values():
        assert (row["difference"], row["seeds"], row["verdict"]) == (None, 0, None)
        assert row["verdict_reason"] == row["difference_reason"] == "no seed was finished in both arms"


def test_a_document_takes_the_patients_of_the_test_images(lab):
    """The set holds training images too, of other patients."""

    def images(classes: tuple[str, ...], labels: np.ndarray, groups: np.ndarray | None) -> ImageSet:
        n = len(labels)
        ids, given = np.arange(n).astype(str), np.full(n, "")
        return ImageSet(lab.data, "set", "d", classes, ids, labels, groups, given, Report(kept=n))

    random = np.random.default_rng(2)
    test = np.sort(random.permutation(2 * N)[:N])
    labels, patients = np.zeros(2 * N, int), np.full(2 * N, 99)
    labels[test], patients[test] = LABELS, PATIENTS
    train, validation = np.array_split(np.setdiff1d(np.arange(2 * N), test), 2)
    natural = images(tuple("wxyz"), np.arange(M) % 4, None)
    arms = two_arms(lab, 1)
    found = comparison.document(lab, arms, images(CLASSES, labels, patients), natural, Split(train, validation, test))
    assert {row["metric"]: row for row in found["differences"]} == rows_of(lab, arms)
    assert found["differences"][0]["patients"] == 20


def test_embeddings_without_variance_give_a_reason(lab):
    none, rift = two_arms(lab, 1)
    after = Snapshot.load(rift.runs[0].path / "snapshot.npz")
    still = {**after.sets, "test": arrays(np.ones((N, 8)), LABELS, after.sets["test"].logits)}
    Snapshot(still, CLASSES, after.natural_classes, None).save(rift.runs[0].path / "snapshot.npz")
    row = rows_of(lab, [none, rift])["cka_debiased"]
    assert row["difference"] is None and "features are constant" in row["verdict_reason"]


def test_a_document_that_was_kept_before_p_values_were_adjusted_is_shown(monkeypatch, tmp_path):
    """The shipped example, whatever its version, without the keys of today: it opens, and its sentences are those of today."""
    from rift import example

    lab = example.place(tmp_path / "example")
    assert lab is not None
    (name,) = service.comparisons(lab)
    path = lab.comparisons / name / "comparison.json"
    stored = json.loads(path.read_bytes())
    for row in stored["differences"]:
        for key in ("p_adjusted", "verdict_reason", "patients"):
            row.pop(key, None)
    write_json(path, stored)
    found = overview.verdicts(service.result(lab, name))
    assert len(found) == len(stored["differences"]) and all(
        "p_adjusted" not in row for row in service.result(lab, name)["differences"]
    )
    assert any("of this one run with rift is" in one["sentence"] for one in found)
    assert not any("with rift than with none" in one["sentence"] for one in found)

"""Images with several findings, the whole way: read from a table, split, trained, measured, compared, reported."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score

from rift import api, catalog, comparison, dataset, findings, jobs, overview, recipe, service, tradeoff, trials, tuning, upload
from rift.config import Choice, Training
from rift.diagnostics import accuracy, pca
from rift.errors import DataError, SettingError
from rift.measures import plain
from rift.orders import Order
from rift.runs import Lab
from rift.snapshot import Snapshot
from tests.test_diagnostics import HOSTILE, arrays
from tests.uploads import picture, refusal, zipped

NAMES = ("Effusion", "Mass", "Nodule")


def table(rows: list[tuple[int, ...]], header: str = "image," + ",".join(NAMES)) -> str:
    return "\n".join([header, *(f"{i:03d}.png," + ",".join(map(str, row)) for i, row in enumerate(rows))])


def rows_of(n: int, seed: int = 0) -> list[tuple[int, ...]]:
    drawn = np.random.default_rng(seed).random((n, 3)) < [0.5, 0.3, 0.2]
    return [tuple(map(int, row)) for row in drawn]


def packed(path: Path, text: str, n: int) -> Path:
    return zipped(path, {"labels.csv": text.encode(), **{f"images/{i:03d}.png": picture(i) for i in range(n)}})


# --- reading ------------------------------------------------------------------------------------------------------------------


def test_a_table_of_findings_becomes_a_set_that_asks_for_its_task(tmp_path):
    rows = rows_of(40)
    stored = upload.read(packed(tmp_path / "x.zip", table(rows), 40), tmp_path / "root")
    assert stored.task == "multi_label" and stored.classes == NAMES and stored.labels.dtype == np.uint8
    assert stored.labels.tolist() == [list(row) for row in rows], "an image without any finding is kept too"
    assert not all(any(row) for row in rows)
    assert [int(stored.of(j).sum()) for j in range(3)] == np.sum(rows, axis=0).tolist()
    again = dataset.load(stored.folder)
    assert again.labels.dtype == np.uint8 and (again.labels == stored.labels).all() and again.digest == stored.digest
    said = {item.code: item.message for item in stored.report.warnings}
    assert "no label column" in said["data.findings"] and "3 columns of 0 and 1" in said["data.findings"]
    rows[0] = tuple(1 - mark for mark in rows[0])
    other = upload.read(packed(tmp_path / "y.zip", table(rows), 40), tmp_path / "root")
    assert other.digest != stored.digest, "the digest follows every mark"


def test_a_label_column_makes_every_set_one_class_per_image(tmp_path):
    """The rule that keeps a table of one class per image, with smoker and age beside it, from being taken for findings."""
    text = "image,Smoker,AP,label\n" + "\n".join(f"{i:03d}.png,{i % 2},1,{'ab'[i % 3 == 0]}" for i in range(12))
    stored = upload.read(packed(tmp_path / "x.zip", text, 12), tmp_path / "root")
    assert stored.task == "single_label" and stored.classes == ("a", "b") and stored.labels.ndim == 1
    assert "Smoker, AP" in next(item.message for item in stored.report.warnings if item.code == "data.unread")


GOOD = rows_of(30)
BAD = {
    "2": (table([*GOOD, (1, 2, 0)]), "Line 32 of the table, column 'Mass': '2' is neither 0 nor 1"),
    "blank": (table(GOOD) + "\n029.png,,1,0", "Line 32 of the table, column 'Effusion': '' is neither"),
    "text": (table(GOOD).replace("000.png,", "000.png,x", 1), "Line 2 of the table, column 'Effusion'"),
    "a decimal": (table(GOOD) + "\n029.png,1,1,0.5", "column 'Nodule': '0.5' is neither"),
    "age": (table([(*row, 63) for row in GOOD], "image,Effusion,Mass,Nodule,Age"), "column 'Age': '63' is neither 0 nor 1"),
    "a semicolon": (table(GOOD, 'image,"a;b",Mass,Nodule'), "'a;b' holds a semicolon"),
    "one column": ("image,Mass\n000.png,1", "columns image, Mass; it needs"),
    "look alike": (table(GOOD, "image,Mass,Mass\u200b,Nodule"), "look the same"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_stray_value_is_refused_with_its_line_and_column(name, tmp_path):
    text, words = BAD[name]
    error = refusal(packed(tmp_path / "x.zip", text, 30), tmp_path / "root")
    assert error.code == "data.label" and words in str(error), str(error)


@pytest.mark.parametrize(("value", "count"), [(0, 0), (1, 30)])
def test_a_finding_that_no_image_or_every_image_shows_is_refused_or_left_out(value, count, tmp_path):
    rows = [(*row[:2], value) for row in GOOD]
    source = packed(tmp_path / "x.zip", table(rows), 30)
    error = refusal(source, tmp_path / "root")
    assert error.code == "data.too_few" and f"Nodule ({count} of 30)" in str(error) and "--leave-out-small" in str(error)
    stored = upload.read(source, tmp_path / "root", leave_out_small=True)
    assert stored.classes == NAMES[:2] and len(stored) == 30, "no image is lost"
    assert "'Nodule' was left out" in next(item.message for item in stored.report.warnings if item.code == "data.left_out")
    two_gone = packed(tmp_path / "y.zip", table([(row[0], value, value) for row in GOOD]), 30)
    assert refusal(two_gone, tmp_path / "other", leave_out_small=True).code == "data.one_class"


def test_conflicts_name_the_findings_and_natural_images_have_one_name_each(tmp_path):
    rows = [(1, 0, 1), *GOOD[1:]]
    error = refusal(packed(tmp_path / "x.zip", table(rows) + "\n000.png,0,0,0", 30), tmp_path / "root")
    assert (
        error.code == "data.conflict" and "'Effusion, Nodule' in line 2" in str(error) and "'no finding' in line 32" in str(error)
    )
    error = refusal(packed(tmp_path / "y.zip", table(GOOD), 30), tmp_path / "root", least=1, least_classes=1, findings=False)
    assert error.code == "data.label" and "one name each" in str(error)


# --- splitting and drawing ----------------------------------------------------------------------------------------------------


def image_set(labels: np.ndarray, groups: np.ndarray | None = None) -> dataset.ImageSet:
    n, k = labels.shape
    names, ids = tuple(f"f{j}" for j in range(k)), np.array([f"{i:05d}" for i in range(n)])
    given = np.array([""] * n)
    return dataset.ImageSet(Path(), "x", "0", names, ids, labels.astype(np.uint8), groups, given, dataset.Report(kept=n))


@pytest.mark.parametrize("grouped", [False, True])
def test_every_part_has_each_finding_in_its_share_and_no_patient_is_on_two_sides(grouped):
    for seed in range(4):
        labels = (np.random.default_rng(seed).random((400, 5)) < [0.5, 0.3, 0.1, 0.05, 0.03]).astype(int)
        groups = np.repeat(np.arange(200), 2) if grouped else None
        parts = dataset.split(image_set(labels, groups), seed)
        sides = [parts.train, parts.validation, parts.test]
        assert sorted(np.concatenate(sides)) == list(range(400)) and [len(part) for part in sides] == [240, 80, 80]
        if groups is not None:
            assert not any(set(groups[a]) & set(groups[b]) for a, b in itertools.combinations(sides, 2))
        for part, share in zip(sides, (0.6, 0.2, 0.2), strict=True):
            counts, wanted = labels[part].sum(0), share * labels.sum(0)
            assert (counts >= 1).all() and (abs(counts - wanted) < (1.5 if grouped else 1)).all(), (seed, counts, wanted)


def test_a_finding_that_cannot_be_in_every_part_is_refused():
    labels = np.zeros((30, 2), int)
    labels[:15, 0], labels[:2, 1] = 1, 1
    with pytest.raises(DataError, match=r"f1 \(2\)") as caught:
        dataset.split(image_set(labels), 0)
    assert caught.value.code == "data.too_few"
    with pytest.raises(DataError, match=r"images without f1 \(2\)"):
        dataset.split(image_set(np.stack([labels[:, 0], 1 - labels[:, 1]], axis=1)), 0)


def test_few_shots_of_findings_hold_enough_of_each_and_leave_validation_and_test_alone():
    labels = (np.random.default_rng(2).random((300, 4)) < [0.4, 0.2, 0.1, 0.05]).astype(int)
    images, whole = image_set(labels), dataset.split(image_set(labels), 0)
    for seed, shots in itertools.product(range(5), (1, 5)):
        parts = dataset.parts(images, Training(shots=shots), seed)
        drawn = labels[parts.train]
        assert (drawn.sum(0) >= shots).all() and (~drawn.any(1)).sum() == shots and len(drawn) <= 5 * shots
        assert set(parts.train) <= set(whole.train)
        assert np.array_equal(parts.test, whole.test) and np.array_equal(parts.validation, whole.validation)
    assert np.array_equal(dataset.parts(images, Training(), 0).train, whole.train)


def test_what_does_not_fit_the_labels_is_refused_in_words():
    images = image_set(np.array(GOOD))
    dataset.refuse_misfit(images, Choice(name="multi_label"), Training())
    with pytest.raises(SettingError, match="its task is multi_label, not single_label"):
        dataset.refuse_misfit(images, Choice(name="single_label"), Training())
    with pytest.raises(SettingError, match="balanced = True is not allowed"):
        dataset.refuse_misfit(images, Choice(name="multi_label"), Training(balanced=True))


def test_a_strength_is_chosen_on_findings_by_their_mean_average_precision():
    labels = np.random.default_rng(3).integers(0, 2, (40, 3)).astype(np.uint8)
    folds = tuning.folds(labels, np.repeat(np.arange(20), 2), 0)
    assert sorted(np.concatenate(folds)) == list(range(40)) and len(folds) == tuning.FOLDS
    assert all(set(fold) == {i ^ j for i in fold for j in (0, 1)} for fold in folds), "a patient's two images stay together"
    task, truth = catalog.door("tasks", "multi_label")(NAMES), torch.from_numpy(labels)
    right = (2.0 * labels - 1).tolist()
    path = tuning.Path((0.1, 1.0, 10.0), 1, 1)
    found = trials._chosen(task, path, "strength", [right, right, (1 - 2.0 * labels).tolist()], truth)
    assert found["chosen"] == 1.0 and [row["score"] for row in found["path"]][:2] == [1.0, 1.0] > [found["path"][2]["score"]]


# --- the task and what is measured --------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_binary_cross_entropy_and_the_head_starts_undecided(toy_backbone):
    task = catalog.door("tasks", "multi_label")(NAMES)
    logits, labels = torch.tensor([[0.3, -2.0, 1.0], [0.0, 4.0, -1.0]]), torch.tensor([[1, 0, 0], [0, 1, 1]])
    p = 1 / (1 + np.exp(-logits.numpy().astype(float)))
    y = labels.numpy()
    assert float(task.loss(logits, labels)) == pytest.approx(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), abs=1e-6)
    assert task.probabilities(logits).numpy() == pytest.approx(p, abs=1e-6)
    assert float(task.accuracy(logits, labels)) == pytest.approx(((p >= 0.5) == y).mean())
    head = task.head(toy_backbone)
    assert float(head.weight.detach().abs().max()) == 0 and head.out_features == 3
    score = task.score(logits, labels)
    assert score["accuracy"] == pytest.approx(3 / 6) and 0 < score["average_precision"] <= 1
    assert task.score(logits[:1], labels[:1]) == {"accuracy": 2 / 3, "balanced_accuracy": None, "average_precision": None}


def model(noise: float, n: int = 120, seed: int = 0, names: tuple[str, ...] = (*NAMES[:2], HOSTILE)) -> tuple[Snapshot, Snapshot]:
    """Two models on images with findings: the second one's logits are the truth and noise."""
    random = np.random.default_rng(seed)
    labels = (random.random((n, 3)) < [0.5, 0.3, 0.15]).astype(np.int64)
    embeddings = labels @ random.normal(size=(3, 16)) + random.normal(size=(n, 16))
    logits = (2.0 * labels - 1 + noise * random.normal(size=labels.shape)).astype(np.float32)
    sets = {"test": arrays(embeddings, labels, logits)}
    before = Snapshot({"test": arrays(embeddings, labels)}, names, (), None)
    return before, Snapshot(sets, names, (), None)


def test_numbers_of_findings_are_as_counted_by_another_way():
    before, after = model(1.5)
    found, test = accuracy.measure(before, after), after.sets["test"]
    truth, scores = test.labels > 0, 1 / (1 + np.exp(-test.logits.astype(float)))
    each = [average_precision_score(truth[:, j], scores[:, j]) for j in range(3)]
    assert found["average_precision"] == pytest.approx(np.mean(each), abs=1e-12)
    pairs = [np.sign(scores[truth[:, j], j][:, None] - scores[~truth[:, j], j][None]) for j in range(3)]
    assert found["auroc"] == pytest.approx(np.mean([(one.mean() + 1) / 2 for one in pairs]), abs=1e-9)
    right = (scores >= 0.5) == truth
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["recall"] == pytest.approx([right[truth[:, j], j].mean() for j in range(3)])
    assert found["specificity"] == pytest.approx([right[~truth[:, j], j].mean() for j in range(3)])
    assert found["balanced_accuracy"] is None and found["balanced_accuracy_reason"]
    assert found["predictions"].shape == found["labels"].shape == found["probabilities"].shape == (120, 3)
    for name in ("average_precision", "accuracy", "auroc"):
        assert 0 <= found[f"{name}_low"] < found[name] < found[f"{name}_high"] <= 1
    assert found["confusion"] is None and found["confusion_reason"]
    perfect = accuracy.measure(*model(0.0))
    assert perfect["average_precision"] == perfect["auroc"] == perfect["accuracy"] == 1


def test_a_finding_that_no_test_image_shows_is_named_and_in_no_mean():
    before, after = model(1.0)
    labels = after.sets["test"].labels.copy()
    labels[:, 1] = 0
    lacking = dataclasses.replace(after, sets={"test": dataclasses.replace(after.sets["test"], labels=labels)})
    found = accuracy.measure(before, lacking)
    assert np.isnan(found["finding_auroc"][1]) and "Mass" in found["recall_reason"]
    assert found["average_precision"] == pytest.approx(np.nanmean(found["finding_average_precision"]))
    assert "Mass" in accuracy.sentence({"none": found})
    nothing = dataclasses.replace(after, sets={"test": dataclasses.replace(after.sets["test"], labels=0 * labels)})
    found = accuracy.measure(before, nothing)
    assert found["average_precision"] is None and "by all or by no test images" in found["average_precision_reason"]
    assert accuracy.sentence({"none": found}) and accuracy.figure({"none": found}).to_json()


@pytest.mark.parametrize("n", [1, 2, 5, 120])
def test_figure_and_sentence_of_findings_take_saved_numbers_and_hostile_names(n):
    results = {arm: accuracy.measure(*model(noise, n)) for arm, noise in (("none", 2.0), ("rift", 0.5))}
    for values in results.values():
        for name, value in values.items():
            assert value is not None or values[f"{name}_reason"], name
            assert not isinstance(value, float) or np.isfinite(value), name
    read_back = json.loads(json.dumps(plain(results), allow_nan=False))
    assert accuracy.sentence(results) == accuracy.sentence(read_back)
    drawn = accuracy.figure(read_back)
    assert "<img" not in drawn.to_json().replace("\\u003c", "<") and {trace.name for trace in drawn.data} >= {"none", "rift"}
    if n == 120:
        assert "Mean average precision (mAP) of 3 findings on 120 images: none 0." in accuracy.sentence(results)


def test_an_image_has_one_color_its_only_finding_or_several_or_none():
    labels = np.array([[1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]])
    which, names = findings.one_each(labels, NAMES)
    assert [names[i] for i in which] == ["Effusion", "Nodule", "several findings", "no finding"]
    before, after = model(1.0)
    found = pca.measure(before, after)
    assert found["labels"].shape == (120,) and {trace.name for trace in pca.figure({"none": found}).data} >= {"no finding"}


def test_changed_counts_images_whose_answers_are_all_right():
    labels = np.array([[1, 0], [1, 0], [0, 0]])
    one, other = np.array([[1, 0], [1, 1], [0, 0]]), np.array([[1, 1], [1, 0], [0, 0]])
    both = accuracy.changed({"predictions": one, "labels": labels}, {"predictions": other, "labels": labels})
    assert both["fixed"].tolist() == [1] and both["broken"].tolist() == [0]


# --- the whole way ------------------------------------------------------------------------------------------------------------


def order_in(lab: Lab, images: dataset.ImageSet, **training) -> Order:
    """An order over a toy ViT from a local file, small enough to be trained here."""
    torch.manual_seed(0)
    weights = lab.root / "toy.safetensors"
    if not weights.exists():
        save_file(timm.create_model("test_vit").state_dict(), weights)
    noise = np.random.default_rng(0)
    pictures = [
        (f"{name}{i}", name, noise.integers(0, 255, (32, 32, 3), np.uint8), None, "") for name in ("dog", "cat") for i in "ab"
    ]
    natural = dataset.store(pictures, lab.data, name="two words")
    toy = {"path": str(weights), "architecture": "test_vit"}
    return Order(
        data=images.digest,
        natural=natural.digest,
        backbone=catalog.check("backbones", Choice(name="checkpoint", options=toy)),
        training=Training(**{"epochs": 1, "batch_size": 16, "views": 1, **training}),
        task=Choice(name=images.task),
    )


def finish(lab: Lab, order: Order, monkeypatch) -> tuple[str, dict]:
    monkeypatch.setattr(jobs, "ensure_worker", lambda lab, device="auto": None)
    name = service.place(lab, order)
    for run in service.runs(service.arms(lab, name)):
        recipe.execute(run, lab, torch.device("cpu"))
        assert run.state == "done", run.end()
    return name, service.result(lab, name)


def read_predictions(run) -> list[dict[str, str]]:
    with (run.path / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_comparison_of_findings_goes_the_whole_way(tmp_path, monkeypatch):
    lab = Lab(tmp_path / "lab")
    images = upload.read(packed(tmp_path / "x.zip", table(rows_of(60)), 60), lab.data, name="chest")
    order = order_in(lab, images)
    with pytest.raises(SettingError, match="its task is multi_label"):
        service.place(lab, order.model_copy(update={"task": Choice(name="single_label")}))
    assert service.comparisons(lab) == []
    name, document = finish(lab, order, monkeypatch)
    assert document["data"]["task"] == "multi_label" and document["data"]["classes"] == list(NAMES)
    assert document["pretrained"]["knn_accuracy"] is None and document["pretrained"]["knn_accuracy_reason"]
    for arm in service.arms(lab, name):
        run, truth = arm.runs[0], {id: row for id, row in zip(images.ids, images.labels, strict=True)}
        predicted = read_predictions(run)
        assert len(predicted) == 60
        for row in predicted:
            marked = {names for names, mark in zip(NAMES, truth[row["image"]], strict=True) if mark}
            assert set(filter(None, row["label"].split(";"))) == marked
        test = [row for row in predicted if row["split"] == "test"]
        scores = np.array([[float(row[one]) for one in NAMES] for row in test])
        labels = np.array([truth[row["image"]] for row in test])
        assert abs(scores.sum(1) - 1).max() > 0.05, "each finding has a probability of its own"
        stored = run.result()["numbers"]
        assert stored["average_precision"] == pytest.approx(np.nanmean(findings.average_precision(labels, scores)), abs=0.02)
        epochs = [event for event in run.events() if event["event"] == "epoch"]
        assert 0 <= epochs[-1]["validation_average_precision"] <= 1
    metrics = {one["metric"]: one for one in document["differences"]}
    assert set(metrics) == {"average_precision", "accuracy", "cka_debiased", "cka_natural_debiased", "natural_accuracy"}
    for metric in ("average_precision", "accuracy"):
        none, rift = (arm["mean"][metric] for arm in document["arms"])
        assert metrics[metric]["difference"] == pytest.approx(rift - none, abs=1e-9)
    assert tradeoff._task(tradeoff.points(document)) == "average_precision"
    rows = {row["name"]: row for row in overview.table(document, service.measures(lab, name))}
    assert (
        next(iter(rows)) == "Mean average precision (mAP)" and rows["AUROC, mean over findings"]["cells"][1]["mean"] is not None
    )
    page = service.write_report(lab, name).read_text()
    assert "Effusion" in page and "Mean average precision (mAP) of" in page


def test_real_pictures_with_two_findings_each_are_verified_and_trained(tmp_path, monkeypatch, shared):
    """Real white blood cells of three kinds; a monocyte shows one of the three findings, a lymphocyte two."""
    chosen = {}
    with zipfile.ZipFile(shared / "data" / "med_wbc_dataset2_5class.zip") as pack:
        for kind in ("lymphocyte", "neutrophil", "monocyte"):
            chosen |= {
                name: pack.read(name) for name in sorted(pack.namelist()) if name.startswith(kind) and name.endswith(".jpg")
            }
    lines = ["file,granulocyte,mononuclear,lymphocyte"]
    for name in chosen:
        kind = name.split("/")[0]
        lines.append(f"{name},{int(kind == 'neutrophil')},{int(kind != 'neutrophil')},{int(kind == 'lymphocyte')}")
    source = zipped(tmp_path / "cells.zip", {"labels.csv": "\n".join(lines).encode(), **chosen})
    verified = api.verify(source)
    assert verified["task"] == "multi_label" and verified["counts"] == {"granulocyte": 33, "lymphocyte": 37, "mononuclear": 52}
    assert "data.findings" in {item["code"] for item in verified["warnings"]}
    lab = Lab(tmp_path / "lab")
    order = order_in(lab, upload.read(source, lab.data), epochs=4, learning_rate=1e-3, shots=5)
    name, document = finish(lab, order.model_copy(update={"baseline": False}), monkeypatch)
    assert document["data"]["shots"] == 5 and document["data"]["counts"]["train"] < 15
    (run,) = comparison.of_runs(service.runs(service.arms(lab, name)))[0].runs
    assert run.result()["numbers"]["average_precision"] > 0.3

"""What the app opens with is a real comparison: its numbers follow from its predictions, its weights give them again."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from rift import catalog, dataset, example, service, trained
from rift import places as maps
from rift.model import to_float
from rift.runs import Lab


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> tuple[Lab, str]:
    lab = example.place(tmp_path_factory.mktemp("lab") / "example")
    assert lab is not None
    (name,) = service.comparisons(lab)
    return lab, name


def predictions(run) -> list[dict[str, str]]:
    with (run.path / "predictions.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == "test"]


def test_every_diagnostic_is_there_and_all_runs_are_done(shipped):
    lab, name = shipped
    assert service.status(lab, name).state == "done"
    found = service.measures(lab, name)
    assert list(found) == ["none", "rift", "none, seed 0", "rift, seed 0"]
    for arm in ("none", "rift"):
        assert set(found[arm]) | set(found[f"{arm}, seed 0"]) == set(catalog.names("diagnostics"))


def test_its_numbers_follow_from_its_predictions(shipped):
    lab, name = shipped
    document = service.result(lab, name)
    for arm in document["arms"]:
        rows = predictions(lab.run(arm["runs"][0]["run"]))
        classes = document["data"]["classes"]
        right = [max(classes, key=lambda one, row=row: float(row[one])) == row["label"] for row in rows]
        assert np.mean(right) == pytest.approx(arm["mean"]["accuracy"], abs=1e-9)
        assert len(rows) == document["data"]["counts"]["test"]


def test_its_images_lie_on_a_map_after_every_epoch(shipped):
    lab, name = shipped
    for arm in service.arms(lab, name):
        (run,) = arm.runs
        places = maps.read(run)
        assert places is not None and sorted(places.epochs) == list(range(1, run.experiment.training.epochs + 1))
        assert np.isfinite([places.moved(epoch) for epoch in places.epochs]).all() and places.moved(places.newest) > 0


def test_its_weights_give_its_predictions_again(shipped):
    """They are kept in half precision; the answers must stay, the probabilities to a hundredth."""
    lab, name = shipped
    for arm in service.arms(lab, name):
        rows, classifier = predictions(arm.runs[0]), trained.finetuned(lab, arm.runs[0])
        images = dataset.load(lab.data / arm.runs[0].experiment.data)
        order = {id: i for i, id in enumerate(images.ids)}
        pixels = images.pixels(classifier.backbone.pixels)[[order[row["image"]] for row in rows]]
        with torch.inference_mode():
            probabilities = classifier(to_float(torch.from_numpy(pixels)))[1].softmax(1).numpy()
        stored = np.array([[float(row[one]) for one in images.classes] for row in rows])
        assert np.abs(probabilities - stored).max() < 0.01


def test_its_pictures_and_its_backbone_are_the_ones_that_are_shipped(shipped):
    lab, name = shipped
    order, source = service.order_of(lab, name)
    assert source == example.SAMPLE and "Synthetic" in dataset.load(lab.data / order.data).about
    assert (lab.data / order.natural).exists(), "the bundled photos of these packages are those it was measured on"
    weights = catalog.door("backbones", "embedded")().weights
    assert service.result(lab, name)["backbone"]["weights"] == weights


def test_it_is_placed_once_and_again_when_it_changes(tmp_path):
    lab = example.place(tmp_path / "example")
    run = service.runs(service.arms(lab, service.comparisons(lab)[0]))[0]
    (run.path / "mine").touch()
    example.place(tmp_path / "example")
    assert (run.path / "mine").exists()
    (tmp_path / "example" / "placed").write_text("another version")
    example.place(tmp_path / "example")
    assert not (run.path / "mine").exists()


def test_measured_numbers_hold_no_name_of_a_file():
    text = example.MEASURED.read_text()
    sets = json.loads(text)["sets"]
    assert len(sets) >= 3 and all({arm["name"] for arm in one["arms"]} == {"none", "rift"} for one in sets)
    assert not any(end in text.lower() for end in (".png", ".jpg", ".jpeg", ".tif", "skipped"))

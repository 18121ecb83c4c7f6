"""The numbers are what they say: same seed same bits, only the penalty differs between arms, and nothing changed underneath."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rift import about, catalog, intact, recipe, train
from rift.config import Choice, Experiment, Training
from rift.model import Classifier, NaturalHead
from rift.views import Views
from tests.methods_toys import toy_lab
from tests.reliability import faults

ROOT = Path(__file__).parents[2]
SHORT = {"epochs": 1, "keep": "last"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One short run that nobody disturbed, its lab and its experiment."""
    torch.set_num_threads(1)
    lab, experiment = faults.tiny(tmp_path_factory.mktemp("lab"), **SHORT)
    run = faults.execute(lab, lab.submit(experiment))
    assert run.state == "done", run.end()
    return lab, experiment, run


def test_the_same_seed_gives_the_same_bits_in_a_fresh_lab(done, tmp_path):
    lab, experiment, run = done
    other = faults.beside(lab, tmp_path / "other")
    again = faults.execute(other, other.submit(experiment))
    assert faults.unlike(faults.outcome(lab, run), faults.outcome(other, again)) == []


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_bits(done, tmp_path):
    lab, experiment, run = done
    other = faults.beside(lab, tmp_path / "other")
    again = other.submit(experiment)
    command = [sys.executable, "-m", "rift", "work", str(other.root), "--device", "cpu"]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert faults.unlike(faults.outcome(lab, run), faults.outcome(other, again)) == []


def test_weights_that_begin_at_random_come_from_the_seed(toy_backbone):
    task, training = catalog.door("tasks", "single_label")(("a", "b")), Training(epochs=1, batch_size=4, views=1)
    pixels = np.zeros((4, toy_backbone.pixels, toy_backbone.pixels, 3), np.uint8)
    views = Views(pixels, np.arange(4) % 2, training, seed=0)
    method = catalog.check("methods", Choice(name="adaptformer"))

    def begun(seed: int) -> dict[str, torch.Tensor]:
        experiment = Experiment(data="d" * 64, natural="n" * 64, method=method, training=training, seed=seed)
        return train.set_up(experiment, toy_backbone, task, views)[0].classifier.state_dict()

    first, again, other = begun(0), begun(0), begun(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_every_result_says_what_it_was_made_on(done):
    _, _, run = done
    environment = run.result()["environment"]
    assert {"rift", "python", "torch", "numpy", "timm", "safetensors", "device", "threads", "precision"} <= set(environment)
    assert environment["threads"] == 1 and environment["device"] == "cpu" and environment["torch"] == torch.__version__
    assert run.result()["attempts"] == [{"device": "cpu", "threads": 1, "torch": torch.__version__}]


def test_other_threads_are_told(done):
    _, _, run = done
    result = run.result()
    assert about.remarks({"a": result, "b": result}) == []
    twice = {**result, "attempts": [*result["attempts"], {"device": "cpu", "threads": 2, "torch": "2.0"}]}
    (said,) = about.remarks({"a": twice})
    assert "a was worked at on different grounds" in said and "cpu, 2 threads, torch 2.0" in said
    other = {**result, "environment": {**result["environment"], "threads": 2}}
    (said,) = about.remarks({"a": result, "b": other})
    assert "different grounds" in said and "threads 1" in said and "threads 2" in said


def trained(backbone, regularizer: str, strength: float) -> tuple[dict, list]:
    """Train a few steps and return the weights, and which images were seen in which view."""
    task = catalog.door("tasks", "single_label")(("a", "b"))
    pixels = np.random.default_rng(0).integers(0, 255, (8, backbone.pixels, backbone.pixels, 3), dtype=np.uint8)
    training, seen = Training(epochs=1, batch_size=4, views=1), []
    train.seed_everything(0)
    views = Views(pixels, np.arange(8) % 2, training, seed=0)
    views.pretrained = backbone
    images = views.images

    def noted(ids, view):
        seen.append((np.asarray(ids).tolist(), view))
        return images(ids, view)

    classifier = Classifier(copy.deepcopy(backbone), task.head(backbone))
    penalty = catalog.door("regularizers", regularizer)(backbone, classifier.backbone, views)
    if penalty.needs_targets:
        views.targets(getattr(penalty, "blocks", ()))
    views.images = noted
    state = train.State(classifier, penalty, train.make_optimizer(classifier, penalty, training))
    list(train.train(state, task, views, training, strength, 0, dict))
    return classifier.state_dict(), seen


def test_strength_zero_is_none_for_every_penalty_and_all_arms_see_the_same_batches(toy_backbone):
    backbone = copy.deepcopy(toy_backbone)
    rows = torch.nn.functional.normalize(torch.randn(2000, backbone.width), dim=1)
    backbone._natural = lambda labels: NaturalHead(tuple(labels), rows[: len(labels)])
    plain, seen = trained(backbone, "none", 0.0)
    for name in catalog.names("regularizers"):
        weights, also = trained(backbone, name, 0.0)
        assert all(torch.equal(weights[key], plain[key]) for key in plain), name
        assert also == seen, name
    weights, also = trained(backbone, "rift", 1.0)
    assert also == seen and not all(torch.equal(weights[key], plain[key]) for key in plain)


def test_a_picture_that_changed_on_the_disk_is_noticed_before_training(done, tmp_path):
    _, experiment, _ = done
    here = toy_lab(tmp_path / "lab")
    folder = here.data / experiment.data
    faults.execute(here, here.submit(experiment))  # from now on its decoded pixels are at hand, and no picture is asked for
    intact.refuse_changed(folder)
    blobs = bytearray((folder / "blobs.bin").read_bytes())
    blobs[len(blobs) // 2] ^= 1
    (folder / "blobs.bin").write_bytes(blobs)
    again = faults.execute(here, here.submit(experiment.model_copy(update={"seed": 1})))
    assert (
        again.state == "failed"
        and again.end()["code"] == "data.changed"
        and "changed after it was read" in again.end()["message"]
    )
    assert not any(event["event"] == "step" for event in again.events()), "nothing was trained on it"


def test_the_settings_of_a_run_are_those_that_it_is_named_by(done, tmp_path):
    lab, experiment, _ = done
    here = faults.beside(lab, tmp_path / "lab")
    run = here.submit(experiment)
    document = json.loads((run.path / "experiment.json").read_text())
    document["training"]["learning_rate"] *= 2
    (run.path / "experiment.json").write_text(json.dumps(document))
    recipe.execute(run, here, faults.CPU)
    assert run.state == "failed" and run.end()["code"] == "run.damaged" and "named by" in run.end()["message"]

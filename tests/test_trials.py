"""`strength="auto"` through real runs: chosen without the test images, resumed, and then trained as if it had been asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rift import catalog, comparison, dataset, estimate, recipe, trials, tuning
from rift.config import Choice, Experiment, Training
from rift.errors import RunError
from rift.runs import Lab, Run
from tests.methods_toys import toy_lab

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return toy_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def other(lab: Lab, tmp_path: Path) -> Lab:
    """Another lab of the same images, so that a test may do with its runs what it likes."""
    fresh = Lab(tmp_path / "other")
    fresh.data.rmdir()
    fresh.data.symlink_to(lab.data)
    return fresh


def experiment(lab: Lab, regularizer: str = "rift", strength: float | str = "auto", epochs: int = 9) -> Experiment:
    toy = {"path": str(lab.weights), "architecture": "test_vit"}
    return Experiment(
        data=lab.medical.digest,
        natural=lab.natural.digest,
        backbone=catalog.check("backbones", Choice(name="checkpoint", options=toy)),
        regularizer=catalog.check("regularizers", Choice(name=regularizer)),
        strength=strength,
        training=Training(epochs=epochs, batch_size=8, views=2, learning_rate=1e-3),
    )


def executed(lab: Lab, asked: Experiment) -> Run:
    run = lab.submit(asked)
    recipe.execute(run, lab, CPU)
    return run


@pytest.fixture(scope="module")
def done(lab: Lab) -> dict[str, Run]:
    """Both arms with what they try, by five folds of the 16 images that are not for testing."""
    return {name: executed(lab, experiment(lab, name)) for name in ("none", "rift")}


@pytest.mark.slow
def test_the_chosen_strength_is_trained_as_if_it_had_been_asked_for(lab, other, done):
    result = done["rift"].result()
    assert result["strength"] == result["tuning"]["chosen"] in tuning.STRENGTHS
    asked = executed(other, experiment(lab, strength=result["strength"]))
    a, b = (load_file(run.path / "weights.safetensors") for run in (done["rift"], asked))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert asked.result()["numbers"]["cka_debiased"] == result["numbers"]["cka_debiased"]
    assert asked.result()["tuning"] is None and asked.result()["strength"] == result["strength"]


@pytest.mark.slow
def test_the_arm_without_a_penalty_gets_as_many_trials_for_its_learning_rate(lab, other, done):
    result = done["none"].result()
    assert result["tuning"]["what"] == "learning_rate" and result["strength"] == 0
    assert result["learning_rate"] == pytest.approx(1e-3 * result["tuning"]["chosen"])
    count = [sum(event["event"] == "trial" for event in run.events()) for run in done.values()]
    assert count[0] == count[1] == len(result["tuning"]["path"]) * result["tuning"]["folds"]
    training = experiment(lab).training.model_copy(update={"learning_rate": result["learning_rate"]})
    asked = executed(other, experiment(lab, "none", 0.0).model_copy(update={"training": training}))
    assert asked.result()["numbers"]["accuracy"] == result["numbers"]["accuracy"]


@pytest.mark.slow
def test_few_validation_images_take_turns(done):
    found = done["rift"].result()["tuning"]
    assert (found["folds"], found["images"], found["epochs"]) == (5, 16, 1)
    assert [row["value"] for row in found["path"]] == [0.1, 1, 10]


@pytest.mark.slow
def test_enough_validation_images_are_used_as_they_are(lab, other, monkeypatch):
    monkeypatch.setattr(tuning, "FEW", 2)
    found = executed(other, experiment(lab)).result()["tuning"]
    parts = dataset.split(lab.medical, 0)
    assert (found["folds"], found["images"], found["epochs"]) == (1, len(parts.validation), 3)
    assert [row["value"] for row in found["path"]] == list(tuning.STRENGTHS)


def choose(lab: Lab, run: Run, pixels: np.ndarray):
    asked = run.experiment
    pretrained = catalog.door("backbones", "checkpoint")(**asked.backbone.options).eval()
    task = catalog.door("tasks", "single_label")(lab.medical.classes)
    with run.alive():
        return trials.choose(run, pretrained, task, pixels, lab.medical, dataset.split(lab.medical, 0), CPU)


@pytest.mark.slow
def test_test_images_have_no_part_in_the_choice(lab, other, done):
    run = other.submit(experiment(lab))
    pixels = lab.medical.pixels(160).copy()
    pixels[dataset.split(lab.medical, 0).test] = 0
    assert choose(lab, run, pixels) == done["rift"].result()["tuning"]


@pytest.mark.slow
def test_a_stopped_path_goes_on_where_it_was(lab, other, done, monkeypatch):
    run, train_one, seen = other.submit(experiment(lab)), trials._trial, []

    def stopping(run, *others):
        seen.append(run)
        if len(seen) == 4:
            run.request_stop()
        return train_one(run, *others)

    monkeypatch.setattr(trials, "_trial", stopping)
    recipe.execute(run, other, CPU)
    assert run.state == "stopped" and len(seen) == 4
    other.requeue(run)
    recipe.execute(run, other, CPU)
    assert run.state == "done" and len(seen) == 4 + 12  # 15 trials: three were kept, the fourth was begun again
    assert run.result()["tuning"] == done["rift"].result()["tuning"]


@pytest.mark.slow
def test_what_diverges_is_left_out_and_told(lab, other, done, monkeypatch):
    train_one = trials._trial

    def failing(run, short, strength, *others):
        return None if strength == 10 else train_one(run, short, strength, *others)

    monkeypatch.setattr(trials, "_trial", failing)
    found = executed(other, experiment(lab)).result()["tuning"]
    assert found["diverged"] == [10] and [row["value"] for row in found["path"]] == [0.1, 1]
    monkeypatch.setattr(trials, "_trial", lambda *others: None)
    run = executed(other, experiment(lab, epochs=10))
    assert run.state == "failed" and run.end()["code"] == "run.diverged" and "Every trial" in run.end()["message"]


@pytest.mark.slow
def test_a_trial_that_diverges_counts_as_diverged(lab, other, monkeypatch):
    def diverge(*others):
        raise RunError("run.diverged", "a gradient is not finite")

    monkeypatch.setattr(trials.train, "train", diverge)
    run = other.submit(experiment(lab))
    with pytest.raises(RunError, match="Every trial diverged"):
        choose(lab, run, lab.medical.pixels(160))


def test_where_a_strength_is_chosen_so_is_the_baselines_learning_rate():
    rift = Choice(name="rift")
    assert [arm.strength for arm in comparison.plan([Choice(name="full")], [rift], ["auto"])] == ["auto", "auto"]
    arms = comparison.plan([Choice(name="full")], [rift], [1.0, "auto"])
    assert [(arm.name, arm.strength) for arm in arms] == [
        ("none", "auto"),
        ("rift[strength=1]", 1.0),
        ("rift[strength=auto]", "auto"),
    ]


@pytest.mark.slow
def test_the_document_shows_the_path(lab, done):
    arms = comparison.of_runs(list(done.values()))
    found = comparison.document(lab, arms, lab.medical, lab.natural, dataset.split(lab.medical, 0))
    assert [arm["strength"] for arm in found["arms"]] == ["auto", "auto"]
    assert found["arms"][1]["runs"][0]["tuning"] == done["rift"].result()["tuning"]
    assert found["arms"][1]["runs"][0]["strength"] == done["rift"].result()["strength"]


def test_progress_and_estimate_count_the_trials(lab, monkeypatch):
    monkeypatch.setattr(estimate, "step_milliseconds", lambda lab, experiment: 100.0)
    sizes = estimate.Sizes(train=200, validation=60, total=320, natural=50)
    auto, fixed = (estimate._run_seconds(experiment(lab, strength=one, epochs=30), 100.0, sizes) for one in ("auto", 1.0))
    assert 2 * fixed < auto < 3 * fixed
    shares = [
        estimate.share("preparing", {}),
        *(estimate.share("preparing", {"event": "trial", "trial": i, "trials": 5}) for i in (1, 3, 5)),
        *(estimate.share("training", {"event": "step", "step": i, "steps": 9, "tuned": True}) for i in (1, 9)),
    ]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(0.95)
    assert estimate.share("training", {"event": "step", "step": 9, "steps": 9}) == pytest.approx(0.95)


@pytest.mark.slow
def test_all_runs_of_a_lab_on_the_same_images_are_arms_of_one_trade_off(lab, done):
    executed(lab, experiment(lab, "none", 0.0))
    executed(lab, experiment(lab, "rift", 1.0, epochs=2))
    found = {arm["name"]: arm for arm in comparison.arms_like(lab, done["rift"])}
    shared = "(epochs={}, batch_size=8, learning_rate=0.001, views=2)"
    names = {"none[learning_rate=auto]", "none", "rift"}
    assert set(found) == {f"{name} {shared.format(9)}" for name in names} | {f"rift {shared.format(2)}"}
    assert found[f"none {shared.format(9)}"]["strength"] == 0 and len(found[f"rift {shared.format(2)}"]["runs"]) == 1

"""Models asked again: interpolated weights on real small runs, kept arrays, what goes on after a stop, and every refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rift import api, captures, catalog, comparison, dataset, measures, overview, recipe, report, service, trained, watching
from rift.config import Choice, Experiment, Training
from rift.diagnostics import interpolation
from rift.errors import DataError, RunError, SettingError
from rift.model import to_float
from rift.orders import Order, experiments
from rift.runs import Lab, Run
from rift.snapshot import Snapshot
from tests.methods_toys import toy_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return toy_lab(tmp_path_factory.mktemp("lab"), each=30, natural=6)


def finished(lab: Lab, method: str, **options) -> Run:
    toy = {"path": str(lab.weights), "architecture": "test_vit"}
    run = lab.submit(
        Experiment(
            data=lab.medical.digest,
            natural=lab.natural.digest,
            backbone=catalog.check("backbones", Choice(name="checkpoint", options=toy)),
            method=catalog.check("methods", Choice(name=method, options=options)),
            training=Training(epochs=2, batch_size=16, views=1, learning_rate=1e-2, head_learning_rate=3e-2),
        )
    )
    recipe.execute(run, lab, torch.device("cpu"))
    assert run.state == "done", run.end()
    return run


@pytest.fixture(scope="module")
def full(lab) -> Run:
    return finished(lab, "full")


def ask(lab: Lab, run: Run, **settings) -> dict:
    document = api.measure(run.id, "interpolation", settings, lab=lab.root, device="cpu")
    return document["runs"][run.id]


def test_its_ends_are_the_finetuned_model_and_the_pretrained_one_under_the_trained_head(lab, full):
    found, numbers = ask(lab, full, points=3), full.result()["numbers"]
    assert found["alphas"] == [0, 0.5, 1]
    for key in ("accuracy", "balanced_accuracy", "cka_debiased", "cka_natural_debiased", "natural_accuracy"):
        assert found[key][-1] == pytest.approx(numbers[key], abs=1e-6), key
    before = Snapshot.load(lab.cache / full.result()["before"])
    assert found["cka_debiased"][0] == found["cka_natural_debiased"][0] == pytest.approx(1, abs=1e-9)
    assert found["natural_accuracy"][0] == pytest.approx(full.result()["pretrained"]["natural_accuracy"], abs=1e-6)
    with torch.inference_mode():
        head = trained.build(lab, full).head
        predicted = head(torch.from_numpy(before.sets["test"].embeddings)).argmax(1).numpy()
    assert found["accuracy"][0] == pytest.approx((predicted == before.sets["test"].labels).mean(), abs=1e-6)
    assert len({round(value, 6) for value in found["cka_debiased"]}) == 3 and found["n"] == len(before.sets["test"].labels)


def test_a_point_between_is_a_model_with_these_weights(lab, full):
    path = full.path / "captures"
    ask(lab, full, points=3)
    arrays = captures.read(next(one for one in path.glob("*.npz") if len(captures.read(one)["alphas"]) == 3))
    model, start = trained.build(lab, full), dict(trained.pretrained(full).named_parameters())
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            parameter.copy_((parameter + start[name]) / 2)
        parts = dataset.split(lab.medical, 0)
        logits = model(to_float(torch.from_numpy(lab.medical.pixels(model.backbone.pixels)[parts.test])))[1].numpy()
    assert np.abs(arrays["logits"][1] - logits).max() < 1e-5
    assert np.abs(arrays["logits"][1] - arrays["logits"][2]).max() > 1e-3


def test_the_same_settings_again_run_no_model_and_others_do(lab, full, monkeypatch):
    first = ask(lab, full, points=2)
    monkeypatch.setattr(trained, "build", lambda *given: pytest.fail("a model was built"))
    assert ask(lab, full, points=2) == first
    assert json.loads((full.path / "measures" / "interpolation.json").read_text())["settings"] == {"points": 2}
    monkeypatch.undo()
    assert len(ask(lab, full, points=4)["accuracy"]) == 4


def test_a_stop_keeps_the_points_that_are_done(lab, full, monkeypatch):
    embed, seen = interpolation._embed, []

    def stop(model, data, images):
        seen.append(1)
        if len(seen) == 7:  # two for the pretrained model, two for each point
            raise KeyboardInterrupt
        return embed(model, data, images)

    monkeypatch.setattr(interpolation, "_embed", stop)
    with pytest.raises(KeyboardInterrupt):
        ask(lab, full, points=5)
    done = {path.name for path in (full.path / "captures").glob("interpolation-*/*.npz")}
    assert done == {"point-0.npz", "point-1.npz"}
    monkeypatch.setattr(interpolation, "_embed", lambda *given: seen.append(1) or embed(*given))
    seen.clear()
    found = ask(lab, full, points=5)
    assert len(seen) == 2 + 2 * 3 and len(found["accuracy"]) == 5, "three of five points were left"
    assert not list((full.path / "captures").glob("interpolation-*/"))
    assert found["accuracy"][-1] == pytest.approx(full.result()["numbers"]["accuracy"], abs=1e-6)


@pytest.mark.parametrize("method", ["bias", "last_blocks", "linear", "lp_ft"])
def test_every_method_that_changes_weights_of_the_pretrained_model_has_a_line(method, lab):
    run = finished(lab, method)
    found, numbers = ask(lab, run, points=2), run.result()["numbers"]
    for key in ("accuracy", "cka_debiased", "natural_accuracy"):
        assert found[key][-1] == pytest.approx(numbers[key], abs=1e-6), key
    assert (found["cka_debiased"][-1] == pytest.approx(1, abs=1e-9)) == (method == "linear")


@pytest.mark.parametrize("method", ["lora", "dora", "oft", "adaptformer", "vpt"])
def test_an_adapter_is_refused_in_words_and_leaves_nothing(method, lab):
    run = finished(lab, method)
    with pytest.raises(SettingError, match=r"weights of the pretrained model.*measure a run of full") as caught:
        ask(lab, run)
    assert caught.value.code == "setting.range"
    assert not (run.path / "measures" / "interpolation.json").exists()


def test_what_cannot_be_measured_says_so(lab, full, tmp_path):
    with pytest.raises(SettingError, match="points = 99"):
        ask(lab, full, points=99)
    with pytest.raises(SettingError, match="no setting 'steps'; its settings are points"):
        ask(lab, full, steps=3)
    other = Lab(tmp_path / "lab")
    shutil.copytree(full.path, other.root / "runs" / full.id)
    shutil.rmtree(other.root / "runs" / full.id / "captures")
    run = other.run(full.id)
    with pytest.raises(DataError, match="no stored image set"):
        measures.measure_again(other, run, catalog.check("diagnostics", Choice(name="interpolation")))
    with pytest.raises(RunError, match="came without its arrays") as caught:
        measures.measure_again(other, run, catalog.check("diagnostics", Choice(name="pca")))
    assert caught.value.code == "run.missing"


def test_memory_that_runs_out_is_told_as_a_run_error(lab, full, monkeypatch):
    def full_up(*given, points):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(interpolation, "capture", full_up)
    monkeypatch.setattr(catalog, "keywords", lambda function: {"points": None})
    with pytest.raises(RunError, match="use --device cpu") as caught:
        measures.measure_again(lab, full, Choice(name="interpolation", options={"points": 7}))
    assert caught.value.code == "run.memory"


def test_one_form_holds_the_settings_of_capture_and_of_measure(monkeypatch):
    def capture(pretrained, finetuned, data, *, points: int = 11): ...

    def measure(arrays, *, level: float = 0.9): ...

    catalog.settings.cache_clear()
    monkeypatch.setattr(interpolation, "capture", capture)
    monkeypatch.setattr(interpolation, "measure", measure)
    try:
        assert list(catalog.settings("diagnostics", "interpolation").model_fields) == ["points", "level"]
        assert measures._settings(Choice(name="interpolation", options={"points": 3, "level": 0.5})) == (
            {"points": 3},
            {"level": 0.5},
        )
        catalog.settings.cache_clear()
        monkeypatch.setattr(interpolation, "measure", lambda arrays, *, points=1: {})
        interpolation.measure.__annotations__["points"] = int
        with pytest.raises(AssertionError, match="share the setting"):
            catalog.settings("diagnostics", "interpolation")
    finally:
        catalog.settings.cache_clear()


@pytest.mark.parametrize("method", ["lora", "dora", "oft", "adaptformer", "vpt"])
def test_without_its_adapter_a_trained_model_is_the_pretrained_one(method, lab):
    result = finished(lab, method).result()
    numbers = result["numbers"]
    assert max(numbers["cka_debiased"], numbers["cka_natural_debiased"]) < 1 - 1e-8, "with it, it is another"
    assert numbers["removed_cka_debiased"] == pytest.approx(1, abs=1e-12)
    assert numbers["removed_cka_natural_debiased"] == pytest.approx(1, abs=1e-12)
    assert numbers["removed_natural_accuracy"] == result["pretrained"]["natural_accuracy"]


def test_what_was_taken_out_is_measured_and_not_assumed(lab, monkeypatch):
    lora = catalog.module("methods", "lora")
    monkeypatch.setattr(lora, "remove", lambda backbone: None)
    numbers = finished(lab, "lora", rank=3).result()["numbers"]
    assert numbers["removed_cka_debiased"] == numbers["cka_debiased"] < 1


def test_a_method_without_adapter_says_that_there_is_none(lab, full):
    numbers = full.result()["numbers"]
    assert numbers["removed_cka_debiased"] is None and "no adapter" in numbers["removed_cka_debiased_reason"]


@pytest.fixture(scope="module")
def sweep(lab) -> tuple[str, list]:
    """Two methods with and without a penalty of two strengths, all trained."""
    toy = {"path": str(lab.weights), "architecture": "test_vit"}
    order = Order(
        data=lab.medical.digest,
        natural=lab.natural.digest,
        backbone=Choice(name="checkpoint", options=toy),
        methods=(Choice(name="linear"), Choice(name="lora")),
        regularizers=(Choice(name="feature_l2"),),
        strengths=(0.1, 1.0),
        training=Training(epochs=2, batch_size=16, views=1, learning_rate=1e-2),
    )
    name = service.place(lab, order)
    runs = service.runs(service.arms(lab, name))
    for run in runs:
        recipe.execute(run, lab, torch.device("cpu"))
    return name, runs


def test_a_penalty_on_a_frozen_backbone_changes_nothing_and_is_not_trained(lab, sweep):
    name, runs = sweep
    strengths = ("feature_l2[strength=0.1]", "feature_l2[strength=1]")
    arms = {arm.name: arm for arm in service.arms(lab, name)}
    assert list(arms) == [f"{method} {one}" for method in ("linear", "lora") for one in ("none", *strengths)]
    assert len(runs) == len({run.id for run in runs}) == 4, "one of linear, three of lora"
    document = service.result(lab, name)
    listed = {arm["name"]: arm for arm in document["arms"]}
    for one in strengths:
        still = listed[f"linear {one}"]
        assert still["same_as"] == "linear none" and still["regularizer"]["name"] == "feature_l2" and still["strength"] > 0
        assert still["runs"] == listed["linear none"]["runs"] and still["mean"] == listed["linear none"]["mean"]
        assert still["note"].startswith(f"linear {one} changes nothing: linear never trains the backbone")
    assert listed["linear none"]["same_as"] is listed["lora none"]["same_as"] is listed["lora none"]["note"] is None
    assert {row["arm"] for row in document["differences"]} == {f"lora {one}" for one in strengths}
    trained_arms = ["linear none", "lora none", *(f"lora {one}" for one in strengths)]
    assert list(service.measures(lab, name)) == list(watching.curves(lab, name)) == trained_arms
    assert service.status(lab, name).message == "All 4 runs are finished."


def test_a_penalty_that_is_said_to_change_nothing_does_change_nothing(lab, sweep):
    """What is not trained is trained here once, for comparison."""
    name, _ = sweep
    none = next(arm for arm in service.arms(lab, name) if arm.name == "linear none").runs[0]
    for regularizer in catalog.names("regularizers"):
        if regularizer == "none":
            continue
        options = {"labels": "dog+cat"} if regularizer == "logit_distillation" else {}
        penalty = catalog.check("regularizers", Choice(name=regularizer, options=options))
        other = lab.submit(none.experiment.model_copy(update={"regularizer": penalty, "strength": 1.0}))
        recipe.execute(other, lab, torch.device("cpu"))
        assert other.state == "done", other.end()
        same = (none.path / "weights.safetensors", other.path / "weights.safetensors")
        first, second = map(load_file, same)
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first), regularizer


def test_report_and_page_say_what_changes_nothing_what_was_removed_and_what_was_not_measured(lab, sweep, tmp_path):
    name, runs = sweep
    text = service.write_report(lab, name).read_text()
    assert "feature_l2[strength=1]<small>changes nothing</small>" in text and '<p class="chip">changes nothing</p>' in text
    document, found = service.result(lab, name), service.measures(lab, name)
    rows = {row["name"]: row["cells"] for row in overview.table(document, found)}
    removed = rows["Adapter removed: natural accuracy"]
    assert removed[0]["mean"] == document["pretrained"]["natural_accuracy"] == removed[4]["mean"] == removed[5]["mean"]
    assert removed[1]["mean"] is None and "no adapter to remove" in removed[1]["reason"]
    assert report.number(rows["Adapter removed: debiased CKA of medical images"][4]["mean"]) == "1"
    assert f"python -m rift measure {runs[0].id} --lab LAB --diagnostic interpolation" in text
    assert rows["Accuracy"][2]["interval"] == rows["Accuracy"][1]["interval"] is not None
    before = service.write_report(lab, name).stat().st_mtime_ns
    assert service.write_report(lab, name).stat().st_mtime_ns == before
    api.measure(runs[0].id, "interpolation", {"points": 2}, lab=lab.root, device="cpu")
    text = service.write_report(lab, name).read_text()
    assert 'id="interpolation"' in text and "--diagnostic interpolation" not in text, "measured since, so the page is new"
    assert "α = 1" in text
    without = [{**arm, "method": {"name": "full", "options": {}}} for arm in document["arms"]]
    assert not any("removed" in row["name"] for row in overview.table({**document, "arms": without}, found))


def test_a_run_from_before_a_number_was_known_says_so(lab, sweep, monkeypatch):
    name, _ = sweep
    arms = service.arms(lab, name)
    result = Run.result

    def old(self):
        found = result(self)
        found["numbers"] = {key: value for key, value in found["numbers"].items() if not key.startswith("removed_")}
        return found

    monkeypatch.setattr(Run, "result", old)
    row = comparison._row(arms[-1].runs[0])
    assert row["removed_cka_debiased"] is None
    assert row["removed_cka_debiased_reason"] == "not measured when this run was made"


def test_without_the_baseline_an_arm_that_changes_nothing_is_trained_as_asked(lab, sweep):
    order, _ = service.order_of(lab, sweep[0])
    one = order.model_copy(update={"baseline": False, "methods": (Choice(name="linear"),), "strengths": (1.0,)})
    ((arm, (experiment,)),) = experiments(one)
    assert arm.name == "feature_l2" and not arm.note and experiment.regularizer.name == "feature_l2"


def line(accuracy: list[float], natural: list[float] | None) -> dict:
    one = {"n": 50, "n_natural": 300, "alphas": list(np.linspace(0, 1, len(accuracy))), "accuracy": accuracy}
    one |= {"cka_debiased": [1.0] * len(accuracy), "natural_accuracy": natural}
    return one if natural else one | {"natural_accuracy_reason": "no natural head"}


def test_the_sentence_names_the_point_that_keeps_the_accuracy_and_gains_most():
    gains = line([0.5, 0.895, 0.90, 0.92, 0.90], [0.9, 0.8, 0.7, 0.75, 0.6])
    assert interpolation.kept(gains) == 1
    said = interpolation.sentence({"none": gains})
    assert "none at α = 0.25 keeps the accuracy within one point (0.895, 0.900 at α = 1)" in said
    assert "0.800 of the natural images rightly instead of 0.600" in said
    tied = line([0.9, 0.9, 0.9], [0.7, 0.7, 0.6])
    assert interpolation.kept(tied) == 1, "of equals the one nearest to the finetuned model"
    lost = line([0.5, 0.8, 0.9], [0.9, 0.9, 0.6])
    assert interpolation.kept(lost) == 2 and "none gains nothing" in interpolation.sentence({"none": lost})
    assert "these 50 test and 300 natural images themselves" in interpolation.sentence({"none": lost})
    headless = line([0.5, 0.895, 0.9], None)
    assert interpolation.kept(headless) is None
    assert "within one point of its accuracy 0.900 at α = 0.5" in interpolation.sentence({"none": headless})


def test_the_figure_draws_each_arm_with_its_alphas_marked():
    arms = {"none": line([0.5, 0.8, 0.9], [0.9, 0.8, 0.6]), "rift": line([0.6, 0.8, 0.9], [0.9, 0.9, 0.8])}
    drawn = interpolation.figure(arms).data
    paths = [one for one in drawn if one.xaxis == "x"]
    assert [one.name for one in paths] == ["none", "rift"] and list(paths[0].text) == ["α 0", "α 0.5", "α 1"]
    assert list(paths[0].x) == [0.9, 0.8, 0.6] and list(paths[0].y) == [0.5, 0.8, 0.9]
    assert len([one for one in interpolation.figure({"none": line([0.5, 0.9], None)}).data if one.xaxis == "x"]) == 0
    assert not interpolation.figure({"none": {"accuracy": None, "accuracy_reason": "nothing"}}).data


def test_the_command_says_the_sentence_and_prints_the_document(lab, full, monkeypatch, capsys):
    from rift import cli

    command = ["rift", "measure", str(full.path), "--diagnostic", "interpolation", "--set", "points=3", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", command)
    assert cli.main() == 0
    assert "test and" in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.setattr("sys.argv", [*command, "--json"])
    assert cli.main() == 0
    document = json.loads(capsys.readouterr().out)
    assert document["settings"] == {"points": 3} and len(document["runs"][full.id]["accuracy"]) == 3


def test_pixels_of_other_depths_and_a_missing_head_are_carried(tmp_path):
    images = captures.Images(np.full((3, 4, 4, 3), 65535, np.uint16), np.array(["a", "b", "c"]), np.zeros(3, int), ("x",))
    data = captures.Data(images, images, images, None, Path(tmp_path), seed=0, device=torch.device("cpu"), batch_size=2)
    assert [tuple(batch.shape) for batch in data.batches(images)] == [(2, 3, 4, 4), (1, 3, 4, 4)]
    assert float(next(data.batches(images)).max()) == 1
    assert list(interpolation._named(data, np.ones((3, 2), np.float32))) == [-1, -1, -1]
    assert not interpolation._scored(data).any()

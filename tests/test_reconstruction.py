"""The task `reconstruction`, the whole way: tokens to pixels, trained, read back, measured, compared, said in words."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rift import (
    catalog,
    comparison,
    dataset,
    following,
    jobs,
    measures,
    naming,
    overview,
    recipe,
    service,
    tradeoff,
    train,
    trained,
    trials,
    tuning,
    watching,
)
from rift.config import Choice, Experiment, Training
from rift.diagnostics import accuracy
from rift.errors import SettingError
from rift.measures import plain
from rift.model import Classifier, to_float, trainable
from rift.orders import Order
from rift.runs import Lab, Run
from rift.snapshot import Snapshot, capture, errors_of_mean
from rift.tasks import reconstruction
from rift.ui.tabs import watch
from tests.methods_toys import BUILDS, NAMES, images, toy, toy_lab
from tests.reliability.faults import beside
from tests.test_methods_runs import DROPPING, execute, losses

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab of toys."""
    return toy_lab(tmp_path_factory.mktemp("lab"))


def task():
    return catalog.door("tasks", "reconstruction")(("a", "b"))


# --- the head and the loss ----------------------------------------------------------------------------------------------------


def test_a_token_makes_the_pixels_of_its_own_patch():
    """Six tokens' worth of a 2 x 2 grid by hand: token t holds t, and its k-th output channel is 100 t + k."""
    head = reconstruction.Pixels(width=2, patch=2)
    with torch.no_grad():
        head.convolution.weight[:, 0, 0, 0] = 100.0
        head.convolution.bias.copy_(torch.arange(12.0))
    tokens = torch.tensor([[[0.0, 9], [1, 9], [2, 9], [3, 9]]])  # row by row, as a ViT counts its patches
    made = head(tokens)
    assert made.shape == (1, 3, 4, 4)
    for color, start in enumerate((0, 4, 8)):
        by_hand = [
            [start, start + 1, 100 + start, 101 + start],
            [start + 2, start + 3, 102 + start, 103 + start],
            [200 + start, 201 + start, 300 + start, 301 + start],
            [202 + start, 203 + start, 302 + start, 303 + start],
        ]
        assert made[0, color].tolist() == by_hand


@pytest.mark.parametrize("build", [*BUILDS, "embedded"])
def test_every_family_has_patch_tokens_in_place_and_starts_gray(build):
    """A spot in one patch changes the token of that patch most: tokens are in the order of the patches."""
    backbone = catalog.door("backbones", "embedded")(init="random").eval() if build == "embedded" else toy(build)
    head = task().head(backbone)
    x = images(backbone)
    with torch.no_grad():
        embeddings, tokens = backbone.read(x)
        again, same, activations = backbone.everything(x)
        assert torch.equal(embeddings, backbone(x)) and torch.equal(again, backbone.embed(x)[0])
        assert torch.allclose(tokens, same, atol=1e-5) and torch.equal(activations, backbone.embed(x)[1])
        side = backbone.pixels // head.patch
        assert tokens.shape[1] == side**2 and torch.equal(head(tokens), torch.full_like(x, 0.5))
        if build in ("token", "average", "embedded"):  # random blocks of the others mix all tokens alike
            spotted = x[:1].clone()
            row, column = side - 1, 0
            spotted[:, :, row * head.patch : (row + 1) * head.patch, : head.patch] = 0
            moved = (backbone.read(spotted)[1] - tokens[:1]).norm(dim=2)[0]
            assert int(moved.argmax()) == row * side + column
    if build in ("average", "embedded"):  # the norm after pooling is on each token here
        assert float(tokens.mean(2).abs().max()) < 0.5


def test_a_backbone_whose_tokens_are_no_square_grid_is_refused(toy_backbone, monkeypatch):
    one = copy.deepcopy(toy_backbone)
    monkeypatch.setattr(one, "read", lambda images: (torch.zeros(1, 8), torch.zeros(1, 6, 8)))
    with pytest.raises(SettingError, match="6 patch tokens are not a square grid that divides") as caught:
        task().head(one)
    assert caught.value.code == "setting.range"


def test_the_loss_is_the_mean_absolute_difference_and_labels_are_ignored():
    made, wanted = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    by_numpy = np.abs(made.numpy().astype(float) - wanted.numpy())
    one = task()
    assert float(one.loss(made, wanted)) == pytest.approx(by_numpy.mean(), abs=1e-6)
    assert one.errors(made, wanted).numpy() == pytest.approx(by_numpy.mean((1, 2, 3)), abs=1e-6)
    assert one.targets(wanted, torch.arange(4)) is wanted and one.accuracy is None and one.probabilities is None
    errors = one.errors(made, wanted)
    assert torch.equal(one.losses(errors, torch.arange(4)), errors)
    labels = torch.arange(4)
    assert catalog.door("tasks", "single_label")("abcd").targets(wanted, labels) is labels


def test_kept_errors_are_those_of_the_outputs_and_of_the_mean_image(toy_backbone):
    pixels = np.random.default_rng(0).integers(0, 255, (70, toy_backbone.pixels, toy_backbone.pixels, 3), dtype=np.uint8)
    one = task()
    classifier = Classifier(copy.deepcopy(toy_backbone), one.head(toy_backbone)).eval()
    torch.nn.init.normal_(classifier.head.convolution.weight, std=0.05)
    passes = []
    classifier.backbone.vit.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    arrays = capture(classifier, pixels, np.arange(70).astype(str), np.zeros(70, int), task=one)
    assert len(passes) == 2 and arrays.logits is None and arrays.kept is arrays.errors, "one pass over two batches"
    with torch.no_grad():
        made = classifier(to_float(torch.from_numpy(pixels)))[1].numpy()
    wanted = pixels.transpose(0, 3, 1, 2) / 255.0
    assert arrays.errors == pytest.approx(np.abs(made - wanted).mean((1, 2, 3)), abs=1e-5)
    known = np.arange(5, 70)
    by_mean = np.abs(wanted - wanted[known].mean(0)).mean((1, 2, 3))
    assert errors_of_mean(one.errors, pixels, known) == pytest.approx(by_mean, abs=1e-5)
    assert arrays.of(np.array([3, 1])).errors.tolist() == arrays.errors[[3, 1]].tolist()


# --- training -----------------------------------------------------------------------------------------------------------------


def step_through(backbone, method: str, training: Training, pixels: np.ndarray):
    one, pixels_of = task(), pixels
    views = train.Views(pixels_of, np.arange(len(pixels)) % 2, training, seed=0)
    views.pretrained = backbone
    classifier = Classifier(copy.deepcopy(backbone), one.head(backbone))
    stages = catalog.door("methods", method)(classifier.backbone)
    regularizer = catalog.door("regularizers", "none")(backbone, classifier.backbone, views)
    state = train.State(classifier, regularizer, train.make_optimizer(classifier, regularizer, training))
    return state, train.train(state, one, views, training, 0.0, 0, dict, stages)


@pytest.mark.parametrize("method", ["full", "linear", "lp_ft"])
def test_a_step_runs_the_backbone_once_and_a_frozen_one_stays(method, toy_backbone):
    """The cache has embeddings alone, so the backbone runs even where it is frozen."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, toy_backbone.pixels, toy_backbone.pixels, 3), dtype=np.uint8)
    state, events = step_through(toy_backbone, method, Training(epochs=2, batch_size=4), pixels)
    runs = []
    state.classifier.backbone.vit.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    steps = [event.values for event in events if event.kind == "step"]
    assert len(runs) == len(steps) == 4 and all(one["accuracy"] is None for one in steps)
    assert steps[0]["task_loss"] > steps[-1]["task_loss"]
    pairs = zip(state.classifier.backbone.parameters(), toy_backbone.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs) == (method == "linear")


def test_a_few_images_are_learned_by_heart(toy_backbone):
    """Smooth pictures that all differ: far below what the mean image, which knows them all, can do."""
    random = np.random.default_rng(0)
    small = torch.from_numpy(random.random((6, 3, 4, 4)))
    size = (toy_backbone.pixels,) * 2
    pictures = torch.nn.functional.interpolate(small, size, mode="bilinear").permute(0, 2, 3, 1)
    pixels = (255 * pictures).numpy().astype(np.uint8)
    training = Training(epochs=60, batch_size=6, augment="none", learning_rate=1e-3, head_learning_rate=3e-3)
    _, events = step_through(toy_backbone, "full", training, pixels)
    last = [event.values["task_loss"] for event in events if event.kind == "step"][-1]
    baseline = errors_of_mean(reconstruction.errors, pixels, np.arange(6)).mean()
    assert last < 0.4 * baseline, (last, baseline)


# --- whole runs ---------------------------------------------------------------------------------------------------------------


def experiment(lab: Lab, name: str, regularizer: str = "none", **more) -> Experiment:
    toy_choice = {"path": str(lab.weights), "architecture": "test_vit"}
    return Experiment(
        data=lab.medical.digest,
        natural=lab.natural.digest,
        task=Choice(name="reconstruction"),
        backbone=catalog.check("backbones", Choice(name="checkpoint", options=toy_choice)),
        method=catalog.check("methods", Choice(name=name, options=DROPPING.get(name, {}))),
        regularizer=catalog.check("regularizers", Choice(name=regularizer)),
        strength=more.pop("strength", float(regularizer != "none")),
        training=Training(**{"epochs": 2, "batch_size": 8, "views": 2, "learning_rate": 1e-3, **more}),
    )


QUICK = {("full", "none"), ("linear", "none"), ("full", "logit_distillation")}
PRODUCT = [(name, regularizer) for name in NAMES for regularizer in ("none", "rift")]
PRODUCT += [("full", regularizer) for regularizer in catalog.names("regularizers") if regularizer not in ("none", "rift")]


@pytest.mark.parametrize(
    ("name", "regularizer"), [pytest.param(*one, marks=[] if one in QUICK else pytest.mark.slow) for one in PRODUCT]
)
def test_a_run_is_read_back_as_it_was_and_resumed_to_the_same_bits(name, regularizer, lab, tmp_path, monkeypatch):
    one = experiment(lab, name, regularizer)
    run = execute(home := beside(lab, tmp_path / "whole"), one)
    state = load_file(run.path / "weights.safetensors")
    classifier = trained.finetuned(home, run)
    assert state.keys() == {key for key, p in classifier.named_parameters() if p.requires_grad}
    assert run.result()["trainable_parameters"] == trainable(classifier) == sum(value.numel() for value in state.values())
    first, *_, last = losses(run)
    assert last[1] < first[1]

    stored = Snapshot.load(run.path / "snapshot.npz").sets["test"]
    assert stored.logits is None
    every = dataset.load(home.data / one.data)
    x = to_float(torch.from_numpy(every.pixels(classifier.backbone.pixels)[np.isin(every.ids, stored.ids)]))
    with torch.no_grad():
        embeddings, made = classifier(x)
    assert np.abs(embeddings.numpy() - stored.embeddings).max() <= 1e-6
    assert np.abs((made - x).abs().mean((1, 2, 3)).numpy() - stored.errors).max() <= 1e-6

    half = beside(lab, tmp_path / "halves")
    again, append, stops = half.submit(one), Run.append, [1, 3]

    def stop(self, kind, **values):
        append(self, kind, **values)
        if kind == "step" and values["step"] in stops:
            stops.remove(values["step"])
            self.request_stop()

    monkeypatch.setattr(Run, "append", stop)
    for _ in range(2):
        recipe.execute(again, half, CPU)
        assert again.state == "stopped"
        half.requeue(again)
    recipe.execute(again, half, CPU)
    assert again.state == "done" and losses(again) == losses(run) and len(losses(run)) == 4
    resumed = load_file(again.path / "weights.safetensors")
    assert resumed.keys() == state.keys() and all(torch.equal(resumed[key], state[key]) for key in state)


def test_what_is_undefined_has_a_reason_and_what_is_written_agrees(lab, tmp_path):
    run = execute(home := beside(lab, tmp_path / "lab"), experiment(lab, "full", "rift"))
    numbers = run.result()["numbers"]
    for key, value in numbers.items():
        assert value is not None or numbers[f"{key}_reason"], key
    for key in ("accuracy", "balanced_accuracy", "auroc", "average_precision"):
        assert numbers[key] is None and numbers[f"{key}_reason"] == reconstruction.NO_CLASS
    assert numbers["natural_accuracy"] is not None and numbers["cka_natural_debiased"] is not None
    measured = run.measures()["accuracy"]
    assert all(value is not None or measured[f"{key}_reason"] for key, value in measured.items())

    with (run.path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "label", "split", "reconstruction_error"] and len(rows) == 20
    test = np.array([float(row["reconstruction_error"]) for row in rows if row["split"] == "test"])
    assert numbers["reconstruction_error"] == pytest.approx(test.mean(), abs=1e-7)
    assert numbers["task_loss"] == pytest.approx(test.mean(), abs=1e-6)
    assert measured["errors"] == pytest.approx(test.tolist(), abs=1e-7)
    half = 1.96 * test.std(ddof=1) / np.sqrt(len(test))
    assert (
        measured["reconstruction_error_low"] < test.mean() - half and measured["reconstruction_error_high"] > test.mean() + half
    )
    every, parts = dataset.load(home.data / lab.medical.digest), dataset.parts(lab.medical, Training(), 0)
    pixels = every.pixels(trained.pretrained(run).pixels) / 255.0
    by_mean = np.abs(pixels[parts.test] - pixels[parts.train].mean(0)).mean()
    assert numbers["reconstruction_error_of_mean"] == pytest.approx(by_mean, abs=1e-5)
    epochs = [event for event in run.events() if event["event"] == "epoch"]
    assert all(one["validation_accuracy"] is None and one["validation_accuracy_reason"] for one in epochs)
    assert epochs[-1]["validation_reconstruction_error"] == pytest.approx(epochs[-1]["validation_task_loss"], abs=1e-6)


def test_interpolation_of_such_a_run_keeps_what_needs_no_class(lab, tmp_path):
    run = execute(home := beside(lab, tmp_path / "lab"), experiment(lab, "full"))
    found = measures.measure_again(home, run, catalog.check("diagnostics", Choice(name="interpolation", options={"points": 3})))
    values = found["runs"][run.id]
    assert (
        values["accuracy"] is None
        and values["accuracy_reason"] == reconstruction.NO_CLASS
        and len(values["natural_accuracy"]) == 3
    )
    module = catalog.module("diagnostics", "interpolation")
    assert reconstruction.NO_CLASS in module.sentence({"none": values}) and module.figure({"none": values}).to_json()


@pytest.mark.slow
def test_a_strength_is_chosen_by_the_loss_alone(lab, tmp_path):
    run = execute(beside(lab, tmp_path / "lab"), experiment(lab, "full", "rift", strength="auto", epochs=10, views=1))
    found = run.result()["tuning"]
    assert found["chosen"] in tuning.STRENGTHS and all(row["score"] is None for row in found["path"])
    losses_, one = np.array([[0.1, 0.2, 0.3], [0.1, 0.21, 0.3], [0.5, 0.6, 0.7]]), task()
    path = tuning.Path((0.1, 1.0, 10.0), 1, 1)
    chosen = trials._chosen(one, path, "strength", losses_.tolist(), torch.zeros(3, dtype=torch.int64))
    assert chosen["chosen"] == 1.0 and [row["allowed"] for row in chosen["path"]] == [True, True, False]


def test_the_ids_of_other_runs_are_what_they_were():
    """Written down before this task existed."""
    assert Experiment(data="a", natural="b").id == "9ae06dcb5ed11be2" and Order(data="a", natural="b").id == "6e5f6887a0c907ab"
    assert Experiment(data="a", natural="b", task=Choice(name="multi_label")).id == "39d1feaaedf244b2"
    order = Order(data="a", natural="b", task=Choice(name="reconstruction"))
    assert order.id != Order(data="a", natural="b").id


# --- the order, the document, the words ---------------------------------------------------------------------------------------


def finish(lab: Lab, monkeypatch, **more) -> tuple[str, dict]:
    monkeypatch.setattr(jobs, "ensure_worker", lambda lab, device="auto": None)
    one = experiment(lab, "full", **more)
    order = Order(data=one.data, natural=one.natural, backbone=one.backbone, training=one.training, task=one.task)
    name = service.place(lab, order)
    for run in service.runs(service.arms(lab, name)):
        recipe.execute(run, lab, CPU)
        assert run.state == "done", run.end()
    return name, service.result(lab, name)


def test_a_comparison_says_it_in_words_and_leaves_nothing_blank(lab, tmp_path, monkeypatch):
    home = beside(lab, tmp_path / "lab")
    home.medical, home.natural, home.weights = lab.medical, lab.natural, lab.weights
    name, document = finish(home, monkeypatch)
    assert document["data"]["task"] == "reconstruction" and ", reconstruction: " in naming.title(home, name)
    for arm in document["arms"]:
        for row in arm["runs"]:
            assert all(value is not None or row.get(f"{key}_reason") for key, value in row.items() if key in comparison.NUMBERS)
            assert row["accuracy"] is None and row["accuracy_reason"] == reconstruction.NO_CLASS
    metrics = {one["metric"]: one for one in document["differences"]}
    assert set(metrics) == {"reconstruction_error", "cka_debiased", "cka_natural_debiased", "natural_accuracy"}
    none, rift = (arm["mean"]["reconstruction_error"] for arm in document["arms"])
    assert metrics["reconstruction_error"]["difference"] == pytest.approx(rift - none, abs=1e-9)
    table = {row["name"]: row for row in overview.table(document, service.measures(home, name))}
    error = next(row for key, row in table.items() if key.startswith("Reconstruction error"))
    assert error["cells"][1]["mean"] == none and error["cells"][1]["interval"][0] < none < error["cells"][1]["interval"][1]
    assert any("econstruction error" in one["sentence"] for one in overview.verdicts(document))
    better = min(document["arms"], key=lambda arm: arm["mean"]["reconstruction_error"])["name"]
    points = tradeoff.points(document)
    assert better in tradeoff.sentence(points).split(":")[1] and "Reconstruction error and debiased CKA" in tradeoff.sentence(
        points
    )
    assert tradeoff.figure(points).layout.yaxis.autorange == "reversed"
    page = service.write_report(home, name).read_text()
    assert "No class is named: the run reconstructs images." in page and "NaN" not in page.split("<body")[1].split("<script")[0]

    curves = watching.curves(home, name)
    last = [event for event in curves["none"] if event["event"] == "epoch"][-1]
    title, _, judged = watching.headline(home, name)
    assert judged == "validation_reconstruction_error"
    assert f"{last['validation_reconstruction_error']:.3f}" in watch._table(curves, title, judged)
    assert following._score(last) == f"reconstruction error {last['validation_reconstruction_error']:.3f}"


def test_figure_and_sentence_take_what_is_kept():
    random = np.random.default_rng(0)

    def measured(n: int) -> dict:
        from tests.test_diagnostics import arrays

        with_errors = arrays(random.normal(size=(n, 8)), np.zeros(n, int), None)
        with_errors = type(with_errors)(**{**vars(with_errors), "errors": random.random(n), "baseline_errors": random.random(n)})
        sets = {"test": with_errors}
        return accuracy.measure(Snapshot(sets, ("a",), (), None), Snapshot(sets, ("a",), (), None))

    for n in (1, 2, 40):
        results = {"none": measured(n), "<b>rift": measured(n)}
        for values in results.values():
            assert all(value is not None or values[f"{key}_reason"] for key, value in values.items())
        kept = json.loads(json.dumps(plain(results), allow_nan=False))
        assert accuracy.sentence(kept) == accuracy.sentence(results) and f"over {n} images" in accuracy.sentence(kept)
        drawn = accuracy.figure(kept)
        assert [trace.name for trace in drawn.data] == ["mean training image", "&lt;b&gt;rift", "none"]


def test_it_fits_any_images_and_others_do_not(lab):
    several = dataset.ImageSet(
        Path(), "x", "0", ("f", "g"), np.array(["a"]), np.array([[1, 0]], np.uint8), None, np.array([""]), dataset.Report(kept=1)
    )
    for one in (lab.medical, several):
        dataset.refuse_misfit(one, Choice(name="reconstruction"), Training())
    with pytest.raises(SettingError, match="its task is multi_label, not single_label"):
        dataset.refuse_misfit(several, Choice(name="single_label"), Training())

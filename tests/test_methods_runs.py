"""Every method through real runs: trained, written, read back to 1e-6, and resumed to the same bits; and stages, step by step."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rift import catalog, dataset, recipe, train, trained
from rift.config import Choice, Experiment, Training
from rift.model import Classifier, Stages, Task, to_float, trainable
from rift.runs import Lab, Run
from tests.methods_toys import NAMES, adapt, toy_lab
from tests.reliability.faults import beside

DROPPING = {name: {"dropout": 0.2} for name in ("lora", "dora", "adaptformer", "vpt")}  # so that resuming must keep the generator


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab of toys."""
    return toy_lab(tmp_path_factory.mktemp("lab"))


def experiment(lab: Lab, name: str, regularizer: str = "none", **options) -> Experiment:
    toy = {"path": str(lab.weights), "architecture": "test_vit"}
    return Experiment(
        data=lab.medical.digest,
        natural=lab.natural.digest,
        backbone=catalog.check("backbones", Choice(name="checkpoint", options=toy)),
        method=catalog.check("methods", Choice(name=name, options={**DROPPING.get(name, {}), **options})),
        regularizer=catalog.check("regularizers", Choice(name=regularizer)),
        strength=float(regularizer != "none"),
        training=Training(epochs=2, batch_size=8, views=2, learning_rate=1e-2),
    )


def execute(lab: Lab, one: Experiment) -> Run:
    run = lab.submit(one)
    recipe.execute(run, lab, torch.device("cpu"))
    assert run.state == "done", run.end()
    return run


def losses(run: Run) -> list[tuple[int, float]]:
    return [(event["step"], event["task_loss"]) for event in run.events() if event["event"] == "step"]


PRODUCT = [
    pytest.param(name, regularizer, marks=[] if regularizer == "none" else pytest.mark.slow)
    for name in NAMES
    for regularizer in catalog.names("regularizers")
]


@pytest.mark.parametrize(("name", "regularizer"), PRODUCT)
def test_a_run_is_read_back_as_it_was_and_resumed_to_the_same_bits(name, regularizer, lab, tmp_path, monkeypatch):
    one = experiment(lab, name, regularizer)
    run = execute(home := beside(lab, tmp_path / "whole"), one)
    state = load_file(run.path / "weights.safetensors")
    classifier = trained.finetuned(home, run)
    assert state.keys() == {key for key, p in classifier.named_parameters() if p.requires_grad}
    assert run.result()["trainable_parameters"] == trainable(classifier) == sum(value.numel() for value in state.values())

    stored = np.load(run.path / "snapshot.npz")
    images = dataset.load(home.data / one.data)
    chosen = np.isin(images.ids, stored["test.ids"])
    with torch.no_grad():
        embeddings, logits = classifier(to_float(torch.from_numpy(images.pixels(classifier.backbone.pixels)[chosen])))
    assert np.abs(embeddings.numpy() - stored["test.embeddings"]).max() <= 1e-6
    assert np.abs(logits.numpy() - stored["test.logits"]).max() <= 1e-6

    half = beside(lab, tmp_path / "halves")
    again, append, stops = half.submit(one), Run.append, [1, 3]  # in the first epoch and, for lp_ft, in the second stage

    def stop(self, kind, **values):
        append(self, kind, **values)
        if kind == "step" and values["step"] in stops:
            stops.remove(values["step"])
            self.request_stop()

    monkeypatch.setattr(Run, "append", stop)
    for _ in range(2):
        recipe.execute(again, half, torch.device("cpu"))
        assert again.state == "stopped"
        half.requeue(again)
    recipe.execute(again, half, torch.device("cpu"))
    assert again.state == "done" and losses(again) == losses(run) and len(losses(run)) == 4
    resumed = load_file(again.path / "weights.safetensors")
    assert resumed.keys() == state.keys() and all(torch.equal(resumed[key], state[key]) for key in state)


@pytest.mark.parametrize("name", ["lora", "vpt"])
def test_the_same_seed_gives_the_same_bits(name, lab, tmp_path):
    one = experiment(lab, name)
    first, second = (load_file(execute(beside(lab, tmp_path / key), one).path / "weights.safetensors") for key in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = one.model_copy(update={"seed": 1})
    third = load_file(execute(beside(lab, tmp_path / "c"), other).path / "weights.safetensors")
    assert not any(torch.equal(first[key], third[key]) for key in first if key != "head.bias")


def test_a_run_of_lp_ft_goes_through_its_stages(lab, tmp_path):
    rates = []
    for name, options in (("full", {}), ("lp_ft", {"probe": 0.5})):
        run = execute(beside(lab, tmp_path / name), experiment(lab, name, **options))
        rates.append([event["learning_rate"] / 1e-2 for event in run.events() if event["event"] == "step"])
    assert rates == [pytest.approx([1, 1, 0.75, 0.25]), pytest.approx([1, 1, 1, 1])]  # two curves of two steps each


TRAINING = Training(epochs=4, batch_size=4, warmup=0.5)


def staged(backbone, stages: Stages | None, name: str = "full"):
    """A state of eight steps over eight images and its loop."""
    task: Task = catalog.door("tasks", "single_label")(("a", "b"))
    pixels = np.random.default_rng(0).integers(0, 255, (8, backbone.pixels, backbone.pixels, 3), dtype=np.uint8)
    views = train.Views(pixels, np.arange(8) % 2, TRAINING, seed=0)
    views.pretrained = backbone
    classifier = Classifier(copy.deepcopy(backbone), task.head(backbone))
    adapt(name, classifier.backbone)
    regularizer = catalog.door("regularizers", "none")(backbone, classifier.backbone, views)
    state = train.State(classifier, regularizer, train.make_optimizer(classifier, regularizer, TRAINING))
    return state, train.train(state, task, views, TRAINING, 0.0, 0, dict, stages)


def walk(state, events) -> list[tuple[bool, bool, float]]:
    """For each step: whether the backbone moved, whether the head moved, and the backbone's rate."""
    seen, weights = [], None
    for event in events:
        now = [
            {k: p.detach().clone() for k, p in m.named_parameters()} for m in (state.classifier.backbone, state.classifier.head)
        ]
        if event.kind == "step" and weights is not None:
            moved = [any(not torch.equal(part[key], old[key]) for key in part) for part, old in zip(now, weights, strict=True)]
            seen.append((moved[0], moved[1], event.values["learning_rate"] / TRAINING.learning_rate))
        weights = now if event.kind == "step" or weights is None else weights
    return seen


def test_lp_ft_probes_first_on_cached_embeddings_then_trains_all_with_a_schedule_of_its_own(toy_backbone):
    stages = adapt("lp_ft", copy.deepcopy(toy_backbone))
    assert stages == Stages(((0.0, ("head.",)), (0.5, ("",))))
    state, events = staged(toy_backbone, stages)
    forward = state.classifier.forward
    state.classifier.forward = None  # the probe must not need it
    first = [next(events) for _ in range(6)]  # four steps and the ends of two epochs
    assert [event.kind for event in first] == ["step", "step", "epoch"] * 2
    pairs = zip(state.classifier.backbone.parameters(), toy_backbone.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs) and bool(state.classifier.head.weight.abs().max() > 0)
    state.classifier.forward = forward
    second = [event for event in events if event.kind == "step"]
    rates = [event.values["learning_rate"] / TRAINING.learning_rate for event in first + second if event.kind == "step"]
    assert rates == pytest.approx([0.5, 1, 1, 0.5] * 2)
    pairs = zip(state.classifier.backbone.parameters(), toy_backbone.parameters(), strict=True)
    assert all(not torch.equal(ours, theirs) for ours, theirs in pairs)


def test_a_stage_moves_its_own_parameters_and_in_the_end_all_are_marked_as_trained(toy_backbone):
    state, events = staged(toy_backbone, Stages(((0.0, ("",)), (0.5, ("head.",)), (0.75, ("backbone.vit.blocks.5.",)))))
    steps = walk(state, events)
    assert [moved[:2] for moved in steps] == [(True, True)] * 3 + [(False, True)] * 2 + [(True, False)] * 2
    assert trainable(state.classifier) == sum(p.numel() for p in state.classifier.parameters())


def test_a_backbone_that_trained_and_then_rests_is_run_and_not_taken_from_the_cache(toy_backbone):
    """After the first stage the embeddings are no longer the pretrained ones, though nothing in the backbone trains."""
    state, events = staged(toy_backbone, Stages(((0.0, ("",)), (0.5, ("head.",)))))
    runs = []
    state.classifier.backbone.register_forward_hook(lambda *_: runs.append(1))
    assert len([event for event in events if event.kind == "step"]) == len(runs) == 8


def test_no_stages_is_one_stage_of_everything(toy_backbone):
    results = []
    for stages in (None, Stages()):
        state, events = staged(toy_backbone, stages)
        list(events)
        results.append(state.classifier.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


@pytest.mark.parametrize(("step", "at"), [(0, (0, 3)), (2, (0, 3)), (3, (3, 10)), (9, (3, 10))])
def test_a_step_knows_its_stage(step, at):
    stages = Stages(((0.0, ("head.",)), (0.3, ("backbone.",))))
    assert stages.at(step, 10) == (*at, ("backbone.",) if step >= 3 else ("head.",))
    assert stages.until(step, 10) == (("head.", "backbone.") if step >= 3 else ("head.",))
    assert stages.at(0, 1) == (0, 1, ("backbone.",)) or step  # too few steps for two stages: the last one has them

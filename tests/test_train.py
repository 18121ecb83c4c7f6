"""The loop: same seed same bits, arms that differ in one thing only, and runs that survive being stopped or killed."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rift import catalog, dataset, recipe, train, trained
from rift.config import Choice, Experiment, Training
from rift.errors import RunError
from rift.model import Classifier, NaturalHead, Task
from rift.runs import Lab, Run
from tests.methods_toys import stripes

RANDOM = Choice(name="embedded", options={"init": "random"})
QUICK = {"epochs": 2, "batch_size": 8, "views": 2}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab with two classes of drawn images and a small natural set, named in words that the vocabulary knows."""
    lab, rng = Lab(tmp_path_factory.mktemp("lab")), np.random.default_rng(0)

    lab.medical = dataset.store(stripes(["narrow", "wide"], 15, 64, rng), lab.data, name="stripes")
    lab.natural = dataset.store(stripes(["dog", "cat", "ship"], 4, 64, rng), lab.data, name="three words")
    return lab


def experiment(
    lab: Lab, regularizer: str = "none", strength: float = 0.0, seed: int = 0, method: str = "full", **training
) -> Experiment:
    return Experiment(
        data=lab.medical.digest,
        natural=lab.natural.digest,
        backbone=RANDOM,
        method=Choice(name=method),
        regularizer=catalog.check("regularizers", Choice(name=regularizer)),
        strength=strength,
        seed=seed,
        training=Training(**{**QUICK, **training}),
    )


def run_fresh(lab: Lab, tmp_path: Path, one: Experiment, name: str = "lab") -> Run:
    """Run an experiment in a lab of its own that shares only the images."""
    other = Lab(tmp_path / name)
    if not any(other.data.iterdir()):
        other.data.rmdir()
        other.data.symlink_to(lab.data)
    run = other.submit(one)
    recipe.execute(run, other, torch.device("cpu"))
    assert run.state == "done", run.end()
    return run


def bits(run: Run) -> tuple[bytes, list[float]]:
    losses = [event["task_loss"] for event in run.events() if event["event"] == "step"]
    return (run.path / "weights.safetensors").read_bytes().split(b"}}", 1)[-1], losses


def weights(run: Run) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run.path / "weights.safetensors")


def same(a: Run, b: Run) -> bool:
    first, second = weights(a), weights(b)
    return (
        first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first) and bits(a)[1] == bits(b)[1]
    )


def test_same_seed_same_bits_and_another_seed_others(lab, tmp_path):
    first = run_fresh(lab, tmp_path, experiment(lab, "rift", 1.0), "a")
    assert same(first, run_fresh(lab, tmp_path, experiment(lab, "rift", 1.0), "b"))
    assert not same(first, run_fresh(lab, tmp_path, experiment(lab, "rift", 1.0, seed=1), "b"))


def test_strength_zero_is_none_bit_for_bit_and_one_is_not(lab, tmp_path):
    none = run_fresh(lab, tmp_path, experiment(lab))
    assert same(none, run_fresh(lab, tmp_path, experiment(lab, "rift", 0.0)))
    assert not same(none, run_fresh(lab, tmp_path, experiment(lab, "rift", 1.0)))


def test_linear_leaves_the_backbone_alone_and_equals_a_forward_pass_per_step(lab, tmp_path):
    run = run_fresh(lab, tmp_path, experiment(lab, method="linear"))
    assert all(key.startswith("head.") for key in weights(run))
    assert run.result()["numbers"]["cka"] == pytest.approx(1.0, abs=1e-9)


def test_a_stopped_run_goes_on_to_the_same_bits(lab, tmp_path, monkeypatch):
    undisturbed = run_fresh(lab, tmp_path, experiment(lab, "rift", 1.0), "a")
    other = Lab(tmp_path / "b")
    other.data.rmdir()
    other.data.symlink_to(lab.data)
    run = other.submit(experiment(lab, "rift", 1.0))
    append, stop_at = Run.append, 3

    def stop_after_some_steps(self, kind, **values):
        append(self, kind, **values)
        if kind == "step" and values["step"] == stop_at:
            self.request_stop()

    monkeypatch.setattr(Run, "append", stop_after_some_steps)
    recipe.execute(run, other, torch.device("cpu"))
    assert run.state == "stopped" and len(list((run.path / "checkpoint").glob("*.safetensors"))) == 1
    stop_at = -1
    other.requeue(run)
    recipe.execute(run, other, torch.device("cpu"))
    assert run.state == "done" and same(run, undisturbed)
    assert {"event": "resume", "step": 3}.items() <= next(e for e in run.events() if e["event"] == "resume").items()
    assert not list((run.path / "checkpoint").glob("*.safetensors"))


def test_a_torn_checkpoint_is_passed_over(lab, tmp_path):
    one = run_fresh(lab, tmp_path, experiment(lab))
    folder = one.path / "checkpoint"
    folder.mkdir(exist_ok=True)
    (folder / "step-0000003.safetensors").write_bytes(b"PK\x03\x04 torn")
    (one.path / "result.json").unlink()
    one.append("queued")
    recipe.execute(one, Lab(one.path.parents[1]), torch.device("cpu"))
    assert one.state == "done" and not any(event["event"] == "resume" for event in one.events())


def test_divergence_ends_the_run_with_its_code_and_no_number(lab, tmp_path, monkeypatch):
    task: Task = catalog.door("tasks", "single_label")(("narrow", "wide"))
    broken = dataclasses.replace(task, loss=lambda logits, labels: task.loss(logits, labels) * torch.inf)
    monkeypatch.setattr(catalog.module("tasks", "single_label"), "build", lambda classes, **options: broken)
    other = Lab(tmp_path / "lab")
    other.data.rmdir()
    other.data.symlink_to(lab.data)
    run = other.submit(experiment(lab))
    recipe.execute(run, other, torch.device("cpu"))
    assert run.state == "failed" and run.end()["code"] == "run.diverged" and "learning rate" in run.end()["message"]
    assert run.result() is None


def test_too_little_memory_says_so(lab, toy_backbone):
    state = make_state(toy_backbone)

    def too_much(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    state.classifier.forward = too_much
    with pytest.raises(RunError, match="smaller batch_size") as caught:
        list(steps(state, toy_backbone))
    assert caught.value.code == "run.memory"


def make_state(backbone) -> train.State:
    task: Task = catalog.door("tasks", "single_label")(("a", "b"))
    classifier = Classifier(copy.deepcopy(backbone), task.head(backbone))
    regularizer = catalog.door("regularizers", "none")(backbone, classifier.backbone, None)
    return train.State(classifier, regularizer, train.make_optimizer(classifier, regularizer, Training()))


def steps(state: train.State, backbone):
    task: Task = catalog.door("tasks", "single_label")(("a", "b"))
    pixels = np.random.default_rng(0).integers(0, 255, (8, backbone.pixels, backbone.pixels, 3), dtype=np.uint8)
    views = train.Views(pixels, np.arange(8) % 2, Training(), seed=0)
    return train.train(state, task, views, Training(epochs=2, batch_size=4), 0.0, 0, dict)


def test_the_first_step_moves_the_head_alone_whatever_the_penalty(toy_backbone):
    """Adam would turn the penalty's rounding noise into a full step, and RIFT would lose for no reason of its own."""
    task: Task = catalog.door("tasks", "single_label")(("a", "b"))
    pixels = np.random.default_rng(0).integers(0, 255, (8, toy_backbone.pixels, toy_backbone.pixels, 3), dtype=np.uint8)
    training = Training(epochs=2, batch_size=8, warmup=0, weight_decay=0)
    toy_backbone = copy.deepcopy(toy_backbone)
    rows = torch.nn.functional.normalize(torch.randn(2000, toy_backbone.width), dim=1)
    toy_backbone._natural = lambda labels: NaturalHead(tuple(labels), rows[: len(labels)])
    for name in catalog.names("regularizers"):
        views = train.Views(pixels, np.arange(8) % 2, training, seed=0)
        views.pretrained = toy_backbone
        classifier = Classifier(copy.deepcopy(toy_backbone), task.head(toy_backbone))
        regularizer = catalog.door("regularizers", name)(toy_backbone, classifier.backbone, views)
        state = train.State(classifier, regularizer, train.make_optimizer(classifier, regularizer, training))
        events = train.train(state, task, views, training, 1.0, 0, dict)
        next(events)
        pairs = list(zip(classifier.backbone.parameters(), toy_backbone.parameters(), strict=True))
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs) and float(classifier.head.weight.detach().abs().max()) > 0
        assert [event.kind for event in events] == ["epoch", "step", "epoch"]
        assert not all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_events_tell_of_every_step_and_epoch(toy_backbone):
    events = list(steps(make_state(toy_backbone), toy_backbone))
    assert [event.kind for event in events] == ["step", "step", "epoch"] * 2
    wanted = {"step", "steps", "epoch", "task_loss", "penalty", "accuracy", "gradient_norm", "learning_rate", "milliseconds"}
    assert wanted == set(events[0].values) and json.dumps(events[0].values)


def test_views_are_the_same_for_every_arm_and_differ_from_one_another(toy_backbone):
    pixels = np.random.default_rng(0).integers(0, 255, (6, toy_backbone.pixels, toy_backbone.pixels, 3), dtype=np.uint8)
    one, two = (train.Views(pixels, np.zeros(6, int), Training(augment="strong"), seed=5) for _ in range(2))
    assert torch.equal(one.images([4, 1], 2), two.images([4, 1], 2))
    assert torch.equal(one.images([1], 2)[0], one.images([4, 1], 2)[1])
    assert not torch.equal(one.images([1], 0), one.images([1], 1))
    assert not torch.equal(
        one.images([1], 0), train.Views(pixels, np.zeros(6, int), Training(augment="strong"), seed=6).images([1], 0)
    )
    assert float(one.images(range(6), 0).min()) >= 0 and float(one.images(range(6), 0).max()) <= 1


def test_cached_targets_are_what_the_pretrained_model_says_of_the_view(toy_backbone, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, toy_backbone.pixels, toy_backbone.pixels, 3), dtype=np.uint8)
    views = train.Views(pixels, np.zeros(5, int), Training(), seed=0)
    views.pretrained, views.cache = toy_backbone, tmp_path / "views.npz"
    with torch.no_grad():
        direct = toy_backbone(views.images([3, 0], 1))
    assert torch.allclose(views.embeddings[1, [3, 0]], direct, atol=1e-5)
    again = train.Views(pixels, np.zeros(5, int), Training(), seed=0)
    again.cache = tmp_path / "views.npz"  # no model at hand: it must come from the file
    assert torch.equal(again.embeddings, views.embeddings) and again.from_cache and again.seconds > 0


@pytest.mark.parametrize(("n", "size"), [(1, 8), (33, 8), (64, 32), (65, 32), (5, 100)])
def test_batches_are_a_shuffled_partition_of_nearly_equal_parts(n, size):
    parts = train.batches(n, size, epoch=3, seed=1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1 and max(lengths) <= size
    assert all(np.array_equal(a, b) for a, b in zip(parts, train.batches(n, size, 3, 1), strict=True))
    assert n < 9 or not np.array_equal(np.concatenate(parts), np.concatenate(train.batches(n, size, 4, 1)))


def test_the_rate_rises_then_falls_to_zero():
    rates = [train.schedule(step, 100, 0.1) for step in range(100)]
    assert rates[0] == 0.1 and max(rates) == 1.0 and rates[9] == rates[10] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:])) and 0 < rates[-1] < 0.01
    assert train.schedule(0, 1, 0.9) > 0


def test_biases_norms_and_the_regularizers_own_map_do_not_decay(toy_backbone):
    task: Task = catalog.door("tasks", "single_label")(("a", "b"))
    classifier = Classifier(copy.deepcopy(toy_backbone), task.head(toy_backbone))
    regularizer = catalog.door("regularizers", "rift")(toy_backbone, classifier.backbone, None, map="learned")
    groups = train.make_optimizer(classifier, regularizer, Training(weight_decay=0.3)).param_groups
    assert sum(len(group["params"]) for group in groups) == len([*classifier.parameters(), *regularizer.parameters()])
    assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])
    assert {id(p) for p in regularizer.parameters()} <= {id(p) for g in groups if not g["weight_decay"] for p in g["params"]}


@pytest.mark.parametrize("method", ["lp_ft", "lora"])
def test_weights_of_every_epoch_are_kept_when_asked_and_change_nothing_else(lab, tmp_path, method):
    plain = run_fresh(lab, tmp_path, experiment(lab, method=method), "plain")
    kept = run_fresh(lab, tmp_path, experiment(lab, method=method, keep="epochs"), "kept")
    assert plain.id != kept.id and plain.experiment.pair_id == kept.experiment.pair_id and same(plain, kept)
    assert trained.epochs(plain) == () and trained.epochs(kept) == (1, 2)
    home = Lab(tmp_path / "kept")
    pixels = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        first, last = (trained.build(home, kept, epoch)(pixels)[1] for epoch in (1, 2))
        assert torch.equal(last, trained.build(home, kept)(pixels)[1]) and not torch.equal(first, last)

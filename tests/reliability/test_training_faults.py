"""Too little memory, numbers that are none, a hub that is gone: the arm says what was done, and no wrong number comes of it."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from rift import about, accumulate, attempt, catalog, comparison, dataset, recipe, train
from rift.config import Choice, Experiment, Training
from rift.errors import RunError, SettingError
from rift.model import Classifier, NaturalHead
from rift.runs import Lab
from rift.views import Views
from tests.reliability import faults

OPTIONS = {
    "feature_l2": [{}, {"layers": 2}],
    "rift": [{}, {"statistics": "running"}, {"map": "learned", "mean": True}, {"map": "procrustes"}],
    "rsc": [{}, {"debiased": True}],
}
PENALTIES = [(name, options) for name in catalog.names("regularizers") for options in OPTIONS.get(name, [{}])]


@pytest.fixture
def backbone(toy_backbone):
    """The toy ViT with words, and half of its pretrained weights moved away, so that penalties have something to hold."""
    model = copy.deepcopy(toy_backbone)
    rows = torch.nn.functional.normalize(torch.randn(2000, model.width), dim=1)
    model._natural = lambda labels: NaturalHead(tuple(labels), rows[: len(labels)])
    return model


def parts_of(backbone, name: str, options: dict, task: str = "single_label") -> tuple[train.State, Any, Views, Training]:
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 255, (8, backbone.pixels, backbone.pixels, 3), dtype=np.uint8)
    training = Training(epochs=1, batch_size=8, views=1, augment="none", clip=1000.0)
    views = Views(pixels, np.arange(8) % 2, training, seed=0)
    views.pretrained = backbone
    chosen = catalog.door("tasks", task)(("a", "b"))
    classifier = Classifier(copy.deepcopy(backbone), chosen.head(backbone))
    penalty = catalog.door("regularizers", name)(backbone, classifier.backbone, views, **options)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return train.State(classifier, penalty, train.make_optimizer(classifier, penalty, training), step=1), chosen, views, training


def gradients(state: train.State, task: Any, views: Views, training: Training, parts: int, strength: float) -> Any:
    """One step's gradient, penalty and loss, worked through in so many parts."""
    state.parts, parameters = parts, [p for group in state.optimizer.param_groups for p in group["params"]]
    values = train._step(state, task, views, training, strength, np.arange(8), 0, False, parameters)
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]), values


@pytest.mark.parametrize(("name", "options"), PENALTIES, ids=str)
def test_a_step_in_parts_has_the_gradient_and_the_penalty_of_the_whole_batch(backbone, name, options):
    found = {parts: gradients(*parts_of(backbone, name, options), parts, 10.0) for parts in (1, 4)}
    (whole, values), (split, others) = found[1], found[4]
    assert float((split - whole).norm() / whole.norm()) < 2e-4
    for key in ("task_loss", "penalty", "accuracy"):
        assert others[key] == pytest.approx(values[key], rel=1e-4, abs=1e-7), key
    assert accumulate.exact(parts_of(backbone, name, options)[0].regularizer)


def test_plain_accumulation_would_change_the_penalty_and_the_test_above_would_see_it(backbone):
    state, *_, views, _ = parts_of(backbone, "rift", {})
    embeddings = state.classifier(views.images(np.arange(8), 0))[0].detach()
    targets = views.embeddings[0]
    whole = float(state.regularizer(embeddings, targets))
    mean = np.mean([float(state.regularizer(embeddings[i : i + 2], targets[i : i + 2])) for i in (0, 2, 4, 6)])
    assert abs(mean - whole) > 0.05 * whole


def test_a_head_that_makes_images_is_trained_in_parts_too(backbone):
    found = [gradients(*parts_of(backbone, "rift", {}, "reconstruction"), parts, 1.0)[0] for parts in (1, 2)]
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 2e-4


def test_a_penalty_that_looks_inside_and_is_no_mean_over_images_is_said_to_be_another_number(backbone):
    state, *_ = parts_of(backbone, "feature_l2", {"layers": 2})
    state.halvings, state.parts = [{"step": 3, "parts": 2, "images_at_once": 4}], 2
    said = about.memory(state, Training(batch_size=8))
    assert said["exact"] and "those of the whole batch" in said["sentence"] and "only rounding differs" in said["sentence"]
    state.regularizer.mean_over_images = False
    said = about.memory(state, Training(batch_size=8))
    assert not said["exact"] and "which is another number" in said["sentence"]


def limited(monkeypatch, most: int, error: Exception, after: int = 0) -> list[int]:
    """Let memory suffice for so many images with a gradient, from a later forward pass on; returns the sizes that were tried."""
    forward, tried = Classifier.forward, []

    def call(self, images):
        if torch.is_grad_enabled():
            tried.append(len(images))
            if len(images) > most and len(tried) > after:
                raise error
        return forward(self, images)

    monkeypatch.setattr(Classifier, "forward", call)
    return tried


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "python", "torch cpu"])
def test_memory_that_ends_halves_what_is_worked_on_at_once(backbone, monkeypatch, error):
    state, task, views, training = parts_of(backbone, "rift", {"statistics": "running"})
    state.step = 0
    tried = limited(monkeypatch, 3, error)
    events = list(train.train(state, task, views, training, 1.0, 0, dict))
    assert [event.kind for event in events] == ["memory", "memory", "step", "epoch"]
    assert tried == [8, 4, 2, 2, 2, 2] and state.parts == 4
    assert events[1].values == {"step": 1, "parts": 4, "images_at_once": 2, "exact": True}


def test_a_step_that_is_tried_again_is_as_if_it_had_not_been_tried(backbone, monkeypatch):
    """A running average moves once, and generators go on from where they were."""
    fresh, task, views, training = parts_of(backbone, "rift", {"statistics": "running"})
    again = parts_of(backbone, "rift", {"statistics": "running"})[0]
    fresh.parts = 2
    torch.manual_seed(5)
    list(train.train(fresh, task, views, dataclasses_replace(training, epochs=2), 1.0, 0, dict))
    drawn = torch.rand(3)
    backward = torch.Tensor.backward

    def failing(self, *arguments, **more):
        monkeypatch.setattr(torch.Tensor, "backward", backward)
        torch.rand(7)
        raise torch.OutOfMemoryError("in the backward pass, when averages have moved")

    monkeypatch.setattr(torch.Tensor, "backward", failing)
    torch.manual_seed(5)
    list(train.train(again, task, views, dataclasses_replace(training, epochs=2), 1.0, 0, dict))
    assert again.parts == 2 and torch.equal(drawn, torch.rand(3))
    for one, other in ((fresh.classifier, again.classifier), (fresh.regularizer, again.regularizer)):
        pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def dataclasses_replace(training: Training, **update: Any) -> Training:
    return training.model_copy(update=update)


def test_after_three_halvings_it_is_said_and_another_error_is_no_memory(backbone, monkeypatch):
    state, task, views, training = parts_of(backbone, "none", {})
    limited(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RunError, match="even in 8 parts; try a smaller batch_size") as caught:
        list(train.train(state, task, views, dataclasses_replace(training, epochs=2), 0.0, 0, dict))
    assert caught.value.code == "run.memory" and [one["parts"] for one in state.halvings] == [2, 4, 8]
    state, task, views, training = parts_of(backbone, "none", {})
    limited(monkeypatch, 0, RuntimeError("a mistake of ours"))
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        list(train.train(state, task, views, dataclasses_replace(training, epochs=2), 0.0, 0, dict))


def test_a_whole_run_with_too_little_memory_is_done_and_its_result_log_and_report_say_so(tmp_path, monkeypatch):
    lab, experiment = faults.tiny(tmp_path, epochs=1, keep="last")
    run = lab.submit(experiment)
    tried = limited(monkeypatch, 2, torch.OutOfMemoryError("CUDA out of memory"), after=1)
    faults.execute(lab, run)
    assert run.state == "done" and max(tried[3:]) <= 2, run.end()
    (event,) = [event for event in run.events() if event["event"] == "memory"]
    kept = run.result()["memory"]
    assert (event["step"], event["parts"]) == (2, 2) and kept["halvings"] == [{"step": 2, "parts": 2, "images_at_once": 2}]
    assert kept["exact"] and "penalty_reason" not in run.result()["numbers"]
    parts = dataset.parts(lab.medical, experiment.training, 0)
    document = comparison.document(lab, comparison.of_runs([run]), lab.medical, lab.natural, parts)
    assert document["arms"][0]["runs"][0]["memory"] == kept
    said = "Memory ran out at step 2: batches of 4 images were worked through in 2 parts"
    assert any(said in one for one in document["remarks"])
    from rift import report

    report.write(document, comparison.measures(comparison.of_runs([run])), tmp_path / "page.html")
    assert "Memory ran out at step 2" in (tmp_path / "page.html").read_text()


# --- numbers that are none ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_no_number_ends_the_arm_with_the_weights_before(backbone, bad, where):
    state, task, views, training = parts_of(backbone, "none", {})
    state.step, seen = 0, [0]

    def loss(outputs, targets):
        seen[0] += 1
        if seen[0] < 2:
            return task.loss(outputs, targets)
        if where == "loss":
            return task.loss(outputs, targets).detach() * bad + outputs.sum() * 0
        outputs.register_hook(lambda gradient: gradient * bad)
        return task.loss(outputs, targets)

    events = train.train(
        state, dataclasses.replace(task, loss=loss), views, dataclasses_replace(training, epochs=2), 0.0, 0, dict
    )
    assert next(events).kind == "step"
    before = copy.deepcopy(state.classifier.state_dict())
    with pytest.raises(RunError, match=f"step 2: {'the loss' if where == 'loss' else 'a gradient'} is not finite") as caught:
        list(events)
    assert caught.value.code == "run.diverged" and "Try a tenth of the learning rate" in caught.value.sentence
    assert all(torch.equal(value, before[key]) for key, value in state.classifier.state_dict().items()) and state.step == 1


def test_a_learning_rate_of_1000_is_refused_and_would_be_called_diverged(backbone):
    with pytest.raises(SettingError):
        catalog.validated(Training, {"learning_rate": 1000.0}, "training")
    state, task, views, training = parts_of(backbone, "none", {})
    wild = dataclasses_replace(training, epochs=30, learning_rate=1e3, head_learning_rate=1e3, warmup=0.0)
    state.optimizer = train.make_optimizer(state.classifier, state.regularizer, wild)
    state.step = 0
    with pytest.raises(RunError, match="Training diverged at step") as caught:
        list(train.train(state, task, views, wild, 0.0, 0, dict))
    assert caught.value.code == "run.diverged"


def test_a_loss_that_exploded_is_divergence_though_it_is_a_number(backbone):
    for factor, ends in ((1e2, False), (1e4, True)):
        state, task, views, training = parts_of(backbone, "none", {})
        state.first_loss = 1.0
        huge = dataclasses.replace(task, loss=lambda outputs, targets, f=factor: outputs.sum() * 0 + f)
        events = train.train(state, huge, views, training.model_copy(update={"epochs": 2}), 0.0, 0, dict)
        if not ends:
            assert list(events)
            continue
        with pytest.raises(RunError, match=r"the loss is 1e.04, and was 1 at first") as caught:
            list(events)
        assert caught.value.code == "run.diverged"


def test_a_diverged_arm_is_kept_marked_and_has_no_number(tmp_path, monkeypatch):
    lab, experiment = faults.tiny(tmp_path, "none", 0.0, epochs=1, keep="last")
    good, bad = lab.submit(experiment), lab.submit(experiment.model_copy(update={"seed": 1}))
    faults.execute(lab, good)
    update, count = train._update, [0]

    def breaking(state, training, parameters, loss, more):
        count[0] += 1
        return update(state, training, parameters, loss if count[0] < 3 else float("nan"), more)

    monkeypatch.setattr(train, "_update", breaking)
    faults.execute(lab, bad)
    assert bad.state == "failed" and bad.end()["code"] == "run.diverged" and bad.result() is None
    from safetensors.torch import load_file

    kept = load_file(bad.path / "diverged.safetensors")
    assert kept and all(bool(value.isfinite().all()) for value in kept.values()), "the last good weights"
    parts = dataset.parts(lab.medical, experiment.training, 0)
    document = comparison.document(lab, comparison.of_runs([good, bad]), lab.medical, lab.natural, parts)
    first, second = document["arms"][0]["runs"]
    assert not first["diverged"] and second["diverged"] and second["accuracy"] is None
    assert "diverged at step 3" in second["accuracy_reason"]


def test_weights_that_the_last_step_broke_are_no_result(backbone, tmp_path):
    lab = Lab(tmp_path / "lab")
    run = lab.submit(Experiment(data="d" * 64, natural="n" * 64))
    state, *_ = parts_of(backbone, "none", {})
    assert attempt.follow(run, lab, state, iter(())) == "done"
    with torch.no_grad():
        state.classifier.head.bias[0] = float("inf")
    with pytest.raises(RunError, match="diverged at its last step"):
        attempt.follow(run, lab, state, iter(()))


def test_a_hub_that_is_gone_fails_in_words_and_the_run_goes_on_later(tmp_path, monkeypatch):
    import huggingface_hub.constants

    lab, experiment = faults.tiny(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    run = lab.submit(experiment.model_copy(update={"backbone": catalog.check("backbones", Choice(name="timm"))}))
    recipe.execute(run, lab, faults.CPU)
    assert run.state == "failed" and run.end()["code"] == "model.offline" and "--backbone embedded" in run.end()["message"]
    lab.requeue(run)
    assert run.state == "queued" and isinstance(lab, Lab) and attempt.seconds_before(run) >= 0

"""Every file of every menu keeps its menu's contract; a new file is tested before its author writes a test."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from rift import catalog
from rift.captures import Data, Images
from rift.model import Backbone, Classifier, NaturalHead, Task, trainable
from rift.snapshot import Arrays, Snapshot

SHORT: dict[str, dict[str, Any]] = {  # settings of captures that would take long on toys too
    "stir": {"iterations": 2},
    "spread": {"iterations": 2},
    "corruption": {"severities": "one"},
    "sharpness": {"images": 6, "steps": 1, "iterations": 2, "directions": 1, "radii": 1},
}
CHOICES = [(menu, name) for menu in catalog.DOORS for name in catalog.names(menu)]


@pytest.mark.parametrize(("menu", "name"), CHOICES)
def test_a_choice_explains_itself_and_its_settings(menu, name):
    assert len(catalog.summary(menu, name)) > 20
    assert callable(catalog.door(menu, name))
    for key, field in catalog.settings(menu, name).model_fields.items():
        required_path = (menu, name, key) == ("backbones", "checkpoint", "path")
        assert required_path or not field.is_required(), f"{key} has no default"
        assert field.description, f"{key} has no description"
        if field.annotation in (int, float):
            bounds = {type(item).__name__ for item in field.metadata}
            assert bounds & {"Ge", "Gt", "Interval"} and bounds & {"Le", "Lt", "Interval"}, f"{key} has no bounds"


@pytest.mark.parametrize(("menu", "name"), CHOICES)
def test_defaults_pass_their_own_check(menu, name):
    if (menu, name) != ("backbones", "checkpoint"):
        checked = catalog.check(menu, catalog.parse(name))
        assert json.loads(json.dumps(checked.options)) == checked.options


def images(backbone: Backbone, n: int = 6) -> torch.Tensor:
    return torch.rand(n, 3, backbone.pixels, backbone.pixels)


@pytest.mark.parametrize("name", catalog.names("methods"))
def test_a_method_trains_something_and_survives_a_round_trip(name, toy_backbone):
    task: Task = catalog.door("tasks", "single_label")(("a", "b", "c"))
    classifier = Classifier(copy.deepcopy(toy_backbone), task.head(toy_backbone))
    catalog.door("methods", name)(classifier.backbone)
    x = images(toy_backbone)
    optimizer = torch.optim.AdamW([p for p in classifier.parameters() if p.requires_grad], lr=1e-2)
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    for _ in range(2):  # a head that starts at zero passes no gradient to the backbone in the first step
        optimizer.zero_grad()
        task.loss(classifier(x)[1], torch.tensor([0, 1, 2, 0, 1, 2])).backward()
        optimizer.step()
    moved = {key for key, value in classifier.state_dict().items() if not torch.equal(value, before[key])}
    wanted = {key for key, p in classifier.named_parameters() if p.requires_grad}
    assert trainable(classifier) > 0 and moved and moved <= wanted
    logits = classifier(x)[1]
    assert torch.isfinite(logits).all()
    classifier.load_state_dict(load(save({key: value.contiguous() for key, value in classifier.state_dict().items()})))
    assert torch.allclose(classifier(x)[1], logits, atol=1e-6)


class Targets:
    """What a regularizer is given as `images`."""

    def __init__(self, embeddings: torch.Tensor):
        self.embeddings = embeddings


@pytest.mark.parametrize("name", catalog.names("regularizers"))
def test_a_regularizer_is_at_least_zero_and_its_gradient_reaches_a_backbone_that_moved(name, toy_backbone):
    pretrained = copy.deepcopy(toy_backbone)
    rows = torch.nn.functional.normalize(torch.randn(2000, pretrained.width), dim=1)
    pretrained._natural = lambda labels: NaturalHead(tuple(labels), rows[: len(labels)])
    finetuned, x = copy.deepcopy(pretrained), images(pretrained, 12)
    with torch.no_grad():
        cached = torch.stack([pretrained(x), pretrained(x.flip(3))])
        for parameter in finetuned.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    penalty: Any = catalog.door("regularizers", name)(pretrained, finetuned, Targets(cached))
    assert isinstance(penalty.needs_targets, bool)
    value = penalty(finetuned(x), cached[0] if penalty.needs_targets else None)
    assert value.shape == () and value.dtype == torch.float32 and float(value.detach()) >= 0
    assert value.requires_grad == (name != "none")
    if value.requires_grad:
        value.backward()
        gradients = [parameter.grad for parameter in finetuned.parameters() if parameter.grad is not None]
        assert all(torch.isfinite(one).all() for one in gradients) and max(float(one.abs().max()) for one in gradients) > 0


def snapshot(logits: bool, n: int = 30, seed: int = 0, constant: bool = False) -> Snapshot:
    rng = np.random.default_rng(seed)

    def arrays(n: int, classes: int, scored: bool) -> Arrays:
        values = np.ones((n, 8)) if constant else rng.normal(size=(n, 8))
        return Arrays(
            ids=np.array([f"{i:03}" for i in range(n)]),
            labels=np.arange(n) % classes,
            embeddings=values.astype(np.float32),
            activations=np.stack([values, values]).astype(np.float32),
            logits=rng.normal(size=(n, classes)).astype(np.float32) if scored else None,
        )

    rows = rng.normal(size=(6, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[5] = np.nan
    sets = {name: arrays(n, 3, logits) for name in ("train", "validation", "test")}
    return Snapshot({**sets, "natural": arrays(n, 6, False)}, ("a", "b", "c"), tuple("uvwxyz"), rows)


def numbers(values: dict[str, Any]) -> list[tuple[str, float]]:
    return [(key, value) for key, value in values.items() if isinstance(value, (float, int)) and not isinstance(value, bool)]


def from_arrays(name: str, n: int, constant: bool) -> dict[str, dict[str, Any]]:
    """What a diagnostic measures on the saved arrays of two arms."""
    before = snapshot(False, n, 0, constant)
    arms = {arm: snapshot(True, n, seed, constant) for seed, arm in enumerate(["none", "rift"], 1)}
    return {arm: catalog.door("diagnostics", name)(before, after) for arm, after in arms.items()}


def from_models(name: str, n: int, constant: bool, backbone: Backbone, folder: Path) -> dict[str, dict[str, Any]]:
    """What a diagnostic measures on two models that it captures itself; six natural classes, one of them without a row."""
    pretrained = copy.deepcopy(backbone)
    rng, rows = np.random.default_rng(0), torch.nn.functional.normalize(torch.randn(5, pretrained.width), dim=1)

    def pictures(classes: str) -> Images:
        shape = (n, pretrained.pixels, pretrained.pixels, 3)
        pixels = np.full(shape, 90, np.uint8) if constant else rng.integers(0, 255, shape, dtype=np.uint8)
        return Images(pixels, np.array([f"{i:03}" for i in range(n)]), np.arange(n) % len(classes), tuple(classes))

    results = {}
    train, test, natural = pictures("abc"), pictures("abc"), pictures("uvwxyz")
    for arm in ("none", "rift"):
        finetuned = Classifier(copy.deepcopy(pretrained), torch.nn.Linear(pretrained.width, 3)).eval()
        with torch.no_grad():
            for parameter in finetuned.parameters():
                parameter += 0.03 * torch.randn_like(parameter)
        head = NaturalHead(natural.classes[:5], rows, unknown=natural.classes[5:])
        (folder / arm).mkdir()
        task = catalog.door("tasks", "single_label")(test.classes)
        data = Data(train, test, natural, head, folder / arm, seed=0, device=torch.device("cpu"), task=task)
        before = {key: value.clone() for key, value in [*pretrained.state_dict().items(), *finetuned.state_dict().items()]}
        arrays = catalog.module("diagnostics", name).capture(pretrained, finetuned, data, **SHORT.get(name, {}))
        now = dict([*pretrained.state_dict().items(), *finetuned.state_dict().items()])
        assert all(torch.equal(now[key], value) for key, value in before.items()), "capture leaves the models as they were"
        assert all(isinstance(value, np.ndarray) and value.dtype != object for value in arrays.values())
        results[arm] = catalog.door("diagnostics", name)(arrays)
    return results


DIAGNOSED = [  # of those that run models the smallest case is quick enough for every time
    pytest.param(name, n, constant, marks=[pytest.mark.slow] if catalog.captures(name) and n > 4 else [])
    for name in catalog.names("diagnostics")
    for n, constant in ((30, False), (4, False), (30, True))
]


@pytest.mark.parametrize(("name", "n", "constant"), DIAGNOSED)
def test_a_diagnostic_gives_finite_numbers_or_a_reason_and_a_figure(name, n, constant, toy_backbone, tmp_path):
    module = catalog.module("diagnostics", name)
    models = catalog.captures(name)
    results = from_models(name, min(n, 12), constant, toy_backbone, tmp_path) if models else from_arrays(name, n, constant)
    for values in results.values():
        for key, value in numbers(values):
            assert math.isfinite(value), key
        for key, value in values.items():
            assert value is not None or values.get(f"{key}_reason"), f"{key} is null without a reason"
    assert json.loads(module.figure(results).to_json())["data"] is not None
    assert module.sentence(results)

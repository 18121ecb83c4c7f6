"""What each penalty costs per step, beside a step without one: forms in turn, on the same batch, ratios within a round.

Goals per step over `none`, reported and never asserted: `rift`, `procrustes` 2 %; `rsc`, `feature_l2` 5 %; a learned map 10 %.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import timm
import torch
from torch.nn import functional as F

from rift import catalog, train
from rift.config import Training
from rift.model import Backbone, Classifier, NaturalHead, Task
from rift.views import Views
from tests.benchmarks import measured

FORMS: dict[str, dict[str, Any]] = {
    "none": {},
    "rift": {},
    "rift[running]": {"statistics": "running"},
    "rift[learned]": {"map": "learned"},
    "rift[procrustes]": {"map": "procrustes"},
    "rsc": {},
    "rsc[debiased]": {"debiased": True},
    "procrustes": {},
    "feature_l2": {},
    "feature_l2[layers]": {"layers": 4},
    "l2_sp": {},
    "logit_distillation": {},
}
GOALS = {"rift": 0.02, "procrustes": 0.02, "rsc": 0.05, "feature_l2": 0.05, "rift[learned]": 0.1}


def backbone(width: int) -> Backbone:
    """Return a random ViT with a random natural head: the embedded one (192) at 64 px, or a ViT-B/32 (768) at 224 px."""
    if width == 192:
        return with_words(catalog.door("backbones", "embedded")(init="random"))
    vit: Any = timm.create_model("vit_base_patch32_224", pretrained=False, num_classes=0)
    return with_words(Backbone(vit, pixels=224, mean=(0.5,) * 3, std=(0.5,) * 3))


def with_words(chosen: Backbone) -> Backbone:
    """Give a backbone random directions for a thousand words, which `logit_distillation` asks for."""
    rows = F.normalize(torch.randn(1000, chosen.width, generator=torch.Generator().manual_seed(0)), dim=1)
    chosen._natural = lambda labels: NaturalHead(tuple(labels), rows[: len(labels)])
    return chosen.eval()


def arm(pretrained: Backbone, name: str, views: Views, training: Training) -> tuple[train.State, Any]:
    """Return what is trained with one form of a penalty, and the generator that trains it, longer than anyone asks."""
    task: Task = catalog.door("tasks", "single_label")(("a", "b", "c", "d"))
    classifier = Classifier(copy.deepcopy(pretrained), task.head(pretrained)).to(views.device)
    build = catalog.door("regularizers", name.split("[")[0])
    regularizer = build(pretrained, classifier.backbone, views, **FORMS[name]).to(views.device)
    state = train.State(classifier, regularizer, train.make_optimizer(classifier, regularizer, training))
    longer = training.model_copy(update={"epochs": 1000})
    return state, train.train(state, task, views, longer, float(name != "none"), 0, dict)


def drawn(pretrained: Backbone, training: Training, device: torch.device, batches: int = 4) -> Views:
    """Return some batches of noise with labels, as a run's training images."""
    size = (batches * training.batch_size, pretrained.pixels, pretrained.pixels, 3)
    pixels = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    views = Views(pixels, np.arange(len(pixels)) % 4, training.model_copy(update={"augment": "none"}), 0, device)
    views.pretrained = pretrained
    return views


def next_step(events: Any) -> train.Event:
    """Return the next event that is a step."""
    return next(event for event in events if event.kind == "step")


def steps(
    rounds: int,
    batch_size: int,
    pretrained: Backbone,
    names: Sequence[str] = tuple(FORMS),
    device: str = "cpu",
    precision: Any = "auto",
    warm: int = 3,
) -> dict[str, Any]:
    """Time one step of each form in turn; `parts` tells of those whose batch did not fit and was worked through in parts."""
    training = Training(batch_size=batch_size, precision=precision)
    views = drawn(pretrained, training, torch.device(device))
    _ = views.embeddings
    contestants = {name: arm(pretrained, name, views, training) for name in names}
    asked = {
        name: (lambda _, events=events: next_step(events).values["milliseconds"]) for name, (_, events) in contestants.items()
    }
    found = measured.in_turn(asked, rounds + warm)
    times = {name: values[warm:] for name, values in found.items()}
    ratios = {name: measured.ratios(times[name], times["none"]) for name in names if name != "none"}
    return {
        "width": pretrained.width,
        "batch_size": batch_size,
        "rounds": rounds,
        "milliseconds": {name: measured.spread(values, 2)["median"] for name, values in times.items()},
        "parts": {name: state.parts for name, (state, _) in contestants.items() if state.parts > 1},
        "ratio_to_none": ratios,
    }


def alone(width: int, batch_size: int, rounds: int = 20) -> dict[str, float]:
    """Time each penalty of embeddings alone, forward and back, as processor time: steadier than steps on a busy machine."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(4 * batch_size, width, generator=generator)
    after = (before + 0.1 * torch.randn(before.shape, generator=generator))[:batch_size].requires_grad_()
    rows = F.normalize(torch.randn(1000, width, generator=generator), dim=1)
    pretrained: Any = SimpleNamespace(width=width, natural_head=lambda labels: NaturalHead(tuple(labels), rows[: len(labels)]))
    found = {}
    for name in [name for name in FORMS if name not in ("none", "l2_sp", "feature_l2[layers]")]:
        door = catalog.door("regularizers", name.split("[")[0])
        penalty = door(pretrained, None, SimpleNamespace(embeddings=before[None]), **FORMS[name])
        times = []
        for _ in range(rounds + 3):
            began = time.process_time()
            penalty(after, before[:batch_size]).backward()
            times.append(1000 * (time.process_time() - began))
        found[name] = round(float(np.median(times[3:])), 3)
    return found


def measure(quick: bool, rounds: int = 40, wide_rounds: int = 5) -> dict[str, Any]:
    """Time the forms with the embedded model and, each in turn with `none`, with a ViT-B/32; each penalty alone as well."""
    narrow = steps(1 if quick else rounds, 8 if quick else 32, backbone(192), warm=1 if quick else 3)
    wide = [] if quick else [name for name in FORMS if name != "none"]  # one by one: a ViT-B takes 1.4 GB to train
    return {
        "steps": [narrow, *(steps(wide_rounds, 32, backbone(768), ("none", name)) for name in wide)],
        "alone_milliseconds": {str(width): alone(width, 32, 1 if quick else 20) for width in (192, 768)},
    }


def table(numbers: dict[str, Any]) -> str:
    """Return the numbers as Markdown, one row for each form."""
    lines = ["| penalty | width | a step over one without (quartiles) | goal | alone, ms of processor |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for one in numbers["steps"]:
        for name, ratio in one["ratio_to_none"].items():
            goal = f"≤ {1 + GOALS[name]:.2f}" if name in GOALS else ""
            alone = numbers["alone_milliseconds"].get(str(one["width"]), {}).get(name, "")
            lines.append(f"| `{name}` | {one['width']} | {measured.told(ratio, 3)} | {goal} | {alone} |")
    return "\n".join(lines)

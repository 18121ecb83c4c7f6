"""Run `python -m tests.benchmarks [--out FILE.json]`: what each penalty costs per step, and how long the main job takes.

Goals per step over `none`, reported and never asserted: `rift`, `procrustes` 2 %; `rsc`, `feature_l2` 5 %; a learned map 10 %.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
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

ROOT = Path(__file__).parents[2]
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
        chosen: Backbone = catalog.door("backbones", "embedded")(init="random")
    else:
        vit: Any = timm.create_model("vit_base_patch32_224", pretrained=False, num_classes=0)
        chosen = Backbone(vit, pixels=224, mean=(0.5,) * 3, std=(0.5,) * 3)
    rows = F.normalize(torch.randn(1000, width, generator=torch.Generator().manual_seed(0)), dim=1)
    chosen._natural = lambda labels: NaturalHead(tuple(labels), rows[: len(labels)])
    return chosen.eval()


def steps(rounds: int, batch_size: int, width: int, names: Sequence[str] = tuple(FORMS)) -> dict[str, Any]:
    """Time one step of each form in turn, on the same batch, the order rotating; ratios are taken within a round."""
    training = Training(batch_size=batch_size)
    task: Task = catalog.door("tasks", "single_label")(("a", "b", "c", "d"))
    pretrained = backbone(width)
    size = (4 * batch_size, pretrained.pixels, pretrained.pixels, 3)
    pixels = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    views = Views(pixels, np.arange(len(pixels)) % 4, training.model_copy(update={"augment": "none"}), seed=0)
    views.pretrained = pretrained
    _ = views.embeddings
    contestants = {}
    for name in names:
        classifier = Classifier(copy.deepcopy(pretrained), task.head(pretrained))
        regularizer = catalog.door("regularizers", name.split("[")[0])(pretrained, classifier.backbone, views, **FORMS[name])
        state = train.State(classifier, regularizer, train.make_optimizer(classifier, regularizer, training))
        contestants[name] = train.train(
            state, task, views, training.model_copy(update={"epochs": 1000}), float(name != "none"), 0, dict
        )
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 3):
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            event = next(contestants[name])
            while event.kind != "step":
                event = next(contestants[name])
            if turn >= 3:
                times[name].append(event.values["milliseconds"])
    ratios = {name: [a / b for a, b in zip(times[name], times["none"], strict=True)] for name in names if name != "none"}
    return {
        "width": width,
        "batch_size": batch_size,
        "rounds": rounds,
        "milliseconds": {name: round(statistics.median(values), 2) for name, values in times.items()},
        "ratio_to_none": {name: _spread(values) for name, values in ratios.items()},
        "goals_met": {name: float(np.median(ratios[name])) <= 1 + goal for name, goal in GOALS.items() if name in ratios},
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
        found[name] = round(statistics.median(times[3:]), 3)
    return found


def _spread(values: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": round(float(median), 4), "quarter": round(float(low), 4), "three_quarters": round(float(high), 4)}


def main_job() -> dict[str, Any]:
    """Time the whole command: 200 images, 10 epochs, both arms, report complete; then each arm cold and with cached targets."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        began = time.perf_counter()
        done = _rift("compare", "sample:phantoms:images_per_class=40", "--out", out, "--json")
        total = time.perf_counter() - began
        arms = {arm["name"]: arm["runs"][0] for arm in json.loads(done)["arms"]}
        document = json.loads((out / "comparison.json").read_text())
        results = {
            name: json.loads((out / "lab" / "runs" / run["run"] / "result.json").read_text()) for name, run in arms.items()
        }
        images = document["data"]["kept"]
    targets = results["rift"]["target_seconds"]
    cold = arms["rift"]["seconds"] / arms["none"]["seconds"]
    cached = (arms["rift"]["seconds"] - targets) / arms["none"]["seconds"]
    return {
        "images": images,
        "seconds": round(total, 1),
        "arm_seconds": {name: round(run["seconds"], 1) for name, run in arms.items()},
        "target_seconds": round(targets, 2),
        "total_ratio_cold": round(cold, 3),
        "total_ratio_cached_targets": round(cached, 3),
    }


def start_up(rounds: int = 5) -> dict[str, float]:
    """Time `python -m rift --help`."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        _rift("--help")
        times.append(time.perf_counter() - began)
    return {"help_seconds": round(statistics.median(times), 3)}


def _rift(*arguments: object) -> str:
    command = [sys.executable, "-m", "rift", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=40, help="at width 192, all forms in turn")
    parser.add_argument("--wide-rounds", type=int, default=5, help="at width 768, each form in turn with none; 0 leaves it out")
    chosen = parser.parse_args()
    wide = [name for name in FORMS if name != "none" and chosen.wide_rounds]  # one by one: a ViT-B takes 1.4 GB to train
    document = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "start_up": start_up(),
        "penalties_alone_milliseconds": {width: alone(width, 32) for width in (192, 768)},
        "steps": steps(chosen.rounds, 32, 192),
        "wide_steps": [steps(chosen.wide_rounds, 32, 768, ("none", name)) for name in wide],
        "main_job": main_job(),
    }
    text = json.dumps(document, indent=1)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

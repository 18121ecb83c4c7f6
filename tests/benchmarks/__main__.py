"""Run `python -m tests.benchmarks [--out FILE.json]`: what RIFT costs per step and in all, and how long the main job takes."""

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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rift import catalog, train
from rift.config import Training
from rift.model import Classifier, Task

ROOT = Path(__file__).parents[2]
FORMS = {"none": {}, "rift": {}, "rift[running]": {"statistics": "running"}, "rift[procrustes]": {"map": "procrustes"}}


def steps(rounds: int, batch_size: int) -> dict[str, Any]:
    """Time one step of each form in turn, on the same batch, the order rotating; ratios are taken within a round."""
    training = Training(batch_size=batch_size)
    task: Task = catalog.door("tasks", "single_label")(("a", "b", "c", "d"))
    pretrained = catalog.door("backbones", "embedded")(init="random").eval()
    pixels = np.random.default_rng(0).integers(0, 255, (4 * batch_size, 64, 64, 3), dtype=np.uint8)
    views = train.Views(pixels, np.arange(len(pixels)) % 4, training, seed=0)
    views.pretrained = pretrained
    _ = views.embeddings
    contestants = {}
    for name, options in FORMS.items():
        classifier = Classifier(copy.deepcopy(pretrained), task.head(pretrained.width))
        regularizer = catalog.door("regularizers", name.split("[")[0])(pretrained, classifier.backbone, views, **options)
        state = train.State(classifier, regularizer, train.make_optimizer(classifier, regularizer, training))
        contestants[name] = train.train(
            state, task, views, training.model_copy(update={"epochs": 1000}), float(name != "none"), 0, dict
        )
    times: dict[str, list[float]] = {name: [] for name in FORMS}
    names = list(FORMS)
    for turn in range(rounds + 3):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            event = next(contestants[name])
            while event.kind != "step":
                event = next(contestants[name])
            if turn >= 3:
                times[name].append(event.values["milliseconds"])
    ratios = {name: [a / b for a, b in zip(times[name], times["none"], strict=True)] for name in FORMS if name != "none"}
    return {
        "batch_size": batch_size,
        "rounds": rounds,
        "milliseconds": {name: round(statistics.median(values), 2) for name, values in times.items()},
        "ratio_to_none": {name: _spread(values) for name, values in ratios.items()},
    }


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
    parser.add_argument("--rounds", type=int, default=40)
    chosen = parser.parse_args()
    document = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "start_up": start_up(),
        "steps": steps(chosen.rounds, 32),
        "main_job": main_job(),
    }
    text = json.dumps(document, indent=1)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

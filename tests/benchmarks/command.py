"""The whole command, as a person uses it: from drawn images to the report, and how soon `--help` answers."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def main_job(per_class: int = 40, setting: str = "epochs=10") -> dict[str, Any]:
    """Time the whole command: 200 images, 10 epochs, both arms, report complete; then each arm cold and with cached targets."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        began = time.perf_counter()
        done = _rift("compare", f"sample:phantoms:images_per_class={per_class}", "--set", setting, "--out", out, "--json")
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


def measure(quick: bool) -> dict[str, Any]:
    """Time both; `quick` takes fewer images and one epoch."""
    job = main_job(8, "epochs=1") if quick else main_job()
    return {"start_up": start_up(1 if quick else 5), "main_job": job}


def table(numbers: dict[str, Any]) -> str:
    """Return the numbers as Markdown."""
    job = numbers["main_job"]
    lines = ["| what | ratio |", "| --- | --- |"]
    lines.append(f"| an arm with `rift` over one without, the pretrained model's pass included | {job['total_ratio_cold']:.3f} |")
    lines.append(f"| the same, where that pass is in the cache | {job['total_ratio_cached_targets']:.3f} |")
    return "\n".join(lines)

"""Run `python -m tests.benchmarks.presets [--out FILE.json]`: how long the quick preset of each diagnostic takes.

Trains both arms of full finetuning (embedded model) where the lab does not hold them, then measures every diagnostic on each
arm, in wall-clock and in processor seconds: on a busy machine the latter tell more.
Goals for one arm on two idle cores with 200 test images, reported and never asserted: 30 s each, `stir` 60 s, all others 150 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rift import api, catalog, measures, service
from rift.config import Choice
from rift.runs import Lab

GOALS, GOAL, GOAL_OF_ALL = {"stir": 60.0}, 30.0, 150.0
DRAWINGS = "sample:phantoms:images_per_class=200"  # 200 of its five classes are test images


def presets(data: str, root: Path, threads: int) -> dict[str, Any]:
    """Return for each arm what each diagnostic's quick preset takes; what earlier ones left in the lab's cache is theirs."""
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    lab = Lab(root)
    document = api.compare(data, root / "out", lab=lab.root, training={"epochs": 1}, say=say)
    torch.set_num_threads(threads)
    for path in lab.cache.glob("stir-*"):
        path.unlink()  # inverting the pretrained model is part of the first arm's time
    (name,) = service.comparisons(lab)
    arms: dict[str, dict[str, dict[str, float]]] = {}
    for arm in service.arms(lab, name):
        (run,) = arm.runs
        shutil.rmtree(run.path / "captures", ignore_errors=True)
        for diagnostic in catalog.names("diagnostics"):
            asked = catalog.check("diagnostics", Choice(name=diagnostic, options={"preset": "quick"}))
            say(f"{arm.name}: {diagnostic}")
            began, before = time.perf_counter(), _processor()
            measures.measure_again(lab, run, asked)
            seconds = {"seconds": time.perf_counter() - began, "processor_seconds": _processor() - before}
            arms.setdefault(arm.name, {})[diagnostic] = {key: round(value, 1) for key, value in seconds.items()}
    return {"data": document["data"]["name"], "counts": document["data"]["counts"], "arms": arms}


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def table(document: dict[str, Any]) -> str:
    """Return the seconds as Markdown: by diagnostic, wall clock (processor) of each arm, and the goal."""
    arms = document["arms"]
    lines = [f"| diagnostic | {' | '.join(arms)} | goal |", "|---" * (len(arms) + 2) + "|"]
    rows = {name: [arms[arm][name] for arm in arms] for name in next(iter(arms.values()))}
    rows["all but stir"] = [
        {key: sum(one[key] for name, one in arm.items() if name != "stir") for key in ("seconds", "processor_seconds")}
        for arm in arms.values()
    ]
    for name, found in rows.items():
        goal = GOAL_OF_ALL if name == "all but stir" else GOALS.get(name, GOAL)
        cells = [f"{one['seconds']:.1f} ({one['processor_seconds']:.1f})" for one in found]
        lines.append(f"| {name} | {' | '.join(cells)} | {goal:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default=DRAWINGS, help="default %(default)s: drawings, 200 of them test images")
    parser.add_argument("--lab", type=Path, help="where runs are kept; default a folder that is thrown away")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        document = presets(chosen.data, chosen.lab or Path(folder) / "lab", chosen.threads)
    document["machine"] = {"processor": platform.machine(), "cores": os.cpu_count(), "threads": chosen.threads}
    document["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    text = json.dumps(document, indent=1)
    print(table(document), text, sep="\n\n")
    if chosen.out:
        chosen.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

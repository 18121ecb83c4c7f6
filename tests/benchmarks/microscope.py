"""Run `python -m tests.benchmarks.microscope --data DIR --lab DIR`: what finetuning does inside the model, on real images.

Trains runs that keep their weights after every epoch, measures every diagnostic on the first seed of each arm (quick presets) and
the spread of forgetting on all of them, and writes `microscope.json`; `tests.benchmarks.results --write` puts it into RESULTS.md.
What the lab holds already is not done again, so it may be stopped and called again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from rift import api, catalog, comparison, following, jobs, measures, service
from rift.config import Choice
from rift.errors import UserError
from rift.orders import Order
from rift.recipe import pick_device
from rift.runs import Lab, Run, write_json
from tests.benchmarks.results import TINY, TINY_SPEC, Case, cases, sets

NUMBERS = Path(__file__).with_suffix(".json")
SETS = ("chest", "skin")
METHODS, PENALTIES = ("full", "lora"), ("rift",)
SEEDS = {"embedded": 3}  # with full finetuning; one of any other method, and of the ViT-tiny, which has full finetuning only
EPOCHS = 5  # kept epochs of a run over which forgetting is followed, evenly spaced
LONGEST = 16  # entries of an array that is kept


def examined(weights: Path | None) -> dict[str, Case]:
    """Return the sets of SETS with each local backbone; runs of the ViT-tiny are those that `results` trains in the same lab."""
    found = {name: cases(None)[name] for name in SETS}
    if weights:
        tiny = {"backbone": TINY_SPEC.format(weights), "training": TINY["training"]}
        found |= {f"{name}-tiny": replace(case, **tiny) for name, case in found.items()}
    return found


def arms(lab: Lab, case: Case, data: Path, task: str, device: str, workers: int) -> list[comparison.Arm]:
    """Train what is not there yet, nothing without workers, and return the arms."""
    images, natural = sets(case, data, lab)
    found: list[comparison.Arm] = []
    for method in METHODS if (task, case.backbone) == ("single_label", "embedded") else METHODS[:1]:
        seeds = SEEDS.get(case.backbone, 1) if (method, task) == ("full", "single_label") else 1
        order = Order(
            data=images.digest,
            natural=natural.digest,
            backbone=catalog.check("backbones", catalog.parse(case.backbone)),
            methods=(Choice(name=method),),
            regularizers=tuple(map(catalog.parse, PENALTIES)),
            strengths=(1.0,),
            training=api.settings_of({"shots": case.shots, "keep": "epochs", **dict(case.training)}),
            seeds=seeds,
            task=Choice(name=task),
        )
        name = service.place(lab, order, source=case.pack)
        several = service.arms(lab, name)
        names = {run.id: f"{case.title}, {task}, {method}, {arm.name}" for arm in several for run in arm.runs}
        if workers:
            following.finish(lab, service.runs(several), names, jobs.Workers(device, workers), lambda text: None)
        found += several
    return found


def measured(lab: Lab, run: Run, diagnostic: str, device: str, now: bool) -> dict[str, Any]:
    """Return what one diagnostic finds on one run, without long arrays, and the seconds it took where it was measured `now`."""
    options = {"preset": "default", "most_epochs": EPOCHS} if diagnostic == "spread" else {"preset": "quick"}
    asked = catalog.check("diagnostics", Choice(name=diagnostic, options=options))
    kept = run.measured(diagnostic)
    began = time.perf_counter()
    if not kept or kept["settings"] != asked.options:
        if not now:
            return {"refused": "not measured"}
        try:
            kept = measures.measure_again(lab, run, asked, device=pick_device(device))
        except UserError as error:
            return {"refused": error.sentence}
    values = kept["runs"][run.id]
    short = {key: value for key, value in values.items() if not isinstance(value, list) or _is_short(value)}
    return {"seconds": time.perf_counter() - began} | short


def _is_short(values: list[Any]) -> bool:
    return len(values) <= LONGEST and all(value is None or isinstance(value, (int, float, str)) for value in values)


def examine(lab: Lab, case: Case, data: Path, task: str, device: str, workers: int) -> list[dict[str, Any]]:
    """Return all runs of a case with what was measured on each."""
    found = []
    for arm in arms(lab, case, data, task, device, workers):
        for run in [run for run in arm.runs if run.state == "done"]:
            wanted = catalog.names("diagnostics") if run is arm.runs[0] else ("spread",)
            about = {"method": arm.method.name, "penalty": arm.regularizer.name, "seed": run.experiment.seed, "task": task}
            each = {name: measured(lab, run, name, device, workers > 0) for name in wanted}
            if any("refused" not in one for one in each.values()):
                found.append(about | {"run": run.id, "measures": each})
            print(f"{case.title}: {task}, {arm.method.name}, {arm.name}, seed {run.experiment.seed}", file=sys.stderr, flush=True)
    return found


def keep(name: str, found: dict[str, Any], order: list[str]) -> None:
    """Write what was found on one case beside the others, which another process may just have written."""
    with FileLock(NUMBERS.with_suffix(".lock")):
        stored = json.loads(NUMBERS.read_bytes()) if NUMBERS.exists() else {}
        stored |= {name: found}
        write_json(NUMBERS, {one: stored[one] for one in dict.fromkeys([*order, *stored]) if one in stored})
    NUMBERS.with_suffix(".lock").unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the packs")
    parser.add_argument("--weights", type=Path, help="checkpoint of the ViT-tiny; without it only the embedded model is examined")
    parser.add_argument("--lab", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--only", default="", help="comma-separated cases")
    parser.add_argument("--workers", type=int, default=1, help="0 trains and measures nothing, and writes what is there")
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    several = examined(chosen.weights)
    for name, case in several.items():
        if chosen.only and name not in chosen.only.split(","):
            continue
        tasks = ("single_label", "reconstruction") if case.backbone == "embedded" else ("single_label",)
        lab = Lab(chosen.lab)
        each = [one for task in tasks for one in examine(lab, case, chosen.data, task, chosen.device, chosen.workers)]
        backbone = case.backbone.partition(":")[0]
        keep(name, {"title": case.title, "source": case.source, "backbone": backbone, "runs": each}, list(several))
    return 0


if __name__ == "__main__":
    sys.exit(main())

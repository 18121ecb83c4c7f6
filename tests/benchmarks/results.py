"""Run `python -m tests.benchmarks.results --data DIR --lab DIR`: what every penalty does to every method on real images.

Trains what the lab does not hold yet, so it may be stopped and called again, and writes RESULTS.md from the numbers of the runs
that are done. `--check N` trains N of the runs in an empty lab instead and compares their numbers with those of RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rift import api, comparison, dataset, following, jobs, service
from rift.comparison import Arm
from rift.config import Experiment
from rift.orders import Order, experiments
from rift.runs import ENDED, Lab, Run, write_bytes, write_json
from tests.benchmarks import microscope_page, results_page

ROOT = Path(__file__).parents[2]
PAGE, NUMBERS = ROOT / "RESULTS.md", Path(__file__).with_suffix(".json")
INSIDE = Path(__file__).with_name("microscope.json")  # what `tests.benchmarks.microscope` found
NATURAL = "natural_cifar10_test_10class.zip"
METHODS = ("linear", "last_blocks", "lora", "adaptformer", "full")
PENALTIES = ("rift", "rift:statistics=running", "rsc", "feature_l2", "procrustes", "logit_distillation")
# Its penalty is relative too, but weights move by a thousandth of their norm where embeddings move by their own
PARAMETERS = (("l2_sp", 1000.0),)
SEEDS, SEEDS_OF_FULL = 3, 5


@dataclass(frozen=True)
class Case:
    """One table: images, backbone, and what is trained on them."""

    title: str
    pack: str  # file name in the data folder
    source: str  # repository @ commit
    shots: int  # training images per class, so that there are about 200
    backbone: str = "embedded"
    methods: tuple[str, ...] = METHODS
    penalties: tuple[str, ...] = PENALTIES
    parameters: tuple[tuple[str, float], ...] = PARAMETERS
    more_seeds: bool = True  # SEEDS_OF_FULL for the method `full`
    training: tuple[tuple[str, Any], ...] = ()  # settings that are not the default ones


BRAIN = ("med_brain_mri_4class.zip", "SartajBhuvaji/Brain-Tumor-Classification-DataSet @ 3ea9f4ea", 50)
CHEST = ("med_chest_xray_pneumonia_3class.zip", "lecuong1502/BTL_Machine_Learning @ 19a2d617", 66)
COLON = ("med_colon_histology_ebhi_6class.zip", "emhaihsan/EBHI-Segmentation @ 211f175d", 33)
SKIN = ("med_skin_ham10000_7class.zip", "images congtran19/XLA @ a8ba08ac, labels bub655/mla-skin-classification @ 66843796", 28)
# At 224 px and for ten epochs the 48 runs would take two cores four hours
TINY_SPEC = "checkpoint:architecture=vit_tiny_patch16_224,pixels=128,path={}"
TINY: dict[str, Any] = {
    "methods": ("lora", "full"),
    "penalties": ("rift", "rift:statistics=running", "feature_l2"),
    "parameters": (),
    "more_seeds": False,
    "training": (("epochs", 5), ("keep", "epochs")),  # what is kept is for `tests.benchmarks.microscope`
}


def cases(weights: Path | None) -> dict[str, Case]:
    """Return every table by its short name; those of the ViT-tiny need its checkpoint."""
    found = {
        "brain": Case("Brain MRI, 4 classes", *BRAIN),
        "chest": Case("Chest X-ray, 3 classes", *CHEST),
        "colon": Case("Colon histology, 6 classes", *COLON),
        "skin": Case("Skin lesions, 7 classes", *SKIN),
    }
    if weights:
        tiny = {"backbone": TINY_SPEC.format(weights), **TINY}
        found["chest-tiny"] = Case("Chest X-ray, 3 classes", *CHEST, **tiny)
        found["skin-tiny"] = Case("Skin lesions, 7 classes", *SKIN, **tiny)
    return found


def orders(case: Case, images: str, natural: str) -> Iterator[Order]:
    """Yield what is asked of one case; the runs that two orders share are trained once."""
    from rift import catalog

    def ask(methods: tuple[str, ...], penalties: tuple[str, ...], strength: float, seeds: int) -> Order:
        return Order(
            data=images,
            natural=natural,
            backbone=catalog.check("backbones", catalog.parse(case.backbone)),
            methods=tuple(map(catalog.parse, methods)),
            regularizers=tuple(map(catalog.parse, penalties)),
            strengths=(strength,),
            training=api.settings_of({"shots": case.shots, **dict(case.training)}),
            seeds=seeds,
        )

    for methods, seeds in ((case.methods, SEEDS), (("full",), SEEDS_OF_FULL if case.more_seeds else SEEDS)):
        yield ask(methods, case.penalties, 1.0, seeds)
        for name, strength in case.parameters:
            yield ask(methods, (name,), strength, seeds)


def sets(case: Case, data: Path, lab: Lab) -> tuple[dataset.ImageSet, dataset.ImageSet]:
    """Read the images of a case, and the natural ones, into the lab."""
    return api.open_data(data / case.pack, lab.data), api.open_natural(data / NATURAL, lab.data)


def train(lab: Lab, case: Case, data: Path, device: str, workers: int) -> None:
    """Train what is asked and not there yet."""
    images, natural = sets(case, data, lab)
    runs: dict[str, tuple[Run, str]] = {}
    for order in orders(case, images.digest, natural.digest):
        name = service.place(lab, order, source=case.pack)
        arms = service.arms(lab, name)
        names = {run.id: f"{case.title}: {arm.name}, seed {run.experiment.seed}" for arm in arms for run in arm.runs}
        runs |= {run.id: (run, names[run.id]) for run in service.runs(arms)}
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    following.finish(
        lab, [run for run, _ in runs.values()], {id: name for id, (_, name) in runs.items()}, jobs.Workers(device, workers), say
    )


def document(lab: Lab, case: Case, data: Path) -> dict[str, Any] | None:
    """Return one comparison document of all runs of a case that have ended; None where none is done."""
    images, natural = sets(case, data, lab)
    asked: dict[str, Run] = {}
    for order in orders(case, images.digest, natural.digest):
        for _, by_seed in experiments(order):
            asked |= {one.id: lab.run(one.id) for one in by_seed if (lab.root / "runs" / one.id).exists()}
    ended = [run for run in asked.values() if run.state in ENDED]
    if not any(run.state == "done" for run in ended):
        return None
    arms: list[Arm] = comparison.of_runs(ended)
    return comparison.document(lab, arms, images, natural, dataset.parts(images, ended[0].experiment.training, 0))


def check(stored: dict[str, Any], data: Path, weights: Path | None, count: int, device: str) -> int:
    """Train some of the runs anew and return how many give other numbers."""
    rows = [(name, arm, run) for name, one in stored["cases"].items() for arm in one["arms"] for run in arm["runs"]]
    wrong = 0
    threads = {one["environment"]["threads"] for one in stored["cases"].values()}
    os.environ["OMP_NUM_THREADS"] = str(
        min(threads)
    )  # another number of threads sums in another order, and training amplifies it
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        for name, arm, run in random.Random(0).sample(rows, count):
            case = cases(weights)[name]
            images, natural = sets(case, data, lab)
            asked = (one for order in orders(case, images.digest, natural.digest) for _, by in experiments(order) for one in by)
            again = lab.submit(next(one for one in asked if _is(one, arm, run)))  # ids hold the path of a checkpoint
            following.finish(lab, [again], {again.id: f"{name}: {arm['name']}"}, jobs.Workers(device), lambda text: None)
            numbers = (again.result() or {})["numbers"]
            gaps = {key: abs(numbers[key] - run[key]) for key in results_page.COLUMNS if run.get(key) is not None}
            same = max(gaps.values()) < 1e-6
            wrong += not same
            print(
                f"{name}: {arm['name']}, seed {run['seed']}: {'the same numbers' if same else f'other numbers: {gaps}'}",
                flush=True,
            )
    return wrong


def _is(one: Experiment, arm: dict[str, Any], run: dict[str, Any]) -> bool:
    """Whether an experiment is that of a stored run."""
    asked = one.model_dump(mode="json", include={"method", "regularizer", "strength", "seed"})
    return asked == {key: arm[key] for key in ("method", "regularizer", "strength")} | {"seed": run["seed"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the packs")
    parser.add_argument("--weights", type=Path, help="checkpoint of the ViT-tiny; without it its tables are left as they are")
    parser.add_argument("--lab", type=Path, help="where runs are kept")
    parser.add_argument("--only", default="", help="comma-separated cases")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true", help="train nothing, write the page from the runs that are done")
    parser.add_argument("--check", type=int, default=0, help="train this many runs anew and compare their numbers")
    chosen = parser.parse_args()
    stored = json.loads(NUMBERS.read_bytes()) if NUMBERS.exists() else {"cases": {}}
    if chosen.check:
        stored["cases"] = {name: one for name, one in stored["cases"].items() if name in (chosen.only or name).split(",")}
        return check(stored, chosen.data, chosen.weights, chosen.check, chosen.device)
    lab = Lab(chosen.lab)
    for name, case in cases(chosen.weights).items():
        if chosen.only and name not in chosen.only.split(","):
            continue
        if not chosen.write:
            train(lab, case, chosen.data, chosen.device, chosen.workers)
        if (found := document(lab, case, chosen.data)) is not None:
            one = results_page.short(found, case.title, case.source)
            stored["cases"][name] = one | ({"training": dict(case.training)} if case.training else {})
            write_json(NUMBERS, stored)
            inside = json.loads(INSIDE.read_bytes()) if INSIDE.exists() else {}
            write_bytes(PAGE, (results_page.render(stored) + microscope_page.render(inside)).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a comparison will ask for, before it is started: runs, steps, time, memory, and who is before it in the queue."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from rift import dataset, estimate, space
from rift.config import Experiment, Training
from rift.disk import free
from rift.estimate import Memory, Sizes
from rift.orders import Order, experiments
from rift.runs import ENDED, Lab


class Outlook(NamedTuple):
    """Seconds and memory are None where nothing was measured that could tell."""

    runs: int  # that are still to be trained
    finished: int  # that this lab has already
    steps: int
    sizes: Sizes
    seconds: float | None
    memory: Memory | None
    device: str  # cpu or cuda
    notes: list[str]
    ahead: int  # runs of other comparisons that come first
    ahead_seconds: float | None
    disk: int | None = None  # bytes that the runs will fill
    free: int = 0  # and that can still be written there


def of(lab: Lab, home: Lab, order: Order, device: str = "auto") -> Outlook:
    """Return what an order will ask for; its images are in `home` (perhaps the example's lab), its runs will be in `lab`.

    Raises a SettingError for a wrong choice and `run.disk` for too full a disk, as starting it would.
    """
    images, natural = dataset.load(home.data / order.data), dataset.load(lab.data / order.natural)
    dataset.refuse_misfit(images, order.task, order.training)
    planned = experiments(order)
    kind = _kind(device)
    asked = {one.id: one for _, by_seed in planned for one in by_seed}
    there = {run.id: run for run in lab.runs()}
    todo = [one for id, one in asked.items() if id not in there or there[id].state != "done"]
    sizes = estimate.sizes(images, natural, dataset.parts(images, order.training, 0))
    need = estimate.disk(lab, todo, sizes)
    space.refuse_full(lab.root, need)
    waiting = [run for id, run in there.items() if id not in asked and run.state not in ENDED]
    before = [_seconds(lab, run.experiment, kind) for run in waiting]
    return Outlook(
        runs=len(todo),
        finished=len(asked) - len(todo),
        steps=sum(estimate.steps(one, sizes.train) for one in todo),
        sizes=sizes,
        seconds=estimate.seconds(lab, todo, sizes, kind) if todo else 0.0,
        memory=estimate.memory(lab, list(asked.values()), kind),
        device=kind,
        notes=[arm.note for arm, _ in planned if arm.note],
        ahead=len(waiting),
        ahead_seconds=None if None in before else sum(filter(None, before)),
        disk=need,
        free=free(lab.root),
    )


def _seconds(lab: Lab, experiment: Experiment, device: str) -> float | None:
    sizes = _sizes(lab.root, experiment.data, experiment.natural, experiment.training)
    return estimate.seconds(lab, [experiment], sizes, device)


@lru_cache(maxsize=64)
def _sizes(root: Path, data: str, natural: str, training: Training) -> Sizes:
    lab = Lab(root)
    images = dataset.load(lab.data / data)
    return estimate.sizes(images, dataset.load(lab.data / natural), dataset.parts(images, training, 0))


@lru_cache(maxsize=4)
def _kind(device: str) -> str:
    if device == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return device

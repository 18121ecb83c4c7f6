"""How long a comparison takes: from this lab's own finished runs, or from one timed step of the embedded model.

Nothing is guessed: where neither says anything, the answer is None until the run's own first steps are timed.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rift import noted, space, tuning
from rift.config import Experiment
from rift.dataset import ImageSet, Split
from rift.disk import stamp
from rift.runs import ENDED, Lab, Run

START_SECONDS = 6.0  # a worker's imports, once
NEWEST_STEPS = 20  # whose median tells how fast a run is now
BEFORE_STEPS = ("queued", "start", "stage", "resume", "refused", "memory")  # what a log says of an attempt before its first step
WIDTH, LAYERS = 192, 6  # of the embedded model; arrays of a larger one are small beside its checkpoints
PASSES = 3  # a training step costs about three forward passes: one forward, two back


class Sizes(NamedTuple):
    """How many images a comparison has."""

    train: int
    validation: int
    total: int
    natural: int


def sizes(medical: ImageSet, natural: ImageSet, parts: Split) -> Sizes:
    """Return the numbers of images that an estimate needs; those that train are the ones drawn, where few shots are asked for."""
    return Sizes(len(parts.train), len(parts.validation), len(medical), len(natural))


def seconds(lab: Lab, experiments: Sequence[Experiment], sizes: Sizes, device: str = "") -> float | None:
    """Return the time that these runs take, start and the pretrained model's pass included, or None where nothing was timed."""
    timed = _steps(lab, experiments, device)
    each = [_run_seconds(one, timed[_key(one)], sizes) for one in experiments]
    first = timed[_key(experiments[0])]
    if first is None or None in each:
        return None
    return START_SECONDS + sum(filter(None, each)) + _forward_seconds(experiments[0], first) * (sizes.total + sizes.natural)


def steps(experiment: Experiment, images: int) -> int:
    """Return the number of training steps."""
    training = experiment.training
    return training.epochs * max(1, -(-images // training.batch_size))


def _run_seconds(experiment: Experiment, step: float | None, sizes: Sizes) -> float | None:
    """Return the time of the steps, of the probe after each epoch, of the targets and of the last look at all images."""
    if step is None:
        return None
    training = experiment.training
    seen = sizes.total + sizes.natural + training.epochs * sizes.validation
    seen += training.views * sizes.train if experiment.regularizer.name != "none" else 0
    whole = steps(experiment, sizes.train) * step / 1000 + seen * _forward_seconds(experiment, step)
    return whole + (_path_seconds(experiment, step, sizes) if experiment.strength == "auto" else 0.0)


def _path_seconds(experiment: Experiment, step: float, sizes: Sizes) -> float:
    """Return the time of the trials that choose a strength; `setting.range` where the epochs are too few for them."""
    training, what = experiment.training, tuning.tuned(experiment.regularizer.name)
    path = tuning.plan(what, training.epochs, sizes.train, sizes.validation)
    known = sizes.train if path.folds == 1 else (sizes.train + sizes.validation) * (path.folds - 1) // path.folds
    seen = len(path.values) * (sizes.validation if path.folds == 1 else sizes.train + sizes.validation)
    seen += path.folds * min(training.views, path.epochs) * known if what == "strength" else 0
    each = path.epochs * max(1, -(-known // training.batch_size))
    return path.trials * each * step / 1000 + seen * _forward_seconds(experiment, step)


class Memory(NamedTuple):
    """How much memory a comparison takes at its peak, and whether runs like it were measured or this is the least it can be."""

    bytes: int
    measured: bool


def memory(lab: Lab, experiments: Sequence[Experiment], device: str) -> Memory | None:
    """Return the peak of this lab's finished runs of the same kinds on the same device, else a lower bound, else None.

    The bound counts the two models and, of what trains, a gradient and AdamW's two moments, all in 4 bytes; activations come on
    top. It needs the number of parameters: of the embedded model, or of a backbone that was finetuned here.
    """
    facts = _all_facts(lab)
    peaks = [
        max((one.peak for one in facts if one.key == _key(asked) and one.device == device), default=0) for asked in experiments
    ]
    if all(peaks):
        return Memory(max(peaks), True)
    bounds = [_least_bytes(asked, facts) for asked in experiments]
    return Memory(max(max(filter(None, bounds)), *peaks), False) if any(bounds) else None


def disk(lab: Lab, experiments: Sequence[Experiment], sizes: Sizes) -> int | None:
    """Return the bytes that these runs fill on a disk; None where the size of the backbone is not known before its first run."""
    facts = _all_facts(lab)
    passing, lasting = 0, 0
    for one in {one.id: one for one in experiments}.values():
        same = [fact for fact in facts if fact.parameters and fact.key[0] == one.backbone.model_dump_json()]
        whole = same[0].parameters if same else _embedded_parameters() if one.backbone.name == "embedded" else None
        if whole is None:
            return None
        kept = one.training.epochs if one.training.keep == "epochs" else 0
        values = space.of_arrays(sizes.total + sizes.natural, sizes.train, one.training.views, WIDTH, LAYERS)
        while_training, for_good = space.of_run(whole, whole if one.method.name == "full" else whole // 10, values, kept)
        passing, lasting = max(passing, while_training), lasting + for_good
    return passing + lasting


def _least_bytes(experiment: Experiment, facts: Sequence[_Facts]) -> int | None:
    same = [one for one in facts if one.parameters and one.key[0] == experiment.backbone.model_dump_json()]
    whole = same[0].parameters if same else _embedded_parameters() if experiment.backbone.name == "embedded" else None
    if whole is None:
        return None
    alike = [one.trainable for one in same if one.key[1] == experiment.method.model_dump_json()]
    return 4 * (2 * whole + 3 * (alike[0] if alike else whole if experiment.method.name == "full" else 0))


@functools.cache
def _embedded_parameters() -> int:
    from rift.backbones import embedded

    return sum(p.numel() for p in embedded.load(init="random").parameters())


def _forward_seconds(experiment: Experiment, step: float) -> float:
    return step / 1000 / experiment.training.batch_size / PASSES


def step_milliseconds(lab: Lab, experiment: Experiment, device: str = "") -> float | None:
    """Return the median step of this lab's finished runs of the same backbone, method, task and batch size, or a timed one.

    Where a device (cpu or cuda) is named, only runs on it count; a step is timed on the CPU alone.
    """
    return _steps(lab, [experiment], device)[_key(experiment)]


def _steps(lab: Lab, experiments: Sequence[Experiment], device: str = "") -> dict[tuple[str, ...], float | None]:
    """Return the same of several by their keys; the lab is looked through once, whatever their number."""
    facts = [one for one in (_all_facts(lab) if experiments else ()) if device in ("", one.device)]
    found: dict[tuple[str, ...], float | None] = {}
    for experiment in experiments:
        if (key := _key(experiment)) in found:
            continue
        known = [one.step for one in facts if one.key == key and one.step is not None]
        probed = not known and experiment.backbone.name == "embedded" and device != "cuda"
        found[key] = _probe(experiment.training.batch_size) if probed else float(np.median(known[-8:])) if known else None
    return found


def _key(experiment: Experiment) -> tuple[str, ...]:
    choices = (experiment.backbone, experiment.method, experiment.task)
    return *(one.model_dump_json() for one in choices), str(experiment.training.batch_size)


class _Facts(NamedTuple):
    """What a finished run was, and what it took."""

    key: tuple[str, ...]
    step: float | None  # milliseconds
    device: str  # cpu or cuda
    peak: int  # bytes, 0 where an earlier version did not look
    parameters: int
    trainable: int


_known: dict[str, _Facts] = {}


def _all_facts(lab: Lab) -> list[_Facts]:
    """Return the facts of a lab's finished runs, oldest first, and leave them for the next process."""
    facts = [found for run in lab.runs() if (found := _facts(run))]
    noted.of(lab.root).keep()
    return facts


def _facts(run: Run) -> _Facts | None:
    """Return the facts of a finished run; noted, since a finished run does not change. A damaged one says nothing."""
    if run.id not in _known and run.state == "done":
        path, notes = f"runs/{run.id}/result.json", noted.of(run.path.parents[1])
        key, *rest = notes.find("facts", path, stamp(run.path / "result.json"), lambda: _read(run))
        _known[run.id] = _Facts(tuple(key), *rest)
    return _known.get(run.id)


def _read(run: Run) -> _Facts:
    result = run.result() or {}
    step, device = result["numbers"].get("step_milliseconds"), result.get("environment", {}).get("device", "cpu")
    whole, trains = result.get("backbone", {}).get("parameters", 0), result.get("trainable_parameters", 0)
    return _Facts(_key(run.experiment), step, device if device == "cpu" else "cuda", result.get("peak_bytes", 0), whole, trains)


@functools.cache
def _probe(batch_size: int) -> float:
    """Return the milliseconds of one training step of the embedded model, from a few images, in this process."""
    import torch

    from rift.backbones import embedded

    model, few = embedded.load(init="random"), 8
    images = torch.rand(few, 3, model.pixels, model.pixels)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        model(images).square().sum().backward()
        times.append(time.perf_counter() - began)
    return min(times) * 1000 * batch_size / few


TRIALS = tuning.COST / (1 + tuning.COST)  # share of a run that chooses its own strength


def share(state: str, event: dict[str, Any]) -> float:
    """Return how much of a run is done by its last event, in [0, 1]; preparing and measuring count a twentieth each."""
    if state in ENDED:
        return 1.0
    if state == "evaluating":
        return 0.95
    if event.get("event") == "trial":
        return 0.05 + 0.9 * TRIALS * (event["trial"] - 1) / event["trials"]
    kind = event.get("event", "")
    done = event[kind] / event[f"{kind}s"] if kind in ("step", "epoch") else 0.0
    before = TRIALS if event.get("tuned") else 0.0
    return 0.0 if state == "queued" and not done else 0.05 + 0.9 * (before + (1 - before) * done)


def reached(run: Run, event: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Return the event that says how far a run is: its last one or, before the first step of an attempt, what it goes on from.

    That is its newest checkpoint, or the trials that it keeps: steps after them are done again.
    """
    if (
        event.get("event") not in ("queued", "start", "stage", "resume", "refused", "memory")
        or event.get("stage") == "evaluating"
    ):
        return event
    experiment, saved = run.experiment, max((run.path / "checkpoint").glob("step-*.safetensors"), default=None)
    tuned = {"tuned": True} if experiment.strength == "auto" else {}
    if saved is not None:
        return {"event": "step", "step": int(saved.stem[5:]), "steps": steps(experiment, sizes.train), **tuned}
    if tuned and (run.path / "trials.json").exists():
        what = tuning.tuned(experiment.regularizer.name)
        trials = tuning.plan(what, experiment.training.epochs, sizes.train, sizes.validation).trials
        return {"event": "trial", "trial": 1 + len(json.loads((run.path / "trials.json").read_bytes())), "trials": trials}
    return event


def seconds_left(
    lab: Lab, runs: Sequence[Run], states: Sequence[str], events: Sequence[dict[str, Any]], sizes: Sizes
) -> float | None:
    """Return the time until these runs end; `events` are what each has `reached`.

    The newest steps of a run that is at work, or was stopped at it, say more of all that are alike than `seconds` could.
    """
    timed: dict[tuple[str, ...], float] = {}
    for run, state in zip(runs, states, strict=True):
        if state not in ENDED and (newest := run.last_events("step", NEWEST_STEPS)):
            timed[_key(run.experiment)] = float(np.median([one["milliseconds"] for one in newest]))
    left = [run.experiment for run, state in zip(runs, states, strict=True) if state not in ENDED and state != "evaluating"]
    known = _steps(lab, [one for one in left if _key(one) not in timed]) | timed
    total = 0.0
    for run, state, event in zip(runs, states, events, strict=True):
        if state in ENDED or state == "evaluating":
            continue
        experiment = run.experiment
        step = known[_key(experiment)]
        whole = _run_seconds(experiment, step, sizes)
        if step is None or whole is None:
            return None
        done = event["step"] if event.get("event") == "step" else 0
        if event.get("event") == "epoch":
            done = round(steps(experiment, sizes.train) * event["epoch"] / event["epochs"])
        total += whole - done * step / 1000 - _trials_done(experiment, step, sizes, event)
    return total


def _trials_done(experiment: Experiment, step: float, sizes: Sizes, event: dict[str, Any]) -> float:
    """Return how much of the time of a run's trials is over."""
    if experiment.strength != "auto" or event.get("event") not in ("trial", "step", "epoch"):
        return 0.0
    over = (event["trial"] - 1) / event["trials"] if event["event"] == "trial" else 1.0
    return over * _path_seconds(experiment, step, sizes)


def duration(seconds: float, step: int = 1) -> str:
    """Return a time as a person says it: `40 s`, `3 min`, `2 h 10 min`; seconds above ten to multiples of `step`."""
    if seconds < 90:
        return f"{max(1, round(seconds / step) * step if seconds > 10 else round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"

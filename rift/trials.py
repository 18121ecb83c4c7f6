"""The short trainings that choose a setting of a run: its strength or, without a penalty, its learning rate."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from rift import attempt, dataset, train, tuning
from rift.config import Experiment
from rift.dataset import ImageSet, Split
from rift.errors import RunError
from rift.model import Backbone, Task
from rift.runs import Run, write_json
from rift.snapshot import capture
from rift.views import Views


def choose(
    run: Run, pretrained: Backbone, task: Task, pixels: np.ndarray, images: ImageSet, parts: Split, device: torch.device
) -> dict[str, Any] | None:
    """Train the trials of a run whose strength is "auto" and return what is chosen with its path; None when asked to stop.

    What a trial found is kept in the run, so that a resumed run repeats at most one. Raises `run.diverged` where all diverge.
    """
    experiment, train_ids = run.experiment, np.sort(np.concatenate([parts.train, parts.validation]))
    what = tuning.tuned(experiment.regularizer.name)
    path = tuning.plan(what, experiment.training.epochs, len(parts.train), len(parts.validation))
    pairs = [(parts.train, parts.validation)]
    if path.folds > 1:
        groups = None if images.groups is None else images.groups[train_ids]
        held_out = [train_ids[one] for one in tuning.folds(images.labels[train_ids], groups, experiment.training.split_seed)]
        pairs = [(np.setdiff1d(train_ids, one), one) for one in held_out]
    truth = torch.from_numpy(images.labels[np.concatenate([one for _, one in pairs])])
    kept = run.path / "trials.json"
    found: list[Any] = json.loads(kept.read_bytes()) if kept.exists() else []
    for fold, (known, unseen) in enumerate(pairs):
        views = None  # the same for all values of a fold, and so is what the pretrained model makes of them
        for place, value in enumerate(path.values):
            number = fold * len(path.values) + place
            if number < len(found):
                continue
            short, strength = settled(experiment, value)
            short = _shortened(short, path.epochs)
            if views is None:
                labels = dataset.taught(images, known, short.training, experiment.seed)
                views = Views(pixels[known], labels, short.training, experiment.seed, device)
                views.pretrained = pretrained
            run.append("trial", trial=number + 1, trials=path.trials, what=what, value=value)
            logits = _trial(run, short, strength, pretrained, task, views, pixels[unseen], images.labels[unseen])
            if attempt.halted(run):
                return None
            found.append(logits)
            write_json(kept, found)
    return _chosen(task, path, what, found, truth)


def settled(experiment: Experiment, value: float) -> tuple[Experiment, float]:
    """Return the experiment with a chosen value in it, and the strength to train with: without a penalty it is 0."""
    if experiment.regularizer.name != "none":
        return experiment, value
    rate = min(1.0, experiment.training.learning_rate * value)
    return experiment.model_copy(update={"training": experiment.training.model_copy(update={"learning_rate": rate})}), 0.0


def _shortened(experiment: Experiment, epochs: int) -> Experiment:
    training = experiment.training
    update = {"epochs": epochs, "views": min(training.views, epochs)}
    return experiment.model_copy(update={"training": training.model_copy(update=update)})


def _trial(
    run: Run,
    short: Experiment,
    strength: float,
    pretrained: Backbone,
    task: Task,
    views: Views,
    pixels: np.ndarray,
    labels: np.ndarray,
) -> list[Any] | None:
    """Return what is kept of the outputs for images held out, after a short training; None where it diverged or was stopped."""
    state, stages = train.set_up(short, pretrained, task, views)
    try:
        for _ in train.train(state, task, views, short.training, strength, short.seed, dict, stages):
            if attempt.halted(run):
                return None
    except RunError as error:
        if error.code != "run.diverged":
            raise
        return None
    return capture(state.classifier, pixels, np.arange(len(pixels)).astype(str), labels, task=task).kept.tolist()


def _score(task: Task, kept: torch.Tensor, truth: torch.Tensor) -> float | None:
    """Return the headline of the task in [0, 1]: mean average precision of findings, else balanced accuracy; 0 for neither.

    A task whose outputs are images has its loss alone: None.
    """
    if task.errors:
        return None
    found = task.score(kept, truth)
    return found.get("average_precision") or found.get("balanced_accuracy") or 0.0


def _chosen(task: Task, path: tuning.Path, what: str, found: list[Any], truth: torch.Tensor) -> dict[str, Any]:
    """Apply the rule to what is kept of all trials, fold after fold and value after value."""
    losses, scores, values = [], [], []
    for place, value in enumerate(path.values):
        parts = found[place :: len(path.values)]
        if any(part is None for part in parts):
            continue
        kept = torch.cat([torch.tensor(part) for part in parts])
        losses.append(task.losses(kept, truth).tolist())
        scores.append(_score(task, kept, truth))
        values.append(value)
    if not values:
        raise RunError("run.diverged", "Every trial diverged; try a smaller learning rate.")
    rule = tuning.strongest if what == "strength" else tuning.lowest
    about = {"what": what, "epochs": path.epochs, "folds": path.folds, "images": len(truth)}
    return {**about, "diverged": sorted(set(path.values) - set(values)), **rule(values, np.array(losses), scores)}

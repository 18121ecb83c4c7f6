"""One run from experiment to result, straight down; every arm of a comparison goes through here."""

from __future__ import annotations

import csv
import errno
import io
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from rift import (
    about,
    accumulate,
    attempt,
    catalog,
    dataset,
    disk,
    distributed,
    intact,
    measures,
    memory,
    places,
    reference,
    similarity,
    space,
    train,
    trials,
)
from rift.attempt import End
from rift.config import Experiment, digest
from rift.errors import RunError, UserError
from rift.model import Backbone, Classifier, Task, fingerprint, trainable
from rift.runs import SCHEMA, Lab, Run, write_bytes, write_json
from rift.snapshot import Arrays, Snapshot, capture, errors_of_mean

FILES = ("weights.safetensors", "predictions.csv", "snapshot.npz")  # known again by their SHA-256
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG, errno.EPERM)
PROBE = 512  # most validation images looked at after every epoch


def execute(run: Run, lab: Lab, device: torch.device, devices: int = 1) -> None:
    """Carry out one run and leave its result in its directory; a UserError becomes the run's end, never a lost run."""
    with run.alive():
        if run.state != "queued":  # another worker finished it between our look and our lock
            return
        attempt.begin(run, lab)
        run.append("start", **about.worker(device), **({"devices": devices} if devices > 1 else {}))
        try:
            done = _execute(run, lab, device, devices)
        except UserError as error:
            attempt.end(run, state="failed", code=error.code, message=error.sentence)
        except torch.OutOfMemoryError:
            message = "The device has too little memory; try a smaller batch_size."
            attempt.end(run, state="failed", code="run.memory", message=message)
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in DISK:
                said = disk.refused(error, "a file of the run")
                attempt.end(run, state="failed", code=said.code, message=said.sentence)
                return
            attempt.end(run, state="failed", code="", message=f"{type(error).__name__}: {error}")
            raise
        else:
            if done == "queued":
                run.append("queued", ended="the system")
            else:
                attempt.end(run, state=done)


def prepare(run: Run, lab: Lab, device: torch.device) -> tuple[dataset.ImageSet, dataset.Split, Backbone, Task, train.Views]:
    """Return a run's images, their parts, the pretrained model, the task and the views; the same from the same seed."""
    experiment, training = run.experiment, run.experiment.training
    if experiment.id != run.id:
        raise RunError("run.damaged", f"The settings in run {run.id} are not those that it is named by; start it again.")
    images = _whole(lab, experiment.data)
    dataset.refuse_misfit(images, experiment.task, training)
    parts = dataset.parts(images, training, experiment.seed)
    train.seed_everything(experiment.seed)
    pretrained: Backbone = catalog.door("backbones", experiment.backbone.name)(**experiment.backbone.options).to(device).eval()
    task: Task = catalog.door("tasks", experiment.task.name)(images.classes, **experiment.task.options)
    labels = dataset.taught(images, parts.train, training, experiment.seed)
    views = train.Views(images.pixels(pretrained.pixels)[parts.train], labels, training, experiment.seed, device)
    views.pretrained, views.cache = pretrained, lab.cache / f"views-{_views_key(experiment, pretrained, parts)}.npz"
    return images, parts, pretrained, task, views


def _execute(run: Run, lab: Lab, device: torch.device, devices: int) -> End:
    began = time.perf_counter() - attempt.seconds_before(run)
    memory.reset(device.type)
    distributed.refuse_too_many(devices, device)
    run.append("stage", stage="preparing")
    images, parts, pretrained, task, views = prepare(run, lab, device)
    experiment, training = run.experiment, run.experiment.training
    distributed.refuse_too_many(devices, device, min(map(len, train.batches(len(views), training.batch_size, 0, 0))))
    natural, pixels = _whole(lab, experiment.natural), images.pixels(pretrained.pixels)
    strength, tuned = experiment.strength, None
    if strength == "auto":
        tuned = trials.choose(run, pretrained, task, pixels, images, parts, device)
        if tuned is None:
            return attempt.halted(run) or "stopped"
        experiment, strength = trials.settled(experiment, tuned["chosen"])
        training = experiment.training
    state, stages = train.set_up(experiment, pretrained, task, views)
    classifier = state.classifier
    space.refuse_full(lab.root, space.of_model(pretrained, classifier, state, len(images) + len(natural), views))
    # Only now, since it may take long: a method or a penalty that this backbone cannot carry has been refused by here.
    before, before_name = reference.snapshot(lab, pretrained, images, natural, parts)
    attempt.resume(run, lab, state)

    run.append("stage", stage="training")
    probe = parts.validation[:PROBE]
    known = before.sets["validation"].embeddings[:PROBE]
    note = places.recorder(run, known, images.labels[probe], images.classes)
    evaluate = _evaluator(state, task, pixels[probe], images.labels[probe], known, note)
    about_it = {"lab": str(lab.root.resolve()), "run": run.id, "step": state.step, "chosen": tuned and tuned["chosen"]}
    with distributed.over(devices, device, "rift.assisting", about_it):
        distributed.same(train.tensors(state))
        events = train.train(state, task, views, training, strength, experiment.seed, evaluate, stages)
        ended = attempt.follow(run, lab, state, events, **({"tuned": True} if tuned else {}))
    if ended != "done":
        return ended

    run.append("stage", stage="evaluating")
    after = _snapshot(classifier, task, images, natural, parts, before)
    after.save(run.path / "snapshot.npz")
    numbers = _numbers(run, task, state, before, after)
    numbers["seconds"] = time.perf_counter() - began + (views.seconds if views.from_cache else 0.0)
    _write_predictions(run, after, task)
    attempt.write_weights(run.path / "weights.safetensors", run, state)
    parameters = trainable(classifier)
    again = partial(_snapshot, classifier, task, images, natural, parts, before)
    numbers |= _adapter_removed(experiment.method.name, classifier.backbone, again, before)  # nothing after needs the model
    result = {
        "pair": experiment.pair_id,
        "seed": experiment.seed,
        "strength": strength,
        "learning_rate": training.learning_rate,
        "tuning": tuned,
        "memory": about.memory(state, training),
        "trainable_parameters": parameters,
        "diverged": False,
        "before": before_name,
        "pretrained": reference.numbers(before),
        "target_seconds": views.seconds,
        "targets_cached": views.from_cache,
        "peak_bytes": memory.peak(device.type),
        "backbone": about.backbone(pretrained),
        "environment": about.environment(device, training.precision, devices),
    }
    _write_result(run, result, numbers)
    return "done"


def _write_result(run: Run, result: dict[str, Any], numbers: dict[str, Any]) -> None:
    """Write the run's last file, sealed, with the sums of the others; then nothing is left to go on from."""
    whole = {
        "schema": SCHEMA,
        "run": run.id,
        **result,
        "attempts": about.attempts(run),
        "numbers": {key: value for key, value in numbers.items() if _is_number(key, value)},
        "files": {name: disk.sha256(run.path / name) for name in FILES},
    }
    write_json(run.path / "result.json", disk.sealed(whole))
    shutil.rmtree(run.path / "checkpoint", ignore_errors=True)


def _numbers(run: Run, task: Task, state: train.State, before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """Return what every diagnostic of saved arrays measured, and what only the training knows."""
    numbers = measures.measure_all(run, before, after)
    numbers["task_loss"] = _judge(task, after.sets["test"])["task_loss"]
    numbers["penalty"] = state.penalty
    if numbers["penalty"] is None:
        numbers["penalty_reason"] = "it was not a finite number; its strength is 0, so that nothing depended on it"
    elif state.parts > 1 and not accumulate.exact(state.regularizer):
        numbers["penalty_reason"] = (about.memory(state, run.experiment.training) or {})["sentence"]
    numbers["step_milliseconds"] = train.step_milliseconds(state)
    return numbers


def _whole(lab: Lab, name: str) -> dataset.ImageSet:
    """Return a stored set whose pictures and labels are, to the bit, those that were read; `data.changed` where they are not."""
    images = dataset.load(lab.data / name)
    intact.refuse_changed(images.folder)
    return images


def _judge(task: Task, arrays: Arrays) -> dict[str, Any]:
    """Return the task's numbers of a model's outputs, and their task loss."""
    kept, truth = torch.from_numpy(arrays.kept), torch.from_numpy(arrays.labels)
    loss = task.loss(kept, truth) if arrays.errors is None else task.losses(kept, truth).mean()
    return {**task.score(kept, truth), "task_loss": float(loss)}


def _evaluator(
    state: train.State,
    task: Task,
    pixels: np.ndarray,
    labels: np.ndarray,
    before: np.ndarray,
    note: Callable[[int, np.ndarray], None],
) -> Callable[[], dict[str, Any]]:
    """Return a function that scores the probe with the current weights; accuracy, loss, CKA and `note` share one pass."""

    def evaluate() -> dict[str, Any]:
        arrays = capture(state.classifier, pixels, np.arange(len(pixels)).astype(str), labels, task=task)
        numbers: dict[str, Any] = {f"validation_{key}": value for key, value in _judge(task, arrays).items()}
        for name, function in (("cka", similarity.cka), ("cka_debiased", similarity.debiased_cka)):
            try:
                numbers[name] = float(function(before, arrays.embeddings))
            except ValueError as error:
                numbers[name], numbers[f"{name}_reason"] = None, str(error)
        note(len(state.history) + 1, arrays.embeddings)
        return numbers

    return evaluate


def _adapter_removed(method: str, backbone: Backbone, snapshot: Callable[[], Snapshot], before: Snapshot) -> dict[str, Any]:
    """Take the adapter out of the trained model and measure what is left, which should be the pretrained one."""
    remove = getattr(catalog.module("methods", method), "remove", None)
    if remove is None:
        return measures.nothing_to_remove(method)
    remove(backbone)
    return measures.without_adapter(before, snapshot())


def _snapshot(
    classifier: Classifier,
    task: Task,
    images: dataset.ImageSet,
    natural: dataset.ImageSet,
    parts: dataset.Split,
    before: Snapshot,
) -> Snapshot:
    pixels = images.pixels(classifier.backbone.pixels)
    medical = capture(classifier, pixels, images.ids, images.labels, task=task)
    if task.errors:
        medical = replace(medical, baseline_errors=errors_of_mean(task.errors, pixels, parts.train))
    seen = capture(classifier.backbone, natural.pixels(classifier.backbone.pixels), natural.ids, natural.labels)
    sets = {name: medical.of(indices) for name, indices in vars(parts).items()}
    return replace(before, sets={**sets, "natural": seen})


def _is_number(key: str, value: Any) -> bool:
    """Whether a measured value belongs to the run's numbers; arrays and counts stay in the measures."""
    counts = key == "n" or key.startswith("n_")
    return key == "cka_layers" or key.endswith("_reason") or (not counts and (value is None or isinstance(value, float)))


def _write_predictions(run: Run, after: Snapshot, task: Task) -> None:
    """Write image, label, split and a column of probability per class; of findings the label is all that apply, joined by `;`.

    Where the outputs are images there are no probabilities: one column has the error of each.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image", "label", "split", *(after.classes if task.probabilities else ["reconstruction_error"])])
    for name in ("train", "validation", "test"):
        arrays = after.sets[name]
        kept = torch.from_numpy(arrays.kept)
        rows = (task.probabilities(kept) if task.probabilities else kept[:, None]).tolist()  # every digit: all can be recomputed
        for image, label, row in zip(arrays.ids, arrays.labels, rows, strict=True):
            named = [after.classes[label]] if label.ndim == 0 else [after.classes[j] for j in np.flatnonzero(label)]
            writer.writerow([image, ";".join(named), name, *map(repr, row)])
    write_bytes(run.path / "predictions.csv", text.getvalue().encode())


def _views_key(experiment: Experiment, pretrained: Backbone, parts: dataset.Split) -> str:
    training = experiment.training
    which = [training.augment, training.views, training.precision, experiment.seed, training.split_seed, experiment.data]
    which += [training.shots] if training.shots else []
    return digest([fingerprint(pretrained), len(parts.train), *which])[:24]


def make_ready() -> None:
    """Import what a run imports on its way, by building the embedded model and naming something with it."""
    catalog.door("backbones", "embedded")().natural_head(["cat"])


def pick_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; `run.missing` when CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("run.missing", "There is no CUDA device here; use --device cpu or auto.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")

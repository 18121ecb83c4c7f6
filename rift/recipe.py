"""One run from experiment to result, straight down; every arm of a comparison goes through here."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_safetensors

from rift import catalog, dataset, measures, memory, places, reference, similarity, train, trained, trials
from rift.config import Experiment, digest
from rift.errors import RunError, UserError
from rift.model import Backbone, Classifier, Task, fingerprint, trainable
from rift.runs import SCHEMA, Lab, Run, write_bytes, write_json
from rift.snapshot import Arrays, Snapshot, capture, errors_of_mean
from rift.views import precision_of

CHECKPOINT_SECONDS = 10.0  # how much work a killed process may lose
PROBE = 512  # most validation images looked at after every epoch


def execute(run: Run, lab: Lab, device: torch.device) -> None:
    """Carry out one run and leave its result in its directory; a UserError becomes the run's end, never a lost run."""
    with run.alive():
        if run.state != "queued":  # another worker finished it between our look and our lock
            return
        run.append("start", pid=os.getpid(), device=device.type, threads=torch.get_num_threads(), torch=torch.__version__)
        try:
            done = _execute(run, lab, device)
        except UserError as error:
            run.append("end", state="failed", code=error.code, message=error.sentence)
        except torch.OutOfMemoryError:
            run.append(
                "end", state="failed", code="run.memory", message="The device has too little memory; try a smaller batch_size."
            )
        except BaseException as error:
            run.append("end", state="failed", code="", message=f"{type(error).__name__}: {error}")
            raise
        else:
            run.append("end", state="done" if done else "stopped")


def _execute(run: Run, lab: Lab, device: torch.device) -> bool:
    began = time.perf_counter() - _seconds_before(run)
    memory.reset(device.type)
    experiment, training = run.experiment, run.experiment.training
    run.append("stage", stage="preparing")
    images, natural = dataset.load(lab.data / experiment.data), dataset.load(lab.data / experiment.natural)
    dataset.refuse_misfit(images, experiment.task, training)
    parts = dataset.parts(images, training, experiment.seed)
    train.seed_everything(experiment.seed)
    pretrained: Backbone = catalog.door("backbones", experiment.backbone.name)(**experiment.backbone.options).to(device).eval()
    task: Task = catalog.door("tasks", experiment.task.name)(images.classes, **experiment.task.options)

    pixels, labels = images.pixels(pretrained.pixels), dataset.taught(images, parts.train, training, experiment.seed)
    views = train.Views(pixels[parts.train], labels, training, experiment.seed, device)
    views.pretrained, views.cache = pretrained, lab.cache / f"views-{_views_key(experiment, pretrained, parts)}.npz"
    strength, tuned = experiment.strength, None
    if strength == "auto":
        tuned = trials.choose(run, pretrained, task, pixels, images, parts, device)
        if tuned is None:
            return False
        experiment, strength = trials.settled(experiment, tuned["chosen"])
        training = experiment.training
    state, stages = train.set_up(experiment, pretrained, task, views)
    classifier = state.classifier
    # Only now, since it may take long: a method or a penalty that this backbone cannot carry has been refused by here.
    before, before_name = reference.snapshot(lab, pretrained, images, natural, parts)
    _resume(run, state)

    run.append("stage", stage="training")
    probe = parts.validation[:PROBE]
    known = before.sets["validation"].embeddings[:PROBE]
    note = places.recorder(run, known, images.labels[probe], images.classes)
    evaluate = _evaluator(state, task, pixels[probe], images.labels[probe], known, note)
    events = train.train(state, task, views, training, strength, experiment.seed, evaluate, stages)
    if not _train(run, state, events, **({"tuned": True} if tuned else {})):
        return False

    run.append("stage", stage="evaluating")
    after = _snapshot(classifier, task, images, natural, parts, before)
    after.save(run.path / "snapshot.npz")
    numbers = _numbers(run, task, state, before, after)
    numbers["seconds"] = time.perf_counter() - began + (views.seconds if views.from_cache else 0.0)
    _write_predictions(run, after, task)
    _write_weights(run.path / "weights.safetensors", run, state)
    parameters = trainable(classifier)
    again = partial(_snapshot, classifier, task, images, natural, parts, before)
    numbers |= _adapter_removed(experiment.method.name, classifier.backbone, again, before)  # nothing after needs the model
    result = {
        "schema": SCHEMA,
        "run": run.id,
        "pair": experiment.pair_id,
        "seed": experiment.seed,
        "strength": strength,
        "learning_rate": training.learning_rate,
        "tuning": tuned,
        "trainable_parameters": parameters,
        "diverged": False,
        "before": before_name,
        "pretrained": reference.numbers(before),
        "target_seconds": views.seconds,
        "targets_cached": views.from_cache,
        "peak_bytes": memory.peak(device.type),
        "backbone": _about_backbone(pretrained),
        "environment": _about_environment(device, training.precision),
        "numbers": {key: value for key, value in numbers.items() if _is_number(key, value)},
    }
    write_json(run.path / "result.json", result)
    for checkpoint in (run.path / "checkpoint").glob("*.pt"):
        checkpoint.unlink()
    return True


def _numbers(run: Run, task: Task, state: train.State, before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """Return what every diagnostic of saved arrays measured, and what only the training knows."""
    numbers = measures.measure_all(run, before, after)
    numbers["task_loss"] = _judge(task, after.sets["test"])["task_loss"]
    numbers["penalty"] = float(next(event for event in reversed(run.events()) if event["event"] == "step")["penalty"])
    numbers["step_milliseconds"] = train.step_milliseconds(state)
    return numbers


def _about_backbone(pretrained: Backbone) -> dict[str, Any]:
    return {
        "width": pretrained.width,
        "layers": pretrained.layers,
        "weights": pretrained.weights or fingerprint(pretrained),
        "parameters": sum(p.numel() for p in pretrained.parameters()),
    }


def _about_environment(device: torch.device, precision: str) -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "precision": precision_of(device, precision),
    }


def _train(run: Run, state: train.State, events: Any, **more: Any) -> bool:
    """Write events with `more`, checkpoints and, when asked to stop, what is done so far; returns False when stopped."""
    saved = time.perf_counter()
    for event in events:
        if event.kind == "epoch" and run.experiment.training.keep == "epochs":
            _write_weights(trained.epoch_path(run, event.values["epoch"]), run, state)
        run.append(event.kind, **event.values, **more)
        stop = run.stop_requested
        if stop or time.perf_counter() - saved > CHECKPOINT_SECONDS:
            folder = run.path / "checkpoint"
            folder.mkdir(exist_ok=True)
            state.save(folder / f"step-{state.step:07d}.pt")
            for old in sorted(folder.glob("*.pt"))[:-2]:
                old.unlink()
            saved = time.perf_counter()
        if stop:
            return False
    return True


def _resume(run: Run, state: train.State) -> None:
    """Continue from the newest checkpoint that can be read."""
    for path in sorted((run.path / "checkpoint").glob("*.pt"), reverse=True):
        try:
            state.load(path)
        except (RuntimeError, EOFError, KeyError, ValueError):  # torn or foreign: the one before it still stands
            continue
        run.append("resume", step=state.step)
        return


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


def _write_weights(path: Path, run: Run, state: train.State) -> None:
    """Write what the method trains, in whatever stage; the rest is the pretrained model's."""
    chosen = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    tensors = {name: p.detach().cpu().contiguous() for name, p in state.classifier.named_parameters() if id(p) in chosen}
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, to_safetensors(tensors, metadata={"run": run.id, "format": "pt"}))


def _views_key(experiment: Experiment, pretrained: Backbone, parts: dataset.Split) -> str:
    training = experiment.training
    which = [training.augment, training.views, training.precision, experiment.seed, training.split_seed, experiment.data]
    which += [training.shots] if training.shots else []
    return digest([fingerprint(pretrained), len(parts.train), *which])[:24]


def _seconds_before(run: Run) -> float:
    """Return the working time of earlier attempts at this run, so that a resumed run's seconds are not understated."""
    total, start, last = 0.0, None, 0.0
    for event in run.events():
        if event["event"] == "start":
            total += last - start if start is not None else 0.0
            start = event["time"]
        last = event["time"]
    return total


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def pick_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; `run.missing` when CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("run.missing", "There is no CUDA device here; use --device cpu or auto.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")

"""The training loop: a plain generator of events over seeded views, the same images in the same order for every arm."""

from __future__ import annotations

import copy
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rift import catalog, stratify
from rift.config import Experiment, Training
from rift.errors import RunError
from rift.model import Backbone, Classifier, Stages, Task
from rift.views import Views, autocast


def batches(n: int, batch_size: int, epoch: int, seed: int, balance: np.ndarray | None = None) -> list[np.ndarray]:
    """Return the epoch's batches of indices, of nearly equal size: a tiny last batch would have a useless covariance.

    Each image comes once; with `balance`, the labels `(n,)`, as many images are drawn and each class equally often.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(n) if balance is None else stratify.balanced(balance, generator)
    return np.array_split(order, max(1, math.ceil(n / batch_size)))


@dataclass(frozen=True)
class Event:
    """Something worth a line in the run's log: kind "step" or "epoch" and its numbers."""

    kind: str
    values: dict[str, Any]


@dataclass
class State:
    """All that a resumed run needs: `step` counts finished steps."""

    classifier: Classifier
    regularizer: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    milliseconds: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically; `run.disk` when the disk refuses."""
        state = {
            "classifier": self.classifier.state_dict(),
            "regularizer": self.regularizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "milliseconds": self.milliseconds,
            "history": self.history,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        }
        partial = path.with_suffix(".part")
        try:
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise RunError(
                "run.disk", f"The checkpoint could not be written: {error.strerror}. Free some space, then resume."
            ) from error

    def load(self, path: Path) -> None:
        """Continue from a checkpoint that `save` wrote."""
        state = torch.load(path, weights_only=True, map_location="cpu")
        self.classifier.load_state_dict(state["classifier"])
        self.regularizer.load_state_dict(state["regularizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.milliseconds, self.history = state["step"], state["milliseconds"], state["history"]
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])


def make_optimizer(classifier: Classifier, regularizer: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Return AdamW or SGD over what trains: backbone, head and the regularizer's own map; no decay on biases, norms and maps."""
    groups = []
    for module, rate in ((classifier.backbone, training.learning_rate), (classifier.head, training.head_learning_rate)):
        chosen = [p for p in module.parameters() if p.requires_grad]
        groups.append({"params": [p for p in chosen if p.ndim > 1], "lr": rate, "weight_decay": training.weight_decay})
        groups.append({"params": [p for p in chosen if p.ndim <= 1], "lr": rate, "weight_decay": 0.0})
    groups.append({"params": list(regularizer.parameters()), "lr": training.learning_rate, "weight_decay": 0.0})
    groups = [{**group, "peak": group["lr"]} for group in groups if group["params"]]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9)
    return torch.optim.AdamW(groups, fused=True)


def set_up(experiment: Experiment, pretrained: Backbone, task: Task, views: Views) -> tuple[State, Stages | None]:
    """Return what is trained, before its first step, and its stages; the same from the same seed."""
    seed_everything(experiment.seed)
    classifier = Classifier(copy.deepcopy(pretrained), task.head(pretrained)).to(views.device)
    stages = catalog.door("methods", experiment.method.name)(classifier.backbone, **experiment.method.options)
    build = catalog.door("regularizers", experiment.regularizer.name)
    regularizer = build(pretrained, classifier.backbone, views, **experiment.regularizer.options).to(views.device)
    return State(classifier, regularizer, make_optimizer(classifier, regularizer, experiment.training)), stages


def schedule(step: int, steps: int, warmup: float) -> float:
    """Return the share of the peak rate at a step: linear warm-up, then half a cosine to zero; in (0, 1]."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def train(
    state: State,
    task: Task,
    views: Views,
    training: Training,
    strength: float,
    seed: int,
    evaluate: Callable[[], dict[str, Any]],
    stages: Stages | None = None,
) -> Iterator[Event]:
    """Train to the last epoch, yielding a "step" event after each step and an "epoch" event with `evaluate`'s numbers.

    The optimizer holds the parameters of all stages from the start; warm-up and cosine begin anew with each stage. The consumer
    may stop at any yield; `state` is then consistent and can be saved. Raises `run.diverged` when the loss or a gradient is not
    finite (the weights are those before that step) and `run.memory` when the device has too little memory.
    """
    balance = views.labels.cpu().numpy() if training.balanced else None
    per_epoch = len(batches(len(views), training.batch_size, 0, seed))
    steps = per_epoch * training.epochs
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    chosen, stages = set(map(id, parameters)), stages or Stages()
    trained = [(name, p) for name, p in state.classifier.named_parameters() if id(p) in chosen]
    while state.step < steps:
        epoch, within = divmod(state.step, per_epoch)
        ids = batches(len(views), training.batch_size, epoch, seed, balance)[within]
        first, last, frozen = _enter(stages, state.step, steps, trained)
        for group in state.optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(state.step - first, last - first, training.warmup)
        try:
            values = _step(state, task, views, training, strength, ids, epoch % views.views, frozen, parameters)
        except (torch.OutOfMemoryError, MemoryError) as error:
            message = f"The device has too little memory for batches of {training.batch_size} images; try a smaller batch_size."
            raise RunError("run.memory", message) from error
        state.step += 1
        yield Event("step", {"step": state.step, "steps": steps, "epoch": epoch + 1, **values})
        if within + 1 == per_epoch:
            numbers = {"epoch": epoch + 1, "epochs": training.epochs, **evaluate()}
            state.history.append(numbers)
            yield Event("epoch", numbers)
    for _, parameter in trained:  # so that what is counted and written is all that trained, in whatever stage
        parameter.requires_grad_(True)


def _enter(stages: Stages, step: int, steps: int, trained: list[tuple[str, nn.Parameter]]) -> tuple[int, int, bool]:
    """Give gradients to the parameters of a step's stage; returns where it begins and ends, and if the backbone never trained."""
    first, last, prefixes = stages.at(step, steps)
    for name, parameter in trained:
        parameter.requires_grad_(name.startswith(prefixes))
    so_far = stages.until(step, steps)
    return first, last, not any(name.startswith("backbone.") and name.startswith(so_far) for name, _ in trained)


def _step(
    state: State,
    task: Task,
    views: Views,
    training: Training,
    strength: float,
    ids: np.ndarray,
    view: int,
    frozen: bool,
    parameters: list[Tensor],
) -> dict[str, Any]:
    classifier, device = state.classifier, views.device
    classifier.train()
    state.regularizer.train()
    images, labels = views.images(ids, view), views.labels[torch.as_tensor(ids, device=device)]
    blocks = getattr(state.regularizer, "blocks", ())  # those whose activations it holds besides the embeddings
    targets = views.targets(blocks)[view, ids] if state.regularizer.needs_targets else None
    began = _now(device)
    with autocast(device, training.precision):
        if frozen and not classifier.reads_tokens:  # a frozen backbone computes what the pretrained one did, and that is cached
            embeddings = views.embeddings[view, ids]
            outputs = classifier.head(embeddings)
        else:
            embeddings, outputs = classifier(images)
        task_loss = task.loss(outputs, task.targets(images, labels))
    penalty = state.regularizer(embeddings.float(), targets)
    # The first step is the head's alone, in every arm: through a head of zeros no task gradient reaches the backbone, which still
    # is the pretrained one. A penalty's gradient there is rounding noise, and Adam would scale it up to a full step.
    loss = task_loss + strength * penalty if strength and state.step else task_loss
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    try:
        norm = nn.utils.clip_grad_norm_(parameters, training.clip, error_if_nonfinite=True)
    except RuntimeError as error:
        if "non-finite" not in str(error):
            raise
        lower = f"{training.learning_rate / 10:g}"
        message = (
            f"Training diverged at step {state.step + 1}: a gradient is not finite. Try a tenth of the learning rate: {lower}."
        )
        raise RunError("run.diverged", message) from error
    state.optimizer.step()
    milliseconds = (_now(device) - began) * 1000
    state.milliseconds.append(milliseconds)
    return {
        "task_loss": float(task_loss.detach()),
        "penalty": float(penalty.detach()),
        "accuracy": float(task.accuracy(outputs.detach(), labels)) if task.accuracy else None,
        "gradient_norm": float(norm),
        "learning_rate": state.optimizer.param_groups[0]["lr"],
        "milliseconds": round(milliseconds, 3),
    }


def step_milliseconds(state: State) -> float | None:
    """Return the median time of a step without the first three, None for fewer than four steps."""
    return statistics.median(state.milliseconds[3:]) if len(state.milliseconds) > 3 else None


def seed_everything(seed: int) -> None:
    """Seed every generator that training may draw from, and ask torch for deterministic kernels."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

"""The training loop: a plain generator of events over seeded views, the same images in the same order for every arm."""

from __future__ import annotations

import copy
import math
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

from rift import accumulate, catalog, checkpoint, distributed, stratify
from rift.config import Experiment, Training
from rift.errors import RunError
from rift.model import Backbone, Classifier, Stages, Task, wide
from rift.views import Views, autocast

KEPT = ("step", "history", "parts", "halvings", "first_loss", "penalty")  # of a state, besides tensors
EXPLODED = 1000.0  # times the first loss: from there no training was seen to come back; our choice


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
    parts: int = 1  # in how many a batch is worked through; more than one where memory ran out
    halvings: list[dict[str, Any]] = field(default_factory=list)  # when that was
    first_loss: float | None = None
    penalty: float | None = None  # of the last step

    def save(self, path: Path, key: bytes, run: str) -> None:
        """Write a checkpoint atomically, sealed with the lab's `key` and the run's id; `run.disk` when the disk refuses."""
        tensors, facts = checkpoint.of_optimizer(self.optimizer)
        noise, generators = checkpoint.of_generators()
        tensors |= noise | {"milliseconds": torch.tensor(self.milliseconds, dtype=torch.float64)}
        for name, module in (("classifier", self.classifier), ("regularizer", self.regularizer)):
            tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        facts |= generators | {name: getattr(self, name) for name in KEPT}
        checkpoint.write(path, tensors, facts, key, run)

    def load(self, path: Path, key: bytes, run: str) -> None:
        """Continue from a checkpoint that `save` wrote; ValueError, and nothing is changed, where it is damaged or another's."""
        tensors, facts = checkpoint.read(path, key, run)
        modules = {"classifier.": self.classifier, "regularizer.": self.regularizer}
        found = {name: checkpoint.refuse_misfit(tensors, name, module.state_dict()) for name, module in modules.items()}
        checkpoint.to_optimizer(self.optimizer, tensors, facts)
        for name, module in modules.items():
            module.load_state_dict(found[name])
        for name in KEPT:
            setattr(self, name, facts[name])
        self.milliseconds = tensors["milliseconds"].tolist()
        checkpoint.to_generators(tensors, facts)


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


def tensors(state: State) -> list[Tensor]:
    """Return the weights and averages that training changes, in an order that is the same for equal experiments."""
    return [one for module in (state.classifier, state.regularizer) for one in (*module.parameters(), *module.buffers())]


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
    finite or the loss has exploded (the weights are those before that step), and `run.memory` when the device has too little
    memory even for an eighth of a batch. A batch that it cannot hold is worked through in parts (see `accumulate`) from then on,
    which a "memory" event tells.
    """
    balance = views.labels.cpu().numpy() if training.balanced else None
    per_epoch = len(batches(len(views), training.batch_size, 0, seed))
    steps = per_epoch * training.epochs
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    chosen, stages = set(map(id, parameters)), stages or Stages()
    trained = [(name, p) for name, p in state.classifier.named_parameters() if id(p) in chosen]
    while True:
        epoch, within = divmod(state.step, per_epoch)
        if len(state.history) < epoch:  # also where the process was killed between an epoch's last step and its end
            numbers = {"epoch": epoch, "epochs": training.epochs, **evaluate()}
            state.history.append(numbers)
            yield Event("epoch", numbers)
        if state.step == steps:
            break
        ids = batches(len(views), training.batch_size, epoch, seed, balance)[within]
        first, last, frozen = _enter(stages, state.step, steps, trained)
        for group in state.optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(state.step - first, last - first, training.warmup)
        while True:
            attempt = accumulate.Attempt(state.regularizer)
            values: dict[str, Any] | None = None
            try:
                values = _step(state, task, views, training, strength, ids, epoch % views.views, frozen, parameters)
            except (RuntimeError, MemoryError) as error:
                if not accumulate.out_of_memory(error):
                    raise
                distributed.tell(error)
            if values is not None:
                break
            attempt.undo()  # only here, where nothing holds what the failed attempt computed
            accumulate.halve(state, training.batch_size, len(ids) // distributed.size())
            yield Event("memory", {**state.halvings[-1], "exact": accumulate.exact(state.regularizer)})
        state.step, state.penalty = state.step + 1, values["penalty"]
        yield Event("step", {"step": state.step, "steps": steps, "epoch": epoch + 1, **values})
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
    labels = views.labels[torch.as_tensor(ids, device=device)]
    blocks = getattr(state.regularizer, "blocks", ())  # those whose activations it holds besides the embeddings
    # The first step is the head's alone, in every arm: through a head of zeros no task gradient reaches the backbone, which still
    # is the pretrained one. A penalty's gradient there is rounding noise, and Adam would scale it up to a full step.
    weight = strength if state.step else 0.0

    def forward(some: np.ndarray) -> tuple[Tensor, Tensor]:
        with autocast(device, training.precision):
            if cached:
                embeddings = views.embeddings[view, some]
                return embeddings, classifier.head(embeddings)
            own = distributed.mine(some)
            found = classifier(images if len(images) == len(own) else views.images(own, view))
            return distributed.whole(found[0], len(some)), distributed.whole(found[1], len(some))

    def task_loss_of(outputs: Tensor) -> Tensor:
        with autocast(device, training.precision):
            return task.loss(outputs, task.targets(images, labels))

    def penalty_of(embeddings: Tensor, some: np.ndarray) -> Tensor:
        targets = views.targets(blocks)[view, some] if state.regularizer.needs_targets else None
        return state.regularizer(wide(embeddings), targets)

    cached = frozen and not classifier.reads_tokens  # a frozen backbone computes what the pretrained one did
    seen = ids if task.errors else distributed.mine(ids)
    images = views.images(seen, view) if task.errors or (state.parts == 1 and not cached) else torch.empty(0)
    if state.regularizer.needs_targets:
        views.targets(blocks)  # before the clock runs
    began = _now(device)
    state.optimizer.zero_grad(set_to_none=True)
    if state.parts == 1:
        embeddings, outputs = forward(ids)
        task_loss, penalty = task_loss_of(outputs), penalty_of(embeddings, ids)
        (task_loss + weight * penalty if weight else task_loss).backward()
    else:
        parts, inside = min(state.parts, len(ids)), bool(blocks)
        outputs, task_loss, penalty = accumulate.backward(ids, parts, forward, task_loss_of, penalty_of, weight, inside)
    norm = _update(state, training, parameters, float(task_loss.detach()), weight * float(penalty.detach()) if weight else 0.0)
    milliseconds = (_now(device) - began) * 1000
    state.milliseconds.append(milliseconds)
    return {
        "task_loss": float(task_loss.detach()),
        "penalty": float(penalty.detach()) if penalty.isfinite() else None,  # of strength 0: it did not take part
        "accuracy": float(task.accuracy(outputs.detach(), labels)) if task.accuracy else None,
        "gradient_norm": float(norm),
        "learning_rate": state.optimizer.param_groups[0]["lr"],
        "milliseconds": round(milliseconds, 3),
    }


def _update(state: State, training: Training, parameters: list[Tensor], loss: float, more: float) -> Tensor:
    """Clip the gradient, move the weights and return its norm; `run.diverged` where it is none, and the weights stay."""
    distributed.average(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, training.clip)
    first = state.first_loss = loss if state.first_loss is None else state.first_loss
    what = "the loss is" if not math.isfinite(loss + more) else "a gradient is" if not math.isfinite(float(norm)) else ""
    if what or loss > EXPLODED * max(first, 1.0):
        said = f"{what} not finite" if what else f"the loss is {loss:.3g}, and was {first:.3g} at first"
        lower = f"{training.learning_rate / 10:g}"
        message = f"Training diverged at step {state.step + 1}: {said}. Try a tenth of the learning rate: {lower}."
        raise RunError("run.diverged", message)
    try:
        state.optimizer.step()
    except (RuntimeError, MemoryError) as error:
        if not accumulate.out_of_memory(error):
            raise
        message = "The device has too little memory for the optimizer of this model; try a method that trains less, such as lora."
        raise RunError("run.memory", message) from error  # some weights may have moved: nothing is tried again
    return norm


def refuse_diverged(state: State) -> None:
    """Raise `run.diverged` where the last step left weights that are not finite numbers."""
    if not all(bool(p.isfinite().all()) for p in state.classifier.parameters()):
        raise RunError("run.diverged", "Training diverged at its last step: a weight is not finite. Try a smaller learning rate.")


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

"""One course of training for all contestants: what each is given, the floor under them, and ours; see `training`."""

from __future__ import annotations

import copy
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from rift import api, attempt, catalog, dataset, intact, train
from rift.config import Choice, Experiment, Training
from rift.dataset import ImageSet
from rift.model import Backbone, Classifier, Task
from rift.runs import Lab
from rift.views import Views, autocast

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Course:
    """What every contestant is given; `folder` holds the training images as files, by class, named by their place in `chosen`."""

    images: ImageSet
    chosen: np.ndarray  # (n,) the images to train on, a multiple of the batch size
    judged: np.ndarray
    folder: Path
    pretrained: Backbone
    training: Training
    device: torch.device = CPU
    seed: int = 0

    @property
    def task(self) -> Task:
        return catalog.door("tasks", "single_label")(self.images.classes)

    @property
    def labels(self) -> np.ndarray:
        return self.images.labels[self.chosen]

    @property
    def steps(self) -> int:
        return len(self.chosen) // self.training.batch_size * self.training.epochs

    def start(self) -> tuple[Classifier, torch.optim.Optimizer]:
        """Return the classifier before its first step, the same for all, and its optimizer."""
        classifier = Classifier(copy.deepcopy(self.pretrained), self.task.head(self.pretrained)).to(self.device).train()
        return classifier, train.make_optimizer(classifier, torch.nn.Identity(), self.training)

    def rate(self, step: int) -> float:
        """Return the share of the peak rate at a step."""
        return train.schedule(step, self.steps, self.training.warmup)

    def order(self, epoch: int) -> list[np.ndarray]:
        """Return the epoch's batches as places in `chosen`."""
        return train.batches(len(self.chosen), self.training.batch_size, epoch, self.seed)

    def views(self) -> Views:
        pixels = self.images.pixels(self.pretrained.pixels)
        return Views(pixels[self.chosen], self.labels, self.training, self.seed, self.device)


@dataclass
class Ran:
    """What a contestant did: how long it took, how many images it stepped over, its losses, and the model it ended with."""

    classifier: Any = None
    seconds: float = 0.0
    processor_seconds: float = 0.0
    images: int = 0
    losses: list[Any] = field(default_factory=list)
    penalties: list[Any] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)  # seconds of what it also did
    accuracy: float = 0.0

    @contextmanager
    def timed(self, device: torch.device) -> Iterator[None]:
        """Time what is done inside, in seconds and in seconds on the processor, those of processes that ended inside included."""
        wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
        wait()
        began, used = time.perf_counter(), sum(os.times()[:4])
        yield
        wait()
        self.seconds, self.processor_seconds = time.perf_counter() - began, sum(os.times()[:4]) - used

    def count(self, images: int, loss: torch.Tensor) -> None:
        self.images, _ = self.images + images, self.losses.append(loss.detach())


def floor(course: Course, naive: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None) -> Ran:
    """Train over tensors in memory; with `naive` the pretrained model runs in every step, and this penalty of both is added."""
    ran, views, device, precision = Ran(), course.views(), course.device, course.training.precision
    ran.classifier, optimizer = course.start()
    batches = [
        (views.images(ids, epoch % views.views), views.labels[ids])
        for epoch in range(course.training.epochs)
        for ids in course.order(epoch)
    ]
    with ran.timed(device):
        for step, (images, labels) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * course.rate(step)
            optimizer.zero_grad(set_to_none=True)
            with autocast(device, precision):
                embeddings, outputs = ran.classifier(images)
                loss = F.cross_entropy(outputs, labels)
                if naive:
                    with torch.no_grad():
                        before = course.pretrained(images)
            ran.count(len(images), loss)
            if naive:
                penalty = naive(embeddings.float(), before.float())
                ran.penalties.append(penalty.detach())
                loss = loss + penalty if step else loss  # as ours, whose first step is the head's alone
            loss.backward()
            optimizer.step()
    return ran


def ours(course: Course, regularizer: str = "none") -> Ran:
    """Train as a run does, in a lab of its own; the pictures are decoded anew, and the pretrained model sees each view once."""
    ran, strength = Ran(), float(regularizer != "none")
    kind = Choice(name=regularizer)
    asked = {"regularizer": kind, "strength": strength, "training": course.training, "seed": course.seed}
    pretrained, task = course.pretrained, course.task
    (course.images.folder / f"pixels-{pretrained.pixels}.npy").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(folder)
        run = lab.submit(Experiment(data=course.images.digest, natural="n" * 64, **asked))
        with run.alive(), ran.timed(course.device):
            attempt.begin(run, lab)
            began = time.perf_counter()
            views = course.views()
            ran.parts["decode"] = time.perf_counter() - began
            views.pretrained, views.cache = pretrained, lab.cache / "views.npz"
            state, stages = train.set_up(run.experiment, pretrained, task, views)
            events = train.train(state, task, views, course.training, strength, course.seed, dict, stages)
            assert attempt.follow(run, lab, state, events) == "done"
            ran.parts["targets"] = views.seconds
        began = time.perf_counter()
        attempt._save(run, lab, state)  # one more than the run wrote, since a short one writes none
        ran.parts["a checkpoint"] = time.perf_counter() - began
        told = [event for event in run.events() if event["event"] == "step"]
    ran.classifier, ran.images = state.classifier, sum(len(ids) for e in range(course.training.epochs) for ids in course.order(e))
    assert len(told) == course.steps
    ran.losses, ran.penalties = [event["task_loss"] for event in told], [event["penalty"] for event in told]
    return ran


def naive_rift(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Return ‖Σ - Σ₀‖² / ‖Σ₀‖² of a batch, written down as it is read."""
    covariance, wanted = torch.cov(after.T), torch.cov(before.T)
    return (covariance - wanted).norm() ** 2 / wanted.norm() ** 2


def naive_rsc(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Return one minus the linear CKA of a batch: HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)), K and L Gram matrices."""
    center = torch.eye(len(after), device=after.device) - 1 / len(after)
    ours, theirs = (center @ (x @ x.T) @ center for x in (after, before))
    return 1 - (ours * theirs).sum() / ((ours * ours).sum() * (theirs * theirs).sum()).sqrt()


@torch.no_grad()
def accuracy(classifier: Classifier, course: Course) -> float:
    """Return the share of the judged images that are named rightly."""
    pixels, labels = course.images.pixels(course.pretrained.pixels)[course.judged], course.images.labels[course.judged]
    views = Views(pixels, labels, course.training.model_copy(update={"augment": "none"}), 0, course.device)
    hits = [
        classifier.eval()(views.images(ids, 0))[1].argmax(1) == views.labels[ids] for ids in torch.arange(len(views)).split(64)
    ]
    return float(torch.cat(hits).float().mean())


@contextmanager
def course(data: str, model: str, weights: str, device: torch.device, training: Training, most: int) -> Iterator[Course]:
    """Yield what the contestants are given, at most `most` images to train on; all files are gone afterwards."""
    options = {"init": "random"} if model == "vit_tiny" and not weights else {}
    spec = f"checkpoint:architecture=vit_tiny_patch16_224,path={weights}" if weights and model == "vit_tiny" else ""
    kind = catalog.parse(spec) if spec else Choice(name="timm" if model == "vit_tiny" else model, options=options)
    torch.manual_seed(0)
    pretrained = catalog.door("backbones", kind.name)(**catalog.check("backbones", kind).options).to(device).eval()
    with tempfile.TemporaryDirectory() as folder:
        images = api.open_data(data, Path(folder) / "data")
        if len(images) > 2 * most:  # so that ours decodes hardly more than what it trains on and is judged by
            by_class = np.argsort(images.labels, kind="stable")
            some = by_class[np.linspace(0, len(images) - 1, round(1.8 * most)).astype(int)]
            images = api.open_data(files(images, some, Path(folder) / "some"), Path(folder) / "data", leave_out_small=True)
        parts = dataset.parts(images, training, 0)
        n = min(most, len(parts.train)) // training.batch_size * training.batch_size
        chosen = np.sort(np.random.default_rng(0).permutation(parts.train)[:n])
        yield Course(images, chosen, parts.test, files(images, chosen, Path(folder) / "files"), pretrained, training, device)


def files(images: ImageSet, chosen: np.ndarray, folder: Path) -> Path:
    """Write the chosen pictures, PNG as they were stored, into a folder for each class, which is what the peers read."""
    stored = json.loads((images.folder / "manifest.json").read_text())
    with (images.folder / "blobs.bin").open("rb") as blobs:
        for place, index in enumerate(chosen):
            path = folder / f"{images.labels[index]:03d}" / f"{place:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(intact.picture(blobs, stored, int(index)))
    return folder

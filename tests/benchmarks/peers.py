"""The usual ways to train on a folder of images: a torchvision loop and the Trainer of Hugging Face; they read each file anew.

Both get our optimizer, rates and order of images, so that they differ from ours in how images reach the model and in what is done
around a step. Their augmentation is torchvision's: a crop of 80 to 100 % of the area, and a flip.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from rift.views import autocast, precision_of
from tests.benchmarks.course import Course, Ran


def missing() -> str:
    """Say what the Trainer lacks here, empty where it can run."""
    absent = [name for name in ("transformers", "accelerate") if find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""


def pictures(course: Course) -> ImageFolder:
    """Return the files of a course, with torchvision's augmentation where ours augments."""
    size = course.pretrained.pixels
    augment = [v2.RandomResizedCrop(size, scale=(0.8, 1.0), ratio=(1.0, 1.0)), v2.RandomHorizontalFlip()]
    plain = [v2.Resize(size), v2.CenterCrop(size)]
    ends = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    found = ImageFolder(str(course.folder), v2.Compose([*(plain if course.training.augment == "none" else augment), *ends]))
    names = [course.images.classes[int(name)] for name in found.classes]
    by_name = [course.images.classes.index(name) for name in names]
    found.target_transform = by_name.__getitem__
    return found


class Order(Sampler[int]):
    """Our order of images, epoch by epoch, as places in an ImageFolder."""

    def __init__(self, course: Course, found: ImageFolder):
        names = [path.rpartition("/")[2] for path, _ in found.samples]
        self.where = {int(name.partition(".")[0]): place for place, name in enumerate(names)}
        self.course, self.epoch = course, 0

    def __len__(self) -> int:
        return len(self.where)

    def __iter__(self) -> Iterator[int]:
        batches, self.epoch = self.course.order(self.epoch), self.epoch + 1
        yield from (self.where[int(one)] for batch in batches for one in batch)


def image_folder(course: Course, workers: int = 0) -> Ran:
    """Train with ImageFolder and DataLoader in a plain loop."""
    ran, device, found = Ran(), course.device, pictures(course)
    torch.manual_seed(course.seed)
    ran.classifier, optimizer = course.start()
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, course.rate)
    more: dict[str, Any] = {"num_workers": workers, "pin_memory": device.type == "cuda"}
    if workers:  # forked, as by default on Linux: started anew, as below a process that was, they would take seconds each
        more |= {"persistent_workers": True, "multiprocessing_context": "fork"}
    loader = DataLoader(found, course.training.batch_size, sampler=Order(course, found), **more)
    with ran.timed(device):
        for _ in range(course.training.epochs):
            for images, labels in loader:
                images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                optimizer.zero_grad(set_to_none=True)
                with autocast(device, course.training.precision):
                    loss = F.cross_entropy(ran.classifier(images)[1], labels)
                loss.backward()
                optimizer.step()
                rates.step()
                ran.count(len(images), loss)
        del loader  # its workers end, and their time counts
    return ran


class Asked(nn.Module):
    """A classifier as the Trainer wants to call it; it counts the images and keeps the losses."""

    def __init__(self, classifier: nn.Module, ran: Ran):
        super().__init__()
        self.classifier, self.ran = classifier, ran

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(pixel_values)[1]
        loss = F.cross_entropy(logits, labels)
        self.ran.count(len(labels), loss)
        return {"loss": loss, "logits": logits}


def trainer(course: Course) -> Ran:
    """Train with the Trainer of Hugging Face, at its defaults but for what all contestants share."""
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    class Ordered(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
            return Order(course, found)

    def collate(items: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([image for image, _ in items]), "labels": torch.tensor([label for _, label in items])}

    ran, found = Ran(), pictures(course)
    ran.classifier, optimizer = course.start()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=course.training.batch_size,
            num_train_epochs=course.training.epochs,
            max_grad_norm=0.0,  # as all others here
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=course.device.type == "cpu",
            bf16=precision_of(course.device, course.training.precision) == "bf16",
            seed=course.seed,
        )
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, course.rate)
        asked = Ordered(
            Asked(ran.classifier, ran),
            arguments,
            collate,
            found,
            optimizers=(optimizer, rates),  # type: ignore[arg-type]
        )
        asked.remove_callback(PrinterCallback)
        with ran.timed(course.device):
            asked.train()
    return ran

"""What one model computes on fixed images, as named arrays on disk; diagnostics see these and never a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rift import disk
from rift.model import Backbone, Classifier, Task, to_float
from rift.similarity import class_means, halves


@dataclass(frozen=True)
class Arrays:
    """One model on one set of `n` images."""

    ids: np.ndarray  # (n,) str
    labels: np.ndarray  # (n,) int, index into classes ("natural": natural_classes), -1 unknown; of findings (n, k), 0 or 1
    embeddings: np.ndarray  # (n, d) float32
    activations: np.ndarray  # (layers, n, h) float32, after each block
    logits: np.ndarray | None = None  # (n, k) float32 of the task's head; None for the pretrained model and for natural images
    errors: np.ndarray | None = None  # (n,) float32 of a task whose outputs are images, in place of the logits
    baseline_errors: np.ndarray | None = None  # (n,) float32 of the mean training image in place of such outputs

    @property
    def kept(self) -> np.ndarray:
        """What is kept of the head's outputs: `(n, k)` logits or `(n,)` errors."""
        kept = self.logits if self.errors is None else self.errors
        assert kept is not None, "the pretrained model and natural images have no head"
        return kept

    def of(self, indices: np.ndarray) -> Arrays:
        """Return the same of some of the images."""
        of_head = (getattr(self, name) for name in ("logits", "errors", "baseline_errors"))
        some = (None if values is None else values[indices] for values in of_head)
        return Arrays(self.ids[indices], self.labels[indices], self.embeddings[indices], self.activations[:, indices], *some)


# Cosine with a class mean times this is the logit: of 5 to 100 the best fit of probabilities to hits, for two models and two sets
NEAREST_MEAN_SCALE = 30.0


@dataclass(frozen=True)
class Judge:
    """What natural images are named by: the largest cosine with the rows that judge an image is its name."""

    way: str  # "text", "classifier" or "nearest mean"; "" where an older file does not say which of the first two
    rows: np.ndarray  # (folds, k, d) unit rows of the natural classes, nan where a class cannot be named
    fold: np.ndarray  # (n,) which of the folds judges each natural image
    scale: float  # cosine times this is the logit

    @property
    def known(self) -> np.ndarray:
        """The classes that have a row for every image, as indices."""
        return np.flatnonzero(np.isfinite(self.rows).all((0, 2)))


@dataclass(frozen=True)
class Snapshot:
    """One model on every fixed set of a run: "validation", "test" and "natural"; the pretrained model has "train" too."""

    sets: Mapping[str, Arrays]
    classes: tuple[str, ...]
    natural_classes: tuple[str, ...]  # names of the labels of sets["natural"]
    rows: np.ndarray | None  # (len(natural_classes), d) L2-normalized, nan where the label is unknown to the natural head
    scale: float = 100.0  # cosine times this is the natural logit
    natural_head: str = ""  # the head's kind, "text" or "classifier"; "" where there is none

    def judge(self, seed: int = 0) -> Judge:
        """Return what names the natural images: the rows of the natural head or, where there is none, the nearest class mean.

        The means are those of this model's own embeddings, cross-fitted: one half of each class (drawn from `seed`) is judged
        by the means of the other, so that no image is compared with itself. Asked of the pretrained model's snapshot, they hold
        still while a finetuned model drifts away from them. Nearest mean: Mensink 2013 (TPAMI 35); cosine and halves: our choice.
        """
        natural = self.sets["natural"]
        if self.rows is not None:
            return Judge(self.natural_head, self.rows[None], np.zeros(len(natural.labels), int), self.scale)
        half, k = halves(natural.labels, seed), len(self.natural_classes)
        means = [class_means(natural.embeddings[half == other], natural.labels[half == other], k) for other in (1, 0)]
        return Judge("nearest mean", np.stack(means), half, NEAREST_MEAN_SCALE)

    def save(self, path: Path) -> None:
        """Write all arrays as one npz, atomically."""
        arrays: dict[str, Any] = {
            "classes": np.array(self.classes, dtype=np.str_),
            "natural_classes": np.array(self.natural_classes, dtype=np.str_),
            "scale": np.array(self.scale),
            "natural_head": np.array(self.natural_head, dtype=np.str_),
        }
        if self.rows is not None:
            arrays["rows"] = self.rows
        for name, one in self.sets.items():
            for field, value in vars(one).items():
                if value is not None:
                    arrays[f"{name}.{field}"] = value
        with disk.replacing(path) as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> Snapshot:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        names = sorted({key.split(".")[0] for key in arrays if "." in key})
        sets = {
            name: Arrays(**{key.split(".")[1]: arrays[key] for key in arrays if key.startswith(f"{name}.")}) for name in names
        }
        classes, natural = tuple(map(str, arrays["classes"])), tuple(map(str, arrays["natural_classes"]))
        head = str(arrays.get("natural_head", ""))
        return cls(sets, classes, natural, arrays.get("rows"), float(arrays["scale"]), head)


@torch.inference_mode()
def capture(
    model: Backbone | Classifier,
    pixels: np.ndarray,
    ids: np.ndarray,
    labels: np.ndarray,
    *,
    task: Task | None = None,
    batch_size: int = 64,
) -> Arrays:
    """Run a model once over stored pixels `(n, s, s, 3)`; embeddings, activations and logits come from the same pass.

    A `task` whose outputs are images has its errors kept in place of logits.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    errors_of = task.errors if task else None
    embeddings, activations, kept = [], [], []
    for start in range(0, len(pixels), batch_size):
        images = to_float(torch.from_numpy(np.ascontiguousarray(pixels[start : start + batch_size])).to(device))
        embedded, blocks, *outputs = model.embed(images)
        embeddings.append(embedded.float().cpu())
        activations.append(blocks.float().cpu())
        kept += [(errors_of(one, images) if errors_of else one).float().cpu() for one in outputs]
    model.train(was_training)
    of_head = torch.cat(kept).numpy() if kept else None
    return Arrays(
        ids=np.asarray(ids, dtype=np.str_),
        labels=np.asarray(labels, dtype=np.int64),
        embeddings=torch.cat(embeddings).numpy(),
        activations=torch.cat(activations, dim=1).numpy(),
        logits=None if errors_of else of_head,
        errors=of_head if errors_of else None,
    )


def errors_of_mean(errors: Callable[[Tensor, Tensor], Tensor], pixels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return each image's error `(n,)` where the mean of the `known` ones stands for all of them: what a model has to beat."""

    def images(ids: np.ndarray) -> Tensor:
        return to_float(torch.from_numpy(np.ascontiguousarray(pixels[ids])))

    total = torch.stack([images(ids).double().sum(0) for ids in np.array_split(known, -(-len(known) // 64))]).sum(0)
    mean = (total / len(known)).float()
    every = np.array_split(np.arange(len(pixels)), -(-len(pixels) // 64))
    return torch.cat([errors(mean.expand(len(ids), -1, -1, -1), images(ids)) for ids in every]).numpy()

"""What a diagnostic that needs the models is given, and how what it computed from them is kept.

`capture(pretrained, finetuned, data, *, …) -> arrays` is the only part of a diagnostic that sees a model. Its arrays are kept in
the run, one file for each choice of its settings; a long one keeps its parts as it goes, and goes on from them after a stop.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from rift import disk
from rift.config import digest
from rift.model import Classifier, NaturalHead, Task, to_float

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Images:
    """`n` images as both models see them, and what they show."""

    pixels: np.ndarray  # (n, s, s, 3) uint8 or uint16, as stored
    ids: np.ndarray  # (n,) str
    labels: np.ndarray  # (n,) int64, index into classes, -1 unknown; of findings (n, k), 0 or 1
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Data:
    """What `capture` has besides the models, which are its own copies, in eval mode and on `device`."""

    train: Images  # without augmentation
    test: Images
    natural: Images
    natural_head: NaturalHead | None  # the pretrained model's rows for the natural classes, None where it has none
    folder: Path  # where `part` keeps what is done
    seed: int  # the run's; for every draw, from a generator of one's own
    device: torch.device
    batch_size: int = 64
    task: Task | None = None  # the loss and the scores that the run was trained with
    progress: Callable[[int, int, str], None] = lambda done, total, what: None  # for people; how much of all is left is told too
    spared: Callable[[], None] = lambda: None  # told of each part that was kept from an earlier time, and so took none now
    epochs: tuple[int, ...] = ()  # those whose weights the run kept
    at_epoch: Callable[[int], Classifier] | None = None  # the model as it was after one of them, as a new object
    cache: Path | None = None  # the lab's, where `shared` keeps what runs have in common; without one each run has its own

    def batches(self, images: Images) -> Iterator[Tensor]:
        """Yield the images in order as float `(b, 3, s, s)` in [0, 1], on the device."""
        for start in range(0, len(images), self.batch_size):
            pixels = np.ascontiguousarray(images.pixels[start : start + self.batch_size])
            yield to_float(torch.from_numpy(pixels).to(self.device))

    def part(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> Arrays:
        """Return the arrays of one part: kept ones where they are, else what `compute` gives, which is then kept."""
        path = self.folder / f"{name}.npz"
        if path.exists():
            self.spared()
        else:
            write(path, compute())
        return read(path)

    def shared(self, name: str, key: Any, compute: Callable[[Data], Mapping[str, np.ndarray]]) -> Arrays:
        """Return arrays that depend on `key` and on nothing else of this run; all runs of the lab have them in common.

        The first that asks computes them, with a `Data` whose parts outlive a stop; whoever asks meanwhile waits and reads.
        """
        path = (self.cache or self.folder) / f"{name}-{digest(key)[:24]}.npz"
        return kept(path, lambda parts: compute(replace(self, folder=parts)))


def kept(path: Path, compute: Callable[[Path], Mapping[str, np.ndarray]]) -> Arrays:
    """Return the arrays at `path`; where there are none, compute them with a folder for parts, keep them and drop the parts.

    A second process that asks meanwhile waits and reads. What was done before a stop stays in the folder.
    """
    path.parent.mkdir(exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            parts = path.with_suffix("")
            parts.mkdir(exist_ok=True)
            write(path, compute(parts))
            shutil.rmtree(parts)
        return read(path)


def read(path: Path) -> Arrays:
    """Return the arrays that `write` kept."""
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as one npz, atomically."""
    with disk.replacing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]

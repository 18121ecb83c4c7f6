"""CIFAR-10: small photos of ten everyday things, fetched on first use (170 MB; Krizhevsky 2009, technical report).

Pictures are the first of each class in the official test part, 32 px. The vocabulary knows all ten names, `deer` only by its
nearest kin. We know of no license that comes with the set; its author asks to be cited.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from rift.dataset import ImageSet, store
from rift.natural import _download
from rift.review import Entry


def load(
    root: Path,
    *,
    images_per_class: Annotated[int, Field(ge=1, le=1000, description="test pictures of each of the ten classes")] = 50,
) -> ImageSet:
    """Return the set, kept under `root`; raises `model.offline` when it is not here and cannot be downloaded."""
    from torchvision.datasets import CIFAR10

    photos = _download.fetch("CIFAR-10", lambda: CIFAR10(_download.folder(root), train=False, download=True))
    entries = (
        Entry(f"{photos.classes[photos.targets[i]]}/{i:05d}.png", photos.classes[photos.targets[i]], photos.data[i])
        for i in _download.first_of_each(photos.targets, images_per_class)
    )
    return store(entries, root, name="cifar10", about="CIFAR-10, test part (Krizhevsky 2009)")

"""Oxford Flowers: 102 kinds of flower, fetched on first use (345 MB; Nilsback and Zisserman 2008, ICVGIP).

Pictures are the first of each kind in the official test part. Nearly all names are unknown to a classifier of ImageNet's classes
and so to the vocabulary: only a text tower that was trained on more words can be asked for them. We know of no license that comes
with the set; its authors ask to be cited.
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
    images_per_class: Annotated[int, Field(ge=1, le=20, description="test pictures of each kind, which all have 20")] = 5,
) -> ImageSet:
    """Return the set, kept under `root`; raises `model.offline` when it is not here and cannot be downloaded."""
    from torchvision.datasets import Flowers102

    photos = _download.fetch("Oxford Flowers", lambda: Flowers102(_download.folder(root), split="test", download=True))
    files, labels = photos._image_files, photos._labels  # the only way to the encoded pictures, which are kept as they are
    entries = (
        Entry(f"{photos.classes[labels[i]]}/{files[i].name}", photos.classes[labels[i]], files[i].read_bytes)
        for i in _download.first_of_each(labels, images_per_class)
    )
    return store(entries, root, name="flowers102", about="Oxford 102 Flowers, test part (Nilsback and Zisserman 2008)")

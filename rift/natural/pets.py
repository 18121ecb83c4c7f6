"""Oxford-IIIT Pets: 37 breeds of cats and dogs, fetched on first use (800 MB; Parkhi 2012, CVPR).

Pictures are the first of each breed in the official test part. About two thirds of the breeds are known to a classifier of
ImageNet's classes, the rest only to a text tower trained on more words; `species` asks for cat or dog instead. License CC BY-SA
4.0 according to the authors' page, as far as we recall.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rift.dataset import ImageSet, store
from rift.natural import _download
from rift.review import Entry


def load(
    root: Path,
    *,
    labels: Annotated[Literal["breed", "species"], Field(description="37 breeds, or cat and dog")] = "breed",
    images_per_class: Annotated[int, Field(ge=1, le=80, description="test pictures of each breed or species")] = 10,
) -> ImageSet:
    """Return the set, kept under `root`; raises `model.offline` when it is not here and cannot be downloaded."""
    from torchvision.datasets import OxfordIIITPet

    photos = _download.fetch("Oxford-IIIT Pets", lambda: OxfordIIITPet(_download.folder(root), split="test", download=True))
    names = photos.classes if labels == "breed" else [name.lower() for name in photos.bin_classes]
    numbers = photos._labels if labels == "breed" else photos._bin_labels
    entries = (
        Entry(f"{names[numbers[i]]}/{photos._images[i].name}", names[numbers[i]], photos._images[i].read_bytes)
        for i in _download.first_of_each(numbers, images_per_class)
    )
    return store(entries, root, name=f"pets-{labels}", about="Oxford-IIIT Pets, test part (Parkhi 2012)")

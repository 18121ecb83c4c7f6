"""Synthetic pictures drawn by code that look like blood smears or fundus photographs: no patient, nothing to download.

Classes differ in shape and structure only; a camera's white balance is drawn at random for each picture, so that no mean color
gives a class away. Everything here is our invention and teaches the method, not medicine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from rift.dataset import ImageSet, store
from rift.review import Entry
from rift.samples import _blood_smear, _fundus

KINDS = {"blood_smear": _blood_smear, "fundus": _fundus}
ABOUT = "Synthetic, drawn by code: these are not pictures of patients, and nothing learned from them holds for real ones."


def load(
    root: Path,
    *,
    kind: Annotated[Literal["blood_smear", "fundus"], Field(description="what the drawings look like")] = "blood_smear",
    images_per_class: Annotated[int, Field(ge=4, le=1000, description="drawings of each class")] = 40,
    difficulty: Annotated[float, Field(ge=0, le=1, description="0: plain to see; 1: faint, few and noisy signs")] = 0.4,
    seed: Annotated[int, Field(ge=0, lt=2**31, description="equal settings draw equal pictures")] = 0,
) -> ImageSet:
    """Draw a set of 128 px pictures and keep it under `root`; equal settings give the same digest."""
    name = f"phantoms-{kind.replace('_', '-')}"
    return store(_drawings(kind, images_per_class, difficulty, seed), root, name=name, about=ABOUT)


def _drawings(kind: str, images_per_class: int, difficulty: float, seed: int) -> Iterator[Entry]:
    drawer = KINDS[kind]
    for label, name in enumerate(drawer.CLASSES):
        for i in range(images_per_class):
            # A drawing depends on its own number alone: asking for more pictures keeps those there were.
            pixels = drawer.draw(name, np.random.default_rng([seed, label, i]), difficulty)
            yield Entry(f"{name}/{i:04d}.png", name, pixels)

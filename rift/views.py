"""The training images as every model sees them: seeded views, and what the pretrained model makes of each, computed once."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rift import disk
from rift.config import Training
from rift.model import Backbone, to_float

AREA = {"light": 0.8, "strong": 0.5}  # smallest share of the image's area that a crop keeps


class Views:
    """The training images under at most four seeded augmentations each, and what the pretrained model makes of them.

    View `v` of image `i` looks the same in every epoch and every arm, so the pretrained embeddings are computed once, kept
    in `cache`, and no regularizer pays for a second forward pass per step.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, training: Training, seed: int, device: torch.device | str = "cpu"):
        self.pixels = torch.from_numpy(np.ascontiguousarray(pixels))
        self.labels = torch.as_tensor(labels, device=device)
        self.device = torch.device(device)
        self.views = 1 if training.augment == "none" else training.views
        self.kind, self.precision = training.augment, training.precision
        self.pretrained: Backbone | None = None
        self.cache: Path | None = None
        self.seconds, self.from_cache = 0.0, False  # what the pretrained model's pass costs, and whether this run was spared it
        self._targets: dict[tuple[int, ...], Tensor] = {}  # by the blocks whose activations follow the embeddings
        if self.kind != "none":
            generator = torch.Generator().manual_seed(seed)
            self.draws = torch.rand(self.views, len(pixels), 7, generator=generator)

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, ids: np.ndarray | Tensor, view: int) -> Tensor:
        """Return one view of some images as float `(b, 3, s, s)` in [0, 1]."""
        ids = torch.as_tensor(ids)
        images = to_float(self.pixels[ids].to(self.device))
        if self.kind == "none":
            return images
        draw = self.draws[view][ids].to(self.device)
        side = (AREA[self.kind] + (1 - AREA[self.kind]) * draw[:, 0]).sqrt()
        theta = torch.zeros(len(ids), 2, 3, device=self.device)
        theta[:, 0, 0] = side * torch.where(draw[:, 1] < 0.5, -1.0, 1.0)
        theta[:, 1, 1] = side * (torch.where(draw[:, 2] < 0.5, -1.0, 1.0) if self.kind == "strong" else 1.0)
        theta[:, :, 2] = (2 * draw[:, 3:5] - 1) * (1 - side)[:, None]
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        if self.kind == "strong":  # contrast and brightness by up to a fifth
            gain, shift = 0.8 + 0.4 * draw[:, 5], 0.4 * draw[:, 6] - 0.2
            images = ((images - 0.5) * gain[:, None, None, None] + 0.5 + shift[:, None, None, None]).clamp(0, 1)
        return images

    @property
    def embeddings(self) -> Tensor:
        """Return the pretrained embeddings of every view, float32 `(views, n, d)`, computed or read at first use."""
        return self.targets(())

    def targets(self, blocks: tuple[int, ...]) -> Tensor:
        """Return `(views, n, d + len(blocks) h)`: behind each embedding, the pretrained activations after these blocks."""
        if blocks not in self._targets:
            path = self.cache and self.cache.with_stem("-".join([self.cache.stem, *map(str, blocks)]))
            kept = _read(path) if path else None
            if kept is not None:
                self.from_cache = True
                targets, seconds = torch.from_numpy(kept[0]).to(self.device), kept[1]
            else:
                began = time.perf_counter()
                targets = self._pretrained_targets(blocks)
                seconds = time.perf_counter() - began
                if path:
                    with disk.replacing(path) as file:
                        np.savez(file, embeddings=targets.cpu().numpy(), seconds=seconds)
            self._targets[blocks] = targets
            self.seconds += seconds
        return self._targets[blocks]

    @torch.no_grad()
    def _pretrained_targets(self, blocks: tuple[int, ...]) -> Tensor:
        if self.pretrained is None:
            raise ValueError("these views know no pretrained model")
        model, chunks = self.pretrained.eval(), torch.arange(len(self)).split(64)

        def targets(images: Tensor) -> Tensor:
            embeddings, activations = model.embed(images)
            return torch.cat([embeddings.float(), *activations[list(blocks)].float()], dim=1)

        with autocast(self.device, self.precision):  # as in training, so that rounding is not taken for drift
            return torch.stack([torch.cat([targets(self.images(ids, view)) for ids in chunks]) for view in range(self.views)])


def _read(path: Path) -> tuple[np.ndarray, float] | None:
    """Return kept targets and the seconds that they took, None where there are none or they are damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return stored["embeddings"], float(stored["seconds"])
    except (FileNotFoundError, *disk.DAMAGED):
        return None


def precision_of(device: torch.device, precision: str) -> str:
    """Return bf16 where it is asked for or, under "auto", on CUDA; else fp32."""
    return "bf16" if precision == "bf16" or (precision == "auto" and device.type == "cuda") else "fp32"


def autocast(device: torch.device, precision: str) -> Any:
    """Return the autocast context of a device and a precision setting."""
    wanted = precision_of(device, precision) == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()

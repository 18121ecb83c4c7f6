"""Reconstruction: the patch tokens become the image again, whatever its label: 1 x 1 convolution, PixelShuffle, L1 loss.

loss = mean over images, pixels and colors of |output - image|, with the image in [0, 1]; a token makes the pixels of its patch.
The downstream task beside classification in Merlin 2023 (arXiv 2307.06006), which decodes the tokens of a ViT-B/32 so.

What is our choice: tokens are taken after the last norm, so that their size is alike in every family; the target is the view that
the model was shown, before its normalization; the head starts as an even gray of 0.5, so that, as with the other tasks, the first
step is the head's alone. No class is named, so whatever needs one has no number; labels only decide how the images are divided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rift.errors import SettingError
from rift.model import Backbone, Task

IGNORES_LABELS = True  # so that it fits any set of images
NO_CLASS = "this run reconstructs images, it names no class"
GRAY = 0.5  # of every pixel, before the first step


class Pixels(nn.Module):
    """Tokens `(n, t, h)` of a square grid to images `(n, 3, s, s)` in about [0, 1], each token to its own patch."""

    reads = "tokens"

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.convolution = nn.Conv2d(width, 3 * patch**2, 1)
        nn.init.zeros_(self.convolution.weight)
        nn.init.constant_(self.convolution.bias, GRAY)  # type: ignore[arg-type]
        self.patch = patch

    def forward(self, tokens: Tensor) -> Tensor:
        side = math.isqrt(tokens.shape[1])
        return F.pixel_shuffle(self.convolution(tokens.mT.unflatten(2, (side, side))), self.patch)


def build(classes: Sequence[str]) -> Task:
    """Return the task; the classes make no difference."""
    return Task(head=head, loss=lambda outputs, images: errors(outputs, images).mean(), score=_score, errors=errors)


@torch.no_grad()
def head(backbone: Backbone) -> Pixels:
    """Return a head for this backbone's tokens; `setting.range` where they are not a square grid that divides its images."""
    device = next(backbone.parameters()).device
    _, tokens = backbone.read(torch.zeros(1, 3, backbone.pixels, backbone.pixels, device=device))
    count, width = tokens.shape[1:]
    side = math.isqrt(count)
    if side**2 != count or backbone.pixels % side:
        raise SettingError(
            "setting.range",
            f"task reconstruction: this backbone's {count} patch tokens are not a square grid that divides {backbone.pixels} "
            f"pixels evenly; choose another backbone, or another image size for it.",
        )
    return Pixels(width, backbone.pixels // side)


def errors(outputs: Tensor, images: Tensor) -> Tensor:
    """Return the mean absolute error of each image's pixels `(n,)`, at least 0; both are `(n, 3, s, s)`."""
    return (outputs.float() - images.float()).abs().flatten(1).mean(1)


def _score(kept: Tensor, labels: Tensor) -> dict[str, Any]:
    nothing = {name: None for name in ("accuracy", "balanced_accuracy")}
    return {"reconstruction_error": float(kept.mean()), **nothing, **{f"{name}_reason": NO_CLASS for name in nothing}}

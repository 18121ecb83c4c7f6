"""Representation inversion: from noise to images that one layer of a model cannot tell from given ones, though people can.

Per image min over x' in [0, 1] of ‖m_l(x') - t‖₂ / ‖t‖₂ with t = m_l(x), after Nanda 2022 (arXiv 2206.11939) and its code:
x' ← clip(x' - s g / ‖g‖₂), g the gradient with respect to the pixels, and the best x' on the way counts. The code's s is 0.5 at
224 px. A step of length s moves a pixel by s / √(3 p²) in the mean square, so at p pixels we take s p / 224: the same change of
a pixel. The cosine decay of s to 0, which needs far fewer steps, and the start, each value uniform in [0, 1] where the code clips
Gaussian noise, are our choice. An image's result depends on no other image: neither on the batch nor on where a stop fell.
Layers go one after the other. As one batch through the blocks that they share, each image leaving at its own layer, they gave
the same pixels in 4 to 9 % more time on a CPU (`tests/benchmarks/stir.py`): the images differ, so no product is saved.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rift.captures import Arrays, Data
from rift.diagnostics import _grams
from rift.errors import ModelError
from rift.model import Backbone, to_float

STUDY_PIXELS = 224
BATCH = 50  # images at a time, where nothing else is asked for
MOST_BYTES = 1 << 30  # of tokens that are held at a time


@dataclass(frozen=True)
class Settings:
    """How images are inverted; all of it is part of what a kept inversion is found by."""

    iterations: int
    step: float  # at 224 px
    schedule: Literal["decay", "constant"]
    pooled: bool  # the class token or mean patch instead of all tokens
    start: int  # which noise


def latent(backbone: Backbone, images: Tensor, layers: Sequence[int], pooled: bool) -> list[Tensor]:
    """Return what layers of a model make of images, one flat vector an image: `(n, t h)`, pooled `(n, h)`."""
    return [backbone.pooled(one) if pooled else one.flatten(1) for one in backbone.tokens(images, layers)]


def noise(indices: Sequence[int], pixels: int, start: int) -> Tensor:
    """Return the noise `(n, 3, s, s)` in [0, 1] that images by these numbers start from, each its own and always the same."""
    return torch.from_numpy(
        np.stack([np.random.default_rng([start, i]).random((3, pixels, pixels), np.float32) for i in indices])
    )


def invert(
    backbone: Backbone, layer: int, target: Tensor, start: Tensor, settings: Settings, tell: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images `(n, 3, s, s)` in [0, 1] that a layer sees as `target` `(n, d)`, their relative distance and the last one's.

    Raises `model.weights` for a target that is zero, to which no relative distance is defined, or not finite.
    """
    size = target.norm(dim=1)
    bad = ~(torch.isfinite(size) & (size > 0))
    if bad.any():
        raise ModelError(
            "model.weights",
            f"stir: layer {layer} answers {int(bad.sum())} of {len(bad)} images with zeros only or with values that are not "
            f"finite, so there is no relative distance to them; choose other layers, or a model whose layer answers.",
        )
    length = settings.step * start.shape[-1] / STUDY_PIXELS
    now, best, least = start, start, torch.full_like(size, math.inf)
    for i in range(settings.iterations + 1):
        now = now.detach().requires_grad_()
        loss = (latent(backbone, now, [layer], settings.pooled)[0] - target).norm(dim=1) / size
        better = loss.detach() < least
        best = torch.where(better[:, None, None, None], now.detach(), best)
        least = torch.where(better, loss.detach(), least)
        if i < settings.iterations:
            gradient = torch.autograd.grad(loss.sum(), now)[0]  # each image has its own loss, so its own gradient
            norm = gradient.flatten(1).norm(dim=1)[:, None, None, None]
            decay = 0.5 * (1 + math.cos(math.pi * i / settings.iterations)) if settings.schedule == "decay" else 1.0
            now = (now.detach() - length * decay * gradient / (norm + 1e-10)).clamp(0, 1)
            tell()
    return best, least, loss.detach()


def through(
    backbone: Backbone, layer: int, data: Data, pixels: np.ndarray, name: str, settings: Settings, tell: Callable[[int], None]
) -> Arrays:
    """Return all images inverted through one layer: `pixels` `(n, s, s, 3)` uint16 and `loss` `(n,)`, kept batch by batch.

    In 16 bits rounding moves a pixel hundreds of times less than a step of the study. `tell` gets each step's number of images.
    """

    def batch(first: int) -> Arrays:
        given = to_float(torch.from_numpy(np.ascontiguousarray(pixels[first : first + data.batch_size])).to(data.device))
        with torch.no_grad():
            target = latent(backbone, given, [layer], settings.pooled)[0]
        start = noise(range(first, first + len(given)), given.shape[-1], settings.start).to(data.device)
        found, loss, _ = invert(backbone, layer, target, start, settings, lambda: tell(len(given)))
        deep = (found.permute(0, 2, 3, 1) * 65535).round().cpu().numpy().astype(np.uint16)
        return {"pixels": deep, "loss": loss.cpu().numpy()}

    firsts = range(0, len(pixels), data.batch_size)
    parts = [data.part(f"{name}-{layer}-{first}", lambda first=first: batch(first)) for first in firsts]  # type: ignore[misc]
    return {key: np.concatenate([part[key] for part in parts]) for key in ("pixels", "loss")}


def of_pretrained(
    backbone: Backbone, mark: str, layer: int, data: Data, pixels: np.ndarray, settings: Settings, tell: Callable[[int], None]
) -> Arrays:
    """Return what `through` does for the pretrained model, whose fingerprint is `mark`; all runs of a lab have it in common."""
    # The device is part of the key for its rounding, the batch because a smaller one rounds differently.
    same = [asdict(settings), mark, hashlib.sha256(pixels.tobytes()).hexdigest(), pixels.shape, data.batch_size]
    key = [*same, layer, data.device.type]
    return data.shared("stir", key, lambda data: through(backbone, layer, data, pixels, "inverted-pre", settings, tell))


@torch.no_grad()
def grams(backbone: Backbone, layers: Sequence[int], data: Data, pixels: np.ndarray, pooled: bool) -> np.ndarray:
    """Return the centred Gram matrix of each layer on stored pixels `(n, s, s, 3)`: `(layers, n, n)` float64."""
    vit = backbone.vit
    each = 4 * len(pixels) * vit.embed_dim * (1 if pooled else vit.patch_embed.num_patches + vit.num_prefix_tokens)
    together = max(1, MOST_BYTES // each)  # layers in one pass
    found = []
    for place in range(0, len(layers), together):
        some = layers[place : place + together]
        kept: list[list[np.ndarray]] = [[] for _ in some]
        for first in range(0, len(pixels), data.batch_size):
            images = to_float(torch.from_numpy(np.ascontiguousarray(pixels[first : first + data.batch_size])).to(data.device))
            for rows, one in zip(kept, latent(backbone, images, some, pooled), strict=True):
                rows.append(one.float().cpu().numpy())
        found += [_grams.gram(np.concatenate(rows)) for rows in kept]
    return np.stack(found)

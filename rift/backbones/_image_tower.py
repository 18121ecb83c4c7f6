"""The embedded model's image tower: a small residual network in place of a ViT's one patch, then four blocks."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

PIXELS, WIDTH, DEPTH = 64, 192, 4


class Convolution(nn.Module):
    """A 3 x 3 convolution and ReLU; with `norm`, batch normalization between them, as long as the model is pretrained."""

    def __init__(self, before: int, after: int, *, stride: int = 1, norm: bool = False):
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1)
        self.norm: nn.Module = nn.BatchNorm2d(after) if norm else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.norm(self.convolution(maps)))


class Residual(nn.Module):
    """Two convolutions and what came in (He 2016, arXiv 1512.03385, without the last ReLU)."""

    def __init__(self, width: int, *, norm: bool = False):
        super().__init__()
        self.first, self.second = (Convolution(width, width, norm=norm) for _ in range(2))

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.second(self.first(maps))


class Stem(PatchEmbed):
    """A small residual network from 64 px to the 8 x 8 tokens, in place of one 8 px patch.

    A ViT learns faster from convolutions (Xiao 2021, arXiv 2106.14881). Batch normalization (`norm=True`) is only there while
    pretraining; `fold` merges it into the convolutions, so that finetuning has no statistics that couple the images of a batch.
    """

    def __init__(self, *, norm: bool = False, **options: Any):
        super().__init__(**options)
        layers: list[nn.Module] = []
        for (before, after), residuals in zip(itertools.pairwise((3, 32, 96, WIDTH)), (0, 1, 2), strict=True):
            layers.append(Convolution(before, after, stride=2, norm=norm))
            layers += [Residual(after, norm=norm) for _ in range(residuals)]
        self.proj = nn.Sequential(*layers)  # type: ignore[assignment]


def image_tower(norm: bool = False) -> VisionTransformer:
    """Build the image tower: `(n, 3, 64, 64)` in [-1, 1] to `(n, 192)`."""
    return VisionTransformer(
        img_size=PIXELS,
        patch_size=8,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=3,
        num_classes=0,
        class_token=False,
        global_pool="avg",
        dynamic_img_size=True,
        embed_layer=lambda **kwargs: Stem(norm=norm, **kwargs),
    )


@torch.no_grad()
def fold(tower: VisionTransformer) -> VisionTransformer:
    """Return the same function without batch normalization: each is merged into the convolution before it."""
    plain = copy.deepcopy(tower).eval()
    for module in plain.modules():
        if isinstance(module, Convolution) and isinstance(module.norm, nn.BatchNorm2d):
            module.convolution = fuse_conv_bn_eval(module.convolution, module.norm)
            module.norm = nn.Identity()
    return plain

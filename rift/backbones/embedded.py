"""The embedded model: a 6-block ViT at 64 px and a text tower in one 192-dimensional space; needs no download."""

from __future__ import annotations

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

PIXELS, WIDTH = 64, 192


class ConvStem(PatchEmbed):
    """Three strided convolutions in place of one 8 px patch: a small ViT learns far faster from them (Xiao 2021, arXiv 2106.14881).

    Batch normalization (`norm=True`) is only there while pretraining; `fold` merges it into the convolutions, so that
    finetuning has no statistics that couple the images of a batch.
    """

    def __init__(self, *args, norm: bool = False, embed_dim: int = WIDTH, **kwargs):
        super().__init__(*args, embed_dim=embed_dim, **kwargs)
        widths = [3, 48, 96, embed_dim]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
            if norm:
                layers.append(nn.BatchNorm2d(after))
            if i < 2:
                layers.append(nn.GELU())
        self.proj = nn.Sequential(*layers)


def image_tower(norm: bool = False) -> VisionTransformer:
    """Build the image tower: `(n, 3, 64, 64)` in [-1, 1] to `(n, 192)`."""
    return VisionTransformer(
        img_size=PIXELS,
        patch_size=8,
        embed_dim=WIDTH,
        depth=6,
        num_heads=3,
        num_classes=0,
        dynamic_img_size=True,
        embed_layer=lambda **kwargs: ConvStem(norm=norm, **kwargs),
    )


@torch.no_grad()
def fold(tower: VisionTransformer) -> VisionTransformer:
    """Return the same function without batch normalization: each is merged into the convolution before it."""
    plain = image_tower()
    state = {key: value for key, value in tower.state_dict().items() if not key.startswith("patch_embed.proj")}
    layers = list(tower.patch_embed.proj)
    folded = iter([(i, layer) for i, layer in enumerate(plain.patch_embed.proj) if isinstance(layer, nn.Conv2d)])
    for convolution, norm in zip(layers[:-1], layers[1:], strict=True):
        if not isinstance(convolution, nn.Conv2d):
            continue
        i, _ = next(folded)
        gain: Tensor = norm.weight / (norm.running_var + norm.eps).sqrt()
        state[f"patch_embed.proj.{i}.weight"] = convolution.weight * gain[:, None, None, None]
        state[f"patch_embed.proj.{i}.bias"] = (convolution.bias - norm.running_mean) * gain + norm.bias
    plain.load_state_dict(state)
    return plain.eval()

"""CLIP with its text tower, fetched on first use: any label can be asked for in words (Radford 2021, arXiv 2103.00020).

The image tower is converted key for key into timm's VisionTransformer, so that every method works on it. A label's row in the
natural head is the L2-normalized mean of the L2-normalized text embeddings of seven prompts, those the CLIP authors found to do
about as well as all eighty (openai/CLIP, notebook Prompt_Engineering_for_ImageNet). The text tower stays frozen and on the CPU.
Weights: OpenAI; LAION-2B, Schuhmann 2022 (arXiv 2210.08402); DataComp-XL, Gadre 2023 (arXiv 2304.14108).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rift.backbones import _hub
from rift.model import Backbone

Model = Literal["base_32_openai", "base_16_openai", "large_14_openai", "base_32_laion2b", "base_16_datacomp", "large_14_datacomp"]
# the timm architecture that is the same image tower, the repository of the weights
MODELS: dict[Model, tuple[str, str]] = {
    "base_32_openai": ("vit_base_patch32_clip_quickgelu_224.openai", "timm/vit_base_patch32_clip_224.openai"),
    "base_16_openai": ("vit_base_patch16_clip_quickgelu_224.openai", "timm/vit_base_patch16_clip_224.openai"),
    "large_14_openai": ("vit_large_patch14_clip_quickgelu_224.openai", "timm/vit_large_patch14_clip_224.openai"),
    "base_32_laion2b": ("vit_base_patch32_clip_224.laion2b", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    "base_16_datacomp": ("vit_base_patch16_clip_224.datacompxl", "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K"),
    "large_14_datacomp": ("vit_large_patch14_clip_224.datacompxl", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"),
}
FILE = "open_clip_model.safetensors"


def load(
    *,
    model: Annotated[Model, Field(description="size, patch size in pixels and training data")] = "base_32_openai",
    init: Annotated[
        Literal["pretrained", "random"], Field(description="random: both towers with nothing learned, as a control")
    ] = "pretrained",
    pixels: _hub.Pixels = _hub.PIXELS,
) -> Backbone:
    """Return CLIP's image tower; raises `model.offline` when its weights are not here and cannot be fetched."""
    from rift.backbones import _clip  # its library takes seconds to import, and a menu asks for settings only

    tower, repository = MODELS[model]
    source = f"{FILE} of {repository}"
    state, weights = None, ""
    if init == "pretrained":
        state, weights = _hub.read(_hub.fetch(repository, FILE), source)
    return _clip.build(tower, state, source, weights, pixels)

"""Vision Transformers of the timm library, fetched on first use: ImageNet classifiers (AugReg), DINOv2, CLIP and SigLIP.

Sources: AugReg, Steiner 2021 (arXiv 2106.10270); DINOv2, Oquab 2023 (arXiv 2304.07193); CLIP, Radford 2021 (arXiv 2103.00020);
SigLIP, Zhai 2023 (arXiv 2303.15343).

The embedding is the vector before the classifier (ViT), the class token after the last norm (DINOv2), the projected class token
(CLIP) or the attention-pooled one (SigLIP). Only the ImageNet classifiers have a natural head here: the files of the others
hold no text tower (`open_clip` has CLIP with one), so that nearest mean takes its place. DINOv2 was trained at 518 px and is
run at 224 px; at this and any other size than a model's own its positions are resampled. Pictures are resized as timm does,
antialiased bicubic, but over the whole centre square: our choice, where AugReg's and SigLIP's own evaluation looks at its inner
90 %.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from rift.backbones import _hub
from rift.model import Backbone

Model = Literal[
    "vit_tiny",
    "vit_small",
    "vit_base",
    "vit_large",
    "dinov2_small",
    "dinov2_base",
    "dinov2_large",
    "clip_base_32",
    "clip_base_16",
    "clip_large_14",
    "siglip_base",
]
MODELS: dict[Model, str] = {
    "vit_tiny": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_small": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_base": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "vit_large": "vit_large_patch16_224.augreg_in21k_ft_in1k",
    "dinov2_small": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_base": "vit_base_patch14_dinov2.lvd142m",
    "dinov2_large": "vit_large_patch14_dinov2.lvd142m",
    # OpenAI's CLIP was trained with the sigmoid approximation of GELU: only the quickgelu variants reproduce it.
    "clip_base_32": "vit_base_patch32_clip_quickgelu_224.openai",
    "clip_base_16": "vit_base_patch16_clip_quickgelu_224.openai",
    "clip_large_14": "vit_large_patch14_clip_quickgelu_224.openai",
    "siglip_base": "vit_base_patch16_siglip_224.webli",
}
FILE = "model.safetensors"


def load(
    *,
    model: Annotated[
        Model, Field(description="which ViT: from 6 million parameters (vit_tiny) to 304 million (the large ones)")
    ] = "vit_tiny",
    init: Annotated[
        Literal["pretrained", "random"], Field(description="random: the same architecture with nothing learned, as a control")
    ] = "pretrained",
    pixels: _hub.Pixels = _hub.PIXELS,
) -> Backbone:
    """Return the ViT; raises `model.offline` when its weights are not here and cannot be fetched."""
    import timm  # takes seconds, and a menu asks for settings only

    cfg: Any = timm.get_pretrained_cfg(MODELS[model])
    source, weights = f"{FILE} of {cfg.hf_hub_id}", ""
    if init == "pretrained":  # before anything is built, so that a machine without the file hears of it at once
        state, weights = _hub.read(_hub.fetch(cfg.hf_hub_id, FILE), source)
    vit = _hub.create(MODELS[model], pixels)
    if init == "pretrained":
        _hub.fill(vit, state, source)
    natural = _hub.classifier_head(vit, f"ImageNet classifier of {model}") if model.startswith("vit_") else None
    return _hub.assemble(vit, natural=natural, weights=weights)

"""CLIP with its text tower, fetched on first use: any label can be asked for in words (Radford 2021, arXiv 2103.00020).

The image tower is converted key for key into timm's VisionTransformer, so that every method works on it. A label's row in the
natural head is the L2-normalized mean of the L2-normalized text embeddings of seven prompts, those the CLIP authors found to do
about as well as all eighty (openai/CLIP, notebook Prompt_Engineering_for_ImageNet). The text tower stays frozen and on the CPU.
Weights: OpenAI; LAION-2B, Schuhmann 2022 (arXiv 2210.08402); DataComp-XL, Gadre 2023 (arXiv 2304.14108).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import open_clip
import timm
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from rift.backbones import _hub
from rift.model import Backbone, NaturalHead

Model = Literal["base_32_openai", "base_16_openai", "large_14_openai", "base_32_laion2b", "base_16_datacomp", "large_14_datacomp"]
# open_clip's configuration, the timm architecture that is the same image tower, the repository of the weights
MODELS: dict[Model, tuple[str, str, str]] = {
    "base_32_openai": (
        "ViT-B-32-quickgelu",
        "vit_base_patch32_clip_quickgelu_224.openai",
        "timm/vit_base_patch32_clip_224.openai",
    ),
    "base_16_openai": (
        "ViT-B-16-quickgelu",
        "vit_base_patch16_clip_quickgelu_224.openai",
        "timm/vit_base_patch16_clip_224.openai",
    ),
    "large_14_openai": (
        "ViT-L-14-quickgelu",
        "vit_large_patch14_clip_quickgelu_224.openai",
        "timm/vit_large_patch14_clip_224.openai",
    ),
    "base_32_laion2b": ("ViT-B-32", "vit_base_patch32_clip_224.laion2b", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    "base_16_datacomp": ("ViT-B-16", "vit_base_patch16_clip_224.datacompxl", "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K"),
    "large_14_datacomp": ("ViT-L-14", "vit_large_patch14_clip_224.datacompxl", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"),
}
FILE = "open_clip_model.safetensors"


def load(
    *,
    model: Annotated[Model, Field(description="size, patch size in pixels and training data")] = "base_32_openai",
    init: Annotated[
        Literal["pretrained", "random"], Field(description="random: both towers with nothing learned, as a control")
    ] = "pretrained",
) -> Backbone:
    """Return CLIP's image tower at 224 px; raises `model.offline` when its weights are not here and cannot be fetched."""
    name, tower, repository = MODELS[model]
    source, weights = f"{FILE} of {repository}", ""
    if init == "pretrained":  # before anything is built, so that a machine without the file hears of it at once
        state, weights = _hub.read(_hub.fetch(repository, FILE), source)
    clip = open_clip.CLIP(**open_clip.get_model_config(name))
    if init == "pretrained":
        if "logit_scale" in state:  # some files store it as one row
            state["logit_scale"] = state["logit_scale"].reshape(clip.logit_scale.shape)
        _hub.match(clip, state, source)
    vit: Any = timm.create_model(tower, pretrained=False)
    _hub.fill(vit, clip.state_dict(), name)
    del clip.visual
    return _hub.assemble(vit, natural=text_head(clip.requires_grad_(False).eval(), name), weights=weights)


def text_head(clip: open_clip.CLIP, name: str) -> Callable[[Sequence[str]], NaturalHead]:
    """Return the natural head of a text tower: it knows every label."""
    tokenize = open_clip.get_tokenizer(name)
    scale = float(clip.logit_scale.exp())

    @functools.lru_cache(maxsize=4)  # about 20 ms per prompt, and each arm of a comparison asks for the same labels
    def rows(labels: tuple[str, ...]) -> Tensor:
        means = torch.zeros(len(labels), clip.text_projection.shape[1])
        for i, label in enumerate(labels):
            prompts = [prompt(label.replace("_", " ")) for prompt in open_clip.SIMPLE_IMAGENET_TEMPLATES]
            means[i] = F.normalize(encode(clip, tokenize(prompts)), dim=1).mean(0)
        return F.normalize(means, dim=1)

    def natural(labels: Sequence[str]) -> NaturalHead:
        return NaturalHead(tuple(labels), rows(tuple(labels)), scale=scale, source=f"text tower of {name}, 7 prompts per label")

    return natural


@torch.no_grad()
def encode(clip: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """Return the text embeddings `(n, d)` of tokens `(n, 77)`, as `clip.encode_text` does.

    The tower is causal and reads the embedding off the end-of-text token, so the padding behind it changes nothing: leaving it
    out is five times faster for a prompt of a dozen tokens.
    """
    ends = tokens.argmax(1)  # the end-of-text token has the largest number
    length = int(ends.max()) + 1
    hidden = clip.token_embedding(tokens[:, :length]) + clip.positional_embedding[:length]
    hidden = clip.ln_final(clip.transformer(hidden, attn_mask=clip.attn_mask[:length, :length]))
    return hidden[torch.arange(len(tokens)), ends] @ clip.text_projection

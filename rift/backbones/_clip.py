"""What CLIP files have in common wherever they come from: an image tower turned into timm's, and a text tower for words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from rift.backbones import _hub
from rift.model import Backbone, NaturalHead

# timm's architecture of an image tower, and open_clip's configuration of both towers
CONFIGS = {
    "vit_base_patch32_clip_quickgelu_224": "ViT-B-32-quickgelu",
    "vit_base_patch16_clip_quickgelu_224": "ViT-B-16-quickgelu",
    "vit_large_patch14_clip_quickgelu_224": "ViT-L-14-quickgelu",
    "vit_base_patch32_clip_224": "ViT-B-32",
    "vit_base_patch16_clip_224": "ViT-B-16",
    "vit_large_patch14_clip_224": "ViT-L-14",
}


def build(tower: str, state: dict[str, Tensor] | None, source: str, weights: str, pixels: int = _hub.PIXELS) -> Backbone:
    """Return the Backbone of a timm image tower (with a tag or without) and its text tower, from open_clip's weights.

    `state` None is random weights. The state is emptied, to save memory. Raises `model.weights` as `_hub.match` does.
    """
    name = CONFIGS[tower.partition(".")[0]]
    clip = open_clip.CLIP(**open_clip.get_model_config(name))
    if state is not None:
        if "logit_scale" in state:  # some files store it as one row
            state["logit_scale"] = state["logit_scale"].reshape(clip.logit_scale.shape)
        _hub.match(clip, state, source)
        state.clear()
    vit = _hub.create(tower, pixels, num_classes=clip.text_projection.shape[1])
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

"""A ViT from a local .safetensors file with timm's names, in half or single precision; needs no download.

An ImageNet-1k classifier in the file (`head.weight` with 1000 rows) gives the natural head; any other head is left out, but for
CLIP's projection, which is part of the embedding. A CLIP file in open_clip's format (`open_clip_model.safetensors`) brings its
text tower along, and with it words. Pixels are normalized as the architecture's usual weights are (AugReg's `vit_*` and SigLIP:
mean and deviation 0.5; DeiT and DINOv2: ImageNet's; CLIP: OpenAI's, which the weights of `vit_large_patch14_clip_224` by LAION
are not). Images are 224 px wide unless `pixels` says otherwise; positions are then resampled. OpenAI's own CLIP weights need the
`quickgelu` architectures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from rift.backbones import _hub
from rift.errors import ModelError
from rift.model import Backbone

Architecture = Literal[
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "vit_base_patch32_224",
    "vit_large_patch16_224",
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "deit_base_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_base_patch14_dinov2",
    "vit_large_patch14_dinov2",
    "vit_base_patch32_clip_quickgelu_224",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_large_patch14_clip_quickgelu_224",
    "vit_base_patch32_clip_224",
    "vit_base_patch16_clip_224",
    "vit_large_patch14_clip_224",
    "vit_base_patch16_siglip_224",
    "test_vit",
]


OPENS_FILES = True  # of the machine that it runs on: no choice for those who only look at its page

# timm's usual weights of an architecture give the pixel normalization, but for one where they are not those of CLIP itself
TAGS = {"vit_large_patch14_clip_224": "datacompxl"}


def _found(path: str) -> str:
    """Return the file's absolute path, since the worker runs elsewhere; refuses before any work what cannot be weights."""
    file = Path(path).expanduser().resolve()
    if file.suffix != ".safetensors":
        raise ModelError(
            "model.weights",
            f"{file.name} is not a .safetensors file. Other formats (.pt, .pth, .bin) are pickles, which can run code when "
            "opened: save the weights with safetensors.torch.save_file and give that file.",
        )
    if not file.is_file():
        raise ModelError("model.weights", f"There is no file {path}; give the path of a .safetensors file.")
    return str(file)


def _named(path: str, info: ValidationInfo) -> str:
    """Return the path as it is where it was stored: the file may be gone, or on the machine that a bundle came from."""
    return path if info.context and info.context.get("stored") else _found(path)


def load(
    *,
    path: Annotated[str, AfterValidator(_named), Field(min_length=1, max_length=4096, description="the .safetensors file")],
    architecture: Annotated[
        Architecture, Field(description="timm's name of the architecture the file was saved from")
    ] = "vit_tiny_patch16_224",
    pixels: _hub.Pixels = _hub.PIXELS,
) -> Backbone:
    """Return the ViT of a local file; raises `model.weights` when the file is absent, not safetensors, or does not fit."""
    if Path(path).name == path and not Path(path).is_file():  # as a bundle keeps it
        raise ModelError("model.weights", f"{path} is the name of a file on the machine where this was trained; it is not here.")
    file = Path(_found(path))
    state, weights = _hub.read(file, file.name)
    tower, is_clip = f"{architecture}.{TAGS.get(architecture, '')}".rstrip("."), "_clip_" in architecture
    if is_clip and "text_projection" in state:
        from rift.backbones import _clip

        return _clip.build(tower, state, file.name, weights, pixels)
    head = state.get("head.weight")
    size = 160 if architecture == "test_vit" and pixels == _hub.PIXELS else pixels
    classes = head.shape[0] if head is not None and head.ndim == 2 else 0
    vit = _hub.create(tower, size, num_classes=classes)
    _hub.fill(vit, state, file.name)
    natural = None if is_clip and classes != 1000 else _hub.classifier_head(vit, f"ImageNet classifier in {file.name}")
    return _hub.assemble(vit, natural=natural, weights=weights)

"""Small backbones of every build that the methods must carry, and a few training steps for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from rift import catalog, dataset
from rift.model import Backbone, Classifier
from rift.runs import Lab

LABELS = torch.tensor([0, 1, 2, 0])
# class token; averaged patches, a register and layer scale; the same pooled by attention; DINOv2 with its SwiGLU; CLIP with its
# norm before the blocks and its projection; SigLIP
BUILDS: dict[str, tuple[str, dict[str, Any]]] = {
    "token": ("test_vit", {"img_size": 32, "num_classes": 0}),
    "average": ("test_vit2", {"img_size": 32, "num_classes": 0}),
    "attention": ("test_vit3", {"img_size": 32, "num_classes": 0}),
    "swiglu": ("vit_giant_patch14_dinov2", {"img_size": 28, "num_classes": 0, "depth": 2, "embed_dim": 96, "num_heads": 3}),
    "clip": ("vit_base_patch32_clip_quickgelu_224.openai", {"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 3}),
    "siglip": (
        "vit_base_patch16_siglip_224.webli",
        {"img_size": 32, "num_classes": 0, "depth": 2, "embed_dim": 96, "num_heads": 3},
    ),
}
NAMES = catalog.names("methods")
ADAPTERS = tuple(name for name in NAMES if hasattr(catalog.module("methods", name), "remove"))
EVERY_LAYER = {"qkv": True, "proj": True, "fc1": True, "fc2": True}


def toy(build: str = "token") -> Backbone:
    """One of the builds with random weights, its layer scale at a size that can be seen."""
    torch.manual_seed(0)
    name, options = BUILDS[build]
    vit: Any = timm.create_model(name, pretrained=False, **options)
    for key, parameter in vit.named_parameters():
        if "ls1" in key or "ls2" in key:
            parameter.data.uniform_(0.2, 0.6)
        elif parameter.ndim == 1:  # biases that start at zero would hide mistakes
            parameter.data.add_(torch.randn_like(parameter) / 20)
    return Backbone(vit, pixels=options["img_size"], mean=(0.5,) * 3, std=(0.5,) * 3).eval()


def adapt(name: str, backbone: Backbone, **options: Any) -> Any:
    return catalog.door("methods", name)(backbone, **options)


def images(backbone: Backbone, n: int = 4) -> torch.Tensor:
    return torch.rand(n, 3, backbone.pixels, backbone.pixels, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outputs(backbone: Backbone) -> tuple[torch.Tensor, ...]:
    """Embeddings by both ways, and activations."""
    x = images(backbone)
    return (backbone(x), *backbone.embed(x))


def same(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def train(backbone: Backbone, steps: int = 3) -> Classifier:
    """A few steps of what the real loop does, weight decay included, over whatever wants a gradient."""
    classifier = Classifier(backbone, torch.nn.Linear(backbone.width, 3)).train()
    x = images(backbone)
    optimizer = torch.optim.AdamW([p for p in classifier.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(classifier(x)[1], LABELS).backward()
        optimizer.step()
    return classifier.eval()


def stripes(names: Sequence[str], each: int, side: int, rng: np.random.Generator) -> Iterator[tuple]:
    """Entries of drawn images, as `dataset.store` takes them: every name has stripes of its own width."""
    for index, name in enumerate(names):
        for i in range(each):
            noise = rng.integers(0, 60, (side, side, 3))
            noise[:, :: 2 + 3 * index] += 120
            yield f"{name}-{i}", name, noise.astype(np.uint8), None, ""


def toy_lab(root: Path, each: int = 10, natural: int = 3) -> Lab:
    """A lab with two classes of stripes, natural ones of two words, and timm's toy ViT whose classifier is the natural head."""
    lab, rng = Lab(root), np.random.default_rng(0)
    lab.medical = dataset.store(stripes(["narrow", "wide"], each, 40, rng), lab.data, name="stripes")
    lab.natural = dataset.store(stripes(["dog", "cat"], natural, 40, rng), lab.data, name="two words")
    torch.manual_seed(0)
    lab.weights = lab.root / "toy.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), lab.weights)
    return lab

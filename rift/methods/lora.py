"""LoRA: beside frozen linear layers, trained products of two thin matrices (Hu 2021, arXiv 2106.09685).
h = W₀x + (alpha / rank) · B A x, A (rank, inputs), B (outputs, rank); B starts at zero, so nothing changes before training.

Stated by the paper: the equation, zero B, and attention's layers as the place, queries and values above all. What is our choice:
timm's ViTs make queries, keys and values in one layer, which gets one A for all three; A starts uniform (Kaiming), as peft's
does, where the paper draws it Gaussian; which layers else can take part; the defaults. `budget` sets the rank and leaves alpha
as it is, since the paper holds alpha constant when the rank varies. Weight decay pulls A and B to zero, that is, to the
pretrained model.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rift.methods import _adapters
from rift.methods._adapters import Budget, Fc1, Fc2, Proj, Qkv
from rift.model import Backbone, Stages

RANKS = range(1, 257)


def adapt(
    backbone: Backbone,
    *,
    rank: Annotated[int, Field(ge=1, le=256, description="rank of the change; not used where a budget is given")] = 8,
    alpha: Annotated[int, Field(ge=1, le=1024, description="the change is multiplied by alpha / rank")] = 16,
    dropout: Annotated[float, Field(ge=0, lt=1, description="share of an adapter's inputs dropped in training")] = 0.0,
    qkv: Qkv = True,
    proj: Proj = False,
    fc1: Fc1 = False,
    fc2: Fc2 = False,
    budget: Budget = None,
) -> Stages | None:
    """Put adapters beside the chosen layers of every block; they alone train, in one stage.

    Raises `setting.range` for layers that the backbone lacks and for a budget that no rank meets.
    """
    from peft import LoraConfig

    layers = _adapters.targets("lora", backbone, qkv=qkv, proj=proj, fc1=fc1, fc2=fc2)
    if budget is not None:
        each = sum(layer.in_features + layer.out_features for layer in layers.values())
        rank = _adapters.of_budget("lora", "rank", backbone, budget, {r: r * each for r in RANKS})
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(layers))
    _adapters.inject(backbone, config)
    return None


def remove(backbone: Backbone) -> None:
    """Take the adapters out: the backbone is the pretrained one again, bit for bit."""
    _adapters.unwrap(backbone)

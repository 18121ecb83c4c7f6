"""DoRA: LoRA for the direction of each row of a weight, and a trained number for its length (Liu 2024, arXiv 2402.09353).
W = m · V / ‖V‖, V = W₀ + (alpha / rank) · B A, norm per output; m starts at ‖W₀‖ and B at zero: nothing changes before training.

Stated by the paper: the equation, and that the norm in it counts as a constant when gradients are taken (its section 4.3), which
peft does. What is our choice: as in `lora`, which see; m, being a vector, has no weight decay.
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
    dropout: Annotated[float, Field(ge=0, lt=1, description="share of a layer's inputs dropped in training")] = 0.0,
    qkv: Qkv = True,
    proj: Proj = False,
    fc1: Fc1 = False,
    fc2: Fc2 = False,
    budget: Budget = None,
) -> Stages | None:
    """Put adapters beside the chosen layers of every block; they and the lengths train, in one stage.

    Raises `setting.range` for layers that the backbone lacks and for a budget that no rank meets.
    """
    from peft import LoraConfig

    layers = _adapters.targets("dora", backbone, qkv=qkv, proj=proj, fc1=fc1, fc2=fc2)
    if budget is not None:
        each = sum(layer.in_features + layer.out_features for layer in layers.values())
        lengths = sum(layer.out_features for layer in layers.values())
        rank = _adapters.of_budget("dora", "rank", backbone, budget, {r: r * each + lengths for r in RANKS})
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(layers), use_dora=True)
    _adapters.inject(backbone, config)
    return None


def remove(backbone: Backbone) -> None:
    """Take the adapters out: the backbone is the pretrained one again, bit for bit."""
    _adapters.unwrap(backbone)

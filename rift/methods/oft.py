"""OFT: rotate the inputs of frozen linear layers, block by block, with trained rotations (Qiu 2023, arXiv 2306.07280).
h = W₀Rx, R = diag(R₁, R₂, …), Rᵢ = (I + Qᵢ)(I - Qᵢ)⁻¹ by Cayley, Qᵢ skew; Q starts at zero, so nothing changes before training.

Stated by the paper: orthogonal R, block-diagonal to save parameters, by Cayley, so that the angles between neurons (their
hyperspherical energy) stay; it rotates weights, never embeddings. What is our choice: the exact Cayley map in place of the
truncated series that is peft's default, since a truncated one is no rotation for large Q; the layers and the block size. peft
0.21 takes a dropout for OFT and never applies it, so there is none here. `budget` picks the block size among those that divide
every chosen layer's inputs, which is coarse: the neighbors often differ by a factor of 1.5 to 2.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from rift.errors import SettingError
from rift.methods import _adapters
from rift.methods._adapters import Budget, Fc1, Fc2, Proj, Qkv
from rift.model import Backbone, Stages


def adapt(
    backbone: Backbone,
    *,
    block_size: Annotated[
        int, Field(ge=2, le=1024, description="inputs that one rotation turns; divides a layer's inputs; not used with a budget")
    ] = 32,
    qkv: Qkv = True,
    proj: Proj = False,
    fc1: Fc1 = False,
    fc2: Fc2 = False,
    budget: Budget = None,
) -> Stages | None:
    """Put rotations before the chosen layers of every block; they alone train, in one stage.

    Raises `setting.range` for layers that the backbone lacks, a block size that does not divide and a budget that none meets.
    """
    from peft import OFTConfig

    layers = _adapters.targets("oft", backbone, qkv=qkv, proj=proj, fc1=fc1, fc2=fc2)
    inputs = [layer.in_features for layer in layers.values()]
    common = math.gcd(*inputs)
    allowed = [size for size in range(2, min(common, 1024) + 1) if common % size == 0]
    if budget is not None:
        sizes = {size: sum(inputs) * (size - 1) // 2 for size in allowed}
        block_size = _adapters.of_budget("oft", "block_size", backbone, budget, sizes)
    if block_size not in allowed:
        message = f"oft: block_size = {block_size} does not divide the inputs of the chosen layers; use one of "
        raise SettingError("setting.range", f"{message}{', '.join(map(str, allowed))}.")
    _adapters.inject(
        backbone,
        OFTConfig(oft_block_size=block_size, use_cayley_neumann=False, target_modules=list(layers)),
    )
    return None


def remove(backbone: Backbone) -> None:
    """Take the rotations out: the backbone is the pretrained one again, bit for bit."""
    _adapters.unwrap(backbone)

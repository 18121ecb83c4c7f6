"""AdaptFormer: beside each frozen MLP a small trained bottleneck, added with a fixed weight (Chen 2022, arXiv 2205.13535).
x ← x + MLP(LN(x)) + scale · W_up ReLU(W_down LN(x)); W_up starts at zero, so nothing changes before training.

Stated by the authors' code (ShoufaChen/AdaptFormer): the parallel branch, ReLU, a fixed scale, W_down uniform (Kaiming), W_up and
both biases zero, dropout 0.1 after the ReLU. The paper's equation, as we know it (its text was not at hand), feeds the branch
what the MLP gets, after the norm, as here; that code leaves the norm out. What is our choice: where blocks have a layer scale
(DINOv2), it stays the MLP's alone; dropout 0, as for every method.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rift.errors import SettingError
from rift.methods import _adapters
from rift.methods._adapters import Budget
from rift.model import Backbone, Stages


class Beside(nn.Module):
    """A block's own MLP and layer scale, and the branch beside them."""

    def __init__(self, mlp: nn.Module, layer_scale: nn.Module, width: int, bottleneck: int, scale: float, dropout: float):
        super().__init__()
        self.mlp, self.layer_scale, self.scale, self.dropout = mlp, layer_scale, scale, dropout
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what the block adds to its tokens `(n, tokens, width)`."""
        hidden = F.dropout(self.down(tokens).relu(), self.dropout, self.training)
        return self.layer_scale(self.mlp(tokens)) + self.scale * self.up(hidden)


def adapt(
    backbone: Backbone,
    *,
    bottleneck: Annotated[int, Field(ge=1, le=1024, description="width of the branch; not used where a budget is given")] = 64,
    scale: Annotated[float, Field(gt=0, le=10, description="weight of the branch in the sum")] = 0.1,
    dropout: Annotated[float, Field(ge=0, lt=1, description="share of the branch's hidden values dropped in training")] = 0.0,
    budget: Budget = None,
) -> Stages | None:
    """Put a branch beside every MLP; the branches alone train, in one stage.

    Raises `setting.range` for blocks of another kind and for a budget that no bottleneck meets.
    """
    from timm.models.vision_transformer import Block

    blocks: Any = backbone.vit.blocks
    width = backbone.vit.embed_dim
    other = next((type(block).__name__ for block in blocks if not isinstance(block, Block)), None)
    if other:
        message = "it needs attention and MLP one after the other, each behind its norm. Choose vpt or full"
        raise SettingError("setting.range", f"adaptformer: this backbone's blocks are {other}; {message}.")
    if budget is not None:
        sizes = {size: len(blocks) * (size * (2 * width + 1) + width) for size in range(1, 1025)}
        bottleneck = _adapters.of_budget("adaptformer", "bottleneck", backbone, budget, sizes)
    backbone.requires_grad_(False)
    device = next(backbone.parameters()).device
    for block in blocks:
        block.mlp = Beside(block.mlp, block.ls2, width, bottleneck, scale, dropout).to(device)
        block.ls2 = nn.Identity()
    backbone.train(backbone.training)  # what is new follows the mode of the rest
    return None


def remove(backbone: Backbone) -> None:
    """Take the branches out: the backbone is the pretrained one again, bit for bit."""
    blocks: Any = backbone.vit.blocks
    for block in blocks:
        block.mlp, block.ls2 = block.mlp.mlp, block.mlp.layer_scale

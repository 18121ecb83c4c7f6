"""Visual prompts: trained tokens beside the image's, at a frozen backbone's input or in each block (Jia 2022, arXiv 2203.12119).
[x, Z, E] ← block([x, P, E]), class token x, patches E. Deep: each block has its P, Z is dropped. Shallow: Z is the next one's P.

Stated by the authors' code (KMnP/vpt): prompts between the class token and the patches, after the positions; they start uniform
in ±√(6 / (3 · patch² + width)); their dropout differs from image to image. What is our choice: a model without class token
pools its patches and never its prompts; the defaults. Prompts do not start where the pretrained model stands: they change
embeddings before the first step already, and CKA and natural accuracy with them.
"""

from __future__ import annotations

import functools
import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from rift.methods import _adapters
from rift.methods._adapters import Budget
from rift.model import Backbone, Stages

CHANGES_BEFORE_TRAINING = True


class Prompts(nn.Module):
    """The prompts, and hooks that put them into a block's tokens and take them out again: outside the blocks no shape changes."""

    def __init__(self, blocks: int, count: int, width: int, prefix: int, bound: float, dropout: float):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(blocks, count, width).uniform_(-bound, bound))
        self.dropout, self.prefix = nn.Dropout(dropout), prefix
        self.handles: list[Any] = []
        self._carried: Tensor | None = None  # shallow: the prompts on their way from one block to the next

    def attach(self, blocks: nn.Sequential) -> None:
        """Hook every block."""
        for i, block in enumerate(blocks):
            self.handles.append(block.register_forward_pre_hook(functools.partial(self._insert, i)))
            self.handles.append(block.register_forward_hook(functools.partial(self._take, i + 1 == len(blocks))))

    def _insert(self, i: int, block: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        tokens = inputs[0]
        if i < len(self.tokens):
            prompts = self.dropout(self.tokens[i].expand(len(tokens), -1, -1))
        else:
            assert self._carried is not None
            prompts, self._carried = self._carried, None
        return torch.cat([tokens[:, : self.prefix], prompts, tokens[:, self.prefix :]], 1)

    def _take(self, last: bool, block: nn.Module, inputs: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
        end = self.prefix + self.tokens.shape[1]
        if len(self.tokens) == 1 and not last:
            self._carried = tokens[:, self.prefix : end]
        return torch.cat([tokens[:, : self.prefix], tokens[:, end:]], 1)


def adapt(
    backbone: Backbone,
    *,
    prompts: Annotated[int, Field(ge=1, le=200, description="prompts per block; not used where a budget is given")] = 10,
    deep: Annotated[bool, Field(description="own prompts in every block; else at the input only")] = True,
    dropout: Annotated[float, Field(ge=0, lt=1, description="share of the prompts' values dropped in training")] = 0.0,
    budget: Budget = None,
) -> Stages | None:
    """Add prompts to the tokens; they alone train, in one stage. Raises `setting.range` for a budget that no number meets."""
    vit: Any = backbone.vit
    blocks, width = len(vit.blocks) if deep else 1, vit.embed_dim
    if budget is not None:
        prompts = _adapters.of_budget("vpt", "prompts", backbone, budget, {n: n * blocks * width for n in range(1, 201)})
    bound = math.sqrt(6 / (3 * math.prod(vit.patch_embed.patch_size) + width))
    backbone.requires_grad_(False)
    added = Prompts(blocks, prompts, width, vit.num_prefix_tokens, bound, dropout)
    added.attach(vit.blocks)
    vit.prompts = added.to(next(backbone.parameters()).device)
    backbone.train(backbone.training)  # what is new follows the mode of the rest
    return None


def remove(backbone: Backbone) -> None:
    """Take the prompts out: the backbone is the pretrained one again, bit for bit."""
    vit: Any = backbone.vit
    for handle in vit.prompts.handles:
        handle.remove()
    del vit.prompts

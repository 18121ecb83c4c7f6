"""Last blocks: the last few transformer blocks and the norm after them train, everything before stays as it was pretrained.

The oldest compromise between a linear probe and full finetuning (Yosinski 2014, arXiv 1411.1792, trains a network from some layer
up). What comes after that norm, CLIP's projection and SigLIP's attention pooling, stays frozen too: our choice, so that the
method is the same thing in every family.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rift.errors import SettingError
from rift.model import Backbone, Stages


def adapt(
    backbone: Backbone,
    *,
    blocks: Annotated[int, Field(ge=1, le=64, description="how many blocks train, counted from the end")] = 2,
) -> Stages | None:
    """Let the last blocks and the norm after them train, in one stage; `setting.range` when there are fewer blocks."""
    if blocks > backbone.layers:
        raise SettingError("setting.range", f"last_blocks: blocks = {blocks}, but this backbone has {backbone.layers}.")
    backbone.requires_grad_(False)
    vit = backbone.vit
    for module in (*vit.blocks[-blocks:], vit.norm, vit.fc_norm):  # which norm is in use depends on the pooling
        module.requires_grad_(True)
    return None

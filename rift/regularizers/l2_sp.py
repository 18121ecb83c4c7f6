"""L2-SP: hold the weights themselves near the pretrained ones, the starting point, and never look at an image.
‖w_finetuned - w_pretrained‖² / ‖w_pretrained‖² over the parameters of the backbone that both models have and that train.
L2-SP of Li 2018 (arXiv 1802.01483), without its second term.

What the paper states: α / 2 ‖w - w⁰‖² over the pretrained part of the network, plus β / 2 ‖w‖² over the new head.

What is our choice: the division by the norm of the same parameters (of the whole pretrained backbone where theirs is 0, as for
biases that were never trained), so that one strength serves every backbone and a penalty of 1 is as far as deleting them; no
second term, since the head already has the weight decay of the optimizer, which is the same in all arms. AdamW's decay also
pulls the backbone towards 0 while this penalty pulls it back: set `weight_decay=0` for L2-SP alone.

It takes a far larger strength than the other penalties: a network computes something else long before its weights have moved by
a percent. The embedded model has ‖w_pretrained‖² = 10,285, so that the strength 1 is the paper's α = 0.0002, and was seen to hold
nothing; search from 100 to 10,000. The published code of LDIFS takes 0.5 ‖w - w⁰‖², here a strength of about 5,000.

An adapter has parameters of its own that start from nothing, and the pretrained ones that it leaves alone do not move: there
the penalty is 0. It cannot tell which change of the weights changes the function: weights that were turned inside the network and
leave every output as it was cost as much as others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rift.model import Backbone
from rift.regularizers._pairs import zero


def build(pretrained: Backbone, finetuned: Backbone, images: Any) -> nn.Module:
    """Return the penalty as a module; no image is embedded for it."""
    return StartingPoint(pretrained, finetuned)


class StartingPoint(nn.Module):
    """The relative squared distance of a backbone's weights from where they began.

    The anchors are detached copies: a clone that is part of the graph would move with the weights and give a gradient of
    exactly 0. They come from the pretrained model, so a checkpoint need not hold them.
    """

    needs_targets = False

    def __init__(self, pretrained: Backbone, finetuned: Backbone):
        super().__init__()
        before = dict(pretrained.named_parameters())
        shared = {name: p for name, p in finetuned.named_parameters() if name in before and p.requires_grad}
        self._weights = list(shared.values())  # a list, so that they stay the backbone's and are not trained twice
        for place, name in enumerate(shared):
            self.register_buffer(f"anchor{place}", before[name].detach().clone(), persistent=False)
        self.size = _squares(list(self.buffers())) or _squares(list(before.values()))

    def forward(self, embeddings: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the penalty `()`, at least 0, whatever the embeddings `(b, d)`; 0 without gradient where nothing is shared."""
        if not self._weights:
            return zero(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            moved = [(now - then).square().sum() for now, then in zip(self._weights, self.buffers(), strict=True)]
            return torch.stack(moved).sum() / self.size


def _squares(tensors: list[Tensor]) -> float:
    return sum(float(tensor.detach().double().square().sum()) for tensor in tensors)

"""Ordinary finetuning: no penalty, the baseline of every comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rift.model import Backbone


def build(pretrained: Backbone, finetuned: Backbone, images: Any) -> nn.Module:
    """Return a module whose penalty is 0 and has no gradient."""
    return Nothing()


class Nothing(nn.Module):
    """The penalty 0, connected to nothing: strength times it changes neither the loss nor a gradient."""

    needs_targets = False

    def forward(self, embeddings: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return 0 `()` whatever the embeddings `(b, d)`."""
        return torch.zeros((), device=embeddings.device)

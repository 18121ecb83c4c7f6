"""RSC: hold the similarity (linear CKA) of the finetuned and the pretrained embeddings of each mini-batch near 1.
1 - CKA = ½ ‖K̂_finetuned - K̂_pretrained‖²_F with K̂ = K / ‖K‖_F, K the centred b × b Gram matrix of the batch; in [0, 1].
The rival that the RIFT paper (arXiv 2503.07399) compares with; CKA is that of Kornblith 2019 (arXiv 1905.00414).

What the paper states, as far as its reviews show (its full text was not at hand): RSC is a baseline that uses "computationally
heavy pairwise similarity measures" and is "not clearly defined". That RSC stands for "representation similarity constraint" and
is this penalty is our inference.

What is our choice: the last embeddings only; the pretrained ones from the cache; the equation above, equal to one minus
Kornblith's ratio but without its cancellation near 1. `debiased=True` puts the U-centred Gram matrices of
HSIC_1 (Song 2012, Eq. 5; Székely and Rizzo 2014) in the place of the centred ones: the ratio of the biased form has a floor of
about d / (b + d) for unrelated embeddings, so that with fewer images than features its penalty has little room to move. It is
not the default because the plain form is what is known of RSC. The debiased penalty is in [0, 2] and takes 4 images.

CKA forgives any rotation, one common scale and a shift of the mean; it sees which image is which.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from rift.model import Backbone
from rift.regularizers._pairs import flat, pair, zero


def build(
    pretrained: Backbone,
    finetuned: Backbone,
    images: Any,
    *,
    debiased: Annotated[bool, Field(description="take the bias of few images out of the similarity")] = False,
) -> nn.Module:
    """Return the penalty as a module; it needs nothing but the batch and its targets."""
    return Similarity(debiased)


class Similarity(nn.Module):
    """One minus the linear CKA of a mini-batch; it has no state."""

    needs_targets = True

    def __init__(self, debiased: bool):
        super().__init__()
        self.debiased = debiased

    def forward(self, embeddings: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the penalty `()` of embeddings and targets `(b, d)`, in [0, 1], debiased in [0, 2].

        It is 0 where the targets have no similarity to hold (too few images, or all alike) and 1, without gradient, where
        the embeddings have lost it by becoming all alike.
        """
        embeddings, targets = pair(embeddings, targets)
        if len(embeddings) < (4 if self.debiased else 2):
            return zero(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            before = _gram(targets, self.debiased)
            if before is None:
                return zero(embeddings)
            after = _gram(embeddings, self.debiased)
            return zero(embeddings) + 1 if after is None else (after - before).square().sum() / 2


def _gram(embeddings: Tensor, debiased: bool) -> Tensor | None:
    """Return the centred Gram matrix `(b, b)` of `(b, d)`, of norm 1; None where no image differs from another."""
    mean = embeddings.mean(0)
    centred = embeddings - mean
    if flat(centred.square().sum() / (len(embeddings) - 1), mean):
        return None
    centred = centred / centred.norm()
    gram = centred @ centred.T
    if not debiased:
        return gram / gram.norm()
    gram, whole = _u_centred(gram), gram.detach().norm()
    size = gram.norm()
    return None if size < 1e-6 * whole else gram / size  # each image in a direction of its own: nothing is left


def _u_centred(gram: Tensor) -> Tensor:
    """Return the U-centred matrix of Székely and Rizzo 2014: its inner products are those of Song's HSIC_1, times b (b - 3)."""
    b = len(gram)
    off = ~torch.eye(b, dtype=torch.bool, device=gram.device)
    rows = (gram * off).sum(1)
    return (gram - (rows[:, None] + rows) / (b - 2) + rows.sum() / ((b - 1) * (b - 2))) * off

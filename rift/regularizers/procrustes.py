"""Procrustes: hold each finetuned embedding near the pretrained one of the same image, after the best rotation of all.
min over orthogonal Q of ‖X_pretrained Q - X_finetuned‖²_F / ‖X_pretrained‖²_F on the mini-batch, X the centred embeddings.
Closed form of Schönemann 1966 (Psychometrika 31:1): Q = U Wᵀ of the SVD U S Wᵀ of X_pretrainedᵀ X_finetuned.

The orthogonal Procrustes problem is Schönemann's, as a distance between representations it is in Ding 2021 (arXiv 2108.01661)
and Williams 2021 (arXiv 2110.14739). That it should be a penalty, on centred embeddings, relative to the pretrained spread and
without a scale, is our choice: it is what remains of the L2 distance when a rotation, which no trained head notices, is forgiven.

The gradient is 2 (X_finetuned - X_pretrained Q) / ‖X_pretrained‖² with Q held: exact where the best rotation is unique in its
effect (envelope theorem), and that of one of several equally good rotations elsewhere. So the derivative of the SVD, infinite
where singular values meet or vanish, is never taken. The SVD is of at most b × b, after a QR of both sides: its cost grows with
the batch, not with d³.

Limits: with fewer images than features a rotation can hide much: unrelated Gaussian batches of 64 in 256 dimensions are .94
alike after it. The penalty sees a common scale and which image is which; it forgives rotations, reflections and the mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rift.model import Backbone
from rift.regularizers._pairs import flat, pair, zero


def build(pretrained: Backbone, finetuned: Backbone, images: Any) -> nn.Module:
    """Return the penalty as a module; it needs nothing but the batch and its targets."""
    return Procrustes()


class Procrustes(nn.Module):
    """What one rotation of a mini-batch leaves unexplained, relative to its pretrained spread; it has no state."""

    needs_targets = True

    def forward(self, embeddings: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the penalty `()` of embeddings and targets `(b, d)`, at least 0; 0 where fewer than 2 targets differ.

        Embeddings that are all alike cost 1, those of another scale s cost (s - 1)².
        """
        embeddings, targets = pair(embeddings, targets)
        if len(embeddings) < 2:
            return zero(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            mean = targets.mean(0)
            before, after = targets - mean, embeddings - embeddings.mean(0)
            size = before.square().sum()
            if flat(size / (len(before) - 1), mean):
                return zero(embeddings)
            return (after - _turned(before, after.detach())).square().sum() / size


def _turned(before: Tensor, after: Tensor) -> Tensor:
    """Return `before` `(b, d)` under the rotation that brings it nearest to `after` `(b, d)`.

    With X = R Pᵀ of either side (P orthonormal, from the QR of Xᵀ) the SVD of the small R_before R_afterᵀ has the rotation.
    """
    if not after.isfinite().all() or not (after.norm() * before.norm()).isfinite():
        return after * torch.nan  # a diverged run: hand on the nan instead of failing in the SVD
    (_, left), (onto, right) = (torch.linalg.qr(side.T) for side in (before, after))
    u, _, wt = torch.linalg.svd(left @ right.T)
    return left.T @ u @ wt @ onto.T

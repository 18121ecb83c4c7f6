"""What the penalties share: pairs of embeddings in float32, their moments, and when there is nothing to compare."""

from __future__ import annotations

import torch
from torch import Tensor

from rift.model import wide


def pair(embeddings: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return both `(b, d)` in float32, or wider, the targets without gradient; ValueError where there are no targets."""
    if targets is None:
        raise ValueError("this penalty compares with targets: the pretrained embeddings (b, d) of the same views")
    embeddings = wide(embeddings)
    return embeddings, targets.detach().to(embeddings.dtype)


def zero(embeddings: Tensor) -> Tensor:
    """Return the penalty 0 `()` without gradient, for a batch that has nothing to compare."""
    return torch.zeros((), device=embeddings.device)


def covariance_of(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return the covariance `(d, d)`, with 1 / (n - 1), and the mean `(d,)` of `(n, d)`."""
    mean = embeddings.mean(0)
    centred = embeddings - mean
    return centred.T @ centred / (len(embeddings) - 1), mean


def moments(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return covariance and mean of all views `(views, n, d)` taken together, accumulated in float64."""
    rows = embeddings.detach().flatten(0, -2)
    mean = rows.mean(0, dtype=torch.float64)
    scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=rows.device)
    for some in rows.split(8192):  # a float64 copy of all views could be larger than they are
        centred = some.double() - mean
        scatter += centred.T @ centred
    return scatter / (len(rows) - 1), mean


def variances(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variance of each feature and the mean, both `(d,)`, as `moments` does but without the `(d, d)` between."""
    rows = embeddings.detach().flatten(0, -2)
    mean = rows.mean(0, dtype=torch.float64)
    squares = torch.stack([(some.double() - mean).square().sum(0) for some in rows.split(8192)]).sum(0)
    return squares / (len(rows) - 1), mean


def flat(spread: Tensor, mean: Tensor) -> bool:
    """Tell whether embeddings with a total variance `()` and a mean `(d,)` differ by no more than the rounding of float32."""
    return bool(spread.isfinite() & (spread <= 1e-12 * mean.square().sum()))

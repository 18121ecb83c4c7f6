"""Muon: momentum whose matrices are made nearly orthogonal before each step (Jordan 2024, kellerjordan.github.io/posts/muon).

A short training gains most: every direction of a matrix moves equally far, not only those of large gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized; for matrices and, flattened to (out, rest), convolutions. Weight decay is decoupled.

    A step has the root mean square that AdamW's has (0.2 times the learning rate: Liu 2025, arXiv 2502.16982).
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        map_: Callable[..., Iterable[None]] = map,
    ):
        """`map_` may be that of a pool, so that several threads share the parameters among them."""
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._map = map_

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        moved = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        list(self._map(self._move, *zip(*moved, strict=True)))

    @torch.no_grad()
    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        update = orthogonal(parameter.grad.lerp(momentum, group["momentum"]).flatten(1))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.view_as(parameter), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return a matrix `(m, n)` with the same singular vectors and singular values near 1 (0.7 to 1.2), by Newton and Schulz."""
    x = matrix.bfloat16() if matrix.shape[0] <= matrix.shape[1] else matrix.T.bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x if matrix.shape[0] <= matrix.shape[1] else x.T).to(matrix.dtype)

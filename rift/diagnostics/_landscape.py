"""The task loss of fixed images as a function of some of a model's parameters: its gradient, its curvature, ways through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from rift.captures import Data
from rift.errors import RunError
from rift.model import Classifier, to_float

BATCH = 16  # images at a time: second derivatives hold several times what training holds
DETACHED = "lora_magnitude_vector"  # of DoRA, which takes the norms beside it as constants when it takes gradients
FEWEST = 3  # Lanczos steps before its residual is believed: an early one may be small beside another eigenvalue


@dataclass(frozen=True, eq=False)
class Landscape:
    """The loss over n images at any value of the chosen parameters, all of them one vector `(d,)`; the model stays as it is."""

    module: nn.Module
    names: tuple[str, ...]  # of the chosen parameters in the module
    shapes: tuple[torch.Size, ...]
    center: Tensor  # (d,), where the run ended
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]  # inputs of the module and their labels, BATCH at a time
    loss: Callable[[Tensor, Tensor], Tensor]
    n: int

    def parts(self, vector: Tensor) -> list[Tensor]:
        """Return views of a vector `(d,)` in the shapes of the parameters."""
        pieces = vector.split([shape.numel() for shape in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def _each(self, at: Tensor) -> Iterator[Tensor]:
        """Yield the loss of every image of a batch `(b,)`; their mean is the task's loss, a mean over images."""
        values = dict(zip(self.names, self.parts(at), strict=True))
        for inputs, labels in self.batches():
            found = functional_call(self.module, values, (inputs,))
            outputs = found[1] if isinstance(found, tuple) else found
            yield torch.stack([self.loss(outputs[i : i + 1], labels[i : i + 1]) for i in range(len(outputs))])

    def losses(self, at: Tensor) -> np.ndarray:
        """Return the loss of every image `(n,)` with these parameters."""
        with torch.no_grad():
            return np.concatenate([each.double().cpu().numpy() for each in self._each(at)])

    def gradient(self, at: Tensor) -> tuple[np.ndarray, Tensor]:
        """Return the loss of every image `(n,)` and the gradient `(d,)` of their mean."""
        leaf, total, losses = at.detach().requires_grad_(), torch.zeros_like(at), []
        for each in self._each(leaf):
            total += torch.autograd.grad(each.sum() / self.n, leaf)[0]
            losses.append(each.detach().double().cpu().numpy())
        return np.concatenate(losses), total

    def hessian_times(self, vector: Tensor) -> Tensor:
        """Return the product `(d,)` of the Hessian at the center and a vector, by differentiating twice.

        Fused attention kernels have no second derivative, so attention is taken step by step here.
        """
        leaf, total = self.center.detach().requires_grad_(), torch.zeros_like(vector)
        with sdpa_kernel(SDPBackend.MATH):
            for each in self._each(leaf):
                first = torch.autograd.grad(each.sum() / self.n, leaf, create_graph=True)[0]
                if first.requires_grad:  # not of a loss that is linear in the parameters
                    total += torch.autograd.grad(first @ vector, leaf)[0]
        return total


def landscape(model: Classifier, names: Sequence[str], data: Data, chosen: np.ndarray) -> Landscape:
    """Return the loss over the chosen training images as a function of these parameters of the model.

    Where all of them belong to the head, what reaches the head is computed once. RunError `run.missing` without a task.
    """
    if data.task is None:
        raise RunError("run.missing", "sharpness needs the loss that the run was trained with, and this run names no task.")
    pixels, device, task = data.train.pixels[chosen], data.device, data.task
    labels = torch.from_numpy(np.ascontiguousarray(data.train.labels[chosen])).to(device)
    starts = range(0, len(chosen), BATCH)

    def images(start: int) -> Tensor:
        return to_float(torch.from_numpy(np.ascontiguousarray(pixels[start : start + BATCH])).to(device))

    def truth(start: int) -> Tensor:
        return task.targets(images(start), labels[start : start + BATCH])

    module: nn.Module = model
    inputs: Callable[[int], Tensor] = images
    if all(name.startswith("head.") for name in names):
        module, names = model.head, [name.removeprefix("head.") for name in names]
        reached = {start: _reaching_head(model, images(start)) for start in starts}
        inputs = reached.__getitem__
    parameters = dict(module.named_parameters())
    return Landscape(
        module=module,
        names=tuple(names),
        shapes=tuple(parameters[name].shape for name in names),
        center=torch.cat([parameters[name].detach().reshape(-1) for name in names]),
        batches=lambda: ((inputs(start), truth(start)) for start in starts),
        loss=task.loss,
        n=len(chosen),
    )


def _reaching_head(model: Classifier, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda head, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0]


def norm(vector: Tensor) -> float:
    """Return the L2 norm, summed in float64."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def unit(vector: Tensor) -> Tensor:
    """Return the vector at length 1; one of zeros stays."""
    length = norm(vector)
    return vector / length if length else vector


def ascend(
    land: Landscape, toward: Tensor, radius: float, *, steps: int, step_size: float, tick: Callable[[], None] = lambda: None
) -> dict[str, np.ndarray]:
    """Return the losses `(n,)` one step of `radius` toward a unit vector, and the highest on a climb on from there in the ball.

    Each of `steps` goes `step_size` · radius up the gradient and is put back into the ball where it left it. The best iterate by
    the mean loss is kept; the climb ends early where a loss is not finite.
    """
    shift = radius * toward
    visited = []
    for step in range(steps + 1):
        if step < steps:
            losses, up = land.gradient(land.center + shift)
            shift = shift + step_size * radius * unit(up)
            shift = shift * min(1.0, radius / max(norm(shift), 1e-300))
        else:
            losses = land.losses(land.center + shift)
        visited.append(losses)
        tick()
        if not np.isfinite(losses).all():
            break
    finite = [losses for losses in visited if np.isfinite(losses).all()]
    return {"one_step": visited[0], "several_steps": max(finite, key=np.mean, default=visited[0])}


def lanczos(
    land: Landscape, start: Tensor, *, iterations: int, tolerance: float, tick: Callable[[], None] = lambda: None
) -> dict[str, np.ndarray]:
    """Return after each product with the Hessian the largest Ritz value and its residual, each `(k,)`.

    `ritz` is a lower bound of the largest eigenvalue, and an eigenvalue lies within `residual` of it. It stops when
    residual <= tolerance · |ritz|, from FEWEST steps on. Three vectors are held and not made orthogonal anew: that repeats
    eigenvalues, but leaves the largest (Paige 1980). Empty for DoRA, whose second derivatives are not its loss's.
    """
    if any(DETACHED in name for name in land.names):
        iterations = 0
    v, before = unit(start), torch.zeros_like(start)
    diagonal: list[float] = []
    beside: list[float] = []
    found: dict[str, list[float]] = {"ritz": [], "residual": []}
    for step in range(iterations):
        w = land.hessian_times(v)
        length = beside[-1] if beside else 0.0
        diagonal.append(float(w @ v))
        w = w - diagonal[-1] * v - length * before
        beside.append(norm(w))
        tick()
        if not np.isfinite([diagonal[-1], beside[-1]]).all():
            found["ritz"].append(np.nan)
            found["residual"].append(np.nan)
            break
        values, vectors = eigh_tridiagonal(np.array(diagonal), np.array(beside[:-1]))
        found["ritz"].append(float(values[-1]))
        found["residual"].append(beside[-1] * abs(float(vectors[-1, -1])))
        few = step + 1 < min(FEWEST, len(start))
        if beside[-1] == 0 or (not few and found["residual"][-1] <= tolerance * abs(found["ritz"][-1])):
            break
        before, v = v, w / beside[-1]
    return {key: np.array(values) for key, values in found.items()}


def gaussian(land: Landscape, seed: int) -> Tensor:
    """Return a random direction `(d,)` of length 1."""
    return unit(torch.randn(len(land.center), generator=torch.Generator().manual_seed(seed)).to(land.center))


def random_direction(land: Landscape, seed: int) -> Tensor:
    """Return a Gaussian direction `(d,)` in which every filter has the norm that it has in the parameters (Li 2018, section 4).

    A filter is what one place of a tensor's first axis holds, a row of a linear layer; a tensor of one axis is one filter (our
    choice: the paper's code leaves biases and norms alone). So the whole direction is as long as the parameters are.
    """
    pieces = []
    for noise, value in zip(land.parts(gaussian(land, seed)), land.parts(land.center), strict=True):
        rows, sizes = (one.flatten(1) if one.ndim > 1 else one.reshape(1, -1) for one in (noise, value))
        lengths = rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        pieces.append((rows * (sizes.norm(dim=1, keepdim=True) / lengths)).reshape(-1))
    return torch.cat(pieces)

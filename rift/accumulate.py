"""One step in parts, where a whole batch does not fit in memory: the gradient is still that of the whole batch, penalty included.

Plain accumulation would add up penalties of small batches, and a covariance or a similarity of 8 images is not that of 32: the
penalty would become another one. So each part runs twice (GradCache, Gao 2021, arXiv 2101.06983): first without gradient, to have
the outputs of the whole batch; from these come the task loss and the penalty as defined, and their gradients with respect to the
outputs; then again, part by part, to carry these gradients to the weights. Only rounding differs, and a step takes a third more
time. Dropout draws the same noise both times. A penalty that looks inside the model while it runs (`blocks`) sees one part at a
time: it is averaged over the parts, which is the same number where it is a mean over images, and is said where it is not.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rift.errors import RunError

MOST_PARTS = 8  # three halvings

Forward = Callable[[np.ndarray], tuple[Tensor, Tensor]]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    cpu = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or cpu


def halve(state: Any, batch_size: int, images: int) -> None:
    """Let a training's `state` work through a batch in twice as many parts; `run.memory` where that was done three times.

    `images` is how many of a batch are this device's.
    """
    state.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    state.parts *= 2
    if state.parts > min(MOST_PARTS, images):
        tried = f", even in {state.parts // 2} parts" if state.parts > 2 else ""
        what = f"batches of {batch_size} images{tried}"
        raise RunError("run.memory", f"The device has too little memory for {what}; try a smaller batch_size.")
    state.halvings.append({"step": state.step + 1, "parts": state.parts, "images_at_once": math.ceil(images / state.parts)})


def exact(regularizer: nn.Module) -> bool:
    """Whether a penalty has the same value when its batch is worked through in parts."""
    return not getattr(regularizer, "blocks", ()) or bool(getattr(regularizer, "mean_over_images", False))


def backward(
    ids: np.ndarray,
    parts: int,
    forward: Forward,
    task_loss: Callable[[Tensor], Tensor],
    penalty: Callable[[Tensor, np.ndarray], Tensor],
    weight: float,
    inside: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add the gradient of `task_loss + weight * penalty` of a batch to the weights; returns outputs, task loss and penalty.

    `forward(ids)` gives embeddings and outputs of some of the batch's images `ids` `(b,)`; `inside` says that the penalty reads
    what the model did in its last pass, and so must be asked right after each.
    """
    pieces = np.array_split(ids, parts)
    noise: list[list[Tensor]] = []
    with torch.no_grad():
        found = []
        for piece in pieces:
            noise.append(_noise())
            found.append(forward(piece))
    embeddings, outputs = (torch.cat(one).requires_grad_() for one in zip(*found, strict=True))
    del found
    loss = task_loss(outputs)
    whole = loss.new_zeros(()) if inside else penalty(embeddings, ids)
    (loss + weight * whole if weight and not inside else loss).backward()
    gradients = [None if one.grad is None else one.grad.split(list(map(len, pieces))) for one in (embeddings, outputs)]
    for place, piece in enumerate(pieces):
        _set_noise(noise[place])
        passed = forward(piece)
        pairs = [(one, grads[place]) for one, grads in zip(passed, gradients, strict=True) if grads and one.requires_grad]
        if inside:
            own = penalty(passed[0], piece) * (len(piece) / len(ids))
            whole = whole + own.detach()
            if weight and own.requires_grad:
                pairs.append((weight * own, torch.ones_like(own)))
        if pairs:
            torch.autograd.backward([one for one, _ in pairs], [gradient for _, gradient in pairs])
    return outputs.detach(), loss.detach(), whole.detach()


def _noise() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def _set_noise(states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(list(states[1:]))


class Attempt:
    """What a step may have changed before memory ran out: the generators, and averages that a penalty keeps."""

    def __init__(self, regularizer: nn.Module):
        self.regularizer, self.noise = regularizer, _noise()
        names = set(regularizer.state_dict(keep_vars=True)) - {name for name, _ in regularizer.named_parameters()}
        self.averages = {name: buffer.clone() for name, buffer in regularizer.named_buffers() if name in names}

    @torch.no_grad()
    def undo(self) -> None:
        """Put it back, so that the step can be tried again as if it had not been."""
        _set_noise(self.noise)
        for name, buffer in self.regularizer.named_buffers():
            if name in self.averages:
                buffer.copy_(self.averages[name])
        if hasattr(self.regularizer, "_seen"):
            self.regularizer._seen.clear()  # type: ignore[operator, union-attr]


def sentence(about: dict[str, Any]) -> str:
    """Say what was done about too little memory, and what it means for the numbers; `about` as a run's result keeps it."""
    first, parts, batch = about["halvings"][0]["step"], about["parts"], about["batch_size"]
    if parts == 1:
        return ""
    how = (
        "the loss and the penalty are still those of the whole batch (each part is computed twice), so that only rounding differs"
        if about["exact"]
        else "the loss is still that of the whole batch, but the penalty is the mean over the parts, which is another number"
    )
    return f"Memory ran out at step {first}: batches of {batch} images were worked through in {parts} parts from there on; {how}."

"""The image tower's recipe: learn a ViT-tiny's embeddings of small photos, its softmax and the names that people gave them.

Small photos first, since they cost least; matrices move by Muon, so that few epochs suffice. Everything here is our choice.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from rift.backbones import _image_tower
from rift.pretrain.lessons import Lessons
from rift.pretrain.muon import Muon
from rift.pretrain.photos import Log, blur, crop, to_float


def distill(
    lessons: Lessons,
    *,
    cycles: Sequence[Sequence[tuple[int, ...]]],
    checkpoint: Path,
    device: str = "cpu",
    lanes: int = 0,
    seed: int = 0,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
    log: Log = print,
    check: Callable[[nn.Module, int], float] | None = None,
) -> VisionTransformer:
    """Train the image tower in cycles of stages (epochs, pixels), growing images being the cheapest speed-up; resumes by epoch.

    In each cycle the learning rate rises anew and falls to nothing, from a peak half as high as that of the cycle before.
    On a CPU each of the `lanes` (0: up to four cores) takes its share of a batch on one thread: faster than many threads for
    every operation, and hardly slowed where other programs share the cores. Only one lane gives the same bits every time.
    """
    lanes = 1 if device != "cpu" else lanes or min(4, os.cpu_count() or 1)
    torch.manual_seed(seed)
    tower = _image_tower.image_tower(norm=True).to(device)
    scale = nn.Parameter(torch.tensor(math.log(16.0), device=device))
    sizes = [size for stages in cycles for epochs, size in stages for _ in range(epochs)]
    lessons, photos = lessons.to(device), torch.arange(len(lessons.pixels)).repeat_interleave(lessons.repeats)
    per_epoch = max(1, len(photos) // batch_size)
    rates = [rate for i, stages in enumerate(cycles) for rate in _cycle(per_epoch * sum(epochs for epochs, _ in stages), 0.5**i)]
    with _threads(lanes, device) as pool:
        optimizers = _optimizers(tower, scale, learning_rate, pool)
        for epoch in range(_resume(checkpoint, tower, optimizers, scale), len(sizes)):
            generators = [torch.Generator().manual_seed(seed * 100_000 + epoch * 100 + lane) for lane in range(lanes)]
            order = photos[torch.randperm(len(photos), generator=generators[0])].to(device)
            tower.train()
            began, running = time.perf_counter(), torch.zeros((), device=device)
            for step in range(per_epoch):
                parts = order[step * batch_size : (step + 1) * batch_size].chunk(lanes)
                learn = functools.partial(_gradients, tower, scale, lessons, sizes[epoch])
                loss, cosine = _step(
                    tower, scale, optimizers, list(pool.map(learn, parts, generators)), rates[epoch * per_epoch + step]
                )
                running += loss
            speed = per_epoch * batch_size / (time.perf_counter() - began)
            note = f", validation {check(tower.eval(), sizes[epoch]):.3f}" if check else ""
            head = f"epoch {epoch + 1}/{len(sizes)} at {sizes[epoch]} px"
            log(f"{head}: loss {float(running) / per_epoch:.3f}, cosine {float(cosine):.3f}, {speed:.0f} images/s{note}")
            _keep(checkpoint, tower, optimizers, scale, epoch + 1)
    return tower.cpu().eval()


def _cycle(steps: int, peak: float) -> list[float]:
    """Return every step's share of the learning rate: up for a thirtieth of the steps, then down in a line to nothing."""
    warmup = max(1, steps // 30)
    return [peak * min((step + 1) / warmup, 1 - step / steps) for step in range(steps)]


@contextlib.contextmanager
def _threads(lanes: int, device: str) -> Iterator[ThreadPoolExecutor]:
    """Give a pool whose threads do not divide their operations further, on a CPU, nor does this one meanwhile."""
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    # plain matrices on a CPU: torch's fused attention makes a block 1.4 times as slow there in bf16
    attention = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else contextlib.nullcontext()
    try:
        with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as pool, attention:
            yield pool
    finally:
        torch.set_num_threads(before)


def _gradients(
    tower: nn.Module, scale: nn.Parameter, lessons: Lessons, size: int, ids: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return loss, cosine and the gradients of the tower's parameters and of the scale for the photos `ids`."""
    images = crop(blur(to_float(lessons.pixels[ids]), generator), size, generator)
    # without its cache, which all threads would share
    with torch.autocast(images.device.type, torch.bfloat16, cache_enabled=False):
        embeddings = tower(images.contiguous(memory_format=torch.channels_last))
    loss, cosine = lessons.loss(ids, embeddings, scale)
    return loss.detach(), cosine, torch.autograd.grad(loss, [*tower.parameters(), scale])


def _step(
    tower: nn.Module,
    scale: nn.Parameter,
    optimizers: list[torch.optim.Optimizer],
    found: list[tuple[Tensor, Tensor, tuple[Tensor, ...]]],
    rate: float,
) -> tuple[Tensor, Tensor]:
    """Step along the mean gradient of the lanes, at the share `rate` of the highest learning rate; return loss and cosine."""
    losses, cosines, gradients = zip(*found, strict=True)
    for parameter, *parts in zip([*tower.parameters(), scale], *gradients, strict=True):
        parameter.grad = torch.stack(parts).mean(0) if len(parts) > 1 else parts[0]
    nn.utils.clip_grad_norm_(tower.parameters(), 1.0, error_if_nonfinite=True)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        optimizer.step()
    return torch.stack(losses).mean(), torch.stack(cosines).mean()


def _optimizers(
    tower: nn.Module, scale: nn.Parameter, learning_rate: float, pool: ThreadPoolExecutor
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices and convolutions, AdamW for the rest; each group keeps its highest learning rate as `peak`."""
    first = [p for name, p in tower.named_parameters() if name in ("pos_embed", "patch_embed.proj.0.convolution.weight")]
    matrices = [p for p in tower.parameters() if p.ndim > 1 and not any(p is q for q in first)]
    plain = [p for p in tower.parameters() if p.ndim <= 1] + first + [scale]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, learning_rate, weight_decay=0.05, map_=pool.map),
        torch.optim.AdamW(plain, lr=learning_rate / 5, weight_decay=0.0, fused=True),
    ]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak"] = group["lr"]
    return optimizers


def _keep(path: Path, tower: nn.Module, optimizers: list[torch.optim.Optimizer], scale: nn.Parameter, epoch: int) -> None:
    states = [optimizer.state_dict() for optimizer in optimizers]
    partial = path.with_suffix(".part")
    torch.save({"tower": tower.state_dict(), "optimizers": states, "scale": scale.data, "epoch": epoch}, partial)
    partial.replace(path)


def _resume(path: Path, tower: nn.Module, optimizers: list[torch.optim.Optimizer], scale: nn.Parameter) -> int:
    """Load the checkpoint where there is one and return the number of finished epochs."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location=scale.device)
    tower.load_state_dict(state["tower"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    scale.data = state["scale"]
    return int(state["epoch"])


@torch.inference_mode()
def accuracy(tower: nn.Module, pixels: np.ndarray, labels: np.ndarray, rows: Tensor, size: int = 64) -> float:
    """Return the share of photos, resized to `size` px, whose nearest row `(k, d)` by cosine is their own label's, in [0, 1]."""
    hits, device = 0, next(tower.parameters()).device
    for start in range(0, len(pixels), 250):
        images = to_float(pixels[start : start + 250]).to(device)
        if size != images.shape[-1]:
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
        scores = F.normalize(tower(images).float(), dim=1) @ rows.to(device).T
        hits += int((scores.argmax(1).cpu().numpy() == labels[start : start + 250]).sum())
    return hits / len(pixels)

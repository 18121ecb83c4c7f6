"""The image tower's recipe: learn a ViT-tiny's embeddings of 64 px photos, its softmax and the labels.

The teacher is timm's `vit_tiny_patch16_224.augreg_in21k_ft_in1k`. The image tower learns its embeddings of
64 px photos; the text tower learns the L2-normalized rows of its classifier for the names of the 1000
classes. Both therefore meet in the teacher's own 192-dimensional space. Everything here is our choice.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from rift.backbones import embedded

TEACHER = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
TEACHER_PIXELS = 160  # 64 px photos enlarged to this size; the teacher gains nothing beyond it and costs twice as much at 224
Log = Callable[[str], None]


def read_pack(path: Path, log: Log = print) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode a pack of encoded photos into pixels `(n, 64, 64, 3)` uint8, labels `(n,)` and the wnids `(k,)` of the labels."""
    pack = np.load(path, allow_pickle=False)
    data, offsets, labels = pack["data"], pack["offsets"], pack["labels"].astype(np.int64)
    pixels = np.empty((len(labels), 64, 64, 3), np.uint8)
    for i in range(len(labels)):
        with Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]].tobytes())) as image:
            pixels[i] = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC))
    log(f"{path.name}: {len(labels)} photos decoded")
    return pixels, labels, pack["wnids"] if "wnids" in pack else pack["class_names"]


def load_teacher(weights: Path | None) -> VisionTransformer:
    """Return the frozen teacher, from a local safetensors file or, with a network, from timm."""
    options: dict[str, Any] = {"checkpoint_path": str(weights)} if weights else {"pretrained": True}
    teacher: Any = timm.create_model(TEACHER, **options)
    teacher.set_input_size(img_size=TEACHER_PIXELS)  # afterwards: timm resamples positions of a file only here
    return teacher.eval().requires_grad_(False)


@torch.inference_mode()
def teach(teacher: VisionTransformer, pixels: np.ndarray, log: Log = print) -> Tensor:
    """Return the teacher's embeddings `(n, 192)` (float16) of whole photos; its logits follow from them by its own head."""
    out = torch.empty(len(pixels), teacher.num_features, dtype=torch.float16)
    for start in range(0, len(pixels), 128):
        images = to_float(pixels[start : start + 128])
        images = F.interpolate(images, TEACHER_PIXELS, mode="bicubic", antialias=True).clamp(-1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = teacher.forward_features(images)
        out[start : start + 128] = teacher.forward_head(tokens.float(), pre_logits=True).half()
        if start % 12800 == 0:
            log(f"teacher: {start} of {len(pixels)}")
    return out


def to_float(pixels: np.ndarray | Tensor) -> Tensor:
    """Turn `(n, s, s, 3)` uint8 into `(n, 3, s, s)` float in [-1, 1], the range that the teacher was trained on."""
    return torch.as_tensor(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def crop(images: Tensor, size: int, generator: torch.Generator, smallest: float = 0.65) -> Tensor:
    """Cut a random 65 to 100 % of each image's area, flip half of them, and resize to `size` px.

    Smaller crops teach badly here, since the cached targets are of whole images.
    """
    n = len(images)
    side = torch.empty(n).uniform_(smallest, 1.0, generator=generator).sqrt()
    flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    shift = (torch.rand(n, 2, generator=generator) * 2 - 1) * (1 - side)[:, None]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = side * flip, side, shift
    grid = F.affine_grid(theta, [n, 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@dataclass(frozen=True)
class Lessons:
    """What the image tower learns from: n photos and what the teacher says of them."""

    pixels: np.ndarray  # (n, 64, 64, 3) uint8
    labels: Tensor  # (n,)
    targets: Tensor  # (n, 192), the teacher's embeddings
    logits: Tensor  # (n, 1000), the teacher's
    rows: Tensor  # (1000, 192), its normalized classifier rows
    seen: Tensor  # (k,), the row of each label

    def loss(self, ids: np.ndarray, embeddings: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return 4 (1 - cosine to the teacher) + cross-entropy to its softmax + cross-entropy to the labels, and the cosine."""
        embeddings = F.normalize(embeddings.float(), dim=1)
        cosine = (embeddings * F.normalize(self.targets[ids].float(), dim=1)).sum(1).mean()
        logits = scale.clamp(max=math.log(60.0)).exp() * embeddings @ self.rows.T
        soft = F.cross_entropy(logits, self.logits[ids].float().softmax(1))
        hard = F.cross_entropy(logits[:, self.seen], self.labels[ids], label_smoothing=0.05)
        return 4 * (1 - cosine) + soft + hard, cosine.detach()


def distill(
    lessons: Lessons,
    *,
    stages: list[tuple[int, int]],
    checkpoint: Path,
    seed: int = 0,
    batch_size: int = 128,
    learning_rate: float = 1.5e-3,
    log: Log = print,
    check: Callable[[nn.Module], float] | None = None,
) -> VisionTransformer:
    """Train the image tower in stages of (epochs, pixels), growing images being the cheapest speed-up; resumes by epoch."""
    torch.manual_seed(seed)
    tower, scale = embedded.image_tower(norm=True), nn.Parameter(torch.tensor(math.log(16.0)))
    optimizer = _optimizer(tower, scale, learning_rate)
    sizes = [size for epochs, size in stages for _ in range(epochs)]
    per_epoch, warmup = len(lessons.pixels) // batch_size, 400
    for epoch in range(_resume(checkpoint, tower, optimizer, scale), len(sizes)):
        generator = torch.Generator().manual_seed(seed * 1000 + epoch)
        order = torch.randperm(len(lessons.pixels), generator=generator).numpy()
        tower.train()
        began, running = time.perf_counter(), 0.0
        for step in range(per_epoch):
            now = epoch * per_epoch + step
            rate = min((now + 1) / warmup, 0.5 * (1 + math.cos(math.pi * now / (per_epoch * len(sizes)))))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * rate
            ids = order[step * batch_size : (step + 1) * batch_size]
            images = crop(to_float(lessons.pixels[ids]), sizes[epoch], generator)
            with torch.autocast("cpu", torch.bfloat16):
                embeddings = tower(images.contiguous(memory_format=torch.channels_last))
            loss, cosine = lessons.loss(ids, embeddings, scale)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(tower.parameters(), 1.0, error_if_nonfinite=True)
            optimizer.step()
            running += float(loss.detach())
        speed = per_epoch * batch_size / (time.perf_counter() - began)
        note = f", validation {check(tower.eval()):.3f}" if check else ""
        head = f"epoch {epoch + 1}/{len(sizes)} at {sizes[epoch]} px"
        log(f"{head}: loss {running / per_epoch:.3f}, cosine {cosine:.3f}, {speed:.0f} images/s{note}")
        _keep(checkpoint, tower, optimizer, scale, epoch + 1)
    return tower.eval()


def _optimizer(tower: nn.Module, scale: nn.Parameter, learning_rate: float) -> torch.optim.Optimizer:
    decayed = [p for p in tower.parameters() if p.ndim > 1]
    plain = [p for p in tower.parameters() if p.ndim <= 1] + [scale]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def _keep(path: Path, tower: nn.Module, optimizer: torch.optim.Optimizer, scale: nn.Parameter, epoch: int) -> None:
    state = {"tower": tower.state_dict(), "optimizer": optimizer.state_dict(), "scale": scale.data, "epoch": epoch}
    partial = path.with_suffix(".part")
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path, tower: nn.Module, optimizer: torch.optim.Optimizer, scale: nn.Parameter) -> int:
    """Load the checkpoint where there is one and return the number of finished epochs."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    tower.load_state_dict(state["tower"])
    optimizer.load_state_dict(state["optimizer"])
    scale.data = state["scale"]
    return int(state["epoch"])


@torch.inference_mode()
def accuracy(tower: nn.Module, pixels: np.ndarray, labels: np.ndarray, rows: Tensor, size: int = 64) -> float:
    """Return the share of photos whose nearest row `(k, d)` by cosine is their own label's, in [0, 1]."""
    hits = 0
    for start in range(0, len(pixels), 250):
        images = to_float(pixels[start : start + 250])
        if size != images.shape[-1]:
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
        scores = F.normalize(tower(images).float(), dim=1) @ rows.T
        hits += int((scores.argmax(1).numpy() == labels[start : start + 250]).sum())
    return hits / len(pixels)


def cached(path: Path, make: Callable[[], Any]) -> Any:
    """Return the tensors stored at `path`, made and stored first where it is missing."""
    if not path.exists():
        torch.save(make(), path)
    return torch.load(path, weights_only=True)


def imagenet_classes() -> list[str]:
    """Return the WordNet ids of ImageNet-1k in the order of the classifier's rows."""
    return list(timm.data.ImageNetInfo("imagenet-1k").label_names())


def imagenet_rows(wnids: np.ndarray) -> Tensor:
    """Return the ImageNet-1k row `(k,)` of each WordNet id."""
    known = {wnid: i for i, wnid in enumerate(imagenet_classes())}
    return torch.tensor([known[str(wnid)] for wnid in wnids])

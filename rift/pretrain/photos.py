"""The photos that the recipe reads, what the teacher says of them, and how they vary from epoch to epoch.

The teacher is timm's `vit_tiny_patch16_224.augreg_in21k_ft_in1k` on photos enlarged to 160 px. All of it is our choice.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

TEACHER = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
TEACHER_PIXELS = 160  # 64 px photos enlarged to this size; the teacher gains nothing beyond it and costs twice as much at 224
Log = Callable[[str], None]


def read_pack(path: Path, log: Log = print) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode a pack of encoded photos into pixels `(n, 64, 64, 3)` uint8, labels `(n,)` and the labels' wnids or names `(k,)`.

    Photos that the pack marks as test photos are left out.
    """
    pack = np.load(path, allow_pickle=False)
    data, offsets, labels = pack["data"], pack["offsets"], pack["labels"].astype(np.int64)
    ids = np.flatnonzero(~pack["is_test"]) if "is_test" in pack else np.arange(len(labels))
    pixels = np.empty((len(ids), 64, 64, 3), np.uint8)
    for row, i in enumerate(ids):
        with Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]].tobytes())) as image:
            pixels[row] = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC))
    log(f"{path.name}: {len(ids)} photos decoded")
    return pixels, labels[ids], pack["wnids"] if "wnids" in pack else pack["class_names"]


def load_teacher(weights: Path | None) -> VisionTransformer:
    """Return the frozen teacher, from a local safetensors file or, with a network, from timm."""
    options: dict[str, Any] = {"checkpoint_path": str(weights)} if weights else {"pretrained": True}
    teacher: Any = timm.create_model(TEACHER, **options)
    teacher.set_input_size(img_size=TEACHER_PIXELS)  # afterwards: timm resamples positions of a file only here
    return teacher.eval().requires_grad_(False)


@torch.inference_mode()
def teach(teacher: VisionTransformer, pixels: np.ndarray, log: Log = print, device: str = "cpu") -> Tensor:
    """Return the teacher's embeddings `(n, 192)` (float16) of whole photos; its logits follow from them by its own head."""
    out = torch.empty(len(pixels), teacher.num_features, dtype=torch.float16)
    teacher = teacher.to(device)
    for start in range(0, len(pixels), 128):
        images = to_float(torch.from_numpy(pixels[start : start + 128]).to(device))
        images = F.interpolate(images, TEACHER_PIXELS, mode="bicubic", antialias=True).clamp(-1, 1)
        with torch.autocast(device, torch.bfloat16):
            tokens = teacher.forward_features(images)
        out[start : start + 128] = teacher.forward_head(tokens.float(), pre_logits=True).half().cpu()
        if start % 12800 == 0:
            log(f"teacher: {start} of {len(pixels)}")
    teacher.cpu()
    return out


def to_float(pixels: np.ndarray | Tensor) -> Tensor:
    """Turn `(n, s, s, 3)` uint8 into `(n, 3, s, s)` float in [-1, 1], the range that the teacher was trained on."""
    return torch.as_tensor(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def crop(images: Tensor, size: int, generator: torch.Generator, smallest: float = 0.5) -> Tensor:
    """Cut a random 50 to 100 % of each image's area, flip half of them, and resize to `size` px.

    Smaller crops teach badly here, since the cached targets are of whole images. `generator` is the CPU's wherever images are.
    """
    n = len(images)
    side = torch.empty(n).uniform_(smallest, 1.0, generator=generator).sqrt()
    flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    shift = (torch.rand(n, 2, generator=generator) * 2 - 1) * (1 - side)[:, None]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = side * flip, side, shift
    grid = F.affine_grid(theta.to(images.device), [n, 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def blur(images: Tensor, generator: torch.Generator, share: float = 0.3) -> Tensor:
    """Shrink the first `share` of a shuffled batch to 24 to 40 px and enlarge it again: many natural photos come that small."""
    n, small = int(len(images) * share), int(torch.randint(24, 41, (), generator=generator))
    if not n or images.shape[-1] <= small:
        return images
    shrunk = F.interpolate(images[:n], small, mode="bilinear", antialias=True)
    return torch.cat([F.interpolate(shrunk, images.shape[-1], mode="bicubic").clamp(-1, 1), images[n:]])


def imagenet_classes() -> list[str]:
    """Return the WordNet ids of ImageNet-1k in the order of the classifier's rows."""
    return list(timm.data.ImageNetInfo("imagenet-1k").label_names())


def imagenet_rows(wnids: np.ndarray) -> Tensor:
    """Return the ImageNet-1k row `(k,)` of each WordNet id."""
    known = {wnid: i for i, wnid in enumerate(imagenet_classes())}
    return torch.tensor([known[str(wnid)] for wnid in wnids])

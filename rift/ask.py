"""Photos that a person brings to ask the models about: kept in the lab without metadata, put to all models side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from rift import catalog, comparison, images, service
from rift.errors import DataError, RunError
from rift.runs import Lab, write_bytes

PHOTO_PIXELS = 512


def keep_photo(lab: Lab, data: bytes) -> str:
    """Keep a photo in the lab, cut to a square without its metadata, and return its key; raises `data.image`."""
    pixels = images.fit(images.read(data).pixels, PHOTO_PIXELS)
    shallow = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    key = hashlib.sha256(shallow.tobytes()).hexdigest()[:32]
    lab.photos.mkdir(exist_ok=True)
    write_bytes(lab.photos / f"{key}.png", images.encode(shallow))
    return key


def photo(lab: Lab, key: str) -> np.ndarray:
    """Return a photo that was kept, `(s, s, 3)` uint8; `data.missing` where there is none."""
    path = lab.photos / f"{key}.png"
    if not key.isalnum() or not path.exists():
        raise DataError("data.missing", "Drop a photo first; it is asked about as soon as it is here.")
    return images.read(path.read_bytes()).pixels


def look(lab: Lab, name: str, diagnostic: str, pixels: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Put one photo `(h, w, 3)` to the pretrained model and to each arm that is done, as `diagnostic` asks it."""
    import torch

    from rift import trained
    from rift.model import to_float

    arms = comparison.trained(service.arms(lab, name))
    done = {arm.name: run for arm in arms for run in arm.runs[:1] if run.state == "done"}
    if not done:
        raise RunError("run.missing", "No arm of this comparison is finished yet.")
    backbones = {"pretrained": trained.pretrained(next(iter(done.values())))}
    backbones |= {arm: trained.finetuned(lab, run).backbone for arm, run in done.items()}
    fitted = images.fit(pixels, backbones["pretrained"].pixels)
    image = to_float(torch.from_numpy(fitted[None].copy()))[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of one photo; several threads would wait for each other wherever a run trains beside them
    try:
        return catalog.module("diagnostics", diagnostic).look(backbones, image, labels)
    finally:
        torch.set_num_threads(threads)

"""A photo put to all models side by side: one that a person brings (kept without metadata), a natural one, or one of the set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rift import cage, catalog, comparison, dataset, images, service
from rift.errors import DataError, RunError, SettingError
from rift.runs import Lab, write_bytes

PHOTO_PIXELS = 512


def keep_photo(lab: Lab, data: bytes) -> str:
    """Keep a photo in the lab, cut to a square without its metadata, and return its key; raises `data.image`."""
    picture = cage.square(data, PHOTO_PIXELS)
    key = hashlib.sha256(images.read(picture).pixels.tobytes()).hexdigest()[:32]
    lab.photos.mkdir(exist_ok=True)
    write_bytes(lab.photos / f"{key}.png", picture)
    return key


def photo(lab: Lab, key: str) -> np.ndarray:
    """Return a photo that was kept, `(s, s, 3)` uint8; `data.missing` where there is none."""
    path = lab.photos / f"{key}.png"
    if not key.isalnum() or not path.exists():
        raise DataError("data.missing", "Drop a photo first; it is asked about as soon as it is here.")
    return images.read(path.read_bytes()).pixels


def shelf(lab: Lab, name: str, source: str) -> tuple[str, np.ndarray]:
    """Return the digest of a set and the indices of its images to ask about: `natural` photos, or the `test` images."""
    order, _ = service.order_of(lab, name)
    if source == "natural":
        return order.natural, np.arange(len(dataset.load(lab.data / order.natural)))
    return order.data, dataset.parts(dataset.load(lab.data / order.data), order.training, 0).test


def picked(lab: Lab, name: str, source: str, number: int) -> tuple[str, int, str]:
    """Return digest, index and description of one image of a shelf, counted from 1; `setting.range` beyond its end."""
    digest, indices = shelf(lab, name, source)
    if not 1 <= number <= len(indices):
        raise SettingError("setting.range", f"There are {len(indices)} images to choose from; {number} is not one of them.")
    found, index = dataset.load(lab.data / digest), int(indices[number - 1])
    shown = [label for place, label in enumerate(found.classes) if found.of(place)[index]]
    unknown = "no finding" if found.labels.ndim == 2 else "label unknown"
    return digest, index, f"{number} of {len(indices)}: {', '.join(shown) or unknown}"


def of_set(lab: Lab, name: str, source: str, number: int) -> Callable[[int], np.ndarray]:
    """Return one image of a shelf as a function of its size, which decodes it as it was when it was trained and measured on."""
    digest, index, _ = picked(lab, name, source, number)
    return lambda size: dataset.load(lab.data / digest).picture(index, size)


def look(
    lab: Lab,
    name: str,
    diagnostic: str,
    pixels: np.ndarray | Callable[[int], np.ndarray],
    labels: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put one photo to the pretrained model and to each arm that is done, as `diagnostic` asks it with these settings.

    The photo is `(h, w, 3)`, or a function that gives it as `(size, size, 3)`. Raises `run.missing` where no arm is done,
    `setting.range` and `setting.unknown` for wrong settings, and what the diagnostic raises.
    """
    import torch

    from rift import trained
    from rift.model import to_float

    checked = catalog.validated(catalog.look_settings(diagnostic), settings or {}, diagnostic)
    arms = comparison.trained(service.arms(lab, name))
    done = {arm.name: run for arm in arms for run in arm.runs[:1] if run.state == "done"}
    if not done:
        raise RunError("run.missing", "No arm of this comparison is finished yet.")
    backbones = {"pretrained": trained.pretrained(next(iter(done.values())))}
    backbones |= {arm: trained.finetuned(lab, run).backbone for arm, run in done.items()}
    size = backbones["pretrained"].pixels
    fitted = pixels(size) if callable(pixels) else images.fit(pixels, size)
    image = to_float(torch.from_numpy(fitted[None].copy()))[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of one photo; several threads would wait for each other wherever a run trains beside them
    try:
        return catalog.module("diagnostics", diagnostic).look(backbones, image, labels, **checked.model_dump())
    finally:
        torch.set_num_threads(threads)

"""MedMNIST v2: real medical pictures of eleven kinds, fetched on first use (Yang 2023, Scientific Data 10:41, arXiv 2110.14795).

The 2-D sets with one label per picture, in their original split; cite the source of each set as well. License CC BY 4.0,
dermamnist CC BY-NC 4.0. The files name no patients, so that only the official split keeps pictures of one patient together.
Not for clinical use.
"""

from __future__ import annotations

import importlib.util
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from rift.dataset import ImageSet, store
from rift.errors import DataError, ModelError
from rift.review import Entry

Subset = Literal[
    "bloodmnist",
    "breastmnist",
    "dermamnist",
    "octmnist",
    "organamnist",
    "organcmnist",
    "organsmnist",
    "pathmnist",
    "pneumoniamnist",
    "retinamnist",
    "tissuemnist",
]
PARTS = {"train": "train", "val": "validation", "test": "test"}  # their names and ours
SECONDS = 20.0  # how long the server may be silent


def load(
    root: Path,
    *,
    subset: Annotated[Subset, Field(description="blood cells, breast ultrasound, skin, retina, organs in CT, …")] = "bloodmnist",
    size: Annotated[
        Literal[28, 64, 128, 224], BeforeValidator(int), Field(description="pixels; 224 can mean a download of several GB")
    ] = 64,
    images_per_class: Annotated[int, Field(ge=6, le=100_000, description="at most, train to test in proportion")] = 200,
    seed: Annotated[int, Field(ge=0, lt=2**31, description="which pictures are taken when there are more")] = 0,
) -> ImageSet:
    """Return the set, kept under `root`; `data.missing` without the package medmnist, `model.offline` when out of reach."""
    if importlib.util.find_spec("medmnist") is None:
        raise DataError(
            "data.missing",
            "MedMNIST needs the package medmnist, which is not installed: run `pip install medmnist`. Without it, the sample "
            "phantoms needs nothing more, and neither does a zip of your own with one folder per class.",
        )
    from medmnist import INFO

    info, flag = INFO[subset], "" if size == 28 else f"_{size}"
    path = _fetch(root.parent / "downloads", f"{subset}{flag}.npz", info[f"url{flag}"], info[f"MD5{flag}"])
    classes = [info["label"][str(number)] for number in range(len(info["label"]))]
    about = f"{subset} of MedMNIST v2, {size} px (Yang 2023), {info['license']}"
    return store(_entries(path, classes, images_per_class, seed), root, name=f"{subset}-{size}", about=about)


def _fetch(folder: Path, name: str, url: str, md5: str) -> Path:
    from torchvision.datasets.utils import download_url

    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    try:
        download_url(url, folder, name, md5)
    except (OSError, RuntimeError) as error:  # no network, or a wrong checksum
        reason = (str(error).strip() or "no answer").splitlines()[0]
        raise ModelError(
            "model.offline",
            f"{name} of MedMNIST is not on this machine and could not be downloaded ({type(error).__name__}: {reason}). "
            "Go online once to fetch it; without that, the sample phantoms needs no download, and neither does a zip of your own "
            "with one folder per class.",
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
    return folder / name


def _entries(path: Path, classes: list[str], images_per_class: int, seed: int) -> Iterator[Entry]:
    with np.load(path, allow_pickle=False) as arrays:
        labels = {part: arrays[f"{part}_labels"].reshape(-1) for part in PARTS}
    parts = np.concatenate([np.full(len(labels[part]), number) for number, part in enumerate(PARTS)])
    taken = _taken(np.concatenate(list(labels.values())), parts, images_per_class, seed)
    first = 0
    for part, given in PARTS.items():
        for i, image in enumerate(_images(path, f"{part}_images.npy")):
            if taken[first + i]:
                label = classes[labels[part][i]]
                yield Entry(f"{given}/{labels[part][i]:02d}/{i:06d}.png", label, image, None, given)
        first += len(labels[part])


def _taken(labels: np.ndarray, parts: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Choose at most `most` pictures of each class (and one more per part for rounding), each part in its share."""
    generator, taken = np.random.default_rng(seed), np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        for part in np.unique(parts[members]):
            own = members[parts[members] == part]
            wanted = min(len(own), max(1, int(most * len(own) / len(members))))
            taken[generator.choice(own, wanted, replace=False)] = True
    return taken


def _images(path: Path, member: str) -> Iterator[Any]:
    """Read the pictures of one array of an npz file one by one: the largest files hold more than fits in memory."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        for _ in range(shape[0]):
            data = file.read(int(np.prod(shape[1:])) * dtype.itemsize)
            yield np.frombuffer(data, dtype).reshape(shape[1:])

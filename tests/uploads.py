"""Helpers of the upload tests: good uploads, their zips and folders, and what a refusal must look like."""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rift import images
from rift.errors import DataError
from rift.upload import read


def picture(seed: int) -> bytes:
    return images.encode(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8))


def good(prefix: str = "") -> dict[str, bytes]:
    """Two classes of three different pictures."""
    return {
        f"{prefix}{label}/{number}.png": picture(10 * k + number) for k, label in enumerate(("cat", "dog")) for number in range(3)
    }


def zipped(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def unpacked(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        file = path / name
        if name.endswith("/"):
            file.mkdir(parents=True, exist_ok=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    return path


def refusal(source: Path, root: Path, **options) -> DataError:
    """Read what must be refused: within five seconds of computing, and with nothing left in the root."""
    started = time.process_time()
    with pytest.raises(DataError) as caught:
        read(source, root, **options)
    assert time.process_time() - started < 5
    assert not root.exists() or list(root.iterdir()) == []
    assert all(c.isprintable() for c in str(caught.value))
    return caught.value


def plain_zip(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path

"""Before anything is trained on an image set: its pictures are, to the bit, those that were read.

Where the manifest has a sum of every picture (the first 32 digits of the SHA-256 of its bytes), by these; an older set is taken
as it is found when it is first trained on, and held to that from then on. Decoded pixels are a cache: where they changed, they
are decoded again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rift import disk
from rift.archive import plain
from rift.errors import DataError


def refuse_changed(folder: Path, name: str) -> None:
    """Raise `data.changed` where a stored picture is not the one that was read; the pictures' bytes are read once."""
    blobs = folder / "blobs.bin"
    if not blobs.exists():
        return  # who asks for a picture is told that they are not here
    manifest = json.loads((folder / "manifest.json").read_bytes())
    sums, offsets = manifest.get("sums"), manifest["offsets"]
    if sums is None:
        if not _same(blobs):
            raise _changed(name, "a picture")
        return
    with blobs.open("rb") as file:
        for place, known in enumerate(sums):
            if hashlib.sha256(file.read(offsets[place + 1] - offsets[place])).hexdigest()[:32] != known:
                raise _changed(name, f"the picture {manifest['ids'][place]!r}")


def pixels(images: Any, size: int) -> Any:
    """Return a set's decoded pixels `(n, size, size, 3)`, decoded again where those that were kept have changed."""
    path = images.folder / f"pixels-{size}.npy"
    if path.exists() and not _same(path):
        path.unlink(missing_ok=True)
        path.with_suffix(".sha256").unlink(missing_ok=True)
    found = images.pixels(size)
    if not path.with_suffix(".sha256").exists():
        _same(path)
    return found


def _same(path: Path) -> bool:
    """Whether a file is what it was when it was first looked at, which is noted beside it."""
    found, beside = disk.sha256(path), path.with_suffix(".sha256")
    if not beside.exists():
        disk.write_bytes(beside, found.encode())
    return beside.read_text() == found


def _changed(name: str, what: str) -> DataError:
    return DataError(
        "data.changed",
        f"The stored images {plain(name)!r} are not those that were read: {what} changed on the disk. Nothing is trained "
        "on them; read the images again.",
    )

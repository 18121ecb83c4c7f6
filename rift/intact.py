"""What was stored is what is read: the sum of every picture, taken when the set was written, is checked whenever one is decoded,
and before anything is trained on them.

The sums are SHA-256 of the encoded bytes, cut to 128 bits; a picture that fits its sum decodes to the pixels that were uploaded.
A file of decoded pixels ends with its own sum, and is made again from the pictures where that does not fit.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from rift import disk
from rift.config import digest
from rift.errors import DataError

MARK, BLOCK = b"rift sum", 1 << 20
SEALED = ("digest", "classes", "depth", "ids", "labels", "groups", "near", "given", "offsets", "sums")


def sum_of(data: bytes) -> str:
    """Return the sum of a picture's encoded bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def manifest(folder: Path) -> Mapping[str, Any]:
    """Return a set's manifest, for one picture after another: of many images it is large, and read again only when it changed."""
    path = folder / "manifest.json"
    return _manifest(path, disk.stamp(path))


@functools.lru_cache(maxsize=4)
def _manifest(path: Path, stamp: tuple[int, ...] | None) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(path.read_bytes())
    return found


def seal(manifest: Mapping[str, Any]) -> str:
    """Return the sum of what a manifest says of its images, all but the name, the report and what can be chosen."""
    return digest({key: manifest.get(key) for key in SEALED})


def check(manifest: Mapping[str, Any]) -> None:
    """Raise `data.changed` for a manifest that is not as it was written; one without a seal is of an older version."""
    if "seal" in manifest and manifest["seal"] != seal(manifest):
        sentence = f"The stored labels of {manifest['name']} changed after they were read; read the images again."
        raise DataError("data.changed", sentence)


def picture(file: BinaryIO, manifest: Mapping[str, Any], index: int) -> bytes:
    """Return the encoded bytes of a picture; raises `data.changed` where they are not those that were stored."""
    start, end = manifest["offsets"][index : index + 2]
    file.seek(start)
    data = file.read(end - start)
    if "sums" in manifest and manifest["sums"][index] != sum_of(data):
        name = manifest["ids"][index]
        raise DataError("data.changed", f"The stored picture {name!r} changed after it was read; read the images again.")
    return data


def refuse_changed(folder: Path) -> None:
    """Raise `data.changed` where labels or pictures of a stored set are not those that were read; each picture's bytes are read.

    A set that came without its pictures is held to its labels alone.
    """
    manifest = json.loads((folder / "manifest.json").read_bytes())
    check(manifest)
    with suppress(FileNotFoundError), (folder / "blobs.bin").open("rb") as file:
        for index in range(len(manifest["ids"])):
            picture(file, manifest, index)


def holds(folder: Path) -> bool:
    """Tell whether a stored set is there with all its pictures, and is what was written."""
    try:
        refuse_changed(folder)
    except (DataError, OSError):
        return False
    return (folder / "blobs.bin").exists()


def end(path: Path) -> None:
    """Append the sum of a file of pixels to it; readers of arrays stop before it."""
    mark = MARK + _sum(path, path.stat().st_size)
    with path.open("ab") as file:
        file.write(mark)


def whole(path: Path) -> bool:
    """Tell whether a file of pixels is there and is what was written; one without a sum is of an older version."""
    if not path.exists():
        return False
    status = path.stat()
    return _is_whole(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=256)
def _is_whole(path: Path, size: int, *stamp: int) -> bool:
    """Read the file once for each process and version of it."""
    length = size - len(MARK) - 32
    with path.open("rb") as file:
        file.seek(max(0, length))
        mark = file.read()
    return not mark.startswith(MARK) or mark == MARK + _sum(path, length)


def _sum(path: Path, length: int) -> bytes:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        for start in range(0, length, BLOCK):
            sha.update(file.read(min(BLOCK, length - start)))
    return sha.digest()

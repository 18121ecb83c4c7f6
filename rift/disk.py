"""Files that are whole or not there: written aside, synced, renamed; and marks by which a changed bit is noticed.

A checksum finds what a disk or a copy did to a file. It stops nobody who may write in the lab: such a person can seal it anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from rift.config import digest
from rift.errors import RunError

SEAL = "sha256"
DAMAGED = (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)  # what reading a damaged npz may raise
LEFT_SECONDS = 86400.0  # a part that nobody finished for a day was left by a killed process
_CRC = b', "crc": "'


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that takes the place of `path` at the end, also after a power cut; else nothing of it stays. `run.disk`."""
    partial = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False) as file:
            partial = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
        _sync(path.parent)
    except BaseException as error:
        if partial is not None:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise refused(error, path.name) from error
        raise


def _sync(folder: Path) -> None:
    """Have the folder's own entry on the disk, without which a rename may be lost with the power."""
    with suppress(OSError):  # not every file system knows this
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def refused(error: OSError, what: str) -> RunError:
    """Return in words that the disk did not take something."""
    reason = error.strerror or str(error)
    return RunError(
        "run.disk",
        f"Could not write {what}: {reason}. What was done before is kept: free some space, or let the folder be written to, "
        "and go on.",
    )


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: temporary file, fsync, rename; `run.disk` when the disk refuses."""
    with replacing(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the whole new one, also after a power cut."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with the SHA-256 of its content in it."""
    plain = {key: value for key, value in document.items() if key != SEAL}
    return {**plain, SEAL: digest(plain)}


def unsealed(data: bytes) -> dict[str, Any]:
    """Return a document that was read, without its seal; ValueError where a bit of it changed. An older one has no seal."""
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError("this is no document")
    seal = document.pop(SEAL, None)
    if seal is not None and seal != digest(document):
        raise ValueError("it is not what was written: its SHA-256 differs")
    return document


def line(values: Mapping[str, Any]) -> bytes:
    """Return a line of a log: JSON that ends with a CRC-32 of what stands before."""
    body = json.dumps(values, allow_nan=False)[:-1].encode()
    return body + _CRC + b'%08x"}\n' % zlib.crc32(body)


def whole(line: bytes) -> bool:
    """Whether no bit of a line of a log changed; lines of older versions have no CRC and are taken as they are."""
    body, mark, crc = line.rpartition(_CRC)
    return not mark or crc == b'%08x"}' % zlib.crc32(body)


def values(line: bytes) -> dict[str, Any] | None:
    """Return what a line of a log says, None where a bit of it changed."""
    body, mark, _ = line.rpartition(_CRC)
    try:
        found = json.loads(body + b"}" if mark else line) if whole(line) else None
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: str | Path) -> tuple[int, ...] | None:
    """Return what changes when a file does, None where there is none: what is remembered of a file is remembered with this.

    Its number, size, and two times: that of its content can be set back, that of its entry (ctime) cannot.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def known_sha256(path: Path) -> str:
    """Return the same, computed once for as long as the file stays as it is; FileNotFoundError where there is none."""
    return _known(path, stamp(path))


@lru_cache(maxsize=4096)
def _known(path: Path, stamp: tuple[int, ...] | None) -> str:
    return sha256(path)


def sweep(folder: Path, seconds: float = LEFT_SECONDS) -> None:
    """Remove the unfinished parts that killed processes left in a folder."""
    for path in folder.glob("**/.*.part"):
        with suppress(OSError):
            if abs(time.time() - path.stat().st_mtime) >= seconds:
                path.unlink(missing_ok=True)


def free(path: Path) -> int:
    """Return how many bytes can still be written to the disk of a folder."""
    return shutil.disk_usage(path).free

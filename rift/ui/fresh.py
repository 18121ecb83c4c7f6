"""What a server begins with anew, so that nothing of an earlier one can be guessed or read: Gradio's folder and its seed.

Gradio serves every file of its folder to anyone who has the file's address, and that address is a hash of a seed and the bytes.
The seed is written once into the installed package, so whoever has the same image knows it.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from gradio import processing_utils, utils

BEGINNING = "rift-uploads-"
_mine: dict[str, FileLock] = {}  # the folders of this process, each held while it lives


def begin() -> Path:
    """Give Gradio a new seed and a new folder that only this user can read; folders of servers that are gone are deleted."""
    processing_utils.hash_seed = secrets.token_hex(32).encode()
    with suppress(OSError):
        Path(utils.HASH_SEED_PATH).unlink(missing_ok=True)
    parent = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
    if str(parent) in _mine:  # another page of this process
        return parent
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=BEGINNING, dir=parent))  # with mode 700
    _mine[str(folder)] = lock = FileLock(f"{folder}.lock")
    lock.acquire()
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    atexit.register(_end, folder, lock)
    return folder


def sweep(parent: Path) -> None:
    """Delete the folders of servers that no longer live, however they ended: nobody holds their locks."""
    for path in parent.glob(f"{BEGINNING}*.lock"):
        lock = FileLock(path, timeout=0)
        with suppress(Timeout, OSError), lock:  # of another user: not ours to delete
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)


def _end(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()

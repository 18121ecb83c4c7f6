"""A worker that stands by: a new process takes seconds to import torch and its kin, and nobody shall wait for that after Start.

The app keeps one from its own start on. It has imported what a worker needs, waits for a word on its standard input, and ends
with whoever started it. Sent to work it is a worker like any other, which outlives the app; when it has ended another one stands
by, and not before, since its start would take the processor from the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rift import process

OPTION = "--stand-by"
_ready: dict[tuple[Path, str], subprocess.Popen | None] = {}  # by lab and device; None: it is at work
_lock = threading.Lock()


def keep(root: Path, device: str) -> None:
    """Have a worker of a lab stand by from now on, as long as this process runs; where none can be started there is none."""
    key = (root, device)
    with _lock:
        one = _ready.setdefault(key, None)
        if one is None or one.poll() is not None:
            asked = ["work", str(root), "--device", device, OPTION]
            quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            with suppress(OSError):
                _ready[key] = process.start("rift", asked, **quiet, start_new_session=True, cwd=root)


def take(root: Path, device: str, begin: Callable[[], subprocess.Popen]) -> subprocess.Popen:
    """Send the one that stands by to work and return it, or what `begin` starts where none does."""
    key = (root, device)
    with _lock:
        if key not in _ready:
            return begin()
        one, _ready[key] = _ready[key], None
    worker = one if one is not None and _sent(one) else begin()

    def renew() -> None:
        worker.wait()
        keep(*key)

    threading.Thread(target=renew, name="stand-by", daemon=True).start()
    return worker


def _sent(one: subprocess.Popen) -> bool:
    try:
        assert one.stdin is not None
        one.stdin.write(b"work\n")
        one.stdin.close()
    except OSError:  # it was ended from outside
        return False
    return one.poll() is None


def told(log: Path) -> bool:
    """Wait, as the one that stands by, to be sent to work; False where whoever started this process is gone."""
    if not sys.stdin.buffer.readline():
        return False
    with log.open("ab") as file, open(os.devnull, "rb") as nothing:
        for number, instead in enumerate((nothing, file, file)):
            os.dup2(instead.fileno(), number)
    os.chdir(log.parent)  # what was there at the start may have been deleted since
    return True

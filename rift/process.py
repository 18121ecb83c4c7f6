"""Worker processes: which one a number means, and whether the system wants this one to end (SIGTERM, as before a reboot).

It then saves at the next step, and its run goes on by itself later. The signal's handler only sets a flag, since writing inside a
handler can find anything half done. What is in the middle of a long piece of work has GRACE_SECONDS; then the process ends as
`kill -9` would end it, which the files of a run bear.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

GRACE_SECONDS = 8.0  # shorter than the ten seconds that containers give
_asked = False


@contextmanager
def starting() -> Iterator[None]:
    """Look for no garbage while libraries are imported: a fifth of that time goes to looking, and they leave none.

    What is there then is not looked at before the process ends: it would hold up whoever asks first by 0.3 s.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # else extensions complain of what the end has left
        gc.enable()


def keep_freed_memory_together() -> None:
    """Have glibc keep what threads free in two arenas (M_ARENA_MAX), not in eight for each core, where it lay idle for good.

    A server of many threads grew by 60 MB over twelve comparisons, and by 6 MB with two. Nothing happens without glibc.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(-8, 2)


def listen() -> None:
    """Take SIGTERM as a wish from now on; for the main thread of a worker process."""
    signal.signal(signal.SIGTERM, _note)
    signal.signal(signal.SIGALRM, _leave)


def asked() -> bool:
    """Whether the system wants this process to end."""
    return _asked


def _note(number: int, frame: Any) -> None:
    global _asked
    _asked = True
    signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)


def _leave(number: int, frame: Any) -> None:
    os._exit(0)


def start(module: str, arguments: Sequence[str], **more: Any) -> subprocess.Popen:
    """Start a module of ours, as `python -m` does, in a process of its own; `more` goes to Popen."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, **{"stdin": subprocess.DEVNULL, **more})


def birth(pid: int) -> str:
    """Return what tells a process from any other that ever had its number; empty where the system does not say, or it is gone.

    The boot, the namespace of the numbers, and the process's start in clock ticks since the boot (proc(5), field 22 of stat).
    """
    with suppress(OSError, IndexError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{boot}-{space}-{ticks}"
    return ""


def is_paused(pid: int) -> bool:
    """Whether a process was stopped (SIGSTOP) and waits to be let go on."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False

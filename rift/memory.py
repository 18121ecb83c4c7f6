"""How much memory a run takes at most: of the process on a CPU, of torch's allocations on a GPU."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path


def reset(device: str) -> None:
    """Begin to measure anew: a worker carries out one run after the other, and each has a peak of its own."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux only; elsewhere the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> int:
    """Return the most bytes that were in use since `reset`."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024

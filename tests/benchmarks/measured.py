"""What every benchmark shares: contestants in turn, medians with their spread, and the machine in words."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def in_turn(contestants: Mapping[str, Callable[[int], T]], rounds: int) -> dict[str, list[T]]:
    """Call each contestant with the number of the round, in every round another first; returns what each gave, by round."""
    names, found = list(contestants), {name: list[T]() for name in contestants}
    for turn in range(rounds):
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            found[name].append(contestants[name](turn))
    return found


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Return the median and the quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {
        "median": round(float(median), digits),
        "quarter": round(float(low), digits),
        "three_quarters": round(float(high), digits),
    }


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Return the spread of ratios, each taken within a round."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def told(one: Mapping[str, float], digits: int = 2) -> str:
    """Return a spread in words."""
    return f"{one['median']:.{digits}f} ({one['quarter']:.{digits}f} to {one['three_quarters']:.{digits}f})"


def machine(gpu: str | None = None) -> dict[str, Any]:
    """Return what a number depends on, and nothing that names the computer: processor, cores, threads, the GPU's name."""
    import torch

    return {
        "processor": platform.machine() + _chip(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def busy(seconds: float = 2.0) -> float | None:
    """Return the share of all cores that others use just now; None where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None

    def ticks() -> np.ndarray:
        return np.array(stat.read_text().splitlines()[0].split()[1:8], float)  # user nice system idle iowait irq softirq

    before = ticks()
    time.sleep(seconds)
    spent = ticks() - before
    return round(1 - float(spent[3:5].sum() / max(1.0, spent.sum())), 2)


def _chip() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((f", {line.partition(':')[2].strip()}" for line in lines if line.startswith("model name")), "")


def versions(*packages: str) -> dict[str, str]:
    """Return Python's version and those of some packages; one that is absent is left out."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

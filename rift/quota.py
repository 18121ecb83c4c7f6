"""What one visitor of a public server may have at once, and for how long; in one's own lab there are no such limits.

A public server keeps a lab for each visitor in its folder `visitors/` (`rift/visitors.py`), and that is how a lab is known to be
one: workers, which only know folders, keep to the same limits as the page.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rift.archive import GB, LOCAL, MB, PUBLIC, Limits
from rift.errors import RunError
from rift.runs import Lab, Run

CAPPED = "limit"  # a file in the directory of a run that was stopped because its time was up


@dataclass(frozen=True)
class Rules:
    """Limits for one visitor."""

    upload: Limits = PUBLIC
    under_way: int = 4  # comparisons: one at work and three that wait
    run_seconds: float = 1800.0
    lab_bytes: int = 2 * GB
    retention_seconds: float = 86_400.0
    free_bytes: int = GB  # that a disk must have left before anything new is begun


VISITOR = Rules()


def of(lab: Lab) -> Rules | None:
    """Return the rules for a lab; None where it is one's own."""
    return VISITOR if lab.visiting else None


def limits(lab: Lab) -> Limits:
    """Return what one upload into a lab may hold."""
    rules = of(lab)
    return rules.upload if rules else LOCAL


def refuse_start(lab: Lab, under_way: int) -> None:
    """Raise `run.quota` where a visitor has so many comparisons under way, or kept so much, that no other one may begin."""
    if (rules := of(lab)) is None:
        return
    if under_way >= rules.under_way:
        most = f"one at work and {rules.under_way - 1} waiting are the most on this server"
        raise RunError("run.quota", f"You have {under_way} comparisons under way; {most}. Stop one, or let one finish.")
    refuse_more(lab)


def refuse_more(lab: Lab) -> None:
    """Raise `run.quota` where a visitor's lab is full, `run.disk` where the server's disk is."""
    if (rules := of(lab)) is None:
        return
    if (used := size(lab.root)) > rules.lab_bytes:
        sentence = f"Your data here take {used / GB:.1f} GB, and {rules.lab_bytes / GB:.0f} GB are the most on this server."
        raise RunError("run.quota", f"{sentence} Delete comparisons, or all of it, under Keep.")
    if (free := shutil.disk_usage(lab.root).free) < rules.free_bytes:
        raise RunError("run.disk", f"The server's disk has {free // MB} MB left, too little to begin. Try again in an hour.")


@contextmanager
def capped(lab: Lab, run: Run) -> Iterator[None]:
    """Stop a run of a visitor when its time is up; what it has done is kept, and it can be gone on with."""
    (run.path / CAPPED).unlink(missing_ok=True)
    if (rules := of(lab)) is None:
        yield
        return

    def stop() -> None:
        (run.path / CAPPED).touch()
        run.request_stop()

    timer = threading.Timer(rules.run_seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def was_capped(run: Run) -> bool:
    """Whether a run was stopped because its time was up."""
    return (run.path / CAPPED).exists()


def size(path: Path) -> int:
    """Return the bytes of a file, or of all in a folder."""
    return sum(_bytes(one) for one in ([path] if path.is_file() else _files(path)))


def _files(folder: Path) -> Iterator[Path]:
    for here, _, names in os.walk(folder):
        yield from (Path(here) / name for name in names)


def _bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # gone meanwhile
        return 0

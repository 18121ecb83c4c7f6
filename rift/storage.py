"""What a lab keeps, in numbers and bytes, and how all of it is deleted at once."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from rift import example, history, measurement, sharing
from rift.quota import size
from rift.runs import ENDED, Lab, is_held

KEPT = ("secret", "example", "seen", "consent")  # the key that addresses are signed with, and what comes with the app
WORKER_SECONDS = 5.0  # how long the worker has to notice that nothing is left to do


class Row(NamedTuple):
    """One kind of thing that is stored."""

    what: str
    number: int
    bytes: int


def stored(lab: Lab) -> list[Row]:
    """Return what a person brought or made in a lab; a kind that there is none of is left out, but for images and runs."""
    known = {
        "Image sets, with the pictures as they were read": (lab.data, "*/manifest.json"),
        "Runs: settings, curves, predictions, weights": (lab.root / "runs", "*/experiment.json"),
        "Comparisons: what was asked, names, reports": (lab.comparisons, "*/order.json"),
        "Classes filled picture by picture, not taken yet": (lab.root / "drafts", "*/draft.json"),
        "Photos of your own that the models were asked about": (lab.photos, "*.png"),
        "Measurements asked for on the page": (lab.measuring, "*/ask.json"),
        "Caches, which save computing twice": (lab.cache, "*"),
        "Shared links": (lab.root / "shares", "*.json"),
        "Opened bundles": (lab.root / "opened", "*/opened.json"),
    }
    rows = [Row(what, sum(1 for _ in folder.glob(pattern)), size(folder)) for what, (folder, pattern) in known.items()]
    folders = {folder.name for folder, _ in known.values()}
    others = [path for path in lab.root.iterdir() if path.name not in folders and path.name not in KEPT]
    rows.append(Row("Logs and locks", len(others), sum(map(size, others))))
    return [row for place, row in enumerate(rows) if row.number or place < 2]


def erase(lab: Lab) -> None:
    """Delete all that a person brought or made here; work is stopped first, links end, the app's own example is made anew.

    Folders are moved aside before they are emptied, so that no page sees half of one.
    """
    queue: Sequence[measurement.Measurement] = measurement.queue(lab)
    history.stop([*queue, *reversed([run for run in lab.runs() if run.state not in ENDED])])
    patience = time.monotonic() + WORKER_SECONDS
    while is_held(lab.root / "worker.lock") and time.monotonic() < patience:
        time.sleep(0.05)
    for share in sharing.shares(lab):  # first, so that no link outlives what follows if that is interrupted
        sharing.revoke(lab, share.name)
    shows_example = (lab.root / "example").exists()
    aside = lab.root / f".deleted-{os.getpid()}"
    aside.mkdir(exist_ok=True)
    for number, path in enumerate(sorted(lab.root.iterdir())):
        if path.name != "secret" and path != aside:
            with suppress(OSError):
                path.rename(aside / str(number))
    Lab(lab.root)
    if shows_example:
        example.place(lab.root / "example")
    shutil.rmtree(aside, ignore_errors=True)
    history.forget()

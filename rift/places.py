"""A small map that moves while a run learns: where a few validation images lie after each epoch, on the pretrained model's axes.

`places.jsonl` in a run's directory: its first line is what stays, then one line for each epoch. The embeddings are those that an
epoch's CKA is computed from, so that the map costs no forward pass; axes as in `rift/diagnostics/pca.py` with the basis
`pretrained`, fitted once to all validation images looked at. Runs that are older than this file have none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rift import findings, similarity
from rift.runs import Run

MOST = 80  # images on a map, evenly spaced over those looked at, so that none was picked


@dataclass(frozen=True, eq=False)
class Places:
    """Where `n` images lie: `start` `(n, 2)` in the pretrained model, then by epoch; `share` `(2,)` is that of its variance."""

    labels: np.ndarray  # (n,) index into classes, -1 unknown
    classes: tuple[str, ...]
    share: np.ndarray
    start: np.ndarray
    epochs: dict[int, np.ndarray]

    @property
    def newest(self) -> int:
        """The last epoch on the map; 0 is the pretrained model."""
        return max(self.epochs, default=0)

    def at(self, epoch: int) -> np.ndarray:
        """Return the places `(n, 2)` after an epoch, or after the last one before it that is known; 0 gives `start`."""
        known = max((one for one in self.epochs if one <= epoch), default=0)
        return self.epochs[known] if known else self.start

    def moved(self, epoch: int) -> float | None:
        """Return how far an image moved on average along both axes, in units of the pretrained spread on them."""
        spread = float(np.sqrt(np.var(self.start, axis=0).sum()))
        return float(np.linalg.norm(self.at(epoch) - self.start, axis=1).mean()) / spread if spread > 0 else None


def recorder(run: Run, before: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Callable[[int, np.ndarray], None]:
    """Return a function that notes an epoch's embeddings `(n, d)` on the run's map; `before` are the pretrained model's.

    It notes nothing where two axes cannot be fitted, or where an epoch's embeddings are not finite numbers.
    """
    try:
        axes = similarity.pca(before, 2)
    except ValueError:
        return lambda epoch, embeddings: None
    chosen = np.unique(np.linspace(0, len(before) - 1, min(len(before), MOST)).astype(int))
    if labels.ndim == 2:
        labels, classes = findings.one_each(labels, classes)

    def rounded(embeddings: np.ndarray) -> list[list[float]]:
        places = (embeddings[chosen].astype(np.float64) - axes.mean) @ axes.basis
        return [[float(f"{value:.4g}") for value in place] for place in places]

    path = run.path / "places.jsonl"
    if not path.exists():
        stays = {"labels": labels[chosen].tolist(), "classes": list(classes), "share": np.round(axes.share, 4).tolist()}
        _append(path, {**stays, "start": rounded(before)})

    def note(epoch: int, embeddings: np.ndarray) -> None:
        if np.isfinite(embeddings[chosen]).all():
            _append(path, {"epoch": epoch, "places": rounded(embeddings)})

    return note


def _append(path: Path, line: dict) -> None:
    """Append a line in one write; it begins with a line's end, which closes a line that a killed writer left torn."""
    with path.open("ab") as file:
        file.write(b"\n" + json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def read(run: Run) -> Places | None:
    """Return a run's map, None where it has none; of an epoch that a resumed run repeated the last one counts."""
    try:
        lines = (run.path / "places.jsonl").read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    found = []
    for line in filter(None, lines):
        try:
            found.append(json.loads(line))
        except ValueError:  # torn: the process was killed while it wrote
            continue
    head = next((one for one in found if "start" in one), None)
    if head is None:
        return None
    epochs = {int(one["epoch"]): np.array(one["places"], float) for one in found if "epoch" in one}
    labels, start = np.array(head["labels"], int), np.array(head["start"], float)
    return Places(labels, tuple(head["classes"]), np.array(head["share"], float), start, epochs)

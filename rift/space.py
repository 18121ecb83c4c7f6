"""How much of a disk a run fills, and whether three times as much is free: said before Start, looked at again by the worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rift import disk
from rift.errors import RunError

TIMES = 3  # as much as is needed must be free: others write there too
CHECKPOINTS = 3  # two are kept while the next is written
FLOAT = 4  # bytes


def of_run(parameters: int, trainable: int, values: int, epochs_kept: int = 0) -> tuple[int, int]:
    """Return the bytes that a run fills while it trains (checkpoints) and for good (weights, and `values` numbers of arrays)."""
    checkpoint = FLOAT * (parameters + 2 * trainable)  # AdamW has two moments of what trains
    return CHECKPOINTS * checkpoint, FLOAT * (trainable * (1 + epochs_kept) + values)


def of_arrays(images: int, train: int, views: int, width: int, layers: int) -> int:
    """Return how many numbers a run's arrays hold: embeddings and activations of all images, and targets of every view."""
    return 2 * images * width * (1 + layers) + train * views * width


def of_model(pretrained: Any, classifier: Any, state: Any, images: int, views: Any, epochs_kept: int = 0) -> int:
    """Return the bytes of a run whose model is at hand."""
    trainable = sum(p.numel() for group in state.optimizer.param_groups for p in group["params"])
    values = of_arrays(images, len(views), views.views, pretrained.width, pretrained.layers)
    return sum(of_run(sum(p.numel() for p in classifier.parameters()), trainable, values, epochs_kept))


def refuse_full(folder: Path, need: int | None) -> None:
    """Raise `run.disk` where less than TIMES `need` bytes are free."""
    free = disk.free(folder)
    if need is not None and free < TIMES * need:
        raise RunError(
            "run.disk",
            f"There are {said(free)} free on the disk of the lab, and this needs about {said(need)}; {TIMES} times that must be "
            "free. Free some space, then start again; what was done before is kept.",
        )


def said(size: int) -> str:
    """Return bytes as a person says them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"

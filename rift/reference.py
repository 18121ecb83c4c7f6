"""What the pretrained model makes of all fixed images of a lab, once, and what it can do before any finetuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from rift import catalog, dataset, disk, measures
from rift.config import digest
from rift.model import Backbone, fingerprint
from rift.runs import Lab
from rift.snapshot import Arrays, Snapshot, capture


def snapshot(
    lab: Lab, pretrained: Backbone, images: dataset.ImageSet, natural: dataset.ImageSet, parts: dataset.Split
) -> tuple[Snapshot, str]:
    """Return the pretrained model's arrays and their file in the cache.

    The model runs over each set once per lab, whatever the split, the seed or the arm.
    """
    mark = fingerprint(pretrained)
    name = f"before-{digest([mark, images.digest, natural.digest, [part.tolist() for part in vars(parts).values()]])[:24]}.npz"
    if (known := _kept(lab.cache / name)) is not None:
        return known, name

    def whole(one: dataset.ImageSet) -> Arrays:
        path = lab.cache / f"pretrained-{digest([mark, one.digest])[:24]}.npz"
        if (known := _kept(path)) is not None:
            return known.sets["all"]
        arrays = capture(pretrained, one.pixels(pretrained.pixels), one.ids, one.labels)
        Snapshot({"all": arrays}, one.classes, (), None).save(path)
        return arrays

    medical = whole(images)
    sets = {name: medical.of(indices) for name, indices in vars(parts).items()}
    head = pretrained.natural_head(natural.classes)
    rows = None
    if head is not None:
        rows = np.full((len(natural.classes), pretrained.width), np.nan, np.float32)
        if head.classes:
            rows[[natural.classes.index(label) for label in head.classes]] = head.rows.float().cpu().numpy()
    scale, kind = (head.scale, head.kind) if head is not None else (100.0, "")
    before = Snapshot({**sets, "natural": whole(natural)}, images.classes, natural.classes, rows, scale, kind)
    before.save(lab.cache / name)
    return before, name


def _kept(path: Path) -> Snapshot | None:
    """Return arrays of the cache, None where there are none or they are damaged: then they are computed again."""
    try:
        return Snapshot.load(path)
    except (FileNotFoundError, TypeError, *disk.DAMAGED):
        return None


def numbers(before: Snapshot) -> dict[str, Any]:
    """Return what the pretrained model can do before any finetuning: natural accuracy, and 5-NN on the medical test images."""
    measured = measures.plain(catalog.door("diagnostics", "zero_shot")(before, before))
    kept = ("natural_accuracy", "natural_top5", "natural_head", "natural_knn_accuracy")
    numbers = {key: measured[key] for key in measured if key.removesuffix("_reason") in kept}
    known, test = before.sets["train"], before.sets["test"]
    if known.labels.ndim == 2:
        return {**numbers, "knn_accuracy": None, "knn_accuracy_reason": "an image may show several findings"}
    neighbors = KNeighborsClassifier(min(5, len(known.labels)), metric="cosine").fit(known.embeddings, known.labels)
    return {**numbers, "knn_accuracy": float(neighbors.score(test.embeddings, test.labels))}

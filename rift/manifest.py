"""What is written of an image set beside its pictures: one document, named by the hash of the content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rift import intact
from rift.archive import plain
from rift.config import digest
from rift.review import Notes, Record, Report


def of(
    records: Sequence[Record], name: str, about: str, notes: Notes, near: list[int] | None, sums: Sequence[str]
) -> dict[str, Any]:
    """Return the manifest of records in the order of their ids; the digest is of ids, pixels, labels, groups and parts alone.

    `near` numbers near copies, and is None, and then no part of the digest, where there are none; `sums` are of the pictures.
    """
    classes = sorted(names(records))
    labels = [
        classes.index(record.label) if isinstance(record.label, str) else [int(name in record.label) for name in classes]
        for record in records
    ]
    groups = _numbered([record.group for record in records])
    rows = [
        [record.id, record.hash, label, -1 if groups is None else groups[index], record.given]
        for index, (record, label) in enumerate(zip(records, labels, strict=True))
    ]
    changed = tuple(record.change for record in records if record.change)
    report = Report(kept=len(records), changed=changed, skipped=tuple(notes.skipped), warnings=tuple(notes.warnings))
    content = {"classes": classes, "images": rows} | ({} if near is None else {"near": near})
    document = {
        "schema": 1,
        "name": plain(name),
        "about": about,
        "digest": digest(content),
        "classes": classes,
        "depth": max(record.depth for record in records),
        "report": report.model_dump(mode="json"),
        "ids": [record.id for record in records],
        "labels": labels,
        "groups": groups,
        "near": near,
        "given": [record.given for record in records],
        "offsets": np.cumsum([0, *(record.length for record in records)]).tolist(),
        "sums": list(sums),
    }
    return document | {"seal": intact.seal(document)}


def names(records: Sequence[Record]) -> set[str]:
    """Return the classes, or the findings, that any of the records counts for."""
    return {name for record in records for name in record.classes}


def _numbered(groups: list[str | None]) -> list[int] | None:
    """Return a number per group; an image without one is a group of its own."""
    if not any(groups):
        return None
    numbers = {group: number for number, group in enumerate(sorted({group for group in groups if group}))}
    alone = iter(range(len(numbers), len(numbers) + len(groups)))
    return [numbers[group] if group else next(alone) for group in groups]

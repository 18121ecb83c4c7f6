"""A comparison as it may leave this machine: of a file of weights its settings name the file, and not where it lies.

Comparisons and runs are named by the hash of their settings, so one whose path goes gets other names; nothing else changes.
"""

from __future__ import annotations

import json
from pathlib import Path

from rift import catalog, service
from rift.orders import experiments
from rift.runs import Lab

TEXTS = (".json", ".jsonl", ".csv")


def swaps(lab: Lab, name: str) -> dict[str, str]:
    """Return what stands for what in the texts of a comparison that leaves: its names, its runs', and paths; mostly nothing."""
    order, _ = service.order_of(lab, name)
    bare = order.model_copy(update={"backbone": catalog.without_folders("backbones", order.backbone)})
    found = {}
    if bare != order:
        found[order.id] = bare.id
        for (_, ours), (_, theirs) in zip(experiments(order), experiments(bare), strict=True):
            found |= {one.id: other.id for one, other in zip(ours, theirs, strict=True)}
        for key, value in order.backbone.options.items():
            if value != bare.backbone.options[key]:
                found |= {json.dumps(value, ensure_ascii=ascii)[1:-1]: bare.backbone.options[key] for ascii in (True, False)}
    return found


def swapped(text: str, swaps: dict[str, str]) -> str:
    """Return a text with all of these swaps made."""
    for old, new in swaps.items():
        text = text.replace(old, new)
    return text


def content(name: str, file: Path | bytes, swaps: dict[str, str]) -> Path | bytes:
    """Return what a file of this name is when it leaves: a text with the swaps, anything else as it is."""
    if not swaps or not name.endswith(TEXTS):
        return file
    text = file if isinstance(file, bytes) else file.read_bytes()
    return swapped(text.decode(), swaps).encode()

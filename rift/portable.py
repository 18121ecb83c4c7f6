"""A comparison as it may leave this machine: of a file of weights its settings name the file, and not where it lies.

Comparisons and runs are named by the hash of their settings, so one whose path goes gets other names; nothing else changes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rift import catalog, disk, service
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


def content(files: dict[str, Path | bytes], swaps: dict[str, str]) -> dict[str, Path | bytes]:
    """Return the files of a comparison by name as they leave: texts with the swaps, sealed anew, all else as it is."""
    if not swaps:
        return files
    found: dict[str, Path | bytes] = {swapped(key, swaps): one for key, one in files.items()}
    for key, one in found.items():
        if key.endswith(TEXTS):
            data = one if isinstance(one, bytes) else one.read_bytes()
            found[key] = _log(data, swaps) if key.endswith("/events.jsonl") else swapped(data.decode(), swaps).encode()
    for key, one in found.items():
        if key.endswith(".json") and isinstance(one, bytes) and disk.SEAL in (document := json.loads(one)):
            found[key] = json.dumps(disk.sealed(_noted(document, key, found)), indent=1, ensure_ascii=False).encode()
    return found


def _log(data: bytes, swaps: dict[str, str]) -> bytes:
    """Return a log with the swaps made in every whole line; a line that is damaged says nothing and stays here."""
    said = [values for line in data.splitlines() if (values := disk.values(line)) is not None]
    return b"".join(disk.line(json.loads(swapped(json.dumps(values), swaps))) for values in said)


def _noted(document: dict[str, Any], key: str, files: dict[str, Path | bytes]) -> dict[str, Any]:
    """Return a run's result that notes the sums of its files as they are now."""
    sums = dict(document.get("files") or {})
    for name in sums:
        beside = files.get(f"{key.rpartition('/')[0]}/{name}")
        if isinstance(beside, bytes):
            sums[name] = hashlib.sha256(beside).hexdigest()
    return {**document, "files": sums} if sums else document

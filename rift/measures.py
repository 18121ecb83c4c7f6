"""Every diagnostic on a run's saved arrays, kept in the run as one JSON each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rift import catalog
from rift.config import Choice
from rift.runs import SCHEMA, Lab, Run, write_json
from rift.snapshot import Snapshot


def measure_all(run: Run, before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """Run every diagnostic that needs saved arrays only, keep each under `measures/`, and return all their numbers."""
    numbers: dict[str, Any] = {}
    for name in catalog.names("diagnostics"):
        if not hasattr(catalog.module("diagnostics", name), "capture"):
            document = _measure(run, catalog.check("diagnostics", Choice(name=name)), before, after)
            numbers.update(document["runs"][run.id])
    return numbers


def measure_again(lab: Lab, run: Run, diagnostic: Choice) -> dict[str, Any]:
    """Measure one diagnostic on a finished run with these settings, keep the document in the run and return it."""
    before = Snapshot.load(lab.cache / (run.result() or {})["before"])
    return _measure(run, diagnostic, before, Snapshot.load(run.path / "snapshot.npz"))


def _measure(run: Run, diagnostic: Choice, before: Snapshot, after: Snapshot) -> dict[str, Any]:
    values = plain(catalog.door("diagnostics", diagnostic.name)(before, after, **diagnostic.options))
    head = {"schema": SCHEMA, "diagnostic": diagnostic.name, "settings": diagnostic.options, "n": values.get("n")}
    document = {**head, "runs": {run.id: values}}
    (run.path / "measures").mkdir(exist_ok=True)
    write_json(run.path / "measures" / f"{diagnostic.name}.json", document)
    return document


def plain(value: Any) -> Any:
    """Turn arrays and numpy numbers into what JSON knows; a number that is not finite becomes None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value

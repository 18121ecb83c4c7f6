"""Many arms on one or several sets of images: one table of all runs, one page of what each arm can do against what it kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rift import api, comparison, report, table
from rift.errors import SettingError
from rift.runs import SCHEMA, write_bytes, write_json

COLUMNS = [name for name in comparison.NUMBERS if name != "cka_layers"]


def sweep(
    data: Sequence[str | Path], out: str | Path, *, lab: str | Path | None = None, say: Callable[[str], None], **asked: Any
) -> dict[str, Any]:
    """Compare the same arms on every set, in one lab, so that a finished run is never repeated; returns the sweep's document.

    One set gives the comparison document; several give `{schema, sets: {name: document}}`, each also in its own folder of
    `out`. `out` gets `sweep.json`, `table.csv` (a row for each run) and `report.html`. Takes all settings of `api.compare`.
    """
    out, home = Path(out), Path(lab or Path(out) / "lab")
    if len(data) == 1:
        document: dict[str, Any] = api.compare(data[0], out, lab=home, say=say, document_name="sweep.json", **asked)
        _write_table(out / "table.csv", {document["data"]["name"]: document})
        return document
    names = [Path(str(one)).name.removesuffix(".zip").replace(":", "-") for one in data]
    if len(set(names)) < len(names):
        raise SettingError(
            "setting.range", f"Two of the sets are called alike: {', '.join(names)}. Rename one; each gets a folder."
        )
    found = {
        name: api.compare(one, out / name, lab=home, say=say, document_name="sweep.json", **asked)
        for name, one in zip(names, data, strict=True)
    }
    document = {"schema": SCHEMA, "sets": found}
    write_json(out / "sweep.json", document)
    _write_table(out / "table.csv", found)
    report.write_sweep(found, out / "report.html")
    return document


def _write_table(path: Path, documents: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a row for each run: its set, what it was asked, its directory's name, and its numbers in full."""
    head = ["data", "arm", "method", "regularizer", "strength", "seed", "run", "diverged", *COLUMNS]
    rows = []
    for name, document in documents.items():
        for arm in document["arms"]:
            for run in [] if arm.get("same_as") else arm["runs"]:
                about = [name, arm["name"], arm["method"]["name"], arm["regularizer"]["name"], arm["strength"]]
                numbers = ["" if run[key] is None else repr(run[key]) for key in COLUMNS]
                rows.append([*about, run["seed"], run["run"], run["diverged"], *numbers])
    write_bytes(path, table.written(head, rows).encode())

"""The finished comparison that the app opens with: made by one command, shipped as the lab that it is.

It holds synthetic drawings and what two models made of them, no picture of a patient and none of the natural photos: those come
from their own packages. Numbers measured on real sets are beside it in `measured.json`, without a pixel.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rift import api, captures, catalog, disk, service
from rift.runs import SCHEMA, Lab, Run, write_bytes, write_json

ASSETS = Path(__file__).parents[1] / "assets"
PATH, MEASURED = ASSETS / "example", ASSETS / "measured.json"
SAMPLE = "sample:phantoms"
KEPT = ("experiment.json", "*.jsonl", "result.json", "predictions.csv", "weights.safetensors", "measures/*.json")
NUMBERS = ("accuracy", "balanced_accuracy", "cka_debiased", "cka_natural_debiased", "natural_accuracy", "natural_agreement")


def make(out: Path, say: Callable[[str], None] = print) -> None:
    """Train both arms on the default sample, measure all there is and keep what the app shows; on two cores about ten minutes.

    With the thorough preset: in the default's 40 steps RIFT holds the model back from 120 drawings that it knows after 120.
    """
    with tempfile.TemporaryDirectory(prefix="rift-") as folder:
        lab = Lab(Path(folder) / "lab")
        api.compare(SAMPLE, Path(folder) / "out", lab=lab.root, training={"preset": "thorough"}, say=say)
        (name,) = service.comparisons(lab)
        for run in service.runs(service.arms(lab, name)):
            for diagnostic in filter(catalog.captures, catalog.names("diagnostics")):
                api.measure(run.id, diagnostic, {"preset": "quick"}, lab=lab.root, say=say)
        service.result(lab, name)
        order, _ = service.order_of(lab, name)
        files = [*_of(lab.data / order.data, "manifest.json", "blobs.bin")]
        files += _of(lab.comparisons / name, "order.json", "comparison.json")
        for run in service.runs(service.arms(lab, name)):
            _halve(run)
            shown = [name for name in catalog.names("diagnostics") if hasattr(catalog.module("diagnostics", name), "gallery")]
            captured = _of(run.path / "captures", *(f"{name}-*.npz" for name in shown))
            for path in captured:
                np.savez_compressed(path, **captures.read(path))  # type: ignore[arg-type]
            files += [*_of(run.path, *KEPT), *captured]
        shutil.rmtree(out, ignore_errors=True)
        for path in files:
            target = out / path.relative_to(lab.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    say(f"{out.name}: {sum(path.stat().st_size for path in out.rglob('*.*')):,} bytes")


def _of(folder: Path, *patterns: str) -> list[Path]:
    return [path for pattern in patterns for path in folder.glob(pattern)]


def _halve(run: Run) -> None:
    """Keep weights in half precision: the page asks them about photos, and their measured numbers are kept beside them."""
    from safetensors.torch import load_file, save

    path, result = run.path / "weights.safetensors", run.result() or {}
    write_bytes(path, save({name: value.half() for name, value in load_file(path).items()}, {"format": "pt"}))
    files = {"files": result.get("files", {}) | {path.name: disk.sha256(path)}}
    write_json(run.path / "result.json", disk.sealed(result | files))


def place(root: Path) -> Lab | None:
    """Return the shipped example as a lab at `root`, anew when another version is shipped; None where none is shipped."""
    shipped = sorted(PATH.glob("comparisons/*/comparison.json"))
    if not shipped:
        return None
    measured = sorted(PATH.glob("runs/*/measures/*.json"))
    mark, seal = hashlib.sha256(b"".join(one.read_bytes() for one in (shipped[0], *measured))).hexdigest(), root / "placed"
    if not seal.exists() or seal.read_text() != mark:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(PATH, root)
        catalog.door("natural", "bundled")(Lab(root).data)
        write_bytes(seal, mark.encode())
    return Lab(root)


def condense(documents: Sequence[Path], out: Path = MEASURED) -> None:
    """Write the numbers of comparison documents of real sets: means, standard errors, verdicts, and no file's name."""
    sets = []
    for path in documents:
        document = json.loads(path.read_bytes())
        counts = document["data"]["counts"]
        sets.append(
            {
                "name": document["data"]["name"],
                "classes": len(document["data"]["classes"]),
                "counts": counts,
                "natural": {key: document["natural"][key] for key in ("name", "images")},
                "backbone": document["backbone"]["name"],
                "weights": document["backbone"]["weights"],
                "pretrained": document["pretrained"],
                "arms": [_short(arm) for arm in document["arms"]],
                "differences": document["differences"],
            }
        )
    write_json(out, {"schema": SCHEMA, "sets": sets})


def _short(arm: dict[str, Any]) -> dict[str, Any]:
    numbers = {kind: {key: arm[kind][key] for key in NUMBERS} for kind in ("mean", "standard_error")}
    return {"name": arm["name"], "strength": arm["strength"], "seeds": len(arm["runs"]), **numbers}

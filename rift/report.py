"""A comparison as one self-contained HTML page: the verdict first, then each diagnostic, then what it cannot say.

The page needs no network and refuses it: its content security policy allows its own two scripts, by hash, and nothing else.
Class and file names are a user's text: the template escapes all it is given, and plots get theirs through `figures.text`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import jinja2
import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from rift import catalog, figures, images, tradeoff, verdict
from rift.runs import write_bytes

ASSETS = Path(__file__).parents[1] / "assets"
MOST_ROWS = 200  # of a table of files; the rest is counted
LONGEST_ARRAY = 32  # longer arrays are not worth reading as a table
PHOTO_PIXELS = 160
# metric, what it is called, what it is counted on
METRICS = (
    ("average_precision", "Mean average precision (mAP)", "test"),
    ("auroc", "AUROC, mean over findings", "test"),
    ("accuracy", "Accuracy", "test"),
    ("balanced_accuracy", "Balanced accuracy", "test"),
    ("cka_debiased", "Debiased CKA of medical images", "test"),
    ("cka_natural_debiased", "Debiased CKA of natural images", "natural"),
    ("natural_accuracy", "Natural accuracy", "natural"),
    ("natural_accuracy_unrotated", "Natural accuracy after undoing the rotation", "natural"),
    ("natural_agreement", "Natural agreement", "natural"),
    ("removed_natural_accuracy", "Adapter removed: natural accuracy", "natural"),
    ("removed_cka_debiased", "Adapter removed: debiased CKA of medical images", "test"),
    ("removed_cka_natural_debiased", "Adapter removed: debiased CKA of natural images", "natural"),
    ("seconds", "Time of the arm (s)", ""),
    ("step_milliseconds", "Time of a step (ms)", ""),
)
ABSENT = {"single_label": ("average_precision", "auroc"), "multi_label": ("balanced_accuracy",)}  # by task, not in the table


class Photo(TypedDict):
    """One natural image and what each model calls it, likeliest first."""

    index: int
    label: str
    models: dict[str, list[tuple[str, float]]]


def write(
    document: Mapping[str, Any],
    measures: Mapping[str, Mapping[str, Mapping[str, Any]]],
    path: Path,
    *,
    natural: np.ndarray | None = None,
) -> None:
    """Write a comparison document and what was measured (by arm, then diagnostic) as one page; `run.disk` when it cannot.

    `measures` are those of each arm's first run; the entry "pretrained", the model compared with itself, may come first.
    `natural` are the natural images `(n, h, w, 3)`; a dozen of them is shown with what each model calls them.
    """
    boot = (ASSETS / "report.js").read_text(encoding="utf-8")
    plotly = get_plotlyjs()
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            document=document,
            style=Markup((ASSETS / "report.css").read_text(encoding="utf-8")),
            scripts=[Markup(plotly), Markup(boot)],
            hashes=[_sha256(plotly), _sha256(boot)],
            verdicts=verdicts(document),
            spoken_of=spoken_of(document),
            table=table(document, measures),
            sections=[*_tradeoff(document), *sections(measures)],
            unmeasured=unmeasured(document, measures),
            photos=[{**one, "uri": _data_uri(natural[one["index"]])} for one in photos(measures)] if natural is not None else [],
            files_={kind: files(document["data"].get(kind)) for kind in ("changed", "skipped", "warnings")},
        )
    )
    write_bytes(path, page.encode())


def part(name: str, *values: Any) -> Markup:
    """Return one of the parts that report and app show alike (a macro of `parts.html.j2`); all values are escaped."""
    macros: Any = _environment().get_template("parts.html.j2").module
    return Markup(getattr(macros, name)(*values))


def photos(measures: Mapping[str, Mapping[str, Mapping[str, Any]]], count: int = 12) -> list[Photo]:
    """Return natural images and what the arms call them: evenly spaced over the set, so that none was picked."""
    arms = {arm: one["zero_shot"] for arm, one in measures.items() if one.get("zero_shot", {}).get("top5") is not None}
    if not arms:
        return []
    first = next(iter(arms.values()))
    names = list(first["natural_classes"])

    def best(one: Mapping[str, Any], prefix: str, i: int) -> list[tuple[str, float]]:
        pairs = zip(one[f"{prefix}top5"][i], one[f"{prefix}top5_probability"][i], strict=True)
        return [(str(names[label]), float(p)) for label, p in pairs][:3]

    n = len(first["labels"])
    chosen: Any = np.unique(np.linspace(0, n - 1, min(count, n)).astype(int)) if n else []
    return [
        Photo(
            index=int(i),
            label=str(names[first["labels"][i]]) if first["labels"][i] >= 0 else "label unknown",
            models={"pretrained": best(first, "pretrained_", i)}
            | {arm: best(one, "", i) for arm, one in arms.items() if arm != "pretrained"},
        )
        for i in chosen
    ]


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # plotly writes "<" as \u003c, so no text can end the script element
    environment.filters |= {"number": number, "options": _options, "percent": _percent, "json": lambda one: Markup(one.to_json())}
    environment.globals |= {"color": figures.color}
    return environment


def _sha256(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def number(value: Any) -> str:
    """Fractions to three decimals, never rounded to a perfect 0 or 1; counts whole; None as a dash."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if abs(value - round(value)) < 1e-9:  # rounding of the machine, not of ours
        return f"{round(value):,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    short = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:.6f}".rstrip("0") if float(short).is_integer() else short


def _percent(share: float) -> str:
    """A probability as whole percent, never rounded to certain or impossible."""
    return "< 1 %" if share < 0.01 else "> 99 %" if share > 0.99 else f"{share:.0%}".replace("%", " %")


def _options(choice: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in choice.get("options", {}).items()) or "no options"


def verdicts(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each difference in words, with its interval's place on one scale common to all (percent of the drawing's width)."""
    rows = _judged(document)
    ends = [abs(row[key]) for row in rows for key in ("difference", "low", "high") if row[key] is not None]
    reach = max(ends, default=0) or 1.0

    def place(value: float | None) -> float | None:
        return None if value is None else round(50 + 46 * value / reach, 2)

    found = [
        {
            "verdict": row["verdict"],
            "chip": verdict.chip(row),
            "sentence": verdict.sentence(_called(row["metric"]), row),
            "place": {key: place(row[key]) for key in ("difference", "low", "high")},
        }
        for row in rows
    ]
    notes = [arm["note"] for arm in document["arms"] if arm.get("note")]
    nowhere = dict.fromkeys(("difference", "low", "high"))
    return found + [
        {"verdict": "changes nothing", "chip": "changes nothing", "sentence": note, "place": nowhere} for note in notes
    ]


def spoken_of(document: Mapping[str, Any]) -> str:
    """Say what the verdicts of a comparison speak of, by how many seeds it has and how many tests."""
    return verdict.about(_judged(document))


def _judged(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the differences; those of a document that was written before p-values were adjusted are judged by today's rules."""
    rows = document.get("differences") or []
    return rows if all("p_adjusted" in row for row in rows) else verdict.judged(rows)


def _called(metric: str) -> str:
    return next((name for key, name, _ in METRICS if key == metric), verdict.FAMILY.get(metric, metric.replace("_", " ")))


def table(document: Mapping[str, Any], measures: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each metric: its name, its n and a cell for the pretrained model and each arm.

    A cell has the standard error over seeds; where there is one seed, the interval over images if its diagnostic gives one.
    """
    test, natural = document["data"]["counts"]["test"], document["natural"]["images"]
    ways = {"classifier": ", by its classifier", "nearest mean": ", by nearest mean"}
    way = ways.get(document["pretrained"].get("natural_head"), "")
    counts = {"test": (test, "test images"), "natural": (natural, "natural images")}
    adapters = any(hasattr(catalog.module("methods", arm["method"]["name"]), "remove") for arm in document["arms"])
    rows = []
    for metric, name, kind in METRICS:
        if (metric.startswith("removed_") and not adapters) or metric in ABSENT[document["data"].get("task", "single_label")]:
            continue
        whole = metric.removeprefix("removed_")  # an adapter's model without it stands beside the pretrained one
        before = document["pretrained"].get(whole)
        cells: list[dict[str, Any]] = [{"mean": before, "error": None, "interval": None, "reason": None}]
        cells[0]["interval"] = _interval(measures, f"pretrained_{whole}") if before is not None else None
        for arm in document["arms"]:
            reasons = (run.get(f"{metric}_reason") for run in arm["runs"])
            mean, error = arm["mean"].get(metric), arm.get("standard_error", {}).get(metric)
            reason = next(filter(None, reasons), "not computed") if mean is None else None
            of = measures.get(arm.get("same_as") or arm["name"], {})
            interval = _interval({"": of}, metric) if error is None and mean is not None else None
            cells.append({"mean": mean, "error": error, "interval": interval, "reason": reason})
        by = way if metric.startswith("natural_accuracy") else ""
        rows.append({"name": f"{name}{by}", "n": counts.get(kind), "cells": cells})
    return rows


def _interval(measures: Mapping[str, Mapping[str, Mapping[str, Any]]], metric: str) -> tuple[float, float] | None:
    """Return the first interval of a metric that any diagnostic of any of these arms gives; those of whole curves are none."""
    results = (result for one in measures.values() for result in one.values())
    found = ((result.get(f"{metric}_low"), result.get(f"{metric}_high")) for result in results)
    return next(((low, high) for low, high in found if isinstance(low, float) and isinstance(high, float)), None)


def sections(measures: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Each diagnostic of the menu that was measured: its text, its figure and its numbers."""
    for name in catalog.names("diagnostics"):
        results = {arm: dict(one[name]) for arm, one in measures.items() if name in one}
        if not results:
            continue
        module = catalog.module("diagnostics", name)
        figure: go.Figure = module.figure(results)
        yield {
            "name": name,
            "title": getattr(module, "TITLE", name.replace("_", " ").capitalize()),
            "summary": catalog.summary("diagnostics", name),
            "sentence": module.sentence(results) if hasattr(module, "sentence") else "",
            "figure": figure,
            "height": figure.layout.height or figures.HEIGHT,
            "min_width": (figure.layout.meta or {}).get("min_width", 0),
            "arms": list(results),
            "rows": _rows(results),
        }


def _tradeoff(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The arms against each other as a section; with two arms the verdict says all of it."""
    arms = tradeoff.points(document)
    if len(arms) < 3:
        return []
    figure = tradeoff.figure(arms)
    about = "What each arm can do against what it kept. Dotted: the arms that no other one beats in both."
    return [
        {
            "name": "tradeoff",
            "title": "Trade-off",
            "summary": about,
            "sentence": tradeoff.sentence(arms),
            "figure": figure,
            "height": figure.layout.height,
            "min_width": (figure.layout.meta or {}).get("min_width", 0),
            "arms": [arm.name for arm in arms],
            "rows": tradeoff.table(arms),
        }
    ]


def _rows(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """The numbers behind a figure: one row for each number or short array entry, one cell for each arm."""
    first = next(iter(results.values()))
    entries = list(first.get("entries", first.get("classes", ())))  # what the places of an array stand for
    rows: list[tuple[str, list[Any]]] = []
    for name in dict.fromkeys(key for one in results.values() for key in one):
        values = [one.get(name) for one in results.values()]
        found = [value for value in values if value is not None]
        if name.endswith("_reason") or name == "labels":
            continue
        if not any(isinstance(value, (np.ndarray, list, tuple)) for value in found):
            rows.append((name, [_said(one, name) for one in results.values()]))
            continue
        arrays = [np.asarray([] if value is None else value) for value in values]
        longest = max(map(np.size, arrays))
        wordy = any(array.ndim != 1 or array.dtype.kind in "US" for array in arrays)
        if wordy or longest > LONGEST_ARRAY or first.get("n") == longest:
            continue
        for i in range(longest):
            entry = entries[i] if len(entries) == longest else i + 1
            rows.append((f"{name}, {entry}", [array[i] if i < len(array) else None for array in arrays]))
    return rows


def _said(one: Mapping[str, Any], name: str) -> Any:
    reason = one.get(f"{name}_reason")
    return f"not computed: {reason}" if one.get(name) is None and reason else one.get(name)


def unmeasured(document: Mapping[str, Any], measures: Mapping[str, Mapping[str, Any]], lab: str = "LAB") -> list[dict[str, Any]]:
    """Each diagnostic that was measured on no arm, with the commands that measure it."""
    runs = [next((run["run"] for run in arm["runs"]), "RUN") for arm in document["arms"] if not arm.get("same_as")]
    return [
        {
            "name": name,
            "title": getattr(catalog.module("diagnostics", name), "TITLE", name.replace("_", " ").capitalize()),
            "summary": catalog.summary("diagnostics", name),
            "commands": [f"python -m rift measure {run} --lab {lab} --diagnostic {name}" for run in runs],
        }
        for name in catalog.names("diagnostics")
        if not any(name in one for one in measures.values())
    ]


def files(rows: Sequence[Mapping[str, str]] | None) -> dict[str, Any]:
    rows = rows or []
    return {"rows": rows[:MOST_ROWS], "more": max(0, len(rows) - MOST_ROWS), "count": len(rows)}


def _data_uri(pixels: np.ndarray) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(images.jpeg(images.fit(pixels, PHOTO_PIXELS))).decode()

"""A comparison as one self-contained HTML page: the verdict first, then each diagnostic, then what it cannot say.

The page needs no network and refuses it: its content security policy allows its own two scripts, by hash, and nothing else.
Class and file names are a user's text: the template escapes all it is given, and plots get theirs through `figures.text`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import jinja2
import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from rift import catalog, figures, images, overview, tradeoff
from rift.runs import write_bytes

ASSETS = Path(__file__).parents[1] / "assets"
MOST_ROWS = 200  # of a table of files; the rest is counted
LONGEST_ARRAY = 32  # longer arrays are not worth reading as a table
PHOTO_PIXELS = 160


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
    galleries: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a comparison document and what was measured (by arm, then diagnostic) as one page; `run.disk` when it cannot.

    `measures` are those of each arm's first run; the entry "pretrained", the model compared with itself, may come first.
    `natural` are the natural images `(n, h, w, 3)`; a dozen of them is shown with what each model calls them. `galleries` are
    rows of other pictures: `caption`, and `pictures` with `caption` and `uri`, as `data_uri` gives it.
    """
    values = {
        "document": document,
        "verdicts": overview.verdicts(document),
        "spoken_of": overview.spoken_of(document),
        "table": overview.table(document, measures),
        "sections": [*_tradeoff(document), *sections(measures)],
        "unmeasured": unmeasured(document, measures),
        "photos": [{**one, "uri": data_uri(natural[one["index"]])} for one in photos(measures)] if natural is not None else [],
        "galleries": galleries,
        "files_": {kind: files(document["data"].get(kind)) for kind in ("changed", "skipped", "warnings")},
    }
    _write(path, "report.html.j2", document["version"], values)


def write_sweep(documents: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write one page of several sets: for each, by its folder's name, the trade-off of its arms and their table."""
    sets = [(name, one, _tradeoff(one), overview.table(one, {})) for name, one in documents.items()]
    _write(path, "sweep.html.j2", next(iter(documents.values()))["version"], {"sets": sets})


def _write(path: Path, template: str, version: str, values: Mapping[str, Any]) -> None:
    """Write a page with its style and scripts in it."""
    scripts = [get_plotlyjs(), (ASSETS / "report.js").read_text(encoding="utf-8")]
    page = (
        _environment()
        .get_template(template)
        .render(
            style=Markup((ASSETS / "report.css").read_text(encoding="utf-8")),
            scripts=[Markup(one) for one in scripts],
            hashes=[_sha256(one) for one in scripts],
            version=version,
            **values,
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


@functools.cache  # its templates are compiled once
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
    return f"{value:.6f}".rstrip("0") if abs(value) < 1 and float(short).is_integer() else short


def _percent(share: float) -> str:
    """A probability as whole percent, never rounded to certain or impossible."""
    return "< 1 %" if share < 0.01 else "> 99 %" if share > 0.99 else f"{share:.0%}".replace("%", " %")


def _options(choice: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in choice.get("options", {}).items()) or "no options"


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
    """The trade-off of three arms or more; with two the verdict says all of it."""
    return [tradeoff_section(document)] if len(document["arms"]) > 2 else []


def tradeoff_section(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `arms[]` can do against what they kept, as one of `sections`."""
    arms = tradeoff.points(document)
    figure = tradeoff.figure(arms)
    return {
        "name": "tradeoff",
        "title": "Trade-off",
        "summary": "What each arm can do against what it kept. Dotted: the arms that no other one beats in both.",
        "sentence": tradeoff.sentence(arms),
        "figure": figure,
        "height": figure.layout.height,
        "min_width": (figure.layout.meta or {}).get("min_width", 0),
        "arms": [arm.name for arm in arms],
        "rows": tradeoff.table(arms),
    }


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


def unmeasured(document: Mapping[str, Any], measures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each diagnostic that was measured on no arm, with the commands that measure it."""
    runs = [next((run["run"] for run in arm["runs"]), "RUN") for arm in document["arms"] if not arm.get("same_as")]
    return [
        {
            "name": name,
            "title": getattr(catalog.module("diagnostics", name), "TITLE", name.replace("_", " ").capitalize()),
            "summary": catalog.summary("diagnostics", name),
            "commands": [f"python -m rift measure {run} --lab LAB --diagnostic {name}" for run in runs],
        }
        for name in catalog.names("diagnostics")
        if not any(name in one for one in measures.values())
    ]


def files(rows: Sequence[Mapping[str, str]] | None) -> dict[str, Any]:
    rows = rows or []
    return {"rows": rows[:MOST_ROWS], "more": max(0, len(rows) - MOST_ROWS), "count": len(rows)}


def data_uri(pixels: np.ndarray, size: int = PHOTO_PIXELS) -> str:
    """Return a picture `(h, w, 3)` as an address that holds all of it, cut to a square of `size` px."""
    return "data:image/jpeg;base64," + base64.b64encode(images.jpeg(images.fit(pixels, size))).decode()

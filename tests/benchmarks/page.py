"""BENCHMARKS.md, made of `benchmarks.json`: a section for each thing measured, with its machine and its command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.sections import SECTIONS

ROOT = Path(__file__).parents[2]
PAGE, NUMBERS = ROOT / "BENCHMARKS.md", Path(__file__).with_name("benchmarks.json")
BUSY = 0.1  # share of the machine that others use: above it, the page says so
HEAD = """# How fast

Made by `python -m tests.benchmarks --write`. Contestants take turns within one run; ratios are taken within a round and told as
median (lower to upper quartile). Times in seconds depend on the machine and are not comparable between sections; ratios are.
Goals are measured and told, never asserted by a test.

Others have pages of their own and are not repeated here: what each penalty does on real images ([RESULTS.md](RESULTS.md)), fifty
visitors at once and 200 killed runs ([RELIABILITY.md](RELIABILITY.md)), ten thousand runs ([docs/scale.md](docs/scale.md)).
"""


def render(stored: Mapping[str, Any]) -> str:
    """Return the page."""
    text = HEAD
    for name, section in SECTIONS.items():
        one = stored["sections"].get(name)
        text += f"\n## {section.title}\n\n{section.about}\n\n"
        text += f"{section.table(one['numbers'])}\n\n{_where(name, one)}\n" if one else f"{_not_yet(name)}\n"
    return text


def _not_yet(name: str) -> str:
    return (
        f"Not yet run on a GPU. `python -m tests.benchmarks --only {name}` does it where one is."
        if name == "gpu"
        else (f"Not yet measured: `python -m tests.benchmarks --only {name}`.")
    )


def _where(name: str, one: Mapping[str, Any]) -> str:
    """Say on what a section was measured, and by which command."""
    machine, versions = one["machine"], ", ".join(f"{package} {number}" for package, number in one["versions"].items())
    what = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
    others = machine["busy_before"] or 0
    busy = f"; **others used {others:.0%} of it just before**: read the ratios, not the times" if others > BUSY else ""
    return f"`python -m tests.benchmarks --only {name}`, on {what}, {machine['threads']} threads{busy}; {versions}."


def merged(stored: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with another's sections in it; those of a quick run are no measurement: ValueError."""
    quick = [name for name, one in more["sections"].items() if one["quick"]]
    if quick:
        raise ValueError(f"a quick run is no measurement: {', '.join(quick)}")
    both = {**stored["sections"], **more["sections"]}
    return {"sections": {name: both[name] for name in SECTIONS if name in both}}

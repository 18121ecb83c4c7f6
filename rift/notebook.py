"""A finished comparison in Python: a dict as in `comparison.json`, with its figures, verdicts and table at hand in a notebook."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rift import comparison, overview
from rift import report as page
from rift.comparison import Arm
from rift.config import Choice
from rift.errors import RunError
from rift.runs import Lab

CELL = 'style="padding:.3em .8em;text-align:{side};vertical-align:top;border-bottom:1px solid #8884"'


class Comparison(dict[str, Any]):
    """The comparison document of `contract.md`; `report` is its page, if there is one."""

    def __init__(self, document: Mapping[str, Any], *, lab: Path | str | None = None, report: Path | None = None):
        super().__init__(document)
        self.report = report
        self._lab = None if lab is None else Path(lab)

    @property
    def verdicts(self) -> list[str]:
        """Each difference in words, as the page has them."""
        return [one["sentence"] for one in overview.verdicts(self)]

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row for each metric: its name, its n, and its mean for the pretrained model and each arm (None: not defined)."""
        return [
            {"metric": row["name"], "n": (row["n"] or [None])[0]}
            | {name: cell["mean"] for name, cell in zip(self._columns, row["cells"], strict=True)}
            for row in overview.table(self, self._measures)
        ]

    @cached_property
    def figures(self) -> dict[str, Any]:
        """The plotly figure of each diagnostic that was measured, by its name, such as `figures["drift"]`."""
        found = {section["name"]: section["figure"] for section in page.sections(self._measures)}
        return ({"tradeoff": page.tradeoff_section(self)["figure"]} if len(self["arms"]) > 2 else {}) | found

    @cached_property
    def _measures(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What each diagnostic measured, from the runs; empty where they are not at hand."""
        if self._lab is None or not (self._lab / "runs").is_dir():
            return {}
        lab, arms = Lab(self._lab), []
        for one in self["arms"]:
            runs = tuple(lab.run(run["run"]) for run in one["runs"] if (lab.root / "runs" / run["run"]).is_dir())
            choices = (Choice(**one["method"]), Choice(**one["regularizer"]))
            arms.append(Arm(one["name"], *choices, one["strength"], runs, one.get("same_as") or ""))
        return comparison.measures(arms)

    @property
    def _columns(self) -> list[str]:
        return ["pretrained", *(arm["name"] for arm in self["arms"])]

    def _repr_html_(self) -> str:
        """Show verdicts, numbers and where the figures are; every name is escaped."""
        left, right = (Markup(CELL.format(side=side)) for side in ("left", "right"))
        verdicts = Markup("").join(Markup("<li>{}</li>").format(one) for one in self.verdicts)
        head = Markup("").join(Markup("<th {}>{}</th>").format(right, name) for name in self._columns)
        rows = Markup("").join(
            Markup("<tr><th {}>{}{}</th>{}</tr>").format(
                left,
                row["metric"],
                "" if row["n"] is None else f" (n = {row['n']})",
                Markup("").join(Markup("<td {}>{}</td>").format(right, page.number(row[name])) for name in self._columns),
            )
            for row in self.table
        )
        names = ", ".join(self.figures)
        where = f"Figures: .figures[name] with {names}." if names else "Its figures are not at hand: the runs are not in its lab."
        page_at = f" The whole page: {self.report}." if self.report else ""
        return Markup(
            "<div><b>{name}</b>: {spoken}<ul>{verdicts}</ul><table style='border-collapse:collapse'><thead><tr><th></th>{head}"
            "</tr></thead><tbody>{rows}</tbody></table><p>{where}{page} Research demo, not for diagnosis.</p></div>"
        ).format(
            name=self["data"]["name"],
            spoken=overview.spoken_of(self),
            verdicts=verdicts,
            head=head,
            rows=rows,
            where=where,
            page=page_at,
        )


def open_comparison(path: str | Path, *, lab: str | Path | None = None) -> Comparison:
    """Return the finished comparison in a folder that `compare` wrote, or of a `comparison.json`; `run.missing` without one.

    Its figures come from the runs in `lab`, by default the folder `lab` beside it.
    """
    path = Path(path)
    path = path / "comparison.json" if path.is_dir() else path
    try:
        document = json.loads(path.read_bytes())
        document["arms"], document["data"]["name"]
    except (OSError, ValueError, LookupError, TypeError):
        raise RunError(
            "run.missing", f"{str(path)!r} is no comparison; give the folder that `compare` wrote into, or its comparison.json."
        ) from None
    report = path.with_name("report.html")
    return Comparison(document, lab=lab or path.with_name("lab"), report=report if report.exists() else None)

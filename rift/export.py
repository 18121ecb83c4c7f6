"""What can be taken away from a comparison as tables: every number, and every prediction, one row each."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rift import comparison, service, table
from rift.runs import Lab, Run

COLUMNS = ("arm", "run", "seed", "source", "metric", "value", "low", "high", "n", "reason")
BESIDE = ("_low", "_high", "_reason")
MOST_ENTRIES = 32  # of an array that is told entry by entry; what is longer is of images, not of the run


def numbers(lab: Lab, name: str) -> str:
    """Return all numbers of a comparison as CSV: one row for each arm, run and metric, with n and 95 % interval where known.

    `source` is the diagnostic that measured it, or `run` for what training itself tells. A number that is not known has a reason.
    """
    return table.written(COLUMNS, _rows(lab, name))


def _rows(lab: Lab, name: str) -> Iterator[Sequence[Any]]:
    document = service.result(lab, name)
    told = {row["run"]: row for arm in document["arms"] for row in arm["runs"]}
    for arm in comparison.trained(service.arms(lab, name)):
        for run in arm.runs:
            head = (arm.name, run.id, run.experiment.seed)
            measured = run.measures()
            seen = {metric for values in measured.values() for metric in values}
            for metric in comparison.NUMBERS:
                if metric not in seen:
                    yield from ((*head, "run", *row) for row in _metric(told[run.id], metric))
            for diagnostic, values in measured.items():
                for metric in values:
                    if not metric.endswith(BESIDE) and metric not in ("n", "preset") and not metric.startswith("n_"):
                        yield from ((*head, diagnostic, *row) for row in _metric(values, metric))


def _metric(values: Mapping[str, Any], metric: str) -> Iterator[Sequence[Any]]:
    """Yield metric, value, low, high, n and reason; of a short array of numbers one row for each entry."""
    value, n = values.get(metric), values.get(f"n_{metric}", values.get("n"))
    n = n if isinstance(n, int) else None
    low, high, reason = (values.get(metric + end) for end in BESIDE)
    if value is None:
        yield metric, None, None, None, n, str(reason or "")
    elif _is_number(value):
        yield metric, value, *(one if _is_number(one) else None for one in (low, high)), n, None
    elif isinstance(value, list) and 0 < len(value) <= MOST_ENTRIES and len(value) != n and all(map(_is_entry, value)):
        ends = [one if isinstance(one, list) and len(one) == len(value) else [None] * len(value) for one in (low, high)]
        for place, (one, *interval) in enumerate(zip(value, *ends, strict=True), 1):
            yield f"{metric}[{place}]", one, *interval, n, None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_entry(value: Any) -> bool:
    return value is None or _is_number(value)


def predictions(lab: Lab, name: str) -> str:
    """Return what every finished run said of every image as CSV: arm, run and seed before the columns of `predictions.csv`."""
    head: list[str] = []
    rows: list[Sequence[Any]] = []
    for arm in comparison.trained(service.arms(lab, name)):
        for run in arm.runs:
            lines = _predicted(run)
            if lines:
                head = head or lines[0]
                rows += [(arm.name, run.id, run.experiment.seed, *line) for line in lines[1:]]
    return table.written(("arm", "run", "seed", *head), rows)


def _predicted(run: Run) -> list[list[str]]:
    try:
        text = run.whole("predictions.csv").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return list(csv.reader(io.StringIO(text, newline="")))

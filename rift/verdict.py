"""What a difference may be called: one family of tests for a whole comparison, and each verdict in plain words.

A difference is a row of `differences` in `contract.md`. A verdict needs a metric of the family, enough images, and one seed or at
least three: one seed speaks of two trained models and says so; two give numbers only. Higher or lower needs an interval without 0
and a p-value of at most LEVEL after Holm's correction over all arms and metrics of the family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rift import statistics

FAMILY = {
    "balanced_accuracy": "balanced accuracy",
    "average_precision": "mean average precision",  # of a task with several labels per image, which has no balanced accuracy
    "reconstruction_error": "reconstruction error",  # of a task that names no class
    "cka_debiased": "debiased CKA",
    "natural_accuracy": "natural accuracy",
}
LEVEL = 0.05
SMALLEST = 20  # images, or patients, below which we give no verdict (our choice)
SMALLEST_NATURAL = 200  # natural images below which there is no verdict
Row = Mapping[str, Any]


def judged(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a comparison's rows with `p_adjusted` and `verdict`, both None with a `verdict_reason` where there is none."""
    reasons = [_reason(row) for row in rows]
    adjusted = iter(statistics.holm([row["p_value"] for row, reason in zip(rows, reasons, strict=True) if not reason]))
    found = []
    for row, reason in zip(rows, reasons, strict=True):
        p = None if reason else next(adjusted)
        found.append({**row, "p_adjusted": p, "verdict": None if p is None else _verdict(row, p)})
        if reason:
            found[-1]["verdict_reason"] = reason
    return found


def sentence(name: str, row: Row) -> str:
    """Return a judged row as one sentence, in the same words whether the arm wins or loses; `name` is the metric's."""
    name, arm, baseline, said = name[:1].upper() + name[1:], row["arm"], row["baseline"], row["verdict"]
    if row["difference"] is None:
        return f"{name}: no verdict on {arm} against {baseline}, because {row['verdict_reason']}."
    numbers = _numbers(row)
    if said is None:
        return f"{name}: no verdict on {arm} against {baseline}, because {row['verdict_reason']}: {numbers}."
    if row["seeds"] == 1:
        link = "from" if said == "not distinguishable" else "than"
        return f"{name} of this one run with {arm} is {said} {link} that of this one run with {baseline}: {numbers}."
    if said == "not distinguishable":
        return f"{name} with {arm} is not distinguishable from that with {baseline}: {numbers}."
    return f"{name} is {said} with {arm} than with {baseline}: {numbers}."


def chip(row: Row) -> str:
    """Return a judged row's verdict in a few words."""
    if row["verdict"] is None:
        return "no verdict" if row["metric"] in FAMILY or row["difference"] is None else "described only"
    return f"{row['verdict']} in this run" if row["seeds"] == 1 else row["verdict"]


def about(rows: Sequence[Row]) -> str:
    """Say what the intervals and verdicts of a comparison speak of: it depends on how many seeds were run."""
    seeds = sorted({row["seeds"] for row in rows if row["difference"] is not None})
    units = "patients" if any(row.get("patients") for row in rows) else "images"
    texts = []
    if 1 in seeds:
        texts.append(
            f"One seed: intervals and tests are over {units}, and a verdict speaks of these two runs, never of the methods; "
            "another seed may turn it round."
        )
    if 2 in seeds:
        texts.append(
            "Two seeds: numbers without a verdict. One difference between two seeds says next to nothing about their spread, so "
            "the interval reaches 12.7 standard errors to each side."
        )
    if several := [count for count in seeds if count > 2]:
        texts.append(
            f"{' or '.join(map(str, several))} seeds, paired: an interval holds the chance of {units} and that of seeds "
            f"(Student's t, one degree of freedom less than seeds), for this one split."
        )
    if tested := sum(row["p_adjusted"] is not None for row in rows):
        *names, last = [name for metric, name in FAMILY.items() if any(row["metric"] == metric for row in rows)]
        listed = f"{', '.join(names)} and {last}" if names else last
        texts.append(
            f"Verdicts are on {listed} only, each arm against its method without penalty; their p-values are adjusted as one "
            f"family of {tested} (Holm). The rest is described."
        )
    return " ".join(texts)


def _reason(row: Row) -> str:
    """Say why there can be no verdict; empty where there can."""
    if row["difference"] is None or row["p_value"] is None:
        return row.get("difference_reason") or "a number is missing"
    if row["metric"] not in FAMILY:
        return "it is outside the family of tests and only described"
    smallest = SMALLEST_NATURAL if "natural" in row["metric"] else SMALLEST
    if (row.get("patients") or row["n"]) < smallest:
        return f"it takes at least {smallest} {'patients' if row.get('patients') else 'images'}"
    return "two seeds cannot tell the methods from the chance of training; it takes at least three" if row["seeds"] == 2 else ""


def _verdict(row: Row, p_adjusted: float) -> str:
    if row["low"] <= 0 <= row["high"] or p_adjusted > LEVEL:
        return "not distinguishable"
    return "higher" if row["difference"] > 0 else "lower"


def _numbers(row: Row) -> str:
    of = f" of {row['patients']} patients" if row.get("patients") else ""
    parts = [f"95 % interval {_signed(row['low'])} to {_signed(row['high'])}", f"n = {row['n']} images{of}"]
    parts += [f"{row['seeds']} seeds"] if row["seeds"] > 1 else ["one seed"]
    parts += [f"adjusted p {_p_value(row['p_adjusted'])}"] if row["p_adjusted"] is not None else []
    return f"{_signed(row['difference'])} ({', '.join(parts)})"


def _signed(value: float) -> str:
    """Three decimals; one significant digit where those would hide that the value is not 0."""
    return f"{value:+.3f}" if value == 0 or abs(value) >= 0.0005 else f"{value:+.1g}"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.9995 else "= 1"

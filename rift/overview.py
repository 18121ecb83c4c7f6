"""A comparison document as rows for people: the verdicts in words, and the table of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rift import catalog, verdict

# metric, what it is called, what it is counted on
METRICS = (
    ("average_precision", "Mean average precision (mAP)", "test"),
    ("auroc", "AUROC, mean over findings", "test"),
    ("accuracy", "Accuracy", "test"),
    ("balanced_accuracy", "Balanced accuracy", "test"),
    ("reconstruction_error", "Reconstruction error (mean absolute difference of pixels in [0, 1]; lower is better)", "test"),
    ("reconstruction_error_of_mean", "The same for the mean training image", "test"),
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
PIXELS = ("reconstruction_error", "reconstruction_error_of_mean")
ABSENT = {  # by task, not in the table
    "single_label": ("average_precision", "auroc", *PIXELS),
    "multi_label": ("balanced_accuracy", *PIXELS),
    "reconstruction": ("average_precision", "auroc", "balanced_accuracy"),
}


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
    absent = ABSENT[document["data"].get("task", "single_label")]
    for metric, name, kind in METRICS:
        if (metric.startswith("removed_") and not adapters) or metric in absent:
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

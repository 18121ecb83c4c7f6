"""What happens inside the model, as a part of RESULTS.md: answers to the papers' questions with their counts, then tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rift.diagnostics import spread

# Diagnostic, number, heading; a number with `_low` and `_high` beside it is shown with its interval
COLUMNS = (
    ("stir", "forgetting_above_mean", "forgetting above floor"),
    ("stir", "learning_above_mean", "learning above floor"),
    ("stir", "forgetting_late_more", "late minus early layers"),
    ("stir", "compression_net", "compression, net"),
    ("corruption", "clean_accuracy", "clean accuracy"),
    ("corruption", "mean_accuracy", "accuracy under corruption"),
    ("sharpness", "sharpness", "rise of the loss in the ball"),
    ("sharpness", "eigenvalue", "largest eigenvalue"),
    ("attention", "agreement", "attention agreement"),
    ("reliability", "ece", "ECE"),
    ("retrieval", "natural_neighbors_kept", "natural neighbors kept"),
    ("pca", "displacement", "displacement"),
)
HEAD = """
## Inside the model

Made by `python -m tests.benchmarks.microscope --data DIR --weights FILE --lab DIR`: quick presets, one seed an arm, descriptive;
95 % intervals over images in brackets, which hold nothing of the chance of training. Forgetting, learning and flow are our
reading of arXiv 2307.06006 (`rift/diagnostics/stir.py`), its models and corruptions are not ours, and nothing is reproduced.
A dash: not defined there, or not measured yet (the command goes on where it stopped).
"""


def render(stored: Mapping[str, Any]) -> str:
    """Return the part of the page; empty where nothing was examined."""
    if not stored:
        return ""
    lines = [HEAD, *_answers(stored), ""]
    for name, case in stored.items():
        lines += [f"### {name}: {case['title']}, {case['backbone']}", "", *_table(case), ""]
    return "\n".join(lines)


def _firsts(stored: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, case in stored.items():
        for run in case["runs"]:
            if "stir" in run["measures"]:
                yield f"{name} {run['task'].replace('single_label', 'classification')} {run['method']} {run['penalty']}", run


def _answers(stored: Mapping[str, Any]) -> Iterator[str]:
    """The questions of the study and of the project, each with how many runs say what."""
    for number, question in (
        ("forgetting_late_more", "Do early layers forget less than late ones?"),
        ("learning_late_more", "Do early layers learn less than late ones?"),
        ("compression_net", "Does flow exceed its baseline towards earlier layers (compression)?"),
    ):
        yield f"- **{question}** {_counted(stored, 'stir', number)}"
    for diagnostic, number, question in (
        ("stir", "forgetting_above_mean", "Does RIFT lower forgetting?"),
        ("corruption", "mean_accuracy", "Is RIFT more robust to corruption?"),
        ("sharpness", "sharpness", "Is RIFT's minimum flatter (lower rise)?"),
        ("reliability", "ece", "Is RIFT better calibrated (lower ECE)?"),
    ):
        yield f"- **{question}** {_pairs(stored, diagnostic, number)}"
    yield f"- **Does the spread of forgetting follow robustness?** {_spread(stored)}"


def _counted(stored: Mapping[str, Any], diagnostic: str, number: str) -> str:
    found: dict[str, list[str]] = {"yes": [], "no, the other way round": [], "cannot be told": []}
    for name, run in _firsts(stored):
        one = run["measures"][diagnostic]
        if one.get(f"{number}_low") is None:
            continue
        way = "yes" if one[f"{number}_low"] > 0 else "no, the other way round" if one[f"{number}_high"] < 0 else "cannot be told"
        found[way].append(f"{name} {one[number]:+.3f}")
    return "; ".join(f"{way} in {len(names)}" + (f" ({', '.join(names)})" if names else "") for way, names in found.items()) + "."


def _pairs(stored: Mapping[str, Any], diagnostic: str, number: str) -> str:
    """The number with RIFT and without, wherever both were measured; one seed each, so no verdict."""
    values = {}
    for name, run in _firsts(stored):
        values[name.rsplit(" ", 1)[0], run["penalty"]] = run["measures"][diagnostic].get(number)
    parts = []
    for (name, penalty), with_ in values.items():
        without = values.get((name, "none"))
        if penalty == "rift" and with_ is not None and without is not None:
            parts.append(f"{name} {without:.3f} → {with_:.3f}")
    return f"From none to rift, one seed each, no verdict: {'; '.join(parts)}." if parts else "Not measured on both arms."


def _spread(stored: Mapping[str, Any]) -> str:
    """Over the last epochs of all classification runs of a backbone, set by set, and within runs over epochs."""
    parts = []
    for name, case in stored.items():
        runs = {run["run"]: run["measures"]["spread"] for run in case["runs"] if run["task"] == "single_label"}
        within = [one["correlation"] for one in runs.values() if one.get("correlation") is not None]
        if within:
            falls = sum(value < 0 for value in within)
            parts.append(
                f"{name}: over epochs r from {min(within):.2f} to {max(within):.2f}, below 0 in {falls} of {len(within)} runs"
            )
    kept = {
        run["run"]: run["measures"]["spread"] for case in stored.values() for run in case["runs"] if run["task"] == "single_label"
    }
    found = spread.last_of(kept)
    if found["correlation"] is None:
        parts.append(f"over runs: {found['correlation_reason']}")
    else:
        low, high = found["correlation_low"], found["correlation_high"]
        parts.append(
            f"over the last epochs of {found['runs']} runs of all sets and backbones together r = {found['correlation']:.2f} "
            f"({low:.2f} to {high:.2f}; sets differ in difficulty, which is in this number)"
        )
    return "; ".join(parts) + "."


def _table(case: Mapping[str, Any]) -> Iterator[str]:
    yield "| task | method | penalty | " + " | ".join(heading for *_, heading in COLUMNS) + " |"
    yield "| --- | --- | --- |" + " --- |" * len(COLUMNS)
    for run in case["runs"]:
        if "stir" in run["measures"]:
            cells = [_cell(run["measures"][diagnostic], number) for diagnostic, number, _ in COLUMNS]
            task = run["task"].replace("single_label", "classification")
            yield f"| {task} | {run['method']} | {run['penalty']} | {' | '.join(cells)} |"


def _cell(one: Mapping[str, Any], number: str) -> str:
    if one.get(number) is None:
        return "–"
    low, high = one.get(f"{number}_low"), one.get(f"{number}_high")
    return f"{one[number]:.3g}" + (f" [{low:.3g}, {high:.3g}]" if low is not None and high is not None else "")

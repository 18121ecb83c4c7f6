"""What each arm can do against what it kept, and the arms that no other one beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rift import figures

KEPT = {"cka_debiased": "debiased CKA of test images", "natural_accuracy": "natural accuracy"}
TASK = {  # the first that was measured
    "balanced_accuracy": "balanced accuracy",
    "average_precision": "mean average precision",
    "reconstruction_error": "reconstruction error",
}
LESS_IS_BETTER = ("reconstruction_error",)


@dataclass(frozen=True)
class Point:
    """One arm: mean and standard error (None from one seed) of each number over its seeds."""

    name: str
    method: str
    regularizer: str
    strength: float | str
    seeds: int
    numbers: Mapping[str, tuple[float | None, float | None]]
    group: str = ""  # method, regularizer with their options, and training settings: arms of one group differ in strength only
    without: str = ""  # the group of the arm without penalty that belongs to it
    runs: tuple[str, ...] = ()


def points(document: Mapping[str, Any]) -> list[Point]:
    """Return the arms of a comparison document that were measured."""
    return [
        Point(
            arm["name"],
            arm["method"]["name"],
            arm["regularizer"]["name"],
            arm["strength"],
            len(arm["runs"]),
            {key: (arm["mean"].get(key), arm["standard_error"].get(key)) for key in (*KEPT, *TASK)},
            _group(arm, arm["regularizer"]),
            _group(arm, {"name": "none"}),
            tuple(run["run"] for run in arm["runs"] if "run" in run),
        )
        for arm in document["arms"]
    ]


def _group(arm: Mapping[str, Any], regularizer: Mapping[str, Any]) -> str:
    named = []
    for choice in (arm["method"], regularizer):
        options = ", ".join(f"{key}={value}" for key, value in choice.get("options", {}).items())
        named.append(f"{choice['name']}[{options}]" if options else choice["name"])
    return f"{' with '.join(named)}{arm.get('settings', '')}"


def paths(arms: Sequence[Point]) -> dict[str, list[Point]]:
    """Return for each method and regularizer its arms by rising strength, behind the one without penalty as strength 0.

    Arms that differ in more than their strength are on different paths; "auto" comes last.
    """
    found: dict[str, list[Point]] = {}
    for arm in arms:
        if arm.group != arm.without:
            found.setdefault(arm.group, [one for one in arms if one.group == arm.without]).append(arm)
    return {group: sorted(path, key=lambda arm: (isinstance(arm.strength, str), arm.strength)) for group, path in found.items()}


def front(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Return the places of the points that no other is at least as good as in both numbers and better in one, by rising x."""
    places = [
        i for i in range(len(x)) if not any(x[j] >= x[i] and y[j] >= y[i] and (x[j] > x[i] or y[j] > y[i]) for j in range(len(x)))
    ]
    return sorted(places, key=lambda i: x[i])


def _task(arms: Sequence[Point]) -> str:
    return next((key for key in TASK if any(arm.numbers[key][0] is not None for arm in arms)), "balanced_accuracy")


def _best(arms: Sequence[Point], x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Return the front of the arms, whichever way the number of their task is better."""
    return front(x, [-one for one in y] if _task(arms) in LESS_IS_BETTER else y)


def _both(arms: Sequence[Point], kept: str) -> tuple[list[Point], list[float], list[float]]:
    """Return the arms that have both numbers, and these."""
    task = _task(arms)
    pairs = [(arm, arm.numbers[kept][0], arm.numbers[task][0]) for arm in arms]
    whole = [(arm, x, y) for arm, x, y in pairs if x is not None and y is not None]
    return [arm for arm, _, _ in whole], [x for _, x, _ in whole], [y for _, _, y in whole]


def figure(arms: Sequence[Point]) -> go.Figure:
    """Task metric against similarity and against natural accuracy: one mark an arm, strengths joined, the front dotted."""
    if not any(_both(arms, kept)[0] for kept in KEPT):
        return figures.empty("no finished arm has both numbers")
    plot = make_subplots(rows=1, cols=len(KEPT), shared_yaxes=True, horizontal_spacing=0.06)
    kinds = list(dict.fromkeys(arm.regularizer for arm in arms))
    for column, (kept, title) in enumerate(KEPT.items(), 1):
        known, x, y = _both(arms, kept)
        best = _best(arms, x, y)
        line = {"color": figures.GREY, "dash": "dot", "width": 1.5}
        along: dict[str, Any] = {"x": [x[i] for i in best], "y": [y[i] for i in best]}
        plot.add_scatter(
            **along, mode="lines", line=line, name="front", showlegend=column == 1, hoverinfo="skip", row=1, col=column
        )
        for kind in kinds:
            for method in dict.fromkeys(arm.method for arm in known if arm.regularizer == kind):
                _marks(plot, [arm for arm in known if (arm.regularizer, arm.method) == (kind, method)], kept, kinds, column)
        plot.update_xaxes(title_text=title, range=_span(x), row=1, col=column)
    every = [arm.numbers[_task(arms)][0] for arm in arms]
    if _task(arms) in LESS_IS_BETTER:
        plot.update_yaxes(title_text=f"{TASK[_task(arms)]} (less is up)", autorange="reversed", row=1, col=1)
    else:
        plot.update_yaxes(title_text=TASK[_task(arms)], range=_span([y for y in every if y is not None]), row=1, col=1)
    seen: set[str] = set()
    for trace in plot.data:
        trace.showlegend = trace.name not in seen
        seen.add(trace.name)
    return figures.style(plot, 420).update_layout(meta={"min_width": 620})


def _span(values: Sequence[float]) -> list[float] | None:
    """Return a range of at least a quarter of the whole around the values, so that a small gap does not look like a large one."""
    if not values:
        return None
    low, high = min(values) - 0.04, max(values) + 0.04
    more = max(0.0, 0.25 - (high - low)) / 2
    low, high = low - more, high + more
    return [low - max(0.0, high - 1.04), min(high, 1.04)]


def _marks(plot: go.Figure, arms: Sequence[Point], kept: str, kinds: Sequence[str], column: int) -> None:
    """Draw the arms of one regularizer and method, joined by rising strength."""
    task, kind = _task(arms), arms[0].regularizer
    arms = sorted(arms, key=lambda arm: (isinstance(arm.strength, str), arm.strength))
    axes = [figures.numbers([arm.numbers[key][0] for arm in arms]) for key in (kept, task)]
    errors = [[arm.numbers[key][1] or 0.0 for arm in arms] for key in (kept, task)]
    look = {"color": figures.color(kind, kinds), "symbol": figures.symbol(kind, kinds), "size": 11}
    bars = [{"type": "data", "array": one, "thickness": 1, "width": 2, "visible": any(one)} for one in errors]
    plot.add_scatter(
        x=axes[0],
        y=axes[1],
        error_x=bars[0],
        error_y=bars[1],
        mode="lines+markers",
        line={"color": figures.faded(figures.color(kind, kinds), 0.35), "width": 1},
        marker=look,
        name=figures.text(kind),
        text=[f"{figures.text(arm.name, 60)}, {arm.seeds} seed{'s' if arm.seeds > 1 else ''}" for arm in arms],
        hovertemplate="%{text}<br>%{x:.3f}, %{y:.3f}<extra></extra>",
        row=1,
        col=column,
    )


def sentence(arms: Sequence[Point]) -> str:
    """Say which arms no other one beats in both numbers; it describes these runs and tests nothing."""
    parts = []
    for kept, title in KEPT.items():
        known, x, y = _both(arms, kept)
        if known:
            names = ", ".join(known[i].name for i in _best(arms, x, y))
            parts.append(f"{TASK[_task(arms)].capitalize()} and {title}: {names} (of {len(known)}).")
    if not parts:
        return "No arm has been measured in both numbers."
    described = "This describes the runs; the verdict says what is beyond chance."
    return f"No other arm is better in both. {' '.join(parts)} {described}"


def ring(arms: Sequence[Point], chosen: Point) -> list[dict[str, Any]]:
    """Return traces that mark an arm in the figure."""
    found = []
    for column, kept in enumerate(KEPT, 1):
        known, x, y = _both(arms, kept)
        if chosen in known:
            found.append(figures.ring([x[known.index(chosen)]], [y[known.index(chosen)]], column))
    return found


def said(arms: Sequence[Point], chosen: Point, intervals: Mapping[str, tuple[float, float, int]]) -> str:
    """Say an arm's numbers, with `intervals` (low, high, images) where one seed was trained, and which arms beat it in both."""
    parts = []
    for key in (_task(arms), *KEPT):
        mean, error = chosen.numbers[key]
        name = TASK.get(key) or KEPT[key]
        if mean is None:
            parts.append(f"{name} not measured")
        elif error is not None:
            parts.append(f"{name} {mean:.3f} ± {error:.3f}")
        elif key in intervals:
            low, high, n = intervals[key]
            parts.append(f"{name} {mean:.3f} (95 % interval {low:.3f} to {high:.3f}, n = {n})")
        else:
            parts.append(f"{name} {mean:.3f} (no interval was measured)")
    seeds = (
        f"mean ± standard error over {chosen.seeds} seeds"
        if chosen.seeds > 1
        else "one seed, so the intervals are over images and hold nothing of the chance of training"
    )
    strength = chosen.strength if isinstance(chosen.strength, str) else f"{chosen.strength:g}"
    return f"λ = {strength}, {chosen.name}: {', '.join(parts)}; {seeds}.{_beaten(arms, chosen)}"


def _beaten(arms: Sequence[Point], chosen: Point) -> str:
    """Say of each number that it may keep which arms are at least as good there and at the task, and better in one."""
    parts = []
    for kept, title in KEPT.items():
        known, x, y = _both(arms, kept)
        if chosen in known:
            i, sign = known.index(chosen), -1 if _task(arms) in LESS_IS_BETTER else 1
            pairs = [(a, sign * b) for a, b in zip(x, y, strict=True)]
            better = [j for j, (a, b) in enumerate(pairs) if a >= pairs[i][0] and b >= pairs[i][1] and pairs[j] != pairs[i]]
            names = f"beaten by {', '.join(known[j].name for j in better)}" if better else "on the front"
            parts.append(f"with {title} it is {names}")
    return f" As measured, {'; '.join(parts)}." if parts else ""


def table(arms: Sequence[Point]) -> list[tuple[str, list[float | None]]]:
    """Return the means behind the figure: a row for each number, a cell for each arm."""
    titles = {_task(arms): TASK[_task(arms)], **KEPT}
    return [(title, [arm.numbers[key][0] for arm in arms]) for key, title in titles.items()]

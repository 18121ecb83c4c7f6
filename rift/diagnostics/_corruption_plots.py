"""The picture of `corruption`: score and drift by severity, and the score under each corruption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rift import figures
from rift.diagnostics._corruptions import SEVERITIES

SCORES = {"accuracy": "accuracy", "average_precision": "mAP"}
MIDDLE = 3  # the severity that is drawn corruption by corruption; every choice of severities has it


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Score and CKA by severity, severity 0 being the clean image, above the score under each corruption with its interval."""
    arms = {arm: one for arm, one in results.items() if one.get("mean_corruption_error") is not None}
    if not arms:
        reasons = (one.get("mean_corruption_error_reason") for one in results.values())
        return figures.empty(next(filter(None, reasons), "no arm was measured"))
    first = next(iter(arms.values()))
    score, rows = SCORES[first["score"]], 26 + 8 * len(arms)
    top, bottom = 300, 40 + rows * len(first["corruptions"])
    plot = make_subplots(
        rows=2,
        cols=2,
        specs=[[{}, {}], [{"colspan": 2}, None]],
        row_heights=[top, bottom],
        vertical_spacing=90 / (top + bottom + 90),
        horizontal_spacing=0.12,
    )
    for place, (arm, one) in enumerate(arms.items()):
        look = {"color": figures.color(arm, list(results)), "symbol": figures.symbol(arm, list(results))}
        dash = figures.dash(arm, list(results))
        _line(plot, 1, arm, one, first["score"], one[f"clean_{one['score']}"], look, dash)
        _line(plot, 2, arm, one, "cka_debiased", 1.0, look, dash)
        _dots(plot, arm, one, look, (place - (len(arms) - 1) / 2) * min(0.2, 0.7 / len(arms)))
    look = {"color": figures.color("pretrained"), "symbol": figures.symbol("pretrained")}
    _line(plot, 2, "pretrained", first, "pretrained_cka_debiased", 1.0, look, figures.dash("pretrained"))
    for column, title in ((1, f"{score}, mean over corruptions"), (2, "debiased CKA with clean images")):
        plot.update_xaxes(title_text="severity (0: clean)", range=[-0.3, SEVERITIES + 0.3], dtick=1, row=1, col=column)
        plot.update_yaxes(title_text=title, range=[-0.03, 1.05], row=1, col=column)
    names = [figures.text(str(name).replace("_", " ")) for name in first["corruptions"]]
    plot.update_xaxes(title_text=f"{score} at severity {MIDDLE}; dotted: clean", range=[-0.03, 1.03], row=2, col=1)
    plot.update_yaxes(tickvals=np.arange(len(names)), ticktext=names, range=[len(names) - 0.4, -0.6], row=2, col=1)
    return figures.style(plot, top + bottom + 160).update_layout(meta={"min_width": 640})


def _line(
    plot: go.Figure, column: int, arm: str, one: Mapping[str, Any], name: str, clean: float, look: dict[str, str], dash: str
) -> None:
    """A number by severity from the clean images on, with its intervals."""
    values, low, high = (figures.numbers(one.get(f"severity_{name}{end}")) for end in ("", "_low", "_high"))
    if not len(values):
        return
    known = np.isfinite(values)
    low, high = (np.append(np.nan, bound[known] if len(bound) else values[known] * np.nan) for bound in (low, high))
    y = np.append(clean, values[known])
    plot.add_trace(
        go.Scatter(
            x=np.append(0, 1 + np.flatnonzero(known)),
            y=y,
            error_y={"type": "data", "array": high - y, "arrayminus": y - low, "thickness": 1.2, "width": 3},
            mode="lines+markers",
            name=figures.text(arm),
            legendgroup=arm,
            showlegend=column == 1 or arm == "pretrained",
            line={"color": look["color"], "dash": dash, "width": 2},
            marker={**look, "size": 9},
            hovertemplate="severity %{x}: %{y:.3f}",
        ),
        row=1,
        col=column,
    )


def _dots(plot: go.Figure, arm: str, one: Mapping[str, Any], look: dict[str, str], offset: float) -> None:
    """The score under each corruption with its interval, and a line at the score of the clean images."""
    place = list(one["severities"]).index(MIDDLE)
    values, low, high = (figures.numbers(one.get(f"{one['score']}{end}")) for end in ("", "_low", "_high"))
    x = values[:, place]
    low, high = (bound[:, place] if bound.size else x * np.nan for bound in (low, high))
    y = np.arange(len(x)) + offset
    plot.add_trace(
        go.Scatter(
            x=x,
            y=y,
            error_x={"type": "data", "array": high - x, "arrayminus": x - low, "thickness": 1.2, "width": 3},
            mode="markers",
            name=figures.text(arm),
            legendgroup=arm,
            showlegend=False,
            marker={**look, "size": 9},
            customdata=np.stack([low, high], axis=1),
            hovertemplate="%{x:.3f} (%{customdata[0]:.3f} to %{customdata[1]:.3f})",
        ),
        row=2,
        col=1,
    )
    clean = one[f"clean_{one['score']}"]
    line = {"color": look["color"], "dash": "dot", "width": 1.5}
    ends = {"x": [clean, clean], "y": [-0.6, len(x) - 0.4], "mode": "lines", "line": line}
    plot.add_trace(go.Scatter(**ends, showlegend=False, hovertemplate=f"{figures.text(arm)}, clean: {clean:.3f}"), row=2, col=1)

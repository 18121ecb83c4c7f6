"""What `sharpness` shows: the rise by ε, slices of all arms on one axis, planes side by side on one scale, and a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rift import figures

ROW = 300  # pixels
MOST_TEXT = 7  # cells a side that have room for their number


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Above the rise by ε, along random directions, the gradient and the line from the pretrained model; below the planes."""
    arms = {arm: one for arm, one in results.items() if one.get("rise") is not None}
    if not arms:
        reasons = (one.get("sharpness_reason") for one in results.values())
        return figures.empty(next(filter(None, reasons), "no arm was measured"))
    planes = {arm: one for arm, one in arms.items() if one.get("surface") is not None}
    rows = 2 + math.ceil(len(planes) / 2)
    titles = ["worst move found (dotted: one step)", "random directions", "along the gradient", "from the pretrained model"]
    titles += [f"plane, {figures.text(arm)}" for arm in planes]
    plot = make_subplots(rows=rows, cols=2, subplot_titles=titles, horizontal_spacing=0.13, vertical_spacing=0.3 / rows)
    for arm, one in arms.items():
        _balls(plot, arm, one, list(results))
        _slices(plot, arm, one, list(results))
    _planes(plot, planes)
    for row, col, x in ((1, 1, "ε"), (1, 2, "distance / norm"), (2, 1, "ε"), (2, 2, "0 finetuned, -1 pretrained")):
        plot.update_xaxes(title_text=x, exponentformat="power", row=row, col=col)
        plot.update_yaxes(title_text="rise of the loss" if col == 1 else None, row=row, col=col)
    figures.style(plot, 60 + ROW * rows)
    plot.update_annotations(font={"size": 13}, yshift=4)
    return plot.update_layout(meta={"min_width": 640}, margin={"t": 90}, legend={"y": 1 + 34 / (ROW * rows)})


def _balls(plot: go.Figure, arm: str, one: dict, arms: list[str]) -> None:
    for key, dash, name in (("rise", "solid", "several steps"), ("one_step_rise", "dot", "one step")):
        if one.get(key) is None:
            continue
        x, y = (np.append(0.0, figures.numbers(one[which])) for which in ("radii", key))
        low, high = (figures.numbers(one.get(f"{key}_{end}")) for end in ("low", "high"))
        bars = {"type": "data", "symmetric": False, "array": np.append(0, high - y[1:]), "arrayminus": np.append(0, y[1:] - low)}
        more = {"error_y": bars | {"thickness": 1}} if key == "rise" and len(low) == len(high) == len(y) - 1 else {}
        _line(plot, arm, arms, x, y, 1, 1, dash, f"{name}: ε %{{x:.3g}}, rise %{{y:.3g}}", shown=key == "rise", **more)


def _slices(plot: go.Figure, arm: str, one: dict, arms: list[str]) -> None:
    offsets = figures.numbers(one["offsets"])
    if one.get("slice_random") is not None:
        band = [figures.numbers(one.get(f"slice_random_{end}")) for end in ("low", "high")]
        if all(np.isfinite(end).all() for end in band):
            plot.add_trace(
                go.Scatter(
                    x=np.concatenate([offsets, offsets[::-1]]),
                    y=np.concatenate([band[0], band[1][::-1]]),
                    fill="toself",
                    fillcolor=figures.faded(figures.color(arm, arms), 0.15),
                    line={"width": 0},
                    mode="lines",
                    legendgroup=arm,
                    showlegend=False,
                    hoverinfo="skip",
                ),
                row=1,
                col=2,
            )
        _line(plot, arm, arms, offsets, figures.numbers(one["slice_random"]), 1, 2, "solid", "at %{x:.3g}: %{y:.3g}")
    for key, row, col in (("slice_gradient", 2, 1), ("slice_line", 2, 2)):
        if one.get(key) is not None:
            x = offsets / offsets.max() * (figures.numbers(one["radii"])[-1] if col == 1 else 1.0)
            _line(plot, arm, arms, x, figures.numbers(one[key]), row, col, "solid", "at %{x:.3g}: %{y:.3g}")


def _line(
    plot: go.Figure,
    arm: str,
    arms: list[str],
    x: np.ndarray,
    y: np.ndarray,
    row: int,
    col: int,
    dash: str,
    hover: str,
    shown: bool = False,
    **more: object,
) -> None:
    color = figures.color(arm, arms)
    plot.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="lines+markers",
            name=figures.text(arm),
            legendgroup=arm,
            showlegend=shown,
            line={"color": color, "dash": dash, "width": 2},
            marker={"symbol": figures.symbol(arm, arms), "size": 8, "color": color},
            hovertemplate=hover,
            **more,
        ),
        row=row,
        col=col,
    )


def _planes(plot: go.Figure, planes: Mapping[str, dict]) -> None:
    """One heat map an arm, all on one scale; the numbers stand in the cells where there is room."""
    values = {arm: figures.numbers(one["surface"]) for arm, one in planes.items()}
    if not values:
        return
    scale = {"colorscale": figures.SEQUENTIAL, "cmin": min(0.0, *(np.nanmin(z) for z in values.values()))}
    plot.update_layout(coloraxis=scale | {"cmax": max(float(np.nanmax(z)) for z in values.values()), "showscale": False})
    for place, (arm, one) in enumerate(planes.items()):
        row, col = 3 + place // 2, 1 + place % 2
        axis = figures.numbers(one["plane"])
        z = values[arm]
        text = {"texttemplate": "%{z:.2g}", "textfont": {"color": figures.GREY}} if len(z) <= MOST_TEXT else {}
        plot.add_trace(
            go.Heatmap(x=axis, y=axis, z=z, coloraxis="coloraxis", hovertemplate="%{z:.3g}<extra></extra>", **text), row, col
        )
        plot.update_xaxes(title_text="first direction", tickvals=axis[[0, len(axis) // 2, -1]], row=row, col=col)
        plot.update_yaxes(title_text="second" if col == 1 else None, tickvals=axis[[0, len(axis) // 2, -1]], row=row, col=col)


def sentence(results: Mapping[str, dict]) -> str:
    """Say by arm how much the loss rises within the largest ε and the largest eigenvalue, and whether arms can be compared."""
    arms = {arm: one for arm, one in results.items() if one.get("sharpness") is not None}
    missing = [f"{arm}: {one.get('sharpness_reason', 'it was not measured')}" for arm, one in results.items() if arm not in arms]
    if not arms:
        return f"Sharpness cannot be computed: {'; '.join(missing) or 'no arm was measured'}."
    first = next(iter(arms.values()))
    said = "; ".join(_said(arm, one) for arm, one in arms.items())
    counts = f"{first['n']} of {first['n_train']} training images"
    absent = f" Not computed for {'; '.join(missing)}." if missing else ""
    return f"On {counts}, {said}. {_alike(arms)}{absent}"


def _said(arm: str, one: Mapping[str, Any]) -> str:
    low, high = one.get("sharpness_low"), one.get("sharpness_high")
    interval = "" if low is None or high is None else f" (95 % interval {low:.2g} to {high:.2g})"
    bend = one.get("eigenvalue")
    if bend is not None:
        eigenvalue = f"the largest eigenvalue is {bend:.3g} ± {one['eigenvalue_residual']:.2g}"
    elif one.get("eigenvalue_at_least") is not None:
        eigenvalue = f"the largest eigenvalue is not settled, at least {one['eigenvalue_at_least']:.3g}"
    else:
        eigenvalue = f"there is no eigenvalue, as {one['eigenvalue_reason']}"
    rise = f"rises by {one['sharpness']:.3g}{interval} at the worst move found within ε = {figures.numbers(one['radii'])[-1]:.3g}"
    reach = figures.numbers(one["radii_absolute"])[-1]
    return f"the loss of {arm} ({one['loss']:.3g}) {rise}, an L2 norm of {reach:.3g}; {eigenvalue}"


def _alike(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Say what was moved, and that arms which moved different parameters are not to be ranked by it."""
    first = next(iter(arms.values()))
    kinds = {(tuple(one["names"]), one["n_parameters"]) for one in arms.values()}
    if len(kinds) == 1:
        same = ", the same in every arm" if len(arms) > 1 else ""
        return f"Moved were {first['n_parameters']:,} parameters, {first['n_head_parameters']:,} of them of the head{same}."
    moved = ", ".join(f"{arm} {one['n_parameters']:,}" for arm, one in arms.items())
    return f"Not like for like: the arms moved different parameters ({moved}), so which of them is flatter cannot be read off."

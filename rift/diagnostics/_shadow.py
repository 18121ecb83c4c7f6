"""How `pca` draws its clouds: points by class, contours of each model's density over the pretrained one's, arrows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rift import figures

MOST_POINTS = 600  # drawn in each panel, evenly spaced; the numbers cover all
ARROWS = 24  # images whose way is drawn, evenly spaced
CELLS = 56  # of the grid that a density is drawn from, in each direction
MASSES = (0.5, 0.9)  # share of a density within each contour


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Draw one panel of the pretrained model, or one per joint basis, and one of each arm, all on the same axes."""
    arms = {arm: one for arm, one in results.items() if one.get("before") is not None}
    if not arms:
        reasons = (one.get("before_reason") for one in results.values())
        return figures.empty(next(filter(None, reasons), "no arm was measured"))
    panels = _panels(arms)
    first = next(iter(arms.values()))
    share = figures.numbers(first["explained"])
    plot = make_subplots(
        cols=len(panels),
        shared_xaxes="all",
        shared_yaxes="all",
        horizontal_spacing=0.02,
        subplot_titles=[name for name, *_ in panels],
    )
    for column, (_, arm, one, model) in enumerate(panels, 1):
        _points(plot, one, model, column)
        if model == "after":
            _arrows(plot, one, column)
            _density(plot, one, "after", arm, column, list(results))
        _density(plot, one, "before", "pretrained", column, list(results))
    plot.update_annotations(font_size=13)
    figures.style(plot, 480).update_layout(meta={"min_width": 60 + 260 * len(panels)}, margin={"t": 120})
    plot.update_layout(legend={"y": 1.1})
    plot.update_xaxes(title_text=f"axis 1 ({share[0]:.0%})", showticklabels=True)
    return plot.update_yaxes(title_text=f"axis 2 ({share[1]:.0%})", col=1)


def spread(n: int, most: int = MOST_POINTS) -> np.ndarray:
    """Return at most so many of n indices, evenly spaced from the first to the last, so that none is picked."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(int))


def _panels(arms: Mapping[str, dict]) -> list[tuple[str, str, dict, str]]:
    """Return title, arm, results and model of each panel."""
    panels: list[tuple[str, str, dict, str]] = []
    for arm, one in arms.items():
        if not panels:
            panels.append(("pretrained", "pretrained", one, "before"))
        elif one.get("basis") == "joint" and arm != "pretrained":
            panels.append((f"pretrained, basis of {figures.text(arm)}", "pretrained", one, "before"))
        if arm != "pretrained":
            panels.append((figures.text(arm), arm, one, "after"))
    return panels


def _points(plot: go.Figure, one: dict, model: str, column: int) -> None:
    coordinates, labels = figures.numbers(one[model]), np.asarray(one["labels"])
    ids, classes = np.asarray(one["ids"]), list(one["classes"])
    drawn = spread(len(coordinates))
    if one.get(f"natural_{model}") is not None:
        others = figures.numbers(one[f"natural_{model}"])
        others = others[spread(len(others))]
        marker = {"color": figures.GREY, "symbol": "circle", "size": 3, "opacity": 0.5}
        _trace(plot, others, "natural images", column, marker=marker, visible="legendonly", hoverinfo="skip", legendrank=2000)
    for index, name in [*enumerate(classes), (-1, "label unknown")]:
        of_class = drawn[labels[drawn] == index]
        if not len(of_class):
            continue
        color, symbol = figures.class_look(index) if index >= 0 else (figures.GREY, "circle-open")
        marker = {"color": color, "symbol": symbol, "size": 6, "opacity": 0.6, "line": {"width": 1, "color": color}}
        text = figures.text(name)
        template = text + "<br>%{text}<extra></extra>"
        more = {"text": [figures.text(i, 40) for i in ids[of_class]], "customdata": of_class}  # a click says which test image
        _trace(plot, coordinates[of_class], text, column, marker=marker, hovertemplate=template, **more)


def _arrows(plot: go.Figure, one: dict, column: int) -> None:
    """Draw the way of some images from their pretrained to their finetuned place."""
    start, end = (figures.numbers(one[model]) for model in ("before", "after"))
    chosen = spread(len(start), ARROWS)
    gap = np.full((len(chosen), 2), np.nan)
    ways = np.stack([start[chosen], end[chosen], gap], axis=1).reshape(-1, 2)
    marker = {
        "symbol": "arrow",
        "angleref": "previous",
        "size": [0, 11, 0] * len(chosen),
        "color": figures.GREY,
        "line": {"width": 0},
    }
    line = {"color": figures.GREY, "width": 1}
    name = "from its pretrained place"
    _trace(plot, ways, name, column, mode="lines+markers", line=line, marker=marker, hoverinfo="skip", legendrank=1900)


def _density(plot: go.Figure, one: dict, model: str, arm: str, column: int, arms: list[str]) -> None:
    """Draw the contours of one cloud, its natural images left out."""
    lines = contours(figures.numbers(one[model]))
    if not len(lines):
        return
    dash = figures.dash(arm, arms)
    look = {"color": figures.color(arm, arms), "dash": dash, "width": 2.5 if dash == "dot" else 2}
    unseen = {"size": 1, "color": "rgba(0,0,0,0)"}  # plotly leaves a margin around markers, none around lines
    name, mode = f"density, {figures.text(arm)}", "lines+markers"
    _trace(plot, lines, name, column, mode=mode, line=look, marker=unseen, hoverinfo="skip", legendrank=1500)


def contours(points: np.ndarray) -> np.ndarray:
    """Return lines `(l, 2)`, parted by nan rows, that hold the densest MASSES of a Gaussian kernel density of `(n, 2)`.

    The bandwidth is Scott's. Empty for fewer than three images and where all lie on a line.
    """
    from scipy.stats import gaussian_kde
    from skimage.measure import find_contours

    if len(points) < 3 or np.linalg.matrix_rank(points - points.mean(0), tol=1e-9 * (1 + np.abs(points).max())) < 2:
        return np.empty((0, 2))
    kernel = gaussian_kde(points.T)
    reach = 3.5 * np.sqrt(np.diag(kernel.covariance))
    x, y = np.linspace(points.min(0) - reach, points.max(0) + reach, CELLS).T
    heights = kernel(np.stack(np.meshgrid(x, y, indexing="ij")).reshape(2, -1)).reshape(CELLS, CELLS)
    ordered = np.sort(heights, axis=None)[::-1]
    held = np.cumsum(ordered) / ordered.sum()
    parts: list[np.ndarray] = []
    for mass in MASSES:
        for line in find_contours(heights, ordered[np.searchsorted(held, mass)]):
            axes = (np.interp(place, np.arange(CELLS), axis) for place, axis in zip(line.T, (x, y), strict=True))
            parts += [np.stack(list(axes), axis=1), np.full((1, 2), np.nan)]
    return np.concatenate(parts)


def _trace(plot: go.Figure, points: np.ndarray, name: str, column: int, *, mode: str = "markers", **more: object) -> None:
    shown = name not in {trace.name for trace in plot.data}
    points = points.astype(np.float32)
    common = {"mode": mode, "name": name, "legendgroup": name, "showlegend": shown}
    plot.add_trace(go.Scatter(x=points[:, 0], y=points[:, 1], **common, **more), row=1, col=column)

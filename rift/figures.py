"""One look for every plot: transparent, calm, readable in light and dark, and told apart without color.

Arms have fixed colors and symbols; their contrast is at least 3:1 on white and on the dark page (computed). Figures carry
no title: the page around them does. Class and file names are a user's text: pass them through `text` first.
"""

from __future__ import annotations

import html
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from rift.config import SHUFFLED

HEIGHT = 360
MOST_POINTS = 150  # of one line that is sent while training
MOST_SYMBOLS = 15  # on one such line: enough to tell the arms apart without color
GREY = "#7f7f7f"  # 4.0:1 on white, 4.5:1 on the dark page: the text color where no stylesheet replaces it
GRID = "rgba(127,127,127,0.22)"
# Alpha instead of lightness, so that the page shows through and the page's own text color stays readable in every cell.
SEQUENTIAL = [[0.0, "rgba(58,135,200,0.02)"], [1.0, "rgba(58,135,200,0.62)"]]

# Blue with orange and green are the colorblind-safe set of Okabe and Ito, darkened to 3:1 where theirs fail on white.
ARMS = {
    "pretrained": ("#7F7F7F", "circle", "dot"),
    "none": ("#D55E00", "x", "solid"),
    "rift": ("#009E73", "diamond-open", "solid"),
}
# Chosen by a search among colors of 3:1 on both pages for the largest distance of the first six arms with red-green blindness
# (tests/test_palette.py); beyond that, the symbol tells.
FURTHER = (
    ("#4468F0", "square-open", "solid"),
    ("#4F94CA", "triangle-up", "solid"),
    ("#9A5F92", "cross", "solid"),
    ("#BC5846", "star", "solid"),
    ("#1A93A6", "triangle-down-open", "solid"),
    ("#6B8E23", "pentagon", "solid"),
    ("#C2558F", "hourglass", "solid"),
)
CLASS_COLORS = ("#2F86C9", "#D55E00", "#009E73", "#9B6FC3", "#A6761D", "#C2558F", "#1A93A6", "#6B8E23")
CLASS_SYMBOLS = ("circle", "square-open", "triangle-up", "diamond-open", "x", "star-open", "pentagon")


def color(arm: str, arms: Sequence[str] = ()) -> str:
    """Return an arm's color as hexadecimal; one without its own takes the next of a cycle by its place in `arms`."""
    return _look(arm, arms)[0]


def symbol(arm: str, arms: Sequence[str] = ()) -> str:
    """Return an arm's plotly marker symbol, chosen like its color."""
    return _look(arm, arms)[1]


def dash(arm: str, arms: Sequence[str] = ()) -> str:
    """Return an arm's line dash: dotted for the pretrained model, which is the reference and never a result."""
    return _look(arm, arms)[2]


def _look(arm: str, arms: Sequence[str]) -> tuple[str, str, str]:
    if (plain := arm.removesuffix(f"[{SHUFFLED}]")) in ARMS:
        return ARMS[plain]
    others = [name for name in arms if name not in ARMS]
    return FURTHER[(others.index(arm) if arm in others else 0) % len(FURTHER)]


def class_look(index: int) -> tuple[str, str]:
    """Return color and symbol of a class; 8 colors and 7 symbols tell 56 classes apart."""
    return CLASS_COLORS[index % len(CLASS_COLORS)], CLASS_SYMBOLS[index % len(CLASS_SYMBOLS)]


def text(name: object, longest: int = 24) -> str:
    """Return a user's text as plotly may show it: no markup, no control or direction characters, shortened in the middle."""
    plain = "".join(" " if unicodedata.category(sign)[0] in "CZ" else sign for sign in str(name)).strip()
    if len(plain) > longest:
        head = (longest - 1) // 2
        plain = f"{plain[:head]}…{plain[-(longest - 1 - head) :]}"
    return html.escape(plain, quote=False)


def texts(names: Sequence[object], longest: int = 24) -> list[str]:
    """Return names as `text` does, shortened less where two different ones would look alike."""
    found = [text(name, longest) for name in names]
    alike = len(set(found)) < len({str(name) for name in names})
    return texts(names, longest + 8) if alike and longest < 64 else found


def faded(hexadecimal: str, alpha: float) -> str:
    """Return a hexadecimal color as rgba with the given opacity in [0, 1]."""
    red, green, blue = (int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def numbers(values: object) -> np.ndarray:
    """Return saved numbers as a float array; what could not be computed (None) becomes nan, which plotly leaves out."""
    return np.asarray([] if values is None else values, dtype=float)


def style(figure: go.Figure, height: int = HEIGHT) -> go.Figure:
    """Give a figure the common look, in place, and return it."""
    figure.update_layout(
        template="none",
        height=height,
        autosize=True,
        margin={"l": 56, "r": 16, "t": 48, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "inherit", "size": 13, "color": GREY},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "itemsizing": "constant"},
        hoverlabel={"bgcolor": "#23272e", "bordercolor": "#23272e", "font": {"color": "#ffffff", "family": "inherit"}},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": GREY},
        uirevision="rift",  # keeps zoom and hidden arms when new data arrive
        title=None,
    )
    title = {"standoff": 12, "font": {"size": 13}}
    axis = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "automargin": True, "ticks": "", "title": title}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, span: Sequence[float] | None = None
) -> go.Figure:
    """Return lines of each arm's `(x, y)` while it trains, thinned to MOST_POINTS: a page is sent them every second."""
    plot = go.Figure()
    for arm, (steps, values) in series.items():
        chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST_POINTS)).astype(int))
        plot.add_scatter(
            x=[steps[i] for i in chosen],
            y=[float(f"{values[i]:.4g}") for i in chosen],
            mode="lines+markers",
            name=text(arm),
            line={"color": color(arm, list(series)), "dash": dash(arm, list(series)), "width": 2},
            marker={"symbol": symbol(arm, list(series)), "size": 8, "maxdisplayed": MOST_SYMBOLS},
            hovertemplate="%{y:.4g}",
        )
    plot.update_xaxes(title_text=x, rangemode="tozero")
    plot.update_yaxes(title_text=y, range=span)
    return style(plot, 300)


def ring(x: Sequence[float], y: Sequence[float], column: int, line: bool = False) -> dict[str, Any]:
    """Return a trace that rings points of a panel, or a line through them; a page adds it to a figure that is already drawn."""
    axis = "" if column == 1 else str(column)
    look = {"mode": "lines", "line": {"color": GREY, "width": 1.5}} if line else {"mode": "markers"}
    marker = {"symbol": "circle-open", "size": 24, "color": GREY, "line": {"width": 3}}
    named = {"type": "scatter", "name": "chosen", "showlegend": False, "hoverinfo": "skip"}
    return {"x": list(x), "y": list(y), "xaxis": f"x{axis}", "yaxis": f"y{axis}", "marker": marker, **look, **named}


def empty(reason: str) -> go.Figure:
    """Return a figure that says in words why there is nothing to plot."""
    figure = go.Figure()
    lines = "<br>".join(text(line, 48) for line in textwrap.wrap(reason, 48))
    figure.add_annotation(text=lines, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return style(figure, 140)

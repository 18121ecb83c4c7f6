"""A two-dimensional shadow of the embeddings, drawn for every model in one basis, so that what moved is seen to move.

Coordinates are (z - m) V with mean m and first two principal axes V of the pretrained embeddings of the test images, for
every model alike; with the basis `joint`, of both models' embeddings together, for each arm anew. A shadow can mislead: a
rotated embedding looks different here though its CKA is 1, and the share of variance on the axes says how much is hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from pydantic import Field

from rift import figures, findings, similarity
from rift.snapshot import Snapshot

TITLE = "PCA"
Result = dict[str, float | np.ndarray | str | None]
ARRAYS = ["before", "after", "natural_before", "natural_after", "explained", "explained_before", "explained_after"]
MOST_POINTS = 600  # drawn in each panel, evenly spaced; the numbers cover all


def measure(
    before: Snapshot,
    after: Snapshot,
    *,
    basis: Annotated[Literal["pretrained", "joint"], Field(description="whose principal axes all panels share")] = "pretrained",
) -> Result:
    """Return coordinates `(n, 2)` of both models in one basis, and the natural images' in the same one.

    `explained` `(2,)`: share of the variance on each axis of the basis; `explained_before` and `explained_after`: the share
    of each model's own variance that both axes show, in [0, 1]. Images of several findings, and of none, are classes here.
    """
    if "test" not in before.sets or "test" not in after.sets:
        return _none("there are no test images")
    x, y = before.sets["test"], after.sets["test"]
    try:
        fitted = similarity.pca(x.embeddings if basis == "pretrained" else np.concatenate([x.embeddings, y.embeddings]), 2)
    except ValueError as error:
        return _none(str(error))
    if not np.isfinite(y.embeddings).all():
        return _none("the model's embeddings are not finite numbers: its training diverged")
    labels, classes = (y.labels, after.classes) if y.labels.ndim == 1 else findings.one_each(y.labels, after.classes)
    result: Result = {
        "n": len(x.embeddings),
        "basis": basis,
        "before": (x.embeddings - fitted.mean) @ fitted.basis,
        "after": (y.embeddings - fitted.mean) @ fitted.basis,
        "explained": fitted.share,
        "labels": labels,
        "classes": np.array(classes, dtype=np.str_),
        "ids": y.ids,
    }
    for name, embeddings in (("explained_before", x.embeddings), ("explained_after", y.embeddings)):
        total = np.var(embeddings, axis=0, dtype=np.float64).sum()
        shown = np.var((embeddings - fitted.mean) @ fitted.basis, axis=0).sum()
        result |= {name: float(min(1.0, shown / total))} if total > 0 else _none("all embeddings are equal", [name])
    for name, snapshot in (("natural_before", before), ("natural_after", after)):
        natural = snapshot.sets.get("natural")
        if natural is None or not len(natural.embeddings):
            result |= _none("there are no natural images", [name])
        else:
            result[name] = (natural.embeddings - fitted.mean) @ fitted.basis
    return result


def _none(reason: str, names: list[str] = ARRAYS) -> Result:
    return dict.fromkeys(names) | {f"{name}_reason": reason for name in names}


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Pretrained and finetuned embeddings side by side on the same axes; classes differ in color and symbol."""
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
    for column, (_, one, points, natural) in enumerate(panels, 1):
        _draw(plot, one, points, natural, column)
    plot.update_annotations(font_size=13)
    figures.style(plot, 440).update_layout(meta={"min_width": 60 + 230 * len(panels)}, margin={"t": 96})
    plot.update_layout(legend={"y": 1.1})
    plot.update_xaxes(title_text=f"axis 1 ({share[0]:.0%})", showticklabels=True)
    return plot.update_yaxes(title_text=f"axis 2 ({share[1]:.0%})", col=1)


def _panels(arms: Mapping[str, dict]) -> list[tuple[str, dict, str, str]]:
    """Name each panel and say whose coordinates it shows: one panel of the pretrained model, or one per joint basis."""
    panels: list[tuple[str, dict, str, str]] = []
    for arm, one in arms.items():
        if not panels:
            panels.append(("pretrained", one, "before", "natural_before"))
        elif one.get("basis") == "joint" and arm != "pretrained":
            panels.append((f"pretrained, basis of {figures.text(arm)}", one, "before", "natural_before"))
        if arm != "pretrained":
            panels.append((figures.text(arm), one, "after", "natural_after"))
    return panels


def _draw(plot: go.Figure, one: dict, points: str, natural: str, column: int) -> None:
    coordinates, labels = figures.numbers(one[points]), np.asarray(one["labels"])
    ids, classes = np.asarray(one["ids"]), list(one["classes"])
    drawn = _spread(len(coordinates))
    if one.get(natural) is not None:
        others = figures.numbers(one[natural])
        others = others[_spread(len(others))]
        marker = {"color": figures.GREY, "symbol": "circle", "size": 3, "opacity": 0.5}
        _scatter(plot, others, "natural images", marker, column, visible="legendonly", hoverinfo="skip", legendrank=2000)
    for index, name in [*enumerate(classes), (-1, "label unknown")]:
        of_class = drawn[labels[drawn] == index]
        if not len(of_class):
            continue
        color, symbol = figures.class_look(index) if index >= 0 else (figures.GREY, "circle-open")
        marker = {"color": color, "symbol": symbol, "size": 7, "opacity": 0.8, "line": {"width": 1, "color": color}}
        text = figures.text(name)
        template = text + "<br>%{customdata}<extra></extra>"
        hover = [figures.text(i, 40) for i in ids[of_class]]
        _scatter(plot, coordinates[of_class], text, marker, column, customdata=hover, hovertemplate=template)


def _scatter(plot: go.Figure, points: np.ndarray, name: str, marker: dict, column: int, **more: object) -> None:
    common = {"mode": "markers", "name": name, "legendgroup": name, "showlegend": column == 1}
    points = points.astype(np.float32)
    plot.add_trace(go.Scatter(x=points[:, 0], y=points[:, 1], marker=marker, **common, **more), row=1, col=column)


def _spread(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, MOST_POINTS)).astype(int))


def sentence(results: Mapping[str, dict]) -> str:
    """Say how much of each model's variance the two axes show."""
    arms = {arm: one for arm, one in results.items() if one.get("before") is not None}
    if not arms:
        reasons = (one.get("before_reason") for one in results.values())
        return f"There is no common basis: {next(filter(None, reasons), 'nothing ran')}."
    first = next(iter(arms.values()))
    shares = {"the pretrained model": first.get("explained_before")}
    shares |= {arm: one.get("explained_after") for arm, one in arms.items() if arm != "pretrained"}
    parts = [f"{share:.0%} for {name}" for name, share in shares.items() if share is not None]
    drawn = f" Of {first['n']} images {MOST_POINTS} are drawn." if first["n"] > MOST_POINTS else ""
    return f"The two axes show this much of the variance: {', '.join(parts)}; the rest is hidden.{drawn}"

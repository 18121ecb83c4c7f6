"""The figure of `drift`: curves over layers with their floor, and a heat map of layer by layer for each arm."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rift import figures

SETS = (("test", "", "medical"), ("natural", "_natural", "natural"))  # as stored, in the names of results, as people say
MAPS, MAP, CURVES = 3, 215, 300  # heat maps in a row; pixels of their row and of the curves
MOST_WRITTEN = 6  # layers up to which the cells of a heat map hold their numbers


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Above, debiased CKA after each layer by arm, solid for medical, dashed for natural images; below, every pair of layers."""
    arms = {arm: one for arm, one in results.items() if arm != "pretrained"}
    maps = _maps(arms)
    rows = -(-len(maps) // MAPS)
    heights = [CURVES, *[MAP] * rows]
    plot = make_subplots(
        rows=1 + rows,
        cols=MAPS,
        specs=[[{"colspan": MAPS}, None, None], *[[{}] * MAPS for _ in range(rows)]],
        row_heights=heights,
        vertical_spacing=85 / sum(heights),
        horizontal_spacing=0.1,
        subplot_titles=["", *(title for title, _, _ in maps)],
    )
    deepest = _curves(plot, arms, list(results))
    if not plot.data:
        reasons = (one.get("cka_debiased_reason") for one in results.values())
        return figures.empty(next(filter(None, reasons), "only the pretrained model was measured"))
    for place, (_, name, values) in enumerate(maps):
        _map(plot, values, name, row=2 + place // MAPS, col=1 + place % MAPS)
    for place in range(len(maps), rows * MAPS):  # axes without a map
        plot.update_xaxes(visible=False, row=2 + place // MAPS, col=1 + place % MAPS)
        plot.update_yaxes(visible=False, row=2 + place // MAPS, col=1 + place % MAPS)
    ticks = np.arange(1, deepest + 2)
    named = {"tickvals": ticks, "ticktext": [*map(str, ticks[:-1]), "emb."]}
    plot.update_xaxes(title_text="layer (emb.: the embedding)", **named, row=1, col=1)
    plot.update_yaxes(title_text="debiased CKA", range=[-0.05, 1.03], row=1, col=1)
    plot.update_annotations(font_size=13)
    figures.style(plot, sum(heights) + 96)
    if maps:
        scale = {"len": MAP / sum(heights), "y": plot.layout.yaxis2.domain[1], "yanchor": "top", "thickness": 10, "ypad": 0}
        plot.update_layout(
            coloraxis={"colorscale": figures.SEQUENTIAL, "cmin": 0, "cmax": 1, "colorbar": scale}, meta={"min_width": 640}
        )
    return plot


def _curves(plot: go.Figure, arms: Mapping[str, dict], names: list[str]) -> int:
    """Draw the arms' curves and the highest of their floors; return how many layers the deepest has."""
    deepest, floors = 0, []
    for arm, one in arms.items():
        for _, suffix, images in SETS:
            name = f"cka{suffix}_debiased"
            layers = figures.numbers(one.get(f"cka{suffix}_layers_debiased"))
            deepest = max(deepest, len(layers))
            values = np.append(layers, figures.numbers([one.get(name)]))
            if not suffix:
                floors.append(np.append(figures.numbers(one.get("cka_layers_debiased_floor")), or_nan(one.get(f"{name}_floor"))))
            if not np.isfinite(values).any():
                continue
            ends = [np.append(np.full(len(layers), np.nan), or_nan(one.get(f"{name}_{end}"))) for end in ("low", "high")]
            plot.add_scatter(
                x=np.arange(1, len(values) + 1),
                y=values,
                error_y={"array": ends[1] - values, "arrayminus": values - ends[0], "thickness": 1.5, "width": 4},
                mode="lines+markers",
                name=f"{figures.text(arm)}, {images}",
                line={"color": figures.color(arm, names), "dash": "dash" if suffix else "solid", "width": 2},
                marker={"symbol": figures.symbol(arm, names), "size": 9},
                hovertemplate="CKA %{y:.3f}",
                row=1,
                col=1,
            )
    alike = [floor for floor in floors if len(floor) == deepest + 1 and np.isfinite(floor).any()]
    if plot.data and alike:
        plot.add_scatter(
            x=np.arange(1, deepest + 2),
            y=np.fmax.reduce(alike),
            mode="lines",
            name="floor: medical images shuffled",
            line={"color": figures.GREY, "dash": "dot", "width": 2},
            hovertemplate="95th percentile of shuffles %{y:.3f}",
            row=1,
            col=1,
        )
    return deepest


def _maps(arms: Mapping[str, dict]) -> list[tuple[str, str, np.ndarray]]:
    """Return title, name of the columns and values of each heat map, the pretrained model with itself first."""
    found = [
        (f"pretrained × {figures.text(arm)}", "finetuned", figures.numbers(one["cka_layer_pairs"]))
        for arm, one in arms.items()
        if one.get("cka_layer_pairs") is not None
    ]
    own = next((one["cka_layer_pairs_pretrained"] for one in arms.values() if one.get("cka_layer_pairs") is not None), None)
    return [] if own is None else [("pretrained × itself", "pretrained", figures.numbers(own)), *found]


def _map(plot: go.Figure, values: np.ndarray, name: str, *, row: int, col: int) -> None:
    layers = np.arange(1, len(values) + 1)
    plot.add_heatmap(
        x=layers,
        y=layers,
        z=values,
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        texttemplate="%{z:.2f}" if len(values) <= MOST_WRITTEN else None,
        hovertemplate=f"pretrained layer %{{y}}, {name} layer %{{x}}: %{{z:.3f}}<extra></extra>",
        row=row,
        col=col,
    )
    ticks = layers if len(layers) <= 2 * MOST_WRITTEN + 1 else layers[:: len(layers) // MOST_WRITTEN]
    plot.update_xaxes(title_text=f"{name} layer", tickvals=ticks, showgrid=False, row=row, col=col)
    plot.update_yaxes(title_text="pretrained layer" if col == 1 else None, tickvals=ticks, showgrid=False, row=row, col=col)


def or_nan(value: float | None) -> float:
    return np.nan if value is None else value

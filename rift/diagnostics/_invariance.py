"""What STIR's arrays say: forgetting, learning and flow as numbers, as a figure and in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rift import figures
from rift.diagnostics import _grams

FEWEST = 50  # images below which nothing is stated
Z = 1.96
SIDES = {"forgetting": ("ft_pre", "pre_pre"), "learning": ("pre_ft", "ft_ft")}
UNDEFINED = "CKA is undefined where a layer puts all images in one place, or there are too few of them"
CURVES = (("", "solid", "1 − STIR"), ("_floor", "dot", "floor: the model against itself"))
OTHERS = (("_untrained", "dashdot", "an untrained model"), ("_mixed", "longdash", "images in another order"))
CHANGE = [[0.0, "rgba(213,94,0,0.62)"], [0.5, "rgba(127,127,127,0.03)"], [1.0, "rgba(58,135,200,0.62)"]]
MOST_WRITTEN = 8  # layers up to which a cell has its number written in it
GAP = 86  # between two rows of the figure, in pixels
TOO_FEW = "an interval takes at least 3 images, debiased 5, that do not all look alike"


def measured(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the numbers of `stir.measure`."""
    n, depth = int(arrays["n"]), int(arrays["depth"])
    names = [f"layer {layer}" if layer <= depth else "embedding" for layer in arrays["layers"]]
    result: dict[str, Any] = {
        "n": n,
        "images": str(arrays["images"]),
        "layers": np.asarray(arrays["layers"]),
        "entries": np.array(names, dtype=np.str_),
    }
    _put(result, "cka", np.asarray(arrays["cka"])[0], np.asarray(arrays["cka_loo"])[0])
    _put(result, "cka_debiased", np.asarray(arrays["cka"])[1], np.asarray(arrays["cka_loo"])[1])
    for side, (across, within) in SIDES.items():
        for place, kind in enumerate(("", "_debiased")):
            _side(result, arrays, f"{side}{{}}{kind}", across, within, place)
    blocks = np.asarray(arrays["layers"]) <= depth
    for side, (across, _) in SIDES.items():
        _summary(result, f"{side}_spread", arrays, across, lambda m: np.std(1 - m[blocks], axis=0))
    for side, (across, within) in SIDES.items():
        _flow(result, arrays, "compression" if side == "forgetting" else "compression_back", across, within)
    for model, said in (("pre", "pretrained"), ("ft", "finetuned")):
        result[f"loss_{said}"] = np.asarray(arrays[f"loss_{model}"]).mean(1)
        result[f"away_{said}"] = np.asarray(arrays[f"away_{model}"])
    return result | {"shown": np.asarray(arrays["shown"]), "shown_ids": np.asarray(arrays["shown_ids"])}


def _side(result: dict[str, Any], arrays: Mapping[str, np.ndarray], name: str, across: str, within: str, place: int) -> None:
    """Forgetting or learning of each layer, its floor, what is above it, and what the two references show."""
    value, without = _diagonal(arrays, across, place)
    floor, floor_without = _diagonal(arrays, within, place)
    _put(result, name.format(""), 1 - value, 1 - without)
    _put(result, name.format("_floor"), 1 - floor)
    _put(result, name.format("_above"), floor - value, floor_without - without)
    _put(result, name.format("_untrained"), 1 - np.asarray(arrays[f"random_{across.partition('_')[2]}"])[place])
    _put(result, name.format("_mixed"), 1 - np.asarray(arrays[f"{across}_mixed"])[place])
    above, above_without = floor - value, floor_without - without
    _scalar(result, name.format("_above_mean"), above.mean(), above_without.mean(0))
    half = len(above) // 2
    if half:
        late = lambda a: a[-half:].mean(0) - a[:half].mean(0)  # noqa: E731
        _scalar(result, name.format("_late_more"), late(above), late(above_without))


def _flow(result: dict[str, Any], arrays: Mapping[str, np.ndarray], name: str, across: str, within: str) -> None:
    """The matrices, rows the evaluated layer, and what of their difference lies where it is before the inverted one."""
    for one in (across, within):
        for place, kind in enumerate(("", "_debiased")):
            _put(result, f"flow_{one}{kind}", np.asarray(arrays[one])[place])
    before = np.triu_indices(len(arrays["layers"]), 1)
    for place, kind in enumerate(("", "_debiased")):
        change = (np.asarray(arrays[across])[place] - np.asarray(arrays[within])[place])[before]
        without = (np.asarray(arrays[f"{across}_loo"], float)[place] - np.asarray(arrays[f"{within}_loo"], float)[place])[before]
        _scalar(result, f"{name}{kind}", np.maximum(change, 0).mean(), np.maximum(without, 0).mean(0))
        _scalar(result, f"{name}_net{kind}", change.mean(), without.mean(0))


def _summary(
    result: dict[str, Any], name: str, arrays: Mapping[str, np.ndarray], across: str, of: Callable[[np.ndarray], Any]
) -> None:
    value, without = _diagonal(arrays, across, 0)
    _scalar(result, name, of(value), of(without))


def _diagonal(arrays: Mapping[str, np.ndarray], name: str, place: int) -> tuple[np.ndarray, np.ndarray]:
    """Same layer evaluated and inverted: `(l,)`, and with each image left out `(l, n)`."""
    without = np.asarray(arrays[f"{name}_loo"], float)[place]
    return np.diagonal(np.asarray(arrays[name])[place]), np.diagonal(without).T


def _put(result: dict[str, Any], name: str, values: np.ndarray, without: np.ndarray | None = None) -> None:
    """Numbers of layers, or None and why; with left-out values their 95 % interval too."""
    ends = {} if without is None else {"_low": -Z * _grams.deviation(without), "_high": Z * _grams.deviation(without)}
    for end, add in ({"": np.zeros(1)} | ends).items():
        found = values + add
        result[f"{name}{end}"] = found if np.isfinite(found).any() else None
        if not np.isfinite(found).all():
            result[f"{name}{end}_reason"] = TOO_FEW if end and np.isfinite(values).all() else UNDEFINED


def _scalar(result: dict[str, Any], name: str, value: Any, without: np.ndarray) -> None:
    found: dict[str, Any] = {}
    _put(found, name, np.atleast_1d(value), np.atleast_2d(without))
    result |= {key: float(one[0]) if isinstance(one, np.ndarray) else one for key, one in found.items()}


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Curves of every arm over the layers, and below two rows of three matrices an arm."""
    arms = {arm: one for arm, one in results.items() if arm != "pretrained" and one.get("forgetting") is not None}
    if not arms:
        reasons = (one.get("forgetting_reason") for one in results.values())
        return figures.empty(next(filter(None, reasons), "no arm was measured"))
    flows = [(arm, side) for arm in arms for side in SIDES]
    titles = ["forgetting", "learning"]
    for arm, side in flows:
        given = ("finetuned", "pretrained") if side == "forgetting" else ("pretrained", "finetuned")
        name = figures.text(arm, 14)
        titles += [f"{name}: {given[0]} | {given[1]}", f"{name}: {given[1]} | {given[1]}", f"{name}: difference"]
    heights = [400, *[270] * len(flows)]
    plot = make_subplots(
        rows=1 + len(flows),
        cols=6,
        specs=[[{"colspan": 3}, None, None] * 2, *[[{"colspan": 2}, None] * 3] * len(flows)],
        subplot_titles=titles,
        row_heights=heights,
        vertical_spacing=GAP / (sum(heights) + GAP * len(flows)),
        horizontal_spacing=0.07,
    )
    for arm, one in arms.items():
        for column, side in ((1, "forgetting"), (4, "learning")):
            _curves(plot, arm, one, side, column, list(results), first=one is next(iter(arms.values())))
    _legend(plot)
    for row, (arm, side) in enumerate(flows, 2):
        _matrices(plot, arms[arm], side, row)
    plot.update_xaxes(type="category", title_text="layer", row=1)
    plot.update_yaxes(title_text="1 − similarity", range=[-0.03, 1.08], row=1, col=1)
    plot.update_yaxes(range=[-0.03, 1.08], row=1, col=4)
    figures.style(plot, sum(heights) + GAP * len(flows) + 198)
    plot.update_annotations(font={"size": 13})
    plot.update_layout(legend={"y": 1 + 62 / (sum(heights) + GAP * len(flows))}, margin={"t": 150}, meta={"min_width": 820})
    return plot


def _curves(plot: go.Figure, arm: str, one: dict, side: str, column: int, arms: list[str], first: bool) -> None:
    """One arm's forgetting or learning with its interval, its floor, and 1 - CKA beside them."""
    names, color = [_short(name) for name in one["entries"]], figures.color(arm, arms)
    value, low = figures.numbers(one[side]), figures.numbers(one.get(f"{side}_low"))
    ends = {"type": "data", "array": value - low, "thickness": 1.5, "color": color} if low.size else None
    look: dict[str, Any] = {"x": names, "mode": "lines+markers", "legendgroup": arm, "name": figures.text(arm)}
    marker = {"symbol": figures.symbol(arm, arms), "size": 9, "color": color}
    lines: list[tuple[Any, str, str]] = [(one.get(f"{side}{end}"), dash, label) for end, dash, label in CURVES]
    cka = one.get("cka")
    lines.append((None if cka is None else 1 - figures.numbers(cka), "dash", "1 − CKA"))
    for values, dash, label in lines:
        if values is None:
            continue
        own = dash == "solid"
        style = look | {"marker": marker if own else marker | {"size": 5}, "line": {"color": color, "dash": dash, "width": 2}}
        said = f"{figures.text(arm)}, {label}: %{{y:.3f}}<extra></extra>"
        shown = {"error_y": ends if own else None, "showlegend": own and column == 1, "hovertemplate": said}
        plot.add_trace(go.Scatter(y=figures.numbers(values), **style, **shown), row=1, col=column)
    for end, dash, label in OTHERS if first else ():  # nearly the same for all arms
        if one.get(f"{side}{end}") is not None:
            grey = {"line": {"color": figures.GREY, "dash": dash, "width": 1.5}, "mode": "lines", "showlegend": False}
            said = f"{label}: %{{y:.3f}}<extra></extra>"
            values = figures.numbers(one[f"{side}{end}"])
            plot.add_trace(go.Scatter(x=names, y=values, hovertemplate=said, **grey), row=1, col=column)


def _legend(plot: go.Figure) -> None:
    """What the kinds of lines mean, in grey."""
    for _, dash, label in (*CURVES, ("", "dash", "1 − CKA"), *OTHERS):
        line = {"color": figures.GREY, "dash": dash, "width": 2}
        plot.add_trace(go.Scatter(x=[None], y=[None], mode="lines", name=label, line=line, hoverinfo="skip"), row=1, col=1)


def _matrices(plot: go.Figure, one: dict, side: str, row: int) -> None:
    """The flow, its baseline and their difference; rows are the evaluated layer, the first one on top."""
    across, within = SIDES[side]
    names = [_short(name) for name in one["entries"]]
    pair = [figures.numbers(one.get(f"flow_{name}")) for name in (across, within)]
    if any(matrix.size == 0 for matrix in pair):
        return
    change = pair[0] - pair[1]
    most = max(0.05, float(np.nanmax(np.abs(change)))) if np.isfinite(change).any() else 0.05
    for column, (matrix, scale, span, form) in enumerate(
        [*((matrix, figures.SEQUENTIAL, (0, 1), "{:.2f}") for matrix in pair), (change, CHANGE, (-most, most), "{:+.2f}")]
    ):
        written = [[form.format(value) if np.isfinite(value) else "" for value in line] for line in matrix]
        cells = {"text": written, "texttemplate": "%{text}", "textfont": {"size": 11}} if len(names) <= MOST_WRITTEN else {}
        said = "evaluated %{y}, inverted %{x}: %{z:.3f}<extra></extra>"
        heat = go.Heatmap(
            z=matrix, x=names, y=names, zmin=span[0], zmax=span[1], colorscale=scale, showscale=False, hovertemplate=said, **cells
        )
        plot.add_trace(heat, row=row, col=1 + 2 * column)
        plot.update_xaxes(title_text="inverted layer", type="category", showgrid=False, row=row, col=1 + 2 * column)
        plot.update_yaxes(autorange="reversed", type="category", showgrid=False, row=row, col=1 + 2 * column)
    plot.update_yaxes(title_text="evaluated layer", row=row, col=1)


def _short(name: object) -> str:
    return str(name).replace("layer ", "").replace("embedding", "emb.")


def sentence(results: Mapping[str, dict]) -> str:
    """Say of each arm what is above its floor, where, and whether the flow moved."""
    arms = {arm: one for arm, one in results.items() if arm != "pretrained"}
    parts = [_said(arm, one) for arm, one in arms.items()]
    few = [one["n"] for one in arms.values() if one["n"] < FEWEST]
    if few and len(few) == len(arms):
        return (
            f"{few[0]} images are too few for a statement; STIR takes at least {FEWEST} (raise count, or measure other images)."
        )
    return " ".join(parts) if parts else "No arm was measured."


def _said(arm: str, one: Mapping[str, Any]) -> str:
    if one["n"] < FEWEST:
        return f"{arm}: {one['n']} images are too few for a statement; STIR takes at least {FEWEST}."
    if one.get("forgetting_above_mean") is None:
        return f"{arm}: nothing can be said, as {one.get('forgetting_above_mean_reason') or one.get('forgetting_reason')}."
    kinds = f"{one['images']} images"
    more = []
    for side in SIDES:
        values, floor = figures.numbers(one[side]), figures.numbers(one[f"{side}_floor"])
        early = f"{values[0]:.3f} in {one['entries'][0]} (floor {floor[0]:.3f})"
        ends = f"{early} and {values[-1]:.3f} in the last one ({floor[-1]:.3f})"
        more.append(f"{side} is {ends}, {_interval(one, f'{side}_above_mean')} above the floor on average")
    late = _interval(one, "forgetting_late_more")
    less, most = "late layers forget less than early ones", "late layers forget more than early ones"
    words = _way(one, "forgetting_late_more", most, less) or "no difference between early and late layers is shown"
    flow = _way(one, "compression_net", "earlier layers ignore more of what later ones did", "earlier layers ignore less of it")
    flows = flow or "that invariances moved to earlier layers is not shown"
    moved = f"compression {one['compression']:.3f}, net {_interval(one, 'compression_net')}: {flows}"
    return f"{arm}, {one['n']} {kinds}: {'; '.join(more)}; {words} ({late}); {moved}."


def _interval(one: Mapping[str, Any], name: str) -> str:
    value, low, high = (one.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "undefined"
    return f"{value:.3f}" if low is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _way(one: Mapping[str, Any], name: str, up: str, down: str) -> str:
    """Which side of 0 an interval lies on, in words; nothing where it holds 0 or is not there."""
    low, high = one.get(f"{name}_low"), one.get(f"{name}_high")
    if low is None or high is None or low <= 0 <= high:
        return ""
    return up if low > 0 else down

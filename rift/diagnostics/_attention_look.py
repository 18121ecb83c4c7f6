"""One photo, and what each model looks at in it, side by side."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from pydantic import Field

from rift import figures, images
from rift.diagnostics import _attention as maths
from rift.errors import RunError, SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from rift.model import Attention, Backbone

LOOK_WORDS = False  # where a model looks needs no words to choose from
PIXELS = 224  # of a side of the photo, which every panel has a copy of
HEAT = [[0.0, "rgba(20,110,230,0)"], [1.0, "rgba(20,110,230,0.85)"]]  # one hue, and the more of it the more is looked at
EDGES = (("#ffffff", 4.5), ("#101010", 2.0))  # dark on white: seen on any photo
READERS = {
    "class token": "what the class token looks at, among the patches",
    "mean of the patches": "what all patches look at on average, since this model has no class token and reads their mean",
    "pooling head": "what the patches look at, each weighed as the pooling head weighs it, since this model has no class token",
}


def look(
    backbones: Mapping[str, Backbone],
    image: Tensor,
    labels: Sequence[str] = (),
    *,
    layer: Annotated[int, Field(ge=0, le=64, description="which layer's attention; 0 is the rollout through all of them")] = 0,
    head: Annotated[int, Field(ge=0, le=64, description="which head of that layer; 0 is their mean")] = 0,
    mass: Annotated[float, Field(ge=0.05, le=0.95, description="share of the attention that the boxed regions hold")] = 0.5,
) -> dict[str, Any]:
    """Return each model's map `(models, patches)` of one photo `(3, s, s)`, its boxes, and what it shares with the first model's.

    `agreement`, `rank_correlation` and `overlap` are those of `measure`; `spread` is the share of all patches that hold `mass` of
    a map; `by_layer` `(models, layers + 1)` is the agreement in every layer, heads averaged, and last by rollout. Raises
    `setting.range` for a layer or head that the models do not have, and `run.diverged` for a model whose attention is not finite.
    `labels` are not used.
    """
    found = {name: backbone.attention(image[None]) for name, backbone in backbones.items()}
    first = next(iter(found.values()))
    _check(first, layer, head)
    every = np.stack([maths.maps(one)[:, 0].double().cpu().numpy() for one in found.values()])
    if not np.isfinite(every).all():
        lost = [name for name, one in zip(found, every, strict=True) if not np.isfinite(one).all()]
        raise RunError(
            "run.diverged", f"The attention of {', '.join(lost)} is not finite: its training diverged. Train it again."
        )
    chosen = every[:, layer - 1] if not head else np.stack([_of_head(one, layer, head) for one in found.values()])
    regions = maths.region(chosen, mass)
    return {
        "models": list(found),
        "photo": _photo(image, len(found)),
        "layer": layer,
        "head": head,
        "mass": mass,
        "layers": len(first.weights),
        "heads": int(first.weights.shape[2]),
        "reader": first.reader,
        "maps": chosen,
        "boxes": [maths.boxes(one, mass) for one in chosen],
        "spread": regions.mean(1),
        "agreement": maths.agreement(chosen[:1], chosen),
        "rank_correlation": maths.rank_correlation(chosen[:1], chosen),
        "overlap": maths.overlap(regions[:1], regions),
        "by_layer": maths.agreement(every[:1], every),
    }


def _check(found: Attention, layer: int, head: int) -> None:
    layers, heads = len(found.weights), found.weights.shape[2]
    if not 0 <= layer <= layers:
        message = f"layer = {layer}, but this model has {layers} layers; use 1 to {layers}, or 0 for the rollout through all"
        raise SettingError("setting.range", f"attention: {message}.")
    if not 0 <= head <= heads:
        message = f"head = {head}, but each layer of this model has {heads} heads; use 1 to {heads}, or 0 for their mean"
        raise SettingError("setting.range", f"attention: {message}.")
    if head and not layer:
        message = f"head = {head} belongs to one layer, and the rollout (layer = 0) averages the heads of all"
        raise SettingError("setting.range", f"attention: {message}; choose a layer from 1 to {layers}, or head 0.")


def _of_head(found: Attention, layer: int, head: int) -> np.ndarray:
    return maths.head_maps(found)[layer - 1, 0, head - 1].double().cpu().numpy()


def _photo(image: Tensor, models: int) -> np.ndarray:
    """Return the photo as uint8 `(s, s, 3)`, smaller where many models show it, since every panel carries a copy."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    most = int(PIXELS * min(1, math.sqrt(5 / models)))
    return images.fit(pixels, most) if len(pixels) > most else pixels


def look_figure(found: Mapping[str, Any]) -> go.Figure:
    """The photo, then once more in gray for each model: blue where it looks, boxes around its most attended regions, and how far
    it agrees with the first model.
    """
    maps, photo = np.asarray(found["maps"]), np.asarray(found["photo"], np.uint8)
    names, scores = [figures.text(name) for name in found["models"]], np.asarray(found["agreement"])
    titles = [
        "the photo",
        names[0],
        *(f"{name}<br>agreement {score:.3f}" for name, score in zip(names[1:], scores[1:], strict=True)),
    ]
    rows = math.ceil(len(titles) / 2)
    plot = make_subplots(rows, 2, horizontal_spacing=0.04, vertical_spacing=0.18 / rows)
    color, gray = (_uri(one) for one in (photo, np.repeat(photo.mean(2, keepdims=True).round().astype(np.uint8), 3, 2)))
    pictures, boxes, words = [], [], []  # set at once, since plotly checks all of them again whenever one is added
    for i, title in enumerate(titles):
        place, number = {"row": i // 2 + 1, "col": i % 2 + 1}, str(i + 1) if i else ""
        axes = {"xref": f"x{number}", "yref": f"y{number}"}
        whole = {"x": 0, "y": 0, "sizex": 1, "sizey": 1, "sizing": "stretch", "layer": "below"}
        pictures.append({"source": gray if i else color, **whole, **axes})
        # in the panel's own units, since a panel is narrower than its half of a wide page
        words.append({"text": title, "x": 0.5, "y": 0, "yanchor": "bottom", "yshift": 2, "showarrow": False, **axes})
        plot.add_trace(_heat(maps[i - 1] if i else np.full_like(maps[0], np.nan)), **place)
        for box in found["boxes"][i - 1] if i else ():
            at = {"x0": box["left"], "x1": box["right"], "y0": box["top"], "y1": box["bottom"], **axes}
            boxes += [{"type": "rect", **at, "line": {"color": ink, "width": width}} for ink, width in EDGES]
        side = {"constraintoward": "left" if i % 2 else "right"}  # the two of a row stay together where the page is wide
        plot.update_xaxes(visible=False, range=[0, 1], constrain="domain", **side, **place)
        plot.update_yaxes(visible=False, range=[1, 0], constrain="domain", scaleanchor=f"x{number}", **place)
    for hidden in range(len(titles), 2 * rows):
        plot.update_xaxes(visible=False, row=rows, col=hidden % 2 + 1).update_yaxes(visible=False, row=rows, col=hidden % 2 + 1)
    label = {"text": "times an even share of the attention", "side": "bottom"}
    bar = {"title": label, "orientation": "h", "y": 0, "yanchor": "top", "thickness": 10, "outlinewidth": 0, "len": 0.6}
    plot.update_layout(images=pictures, shapes=boxes, annotations=words)
    plot.update_layout(coloraxis={"colorscale": HEAT, "colorbar": bar, "cmin": 0})
    figures.style(plot, 120 + 270 * rows)
    return plot.update_layout(margin={"l": 8, "r": 8, "t": 50, "b": 70})


def _uri(pixels: np.ndarray) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(images.jpeg(pixels)).decode()


def _heat(one: np.ndarray) -> go.Heatmap:
    """One map `(patches,)` over the unit square, in multiples of what each patch would get if all got the same."""
    side = math.isqrt(len(one))
    edges = {"x0": 0.5 / side, "dx": 1 / side, "y0": 0.5 / side, "dy": 1 / side}
    said = "%{z:.2f} times an even share<extra></extra>"
    z = (one * len(one)).round(4).reshape(side, side)
    return go.Heatmap(z=z, **edges, coloraxis="coloraxis", hovertemplate=said, hoverongaps=False)


def look_sentence(found: Mapping[str, Any]) -> str:
    """Say how far each model looks where the first one does, and how the picture is to be read."""
    first, *arms = found["models"]
    layer, head = found["layer"], found["head"]
    heads = f"head {head}" if head else f"mean of {found['heads']} heads"
    where = f"layer {layer}, {heads}" if layer else "rollout"
    parts = [_said(found, i, name) for i, name in enumerate(arms, 1)]
    compared = f"Beside {first}'s map ({where}; 1 is the same): {'; '.join(parts)}." if parts else f"{first}'s map ({where})."
    boxes = f"Boxes: the largest connected parts of the fewest patches that hold {found['mass']:.0%} of a map".replace("%", " %")
    spread = f"For {first} these are {found['spread'][0]:.0%} of the patches".replace("%", " %")
    even = "; the nearer to the share that they hold, the less its boxes mean"
    return (
        f"{compared} Blue is {READERS[found['reader']]}. {boxes}, at most {maths.MOST_BOXES}. {spread}{even}. Where a model "
        "looks is not why it answers, and one photo is an anecdote, not a measurement."
    )


def _said(found: Mapping[str, Any], i: int, name: str) -> str:
    layers = np.asarray(found["by_layer"])[i, :-1]
    least = int(layers.argmin())
    numbers = f"agreement {found['agreement'][i]:.3f}, shared region {found['overlap'][i]:.2f}"
    return f"{name} {numbers}, least alike in layer {least + 1} ({layers[least]:.3f})"

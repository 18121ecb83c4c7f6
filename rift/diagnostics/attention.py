"""Where in an image does the model look, and does the finetuned model still look where the pretrained one did?
Rollout: R = Â_L ⋯ Â_1, Â_l = 0.5 · (mean over heads of A_l) + 0.5 · I, rows renormalized (Abnar 2020, arXiv 2005.00928).

A map is what the embedding's token looks at among the patches, in one layer or, by rollout, through all of them; it sums to 1.
The embedding's token is the class token; where a model has none, it is the patches that it averages, or those that its pooling
head weighs, each by its weight. Agreement of two maps is 1 minus their Jensen-Shannon divergence (base 2); beside it stand
Spearman's rank correlation over the patches, and the overlap (IoU) of the fewest patches that hold half of each map. The floor
of each is the same with the pretrained model's map of another image: two maps share much that no image put there. All of this is
our choice; RIFT's Figure 5 shows attention of single images and has no number. `entropy` is that of the heads' maps over its
largest value; `distance` how far a head's patches look, as a share of the image's side (Dosovitskiy 2020, arXiv 2010.11929,
Appendix D.7). Attention is no explanation: it shows where values are taken from, not what they do to the answer. Intervals are
Student's t over images, as if each were its own patient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from pydantic import Field
from scipy.special import stdtrit

from rift import figures
from rift.captures import Arrays, Data, Images
from rift.diagnostics import _attention as maths
from rift.diagnostics._attention_look import LOOK_WORDS, READERS, look, look_figure, look_sentence
from rift.model import Backbone, Classifier

__all__ = ["LOOK_WORDS", "capture", "figure", "look", "look_figure", "look_sentence", "measure", "sentence"]
TITLE = "Attention"
PRESETS: dict[str, dict[str, Any]] = {"quick": {"images": 32}, "thorough": {"images": 200}}
BATCH = 4  # the attention of one image is 100 MB in a large ViT
KINDS = (("test", ""), ("natural", "_natural"))
MEASURES = ("agreement", "rank_correlation", "overlap")
Result = dict[str, Any]


def capture(
    pretrained: Backbone,
    finetuned: Classifier,
    data: Data,
    *,
    images: Annotated[
        int, Field(ge=2, le=2000, description="test images and natural images, drawn at random, as many of each")
    ] = 48,
) -> Arrays:
    """Return both models' maps `(layers + 1, n, patches)`, the last by rollout, and entropy and distance `(layers, heads, n)`.

    They are named `before_` and `after_`, then `test_` or `natural_`; `reader` says what the embedding is read from.
    """
    chosen = {kind: _some(getattr(data, kind), images, data.seed) for kind, _ in KINDS}
    total = 2 * sum(map(len, chosen.values()))
    found: Arrays = {f"{kind}_ids": some.ids for kind, some in chosen.items()}
    done = 0
    for when, model in (("before", pretrained), ("after", finetuned.backbone)):
        for kind, some in chosen.items():
            data.progress(done, total, "images looked at")
            part = data.part(f"{when}-{kind}", lambda model=model, some=some: _of(model, data, some))  # type: ignore[misc]
            found |= {"reader": part.pop("reader")} | {f"{when}_{kind}_{key}": value for key, value in part.items()}
            done += len(some)
    return found


def _some(images: Images, count: int, seed: int) -> Images:
    """Return some images in random order, the same for every model."""
    which = np.random.default_rng(seed).permutation(len(images))[:count]
    return Images(images.pixels[which], images.ids[which], images.labels[which], images.classes)


def _of(model: Backbone, data: Data, images: Images) -> Arrays:
    maps, entropy, distance, reader = [], [], [], ""
    for batch in dataclasses.replace(data, batch_size=BATCH).batches(images):
        found = model.attention(batch)
        reader = found.reader
        maps.append(maths.maps(found).cpu().numpy())
        entropy.append(maths.entropy(maths.head_maps(found).cpu().numpy()))
        distance.append(maths.distance(found).cpu().numpy())
    return {
        "reader": np.array(reader),
        "maps": np.concatenate(maps, 1),
        "entropy": np.concatenate(entropy, 1).transpose(0, 2, 1),
        "distance": np.concatenate(distance, 1).transpose(0, 2, 1),
    }


def measure(
    arrays: Mapping[str, np.ndarray],
    *,
    mass: Annotated[float, Field(gt=0, lt=1, description="share of a map that its most attended region holds")] = 0.5,
) -> Result:
    """Return by rollout and for each layer, means over `n` test and `n_natural` images: agreement in [0, 1], rank correlation in
    [-1, 1] and overlap in [0, 1] of the two models' maps, each with its interval and its floor; entropy and distance of both.

    `_layers` are `(layers,)`, their intervals `(layers, 2)`, `_heads` `(layers, heads)`. What is undefined is nan or None, and
    `<name>_reason` says why.
    """
    layers = len(arrays["before_test_entropy"])
    result: Result = {"reader": str(arrays["reader"])}
    result |= {f"n{suffix}": len(arrays[f"{kind}_ids"]) for kind, suffix in KINDS}
    for kind, suffix in KINDS:
        before, after = (np.asarray(arrays[f"{when}_{kind}_maps"], np.float64) for when in ("before", "after"))
        others = np.roll(before, 1, axis=1) if before.shape[1] > 1 else before[:, :0]
        for name in MEASURES:
            values = _compare(name, before, after, mass)
            floor = _compare(name, others, after[:, : others.shape[1]], mass)
            result |= _summary(f"{name}{suffix}", values, floor, bool(np.isfinite(after).all()))
        for prefix, when in (("pretrained_", "before"), ("", "after")):
            for name in ("entropy", "distance"):
                heads = arrays[f"{when}_{kind}_{name}"].mean(2)
                result |= _known(f"{prefix}{name}{suffix}_heads", heads) | _known(f"{prefix}{name}{suffix}_layers", heads.mean(1))
    return result | {"entries": np.array([f"layer {layer}" for layer in range(1, layers + 1)], dtype=np.str_)}


def _compare(name: str, p: np.ndarray, q: np.ndarray, mass: float) -> np.ndarray:
    """Compare maps `(layers + 1, n, patches)` image by image; nan where a model's attention is not finite."""
    if name == "overlap":
        shared = maths.overlap(maths.region(p, mass), maths.region(q, mass))
        return np.where(np.isfinite(q).all(-1), shared, np.nan)
    return (maths.agreement if name == "agreement" else maths.rank_correlation)(p, q)


def _summary(name: str, values: np.ndarray, floor: np.ndarray, finite: bool) -> Result:
    """Return mean, interval and floor over images of `(layers + 1, n)`: of the last row as numbers, of the others as arrays."""
    mean, low, high = _interval(values, -1.0 if name.startswith("rank") else 0.0)
    base = _interval(floor, -1.0)[0]
    result: Result = {}
    for end, row in (("", mean), ("_low", low), ("_high", high), ("_floor", base)):
        result[f"{name}{end}"] = float(row[-1]) if np.isfinite(row[-1]) else None
    result |= {f"{name}_layers": mean[:-1], f"{name}_layers_floor": base[:-1]}
    result[f"{name}_layers_interval"] = np.stack([low, high], 1)[:-1]
    few = "one image has no other to be compared with, and no interval"
    flat = "a map is the same at every patch, so that it has no ranks"
    reason = "the attention is not finite: the training diverged" if not finite else few if values.shape[1] < 2 else flat
    missing = [key for key, value in result.items() if value is None or not np.isfinite(value).all()]
    empty: Result = {key: None for key in missing if not np.isfinite(figures.numbers(result[key])).any()}
    return result | empty | {f"{key}_reason": reason for key in missing}


def _interval(values: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean and 95 % interval of each row over its finite values; nan where there are too few, none below `least`."""
    known = np.isfinite(values)
    n, filled = known.sum(1), np.where(known, values, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(1) / n
        variance = np.where(known, np.square(values - mean[:, None]), 0).sum(1) / (n - 1)
        reach = stdtrit(n - 1, 0.975) * np.sqrt(variance / n)
    return mean, np.maximum(mean - reach, least), np.minimum(mean + reach, 1.0)


def _known(name: str, values: np.ndarray) -> Result:
    if np.isfinite(values).all():
        return {name: values}
    return {name: None, f"{name}_reason": "the attention is not finite: the training diverged"}


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Left, agreement with the pretrained model's maps by layer, solid for medical, dashed for natural images, and its floor
    (dash-dot, medical); right, how far the heads look in medical images.
    """
    arms = {arm: one for arm, one in results.items() if one.get("agreement_layers") is not None}
    if not arms:
        reasons = (one.get("agreement_layers_reason") for one in results.values())
        return figures.empty(next(filter(None, reasons), "no arm was measured"))
    plot = make_subplots(cols=2, horizontal_spacing=0.1, column_widths=[0.58, 0.42])
    names, layers = list(results), len(next(iter(arms.values()))["agreement_layers"])
    for arm, one in arms.items():
        for suffix, dash in (("", "solid"), ("_natural", "dash")):
            _agreement(plot, arm, one, names, suffix, dash)
        _distance(plot, arm, one, names, "")
    _distance(plot, "pretrained", next(iter(arms.values())), names, "pretrained_")
    for label, dash in (
        ("medical images", "solid"),
        ("natural images", "dash"),
        ("floor, medical: another image's map", "dashdot"),
    ):
        line = {"color": figures.GREY, "dash": dash, "width": 2}
        plot.add_trace(go.Scatter(x=[None], y=[None], mode="lines", name=label, line=line, hoverinfo="skip"), row=1, col=1)
    ticks = np.arange(1, layers + 1)
    plot.update_xaxes(title_text="layer", tickvals=ticks, row=1, col=2)
    ticks = np.append(ticks, layers + 1)
    plot.update_xaxes(title_text="layer", tickvals=ticks, ticktext=[*map(str, ticks[:-1]), "rollout"], row=1, col=1)
    plot.update_yaxes(title_text="agreement of the maps", row=1, col=1)
    plot.update_yaxes(title_text="attention distance (share of the side)", rangemode="tozero", row=1, col=2)
    return figures.style(plot, 440).update_layout(meta={"min_width": 680})


def _agreement(plot: go.Figure, arm: str, one: dict, arms: list[str], suffix: str, dash: str) -> None:
    """A line over the layers, then the rollout apart from it; the floor has no markers."""
    values = figures.numbers(one.get(f"agreement{suffix}_layers"))
    if not len(values):
        return
    count = len(values)
    mean = _then(values, one.get(f"agreement{suffix}"), count)
    floor = _then(one.get(f"agreement{suffix}_layers_floor"), one.get(f"agreement{suffix}_floor"), count)
    ends = figures.numbers(one.get(f"agreement{suffix}_layers_interval")).reshape(-1, 2).T
    low, high = (_then(row, one.get(f"agreement{suffix}_{name}"), count) for row, name in zip(ends, ("low", "high"), strict=True))
    color = figures.color(arm, arms)
    x = np.append(np.arange(1, len(values) + 2), len(values) + 1)
    bars = {"type": "data", "array": high - mean, "arrayminus": mean - low, "thickness": 1.5, "width": 3, "color": color}
    options = {"x": x, "legendgroup": arm, "name": figures.text(arm)}
    plot.add_trace(
        go.Scatter(
            y=mean,
            mode="lines+markers",
            error_y=bars,
            showlegend=not suffix,
            line={"color": color, "dash": dash, "width": 2},
            marker={"symbol": figures.symbol(arm, arms), "size": 9, "color": color},
            hovertemplate="agreement %{y:.3f}",
            **options,
        ),
        row=1,
        col=1,
    )
    if suffix:  # one floor an arm is enough to see; the other is in the table
        return
    line, mark = {"color": color, "dash": "dashdot", "width": 1}, {"symbol": figures.symbol(arm, arms), "size": 5, "color": color}
    below = go.Scatter(y=floor, mode="lines+markers", line=line, marker=mark, hovertemplate="floor %{y:.3f}", **options)
    plot.add_trace(below.update(showlegend=False), row=1, col=1)


def _then(layers: Any, last: float | None, count: int) -> np.ndarray:
    """Return the layers' values, a gap, and the rollout's."""
    values = figures.numbers(layers)
    return np.concatenate([values if len(values) else np.full(count, np.nan), [np.nan], figures.numbers([last])])


def _distance(plot: go.Figure, arm: str, one: dict, arms: list[str], prefix: str) -> None:
    """Every head as a small mark, their mean as a line."""
    heads = figures.numbers(one.get(f"{prefix}distance_heads"))
    if not len(heads):
        return
    color, symbol = figures.color(arm, arms), figures.symbol(arm, arms)
    layers = np.arange(1, len(heads) + 1)
    common = {"legendgroup": arm, "name": figures.text(arm), "hovertemplate": "distance %{y:.3f}"}
    mark = {"symbol": symbol, "size": 5, "color": color, "opacity": 0.6}
    every = go.Scatter(
        x=np.repeat(layers, heads.shape[1]), y=heads.ravel(), mode="markers", showlegend=False, marker=mark, **common
    )
    line = {"color": color, "dash": figures.dash(arm, arms), "width": 2}
    mean = go.Scatter(x=layers, y=heads.mean(1), mode="lines", showlegend=bool(prefix), line=line, **common)
    plot.add_traces([every, mean], rows=1, cols=2)


def sentence(results: Mapping[str, dict]) -> str:
    """Say how far each arm still looks where the pretrained model did, beside the floor, and in which layer least."""
    arms = {arm: one for arm, one in results.items() if one.get("agreement") is not None}
    if not arms:
        reasons = (one.get("agreement_reason") for one in results.values())
        return f"Attention cannot be compared: {next(filter(None, reasons), 'no arm was measured')}."
    first = next(iter(arms.values()))
    counts = f"{first['n']} medical and {first['n_natural']} natural images"
    return (
        f"Agreement of the attention maps with the pretrained model's by rollout, 1 where they are the same, over {counts}: "
        f"{'; '.join(_said(arm, one) for arm, one in arms.items())}. A map is {READERS[first['reader']]}; the floor is the "
        "pretrained model's map of another image."
    )


def _said(arm: str, one: Mapping[str, Any]) -> str:
    parts = []
    for suffix, kind in (("", "medical"), ("_natural", "natural")):
        if one.get(f"agreement{suffix}") is None:
            continue
        base, low, high = (one.get(f"agreement{suffix}{end}") for end in ("_floor", "_low", "_high"))
        beside = f" ({low:.3f} to {high:.3f}; floor {base:.3f})" if None not in (base, low, high) else ""
        parts.append(f"{kind} {one[f'agreement{suffix}']:.3f}{beside}")
    layers = figures.numbers(one["agreement_layers"])
    least = int(np.nanargmin(layers))
    return f"{arm} {', '.join(parts)}, in medical images least in layer {least + 1} ({layers[least]:.3f})"

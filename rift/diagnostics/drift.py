"""How much of the pretrained model's arrangement of the images is left, layer by layer: 1 is all of it, 0 none.

Linear CKA (Kornblith 2019, arXiv 1905.00414) of finetuned with pretrained embeddings of the same images, and its debiased
form (Song 2012, Eq. 5), which is the headline: with few images the biased one stays high between unrelated features. Both
ignore rotation, scale and the mean, so they say nothing of whether old directions, and so old predictions, still hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import plotly.graph_objects as go

from rift import figures
from rift.similarity import cka, debiased_cka
from rift.snapshot import Arrays, Snapshot

Result = dict[str, float | np.ndarray | str | None]
MEASURES: tuple[tuple[str, Callable[..., float]], ...] = (("", cka), ("_debiased", debiased_cka))


def measure(before: Snapshot, after: Snapshot) -> Result:
    """Return CKA of the test and of the natural images: numbers of the embeddings, `(layers,)` of the activations.

    A layer for which it is undefined is nan; a number for which it is undefined is None, and `<name>_reason` says why.
    """
    return _compare(before, after, "test", "") | _compare(before, after, "natural", "_natural")


def _compare(before: Snapshot, after: Snapshot, images: str, suffix: str) -> Result:
    names = [f"cka{suffix}{layers}{kind}" for layers in ("", "_layers") for kind, _ in MEASURES]
    if images not in before.sets or images not in after.sets:
        return {f"n{suffix}": 0} | dict.fromkeys(names) | {f"{name}_reason": f"there are no {images} images" for name in names}
    x, y = before.sets[images], after.sets[images]
    result: Result = {f"n{suffix}": len(y.embeddings)}
    for kind, function in MEASURES:
        name, layers = f"cka{suffix}{kind}", f"cka{suffix}_layers{kind}"
        result[name], reason = _number(function, x.embeddings, y.embeddings)
        if reason:
            result[f"{name}_reason"] = reason
        result |= _layers(function, x, y, layers)
    return result


def _layers(function: Callable[..., float], x: Arrays, y: Arrays, name: str) -> Result:
    each = [_number(function, a, b) for a, b in zip(x.activations, y.activations, strict=True)]
    reasons = [f"layer {layer}: {reason}" for layer, (_, reason) in enumerate(each, 1) if reason]
    found = len(reasons) < len(each)
    values = np.array([np.nan if value is None else value for value, _ in each]) if found else None
    result: Result = {name: values}
    if reasons or not found:
        result[f"{name}_reason"] = reasons[0] if reasons else "there are no layers"
    return result


def _number(function: Callable[..., float], x: np.ndarray, y: np.ndarray) -> tuple[float | None, str]:
    try:
        return function(x, y), ""
    except ValueError as error:
        return None, str(error)


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Debiased CKA with the pretrained model after each layer, by arm: solid for medical, dashed for natural images."""
    plot = go.Figure()
    deepest = 0
    for arm, one in results.items():
        if arm == "pretrained":
            continue
        for suffix, images, dash in (("", "medical", "solid"), ("_natural", "natural", "dash")):
            layers = figures.numbers(one.get(f"cka{suffix}_layers_debiased"))
            deepest = max(deepest, len(layers))
            values = np.append(layers, figures.numbers([one.get(f"cka{suffix}_debiased")]))
            if not np.isfinite(values).any():
                continue
            plot.add_scatter(
                x=np.arange(1, len(values) + 1),
                y=values,
                mode="lines+markers",
                name=f"{figures.text(arm)}, {images}",
                line={"color": figures.color(arm, list(results)), "dash": dash, "width": 2},
                marker={"symbol": figures.symbol(arm, list(results)), "size": 9},
                hovertemplate="CKA %{y:.3f}",
            )
    if not plot.data:
        reasons = (one.get("cka_debiased_reason") for one in results.values())
        return figures.empty(next(filter(None, reasons), "only the pretrained model was measured"))
    ticks = np.arange(1, deepest + 2)
    plot.update_xaxes(title_text="layer (emb.: the embedding)", tickvals=ticks, ticktext=[*map(str, ticks[:-1]), "emb."])
    plot.update_yaxes(title_text="debiased CKA", range=[-0.03, 1.03])
    return figures.style(plot, 400)


def sentence(results: Mapping[str, dict]) -> str:
    """Say how much similarity each arm kept on medical and on natural images."""
    parts = []
    for arm, one in results.items():
        if arm == "pretrained":
            continue
        kept = [
            f"{one[f'cka{suffix}_debiased']:.3f} on {one[f'n{suffix}']} {images} images"
            for suffix, images in (("", "medical"), ("_natural", "natural"))
            if one.get(f"cka{suffix}_debiased") is not None
        ]
        parts.append(
            f"{arm} {' and '.join(kept) or 'cannot be computed, as ' + one.get('cka_debiased_reason', 'it did not run')}"
        )
    return f"Similarity kept, where 1 is the pretrained model itself: {'; '.join(parts)}." if parts else "No arm was measured."

"""RIFT's penalty compares covariances, and a covariance does not know which picture is which.
Let pictures swap their embeddings: the cloud is the same to the last point, so the penalty is 0, and CKA falls to nothing.
A low penalty is therefore a brake on a model that starts from the pretrained one, and no proof that it still knows what it knew.

Synthetic: 300 embeddings of three kinds in 16 dimensions. That covariance matching cannot see this follows from its definition
(our derivation); the penalty is the relative one of this app, ‖Σ_after - Σ_before‖²_F / ‖Σ_before‖²_F.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from pydantic import Field

from rift import figures, similarity

TITLE = "Swap the pictures"
N, WIDTH, KINDS = 300, 16, 3
SHARES = np.linspace(0, 1, 21)


@functools.cache
def _cloud() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    centers, labels = 2.0 * random.normal(size=(KINDS, WIDTH)), np.arange(N) % KINDS
    return centers[labels] + random.normal(size=(N, WIDTH)), labels


def _swapped(share: float) -> np.ndarray:
    """Return the embeddings with the first `share` of them, in a fixed random order, dealt out among each other anew."""
    embeddings, _ = _cloud()
    random = np.random.default_rng(1)
    order, deal = random.permutation(N), random.permutation(N)
    chosen = order[: round(share * N)]
    after = embeddings.copy()
    after[chosen] = embeddings[chosen[np.argsort(deal[: len(chosen)])]]
    return after


@functools.cache
def _at(share: float) -> tuple[float, float]:
    """The relative covariance penalty, and debiased CKA."""
    before, after = _cloud()[0], _swapped(share)
    old, new = np.cov(before.T), np.cov(after.T)
    return float(np.sum((new - old) ** 2) / np.sum(old**2)), similarity.debiased_cka(before, after)


def run(
    *, share: Annotated[float, Field(ge=0, le=1, description="share of the pictures that swap their embeddings")] = 0.5
) -> dict[str, Any]:
    """Return penalty and debiased CKA at this share and `(shares,)` along the way, and both clouds on their first two axes."""
    before, labels = _cloud()
    axes = similarity.pca(before, 2)
    curves = np.transpose([_at(one) for one in SHARES])
    here = dict(zip(("penalty", "cka"), _at(share), strict=True))
    clouds = {name: (one - axes.mean) @ axes.basis for name, one in (("before", before), ("after", _swapped(share)))}
    return {
        "n": N,
        "share": share,
        **here,
        "shares": SHARES,
        "penalties": curves[0],
        "ckas": curves[1],
        "labels": labels,
        **clouds,
    }


def figure(found: Mapping[str, Any]) -> go.Figure:
    """Both clouds, each picture in the color and symbol of its kind, and penalty and CKA against the share that swapped."""
    plot = make_subplots(cols=3, subplot_titles=("before", "after", "what is measured"), horizontal_spacing=0.07)
    for column, name in enumerate(("before", "after"), 1):
        for kind in range(KINDS):
            color, symbol = figures.class_look(kind)
            points = found[name][found["labels"] == kind]
            mark = {"color": color, "symbol": symbol, "size": 5}
            one = go.Scatter(x=points[:, 0], y=points[:, 1], mode="markers", marker=mark, name=f"kind {kind + 1}")
            plot.add_trace(one.update(showlegend=column == 1, hoverinfo="skip"), row=1, col=column)
        plot.update_xaxes(showticklabels=False, row=1, col=column)
        plot.update_yaxes(showticklabels=False, row=1, col=column)
    for name, label, dash, color in (
        ("ckas", "debiased CKA", "solid", figures.FURTHER[0][0]),
        ("penalties", "penalty", "dash", figures.ARMS["none"][0]),
    ):
        line = {"dash": dash, "color": color, "width": 2}
        plot.add_trace(go.Scatter(x=found["shares"], y=found[name], mode="lines", name=label, line=line), row=1, col=3)
    here = {"x": [found["share"]] * 2, "y": [found["cka"], found["penalty"]], "mode": "markers", "showlegend": False}
    plot.add_trace(go.Scatter(**here, marker={"size": 11, "symbol": "diamond", "color": figures.GREY}), row=1, col=3)
    plot.update_xaxes(title_text="share swapped", range=[-0.03, 1.03], row=1, col=3)
    plot.update_yaxes(range=[-0.06, 1.06], row=1, col=3)
    plot.update_annotations(font={"size": 13, "color": figures.GREY})
    return figures.style(plot, 340).update_layout(meta={"min_width": 640}, legend={"y": 1.12}, margin={"t": 72})


def sentence(found: Mapping[str, Any]) -> str:
    """Say what the swap did to penalty and similarity."""
    return (
        f"{found['share']:.0%} of {found['n']} pictures have swapped embeddings: the penalty is {found['penalty']:.3f}, "
        f"debiased CKA {found['cka']:.3f}."
    )

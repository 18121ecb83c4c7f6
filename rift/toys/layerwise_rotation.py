"""A constraint up to a rotation can be put on every layer, or on the last embedding only, as RIFT does.
Turn each layer of a deep net: no layer's own singular values change, yet what the layers do one after another changes, the whole
net can stretch some input far more than before, and the embedding loses its old arrangement.
Turn the last embedding only, by any rotation: CKA stays 1 and the stretch stays what it was.

Proposition A3.3 of RIFT (arXiv 2503.07399), as a summary has it: a deep linear net with layer-wise rotations can have a strictly
larger spectral norm. Our construction: each layer's strongest output is turned onto the next layer's strongest input, which at
the slider's end reaches the bound, the product of the layers' norms. The ReLU net is our addition: there the stretch is that of
the Jacobian at each input, averaged, and the same turn need not enlarge it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from pydantic import Field

from rift import figures, similarity

TITLE = "Turn every layer"
DEPTH, WIDTH, N = 6, 32, 400
AMOUNTS = np.linspace(0, 1, 11)
KINDS = {"linear": ("linear net", "solid", "circle", "#2F86C9"), "relu": ("ReLU net", "dash", "square-open", "#D55E00")}


class Turned(NamedTuple):
    """A net with turned layers against the net as it was."""

    ckas: np.ndarray  # (depth,), after each layer
    stretch: float  # largest gain of a small change of the input, over that of the net as it was; averaged over inputs


@functools.cache
def _net() -> tuple[np.ndarray, np.ndarray]:
    """Weights `(depth, d, d)` with a stretch near 1 for each layer, and inputs `(n, d)`."""
    random = np.random.default_rng(3)
    return random.normal(size=(DEPTH, WIDTH, WIDTH)) / np.sqrt(WIDTH), random.normal(size=(N, WIDTH))


def _onto(start: np.ndarray, end: np.ndarray, amount: float) -> np.ndarray:
    """Return the rotation in the plane of two unit vectors that turns the first by `amount` of the way to the second."""
    cosine = float(start @ end)
    across = end - cosine * start
    across /= np.linalg.norm(across)
    angle = amount * np.arccos(np.clip(cosine, -1, 1))
    plane = np.stack([start, across])
    small = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.eye(len(start)) + plane.T @ (small - np.eye(2)) @ plane


def _turns(weights: np.ndarray, amount: float) -> np.ndarray:
    """Return a rotation `(depth, d, d)` for each layer: its strongest output goes to the next one's strongest input."""
    left, _, right = np.linalg.svd(weights)
    turns = [_onto(left[i][:, 0], right[i + 1][0], amount) for i in range(len(weights) - 1)]
    return np.stack([*turns, np.eye(weights.shape[1])])


def _forward(weights: np.ndarray, x: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return activations `(depth, n, d)` and the Jacobian of the last at each input, `(n, d, d)` (of one input where linear)."""
    jacobian = np.eye(x.shape[1])[None]
    found = []
    for weight in weights:
        x = x @ weight.T
        jacobian = weight @ jacobian
        if kind == "relu":
            open_ = x > 0
            x, jacobian = x * open_, jacobian * open_[:, :, None]
        found.append(x)
    return np.stack(found), jacobian


@functools.cache
def _compare(kind: str, amount: float) -> Turned:
    weights, x = _net()
    if kind == "relu":
        weights = weights * np.sqrt(2)  # half of the units are shut
    before, old = _forward(weights, x, kind)
    after, new = _forward(_turns(weights, amount) @ weights, x, kind)
    ckas = np.array([similarity.debiased_cka(a, b) for a, b in zip(before, after, strict=True)])
    norms = [np.linalg.norm(one, 2, axis=(1, 2)).mean() for one in (old, new)]
    return Turned(ckas, float(norms[1] / norms[0]))


def run(*, amount: Annotated[float, Field(ge=0, le=1, description="how far layers are turned")] = 0.5) -> dict[str, Any]:
    """Return for both nets debiased CKA after each layer `(depth,)` and the stretch relative to the net as it was.

    `stretches` follow the slider's way; `stretch_of_last` is that of turning the last embedding only, and `bound` what the
    product of the layers' spectral norms allows, both of the linear net.
    """
    weights, x = _net()
    found: dict[str, Any] = {"n": N, "amount": amount, "amounts": AMOUNTS}
    for kind in KINDS:
        here = _compare(kind, amount)
        stretches = np.array([_compare(kind, one).stretch for one in AMOUNTS])
        found[kind] = {"ckas": here.ckas, "stretch": here.stretch, "stretches": stretches}
    activations, jacobian = _forward(weights, x, "linear")
    whole = np.linalg.norm(jacobian[0], 2)
    turned = _turns(weights, 1)[0]  # any rotation
    found["cka_of_last"] = similarity.debiased_cka(activations[-1], activations[-1] @ turned.T)
    found["stretch_of_last"] = float(np.linalg.norm(turned @ jacobian[0], 2) / whole)
    found["bound"] = float(np.prod(np.linalg.norm(weights, 2, axis=(1, 2))) / whole)
    return found


def figure(found: Mapping[str, Any]) -> go.Figure:
    """Left, CKA with the net as it was after each layer; right, the stretch against how far the layers are turned."""
    plot = make_subplots(cols=2, horizontal_spacing=0.12)
    layers = np.arange(1, DEPTH + 1)
    for kind, (label, dash, symbol, color) in KINDS.items():
        line, mark = {"dash": dash, "color": color, "width": 2}, {"symbol": symbol, "size": 9, "color": color}
        both = {"line": line, "marker": mark, "legendgroup": kind}
        left = go.Scatter(x=layers, y=found[kind]["ckas"], mode="lines+markers", name=f"{label}, every layer turned", **both)
        plot.add_trace(left, row=1, col=1)
        right = go.Scatter(x=found["amounts"], y=found[kind]["stretches"], mode="lines", showlegend=False, **both)
        plot.add_trace(right, row=1, col=2)
        here = go.Scatter(x=[found["amount"]], y=[found[kind]["stretch"]], mode="markers", showlegend=False, **both)
        plot.add_trace(here.update(marker={"size": 12}, hovertemplate="× %{y:.2f}"), row=1, col=2)
    last = {"color": figures.GREY, "dash": "dot", "width": 2}
    only = go.Scatter(x=[1, DEPTH], y=[found["cka_of_last"]] * 2, mode="lines", name="last embedding only", line=last)
    plot.add_trace(only, row=1, col=1)
    plot.add_trace(go.Scatter(x=[0, 1], y=[1, 1], mode="lines", line=last, showlegend=False, hoverinfo="skip"), row=1, col=2)
    plot.update_xaxes(title_text="layer", row=1, col=1)
    plot.update_yaxes(title_text="debiased CKA", range=[-0.05, 1.05], row=1, col=1)
    plot.update_xaxes(title_text="how far every layer is turned", row=1, col=2)
    plot.update_yaxes(title_text="stretch, × the net as it was", rangemode="tozero", row=1, col=2)
    return figures.style(plot, 360).update_layout(meta={"min_width": 600})


def sentence(found: Mapping[str, Any]) -> str:
    """Say what turning every layer did, and what turning the last embedding only would have done."""
    linear, relu = found["linear"], found["relu"]
    return (
        f"With every layer turned by {found['amount']:.0%} of the way, debiased CKA of the last layer is "
        f"{linear['ckas'][-1]:.3f} in the linear net and {relu['ckas'][-1]:.3f} in the ReLU net ({found['n']} inputs), "
        f"and the largest stretch is {linear['stretch']:.2f} and {relu['stretch']:.2f} times what it was. "
        f"Turning the last embedding only leaves {found['cka_of_last']:.3f} and {found['stretch_of_last']:.2f}."
    )

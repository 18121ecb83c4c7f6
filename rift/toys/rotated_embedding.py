"""A model names pictures by the word whose direction is nearest to the picture's embedding.
Turn all embeddings together, as training may do unseen: CKA stays 1, and the names are gone, since the words did not turn.
Undo the turn, estimated from the embeddings alone, and the names are back: CKA and zero-shot predictions measure two things.

Synthetic: 20 words, 50 embeddings around each, in 64 dimensions (our numbers). The estimate is `similarity.unrotate`, label-free
and cross-fitted, as in the zero-shot diagnostic.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import plotly.graph_objects as go
from pydantic import Field

from rift import figures, similarity
from rift.toys._turn import turn

TITLE = "Turn the embeddings"
WORDS, EACH, WIDTH, NOISE = 20, 50, 64, 0.17
ANGLES = np.arange(0, 181, 10.0)


@functools.cache
def _space() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions of the words `(k, d)`, embeddings `(n, d)`, and which word each shows."""
    random = np.random.default_rng(0)
    words = random.normal(size=(WORDS, WIDTH))
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    labels = np.repeat(np.arange(WORDS), EACH)
    return words, words[labels] + NOISE * random.normal(size=(len(labels), WIDTH)), labels


@functools.cache
def _at(angle: float) -> tuple[float, float, float]:
    """CKA, share of right names, and the same after undoing the turn."""
    words, embeddings, labels = _space()
    turned = embeddings @ turn(WIDTH, angle)
    restored = similarity.unrotate(embeddings, turned)
    right, again = (float(np.mean((one @ words.T).argmax(1) == labels)) for one in (turned, restored))
    return similarity.debiased_cka(embeddings, turned), right, again


def run(
    *, angle: Annotated[float, Field(ge=0, le=180, description="degrees by which every embedding is turned")] = 60.0
) -> dict[str, Any]:
    """Return debiased CKA, natural accuracy and that after unrotating, at this angle and `(angles,)` along the way; in [0, 1]."""
    names = ("cka", "accuracy", "accuracy_unrotated")
    curves = zip(names, np.transpose([_at(one) for one in ANGLES]), strict=True)
    here = dict(zip(names, _at(angle), strict=True))
    return {"n": WORDS * EACH, "angle": angle, **here, "angles": ANGLES, "curves": dict(curves)}


def figure(found: Mapping[str, Any]) -> go.Figure:
    """CKA, natural accuracy and natural accuracy after unrotating against the angle; the slider's place is marked."""
    plot = go.Figure()
    looks = {
        "cka": ("debiased CKA", figures.FURTHER[0][0], "dot", "square"),
        "accuracy": ("rightly named", figures.ARMS["none"][0], "solid", "x"),
        "accuracy_unrotated": ("rightly named after unrotating", figures.ARMS["rift"][0], "dash", "diamond"),
    }
    for name, (label, color, dash, symbol) in looks.items():
        line = {"color": color, "dash": dash, "width": 2}
        plot.add_scatter(x=found["angles"], y=found["curves"][name], mode="lines", name=label, line=line, legendgroup=name)
        mark = {"symbol": symbol, "size": 12, "color": color}
        here = {"x": [found["angle"]], "y": [found[name]], "mode": "markers", "marker": mark}
        plot.add_scatter(**here, name=label, showlegend=False, hovertemplate=f"{label} %{{y:.3f}}")
    plot.update_xaxes(title_text="angle in degrees", range=[-4, 184], tickvals=[0, 45, 90, 135, 180])
    plot.update_yaxes(range=[-0.03, 1.05])
    return figures.style(plot, 340)


def sentence(found: Mapping[str, Any]) -> str:
    """Say what the turn did to similarity and to names."""
    return (
        f"{found['n']} embeddings turned by {found['angle']:.0f}°: debiased CKA {found['cka']:.3f}, {found['accuracy']:.1%} "
        f"rightly named, {found['accuracy_unrotated']:.1%} after unrotating (a guess: {1 / WORDS:.0%})."
    )

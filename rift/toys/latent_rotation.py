"""An autoencoder writes each picture as a few numbers, its code, and a decoder reads the code back into a picture.
Turn all codes together: how they lie to each other is exactly as before, so CKA is 1, and yet the decoder reads nonsense.
Turn the decoder along and every picture is back: what was lost is not in the codes, only who can read them.

After the idea of Figure 2 of RIFT (arXiv 2503.07399), whose autoencoder is not known to us. Ours is the smallest one: linear,
whose best solution is the principal axes (Baldi and Hornik 1989), on ellipses drawn by code.
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

TITLE = "Turn a code"
SIDE, CODE, PICTURES, SHOWN = 24, 16, 400, 5


@functools.cache
def _pictures() -> np.ndarray:
    """Ellipses of any place, size and slant with soft edges: `(n, side²)` in [0, 1]."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1) * 2 - 1
    place, size = random.uniform(-0.4, 0.4, (2, PICTURES, 1, 1)), random.uniform(0.2, 0.6, (2, PICTURES, 1, 1))
    slant = random.uniform(0, np.pi, (PICTURES, 1, 1))
    u, v = x - place[0], y - place[1]
    along, across = u * np.cos(slant) + v * np.sin(slant), v * np.cos(slant) - u * np.sin(slant)
    return (1 / (1 + np.exp(8 * (np.hypot(along / size[0], across / size[1]) - 1)))).reshape(PICTURES, -1)


@functools.cache
def _autoencoder() -> similarity.Pca:
    return similarity.pca(_pictures(), CODE)


def run(
    *, angle: Annotated[float, Field(ge=0, le=180, description="degrees by which every code is turned")] = 60.0
) -> dict[str, Any]:
    """Return pictures and what the decoders read from turned codes, `(shown, side, side)`, with errors and CKA of the codes.

    `error` is the root mean squared difference of a pixel from the picture as decoded from the code as it was.
    """
    axes, mean, *_ = _autoencoder()
    codes = (_pictures() - mean) @ axes
    rotation = turn(CODE, angle)
    turned = codes @ rotation
    decoded, wrong = codes @ axes.T + mean, turned @ axes.T + mean
    along = turned @ (rotation.T @ axes.T) + mean
    some = slice(0, SHOWN)

    def rows(values: np.ndarray) -> np.ndarray:
        return np.clip(values[some], 0, 1).reshape(-1, SIDE, SIDE)

    return {
        "n": PICTURES,
        "angle": angle,
        "cka": similarity.cka(codes, turned),
        "error": float(np.sqrt(np.mean((wrong - decoded) ** 2))),
        "error_turned_decoder": float(np.sqrt(np.mean((along - decoded) ** 2))),
        "pictures": rows(decoded),
        "same_decoder": rows(wrong),
        "turned_decoder": rows(along),
    }


def figure(found: Mapping[str, Any]) -> go.Figure:
    """Three rows of pictures: from the codes, from turned codes, from turned codes by a decoder that was turned along."""
    kinds = {"pictures": "code as it was", "same_decoder": "turned code", "turned_decoder": "turned code and turned decoder"}
    gap = SIDE // 4
    rows = [np.pad(found[kind], ((0, 0), (gap, 0), (0, gap)), constant_values=np.nan) for kind in kinds]
    mosaic = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    shade = go.Heatmap(z=np.round(mosaic, 2), zmin=0, zmax=1, colorscale=figures.SEQUENTIAL, showscale=False, hoverinfo="skip")
    plot = go.Figure(shade)
    for i, label in enumerate(kinds.values()):
        plot.add_annotation(
            text=label, x=0, y=i * (SIDE + gap) + gap - 1, xanchor="left", yanchor="bottom", showarrow=False, font={"size": 13}
        )
    plot.update_xaxes(visible=False, constrain="domain")
    plot.update_yaxes(visible=False, autorange="reversed", scaleanchor="x", constrain="domain")
    return figures.style(plot, 320).update_layout(margin={"l": 8, "r": 8, "t": 16, "b": 8})


def sentence(found: Mapping[str, Any]) -> str:
    """Say what the turn changed."""
    return (
        f"Codes of {found['n']} drawings, turned by {found['angle']:.0f}°: CKA {found['cka']:.3f}; a decoded pixel is off by "
        f"{found['error']:.3f} on average, and by {found['error_turned_decoder']:.3f} with a decoder that was turned along."
    )

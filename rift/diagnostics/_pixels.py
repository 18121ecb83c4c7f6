"""Accuracy where a run reconstructs images: the error of each, beside what the mean training image would have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from rift import figures
from rift.snapshot import Arrays
from rift.statistics import paired_difference

MEAN = "mean training image"


def measure(arrays: Arrays) -> dict[str, Any]:
    """Return the mean absolute difference of pixels in [0, 1] with its interval over images, and each image's `errors` `(n,)`.

    The interval is Student's t over images. `reconstruction_error_of_mean` and `baseline_errors` are those of the mean training
    image, put in the place of every output.
    """
    assert arrays.errors is not None and arrays.baseline_errors is not None
    n, name = len(arrays.errors), "reconstruction_error"
    errors, baseline = (one.astype(np.float64) for one in (arrays.errors, arrays.baseline_errors))
    result: dict[str, Any] = {"n": n, name: float(errors.mean()), f"{name}_of_mean": float(baseline.mean())}
    result |= {"errors": errors, "baseline_errors": baseline, "ids": arrays.ids}
    for key, values in ((name, errors), (f"{name}_of_mean", baseline)):
        if n > 1:
            interval = paired_difference(values, np.zeros(n))
            result |= {f"{key}_low": max(0.0, interval.low), f"{key}_high": interval.high}
        else:
            result |= {f"{key}_{end}": None for end in ("low", "high")}
            result |= {f"{key}_{end}_reason": "an interval takes two images" for end in ("low", "high")}
    return result


def figure(results: Mapping[str, dict]) -> go.Figure:
    """The errors of all images as one box and its points for each arm, below them those of the mean training image."""
    arms = {arm: one for arm, one in results.items() if one.get("errors") is not None}
    plot = go.Figure()
    rows = [(arm, one["errors"], figures.color(arm, list(results))) for arm, one in arms.items()]
    rows.append((MEAN, next(iter(arms.values()))["baseline_errors"], figures.GREY))
    for name, errors, color in reversed(rows):  # plotly draws from below
        plot.add_box(
            x=figures.numbers(errors),
            name=figures.text(name),
            orientation="h",
            boxpoints="all",
            boxmean=True,
            jitter=0.5,
            pointpos=0,
            marker={"color": color, "size": 4, "opacity": 0.45},
            line={"color": color, "width": 1.5},
            fillcolor="rgba(0,0,0,0)",
            hovertemplate="%{x:.4f}<extra></extra>",
        )
    plot.update_xaxes(title_text="mean absolute error of a pixel", rangemode="tozero")
    return figures.style(plot, 150 + 80 * len(rows)).update_layout(showlegend=False)


def sentence(results: Mapping[str, dict]) -> str:
    """Say each arm's error with its interval, on how many images, and what the mean training image would have."""
    arms = {arm: one for arm, one in results.items() if one.get("errors") is not None}
    first = next(iter(arms.values()))
    parts = [f"{arm} {_said(one, 'reconstruction_error')}" for arm, one in arms.items()]
    return (
        f"No class is named: the run reconstructs images. A pixel, from 0 black to 1 white, is off by this much on average, over "
        f"{first['n']} images: {'; '.join(parts)}. The mean training image in the place of every one would be off by "
        f"{_said(first, 'reconstruction_error_of_mean')}."
    )


def _said(one: Mapping[str, Any], key: str) -> str:
    low, high = one.get(f"{key}_low"), one.get(f"{key}_high")
    interval = "" if low is None else f" (95 % interval {low:.4f} to {high:.4f})"
    return f"{one[key]:.4f}{interval}"

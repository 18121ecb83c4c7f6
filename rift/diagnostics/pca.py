"""A two-dimensional shadow of the embeddings, drawn for every model in one basis, so that what moved is seen to move.

Coordinates are (z - m) V with mean m and first two principal axes V. With the basis `pretrained` m and V are those of the
pretrained embeddings of the test images, for every model alike; with `joint`, of both models' embeddings together, for each arm
anew; with `rotation-aligned`, the finetuned embeddings are first turned onto the pretrained ones and the axes stay pretrained.
A shadow can mislead: a rotated embedding looks different here though its CKA is 1, and the share of variance on the axes says
how much is hidden. The RIFT paper's Figure 4 draws such densities of its models; how is not stated, so ours are our choice:
contours that hold half and nine tenths of a Gaussian kernel density with Scott's bandwidth (scipy).

Three numbers, all ours. `cloud_overlap` is the Bhattacharyya coefficient of two Gaussians with the means and covariances A, B of
the two clouds drawn, 1 for equal ones: exp(-δᵀ C⁻¹ δ / 8 - ln(det C / √(det A det B)) / 2) with C = (A + B) / 2 and δ between the
means. `displacement` is the mean over images of ‖z_after - z_before‖ in all dimensions, in units of the pretrained spread: the
root mean square distance from the mean. `mean_shift` is how far the mean moved, in the same unit. Intervals are from a
delete-a-group jackknife over images and speak of these two models only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import plotly.graph_objects as go
from pydantic import Field

from rift import findings, similarity
from rift.diagnostics import _shadow
from rift.diagnostics._intervals import Result, nothing, number, statistic
from rift.snapshot import Snapshot

TITLE = "PCA"
NO_NATURAL = "there are no natural images"
ARRAYS = ["before", "after", "natural_before", "natural_after", "explained", "explained_before", "explained_after", "turned"]
NUMBERS = [*number("cloud_overlap"), *number("displacement"), *number("mean_shift")]
BASES = {
    "pretrained": "The axes are where the pretrained embeddings vary most: a turn of all embeddings looks like change here, and "
    "what finetuning spread along other directions is hidden.",
    "joint": "The axes are where both models' embeddings together vary most, for each arm its own: the whole way between the "
    "models shows, but panels of two arms cannot be compared.",
    "rotation-aligned": "The finetuned embeddings are turned and shifted onto the pretrained ones: what is left to see is change "
    "beyond a rotation; the rotation itself, which a fixed head notices, is hidden.",
}


def measure(
    before: Snapshot,
    after: Snapshot,
    *,
    basis: Annotated[
        Literal["pretrained", "joint", "rotation-aligned"], Field(description="whose principal axes all panels share")
    ] = "pretrained",
) -> Result:
    """Return coordinates `(n, 2)` of both models in one basis, and the natural images' in the same one.

    `explained` `(2,)`: share of the variance on each axis of the basis; `explained_before` and `explained_after`: the share
    of each model's own variance that both axes show, in [0, 1]. `cloud_overlap` lies in [0, 1], `displacement` and `mean_shift`
    are at least 0; they are of the embeddings drawn, so after the turn where there is one. `turned` says on which images that
    was fitted. Images of several findings, and of none, are classes here.
    """
    if "test" not in before.sets or "test" not in after.sets:
        return nothing([*ARRAYS, *NUMBERS], "there are no test images")
    x, y = before.sets["test"], after.sets["test"]
    try:
        fitted = similarity.pca(x.embeddings if basis != "joint" else np.concatenate([x.embeddings, y.embeddings]), 2)
    except ValueError as error:
        return nothing([*ARRAYS, *NUMBERS], str(error))
    if not np.isfinite(y.embeddings).all():
        return nothing([*ARRAYS, *NUMBERS], "the model's embeddings are not finite numbers: its training diverged")
    was, now, others = (one.astype(np.float64) for one in (x.embeddings, y.embeddings, _natural(after)))
    turned: Result = nothing(["turned"], "nothing is turned in this basis")
    if basis == "rotation-aligned":
        try:
            now, others, how = _turn(was, now, others)
        except ValueError as error:
            return nothing([*ARRAYS, *NUMBERS], f"no rotation can be fitted: {error}")
        turned = {"turned": how}
    moved = _numbers(was, now, (was - fitted.mean) @ fitted.basis, (now - fitted.mean) @ fitted.basis)
    if basis == "rotation-aligned":
        moved |= nothing(number("mean_shift"), "the mean was moved back in this basis")
    labels, classes = (y.labels, after.classes) if y.labels.ndim == 1 else findings.one_each(y.labels, after.classes)
    result: Result = {
        "n": len(was),
        "basis": basis,
        "before": (was - fitted.mean) @ fitted.basis,
        "after": (now - fitted.mean) @ fitted.basis,
        "explained": fitted.share,
        "labels": labels,
        "classes": np.array(classes, dtype=np.str_),
        "ids": y.ids,
    }
    result |= turned | moved
    for name, embeddings in (("explained_before", was), ("explained_after", now)):
        total = np.var(embeddings, axis=0).sum()
        shown = np.var((embeddings - fitted.mean) @ fitted.basis, axis=0).sum()
        result |= {name: float(min(1.0, shown / total))} if total > 0 else nothing([name], "all embeddings are equal")
    for name, embeddings in (("natural_before", _natural(before)), ("natural_after", others)):
        result |= {name: (embeddings - fitted.mean) @ fitted.basis} if len(embeddings) else nothing([name], NO_NATURAL)
    return result


def _natural(snapshot: Snapshot) -> np.ndarray:
    natural = snapshot.sets.get("natural")
    return natural.embeddings if natural is not None else np.empty((0, 0))


def _turn(was: np.ndarray, now: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Return finetuned and natural embeddings with mean and rotation undone, and on which images these were fitted.

    The natural images get the turn of all test images. From two images a dimension on the test images are turned cross-fitted.
    """
    n, d = was.shape
    turn = similarity.shrunk_rotation(was, now)
    apart = (others - now.mean(0)) @ turn.T + was.mean(0) if len(others) else others
    if n >= 2 * d:
        return similarity.unrotate(was, now), apart, "each half of the images by the rotation of the other half (cross-fitted)"
    how = f"on these same {n} images (in-sample); for {d} dimensions they are few, so it is rough: it may miss and may overdo"
    return (now - now.mean(0)) @ turn.T + was.mean(0), apart, how


def _numbers(was: np.ndarray, now: np.ndarray, x: np.ndarray, y: np.ndarray) -> Result:
    """Return how far the images moved, `(n, d)`, and how much the two clouds drawn, `(n, 2)`, overlap."""
    moved = np.linalg.norm(now - was, axis=1)

    def spread(kept: np.ndarray) -> float:
        return float(np.sqrt(np.var(was[kept], axis=0).sum()))

    def displacement(kept: np.ndarray) -> float:
        return float(moved[kept].mean()) / spread(kept)

    def shift(kept: np.ndarray) -> float:
        return float(np.linalg.norm(now[kept].mean(0) - was[kept].mean(0))) / spread(kept)

    result = statistic("displacement", displacement, len(was), (0.0, np.inf)) | statistic(
        "mean_shift", shift, len(was), (0.0, np.inf)
    )
    try:
        return result | statistic("cloud_overlap", lambda kept: overlap(x[kept], y[kept]), len(x), (0.0, 1.0))
    except ValueError as error:
        return result | nothing(number("cloud_overlap"), str(error))


def overlap(x: np.ndarray, y: np.ndarray) -> float:
    """Return the Bhattacharyya coefficient, in [0, 1], of Gaussians with means and covariances of `(n, 2)` and `(m, 2)`.

    Bhattacharyya 1943; closed form as in Kailath 1967 (IEEE Trans. Commun. 15, Eq. 21). ValueError where a cloud has no area.
    """
    a, b = (np.cov(cloud.T) for cloud in (x, y)) if min(len(x), len(y)) > 2 else (np.zeros((2, 2)), np.zeros((2, 2)))
    areas = [np.linalg.det(one) for one in (a, b)]
    if min(area - 1e-12 * np.trace(one) ** 2 for area, one in zip(areas, (a, b), strict=True)) <= 0:
        raise ValueError("a cloud in two dimensions needs three images that lie on no line")
    gap, middle = x.mean(0) - y.mean(0), (a + b) / 2
    distance = gap @ np.linalg.solve(middle, gap) / 8 + np.log(np.linalg.det(middle) / np.sqrt(areas[0] * areas[1])) / 2
    return min(1.0, float(np.exp(-distance)))


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Pretrained and finetuned embeddings side by side on the same axes, with densities and some images' ways.

    Classes differ in color and symbol; the pretrained density is dotted and the same in every panel of one basis.
    """
    return _shadow.figure(results)


def sentence(results: Mapping[str, dict]) -> str:
    """Say what the basis shows and hides, how far the images moved, and how much of each model's variance the axes show."""
    arms = {arm: one for arm, one in results.items() if one.get("before") is not None}
    if not arms:
        reasons = (one.get("before_reason") for one in results.values())
        return f"There is no common basis: {next(filter(None, reasons), 'nothing ran')}."
    first = next(iter(arms.values()))
    shares = {"the pretrained model": first.get("explained_before")}
    shares |= {arm: one.get("explained_after") for arm, one in arms.items() if arm != "pretrained"}
    parts = [f"{share:.0%} for {name}" for name, share in shares.items() if share is not None]
    turned = f" The turn was fitted {first['turned']}." if first.get("turned") else ""
    return (
        f"The two axes show this much of the variance: {', '.join(parts)}; the rest is hidden. "
        f"{BASES.get(first.get('basis', ''), '')}{turned}{_moved(arms)}{_drawn(first)}"
    )


def _moved(arms: Mapping[str, dict]) -> str:
    """Say of each arm how far its images moved and how much the clouds drawn overlap."""
    parts = []
    for arm, one in arms.items():
        if arm == "pretrained" or one.get("displacement") is None:
            continue
        overlap = f", clouds overlap {_interval(one, 'cloud_overlap')}" if one.get("cloud_overlap") is not None else ""
        shift = f", their mean {one['mean_shift']:.2f}" if one.get("mean_shift") is not None else ""
        parts.append(f"{arm} {_interval(one, 'displacement')}{shift}{overlap}")
    unit = "In units of the pretrained spread, over all dimensions, an image moved on average"
    n = next(iter(arms.values()))["n"]
    return f" {unit}: {'; '.join(parts)} (n = {n}; an overlap of 1 is the same cloud)." if parts else ""


def _interval(one: Mapping, key: str) -> str:
    low, high = one.get(f"{key}_low"), one.get(f"{key}_high")
    return f"{one[key]:.2f}" + (f" ({low:.2f} to {high:.2f})" if low is not None and high is not None else "")


def _drawn(one: Mapping) -> str:
    """Say which images are drawn, and which have an arrow."""
    points = f"Of {one['n']} images {_shadow.MOST_POINTS} are drawn; " if one["n"] > _shadow.MOST_POINTS else ""
    ways = f"{len(_shadow.spread(one['n'], _shadow.ARROWS))} images, evenly spaced in the order of the set, have an arrow."
    return f" {points}{ways} Contours hold half and nine tenths of each density."

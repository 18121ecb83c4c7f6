"""How sharp is the minimum that the run ended in: how much does the training loss rise when its weights are moved a little?
Rise in the ball: max over ‖δ‖ <= ε of L(θ + δ) - L(θ), by one step of ascent δ = ε · g / ‖g‖ and by several; λmax of the Hessian.

The RIFT paper reports sharpness in its Table 4; its definition was not at hand. These are the standard ones, and their
numbers are not the paper's: the one-step rise is what sharpness-aware minimization lowers (Foret 2021, arXiv 2010.01412, Eq.
2), here over all images at once and not over minibatches; the largest eigenvalue is the curvature of the loss along its
steepest bend; the slices use the filter-wise normalized random directions of Li 2018 (arXiv 1712.09913).

What is our choice. L is the run's task loss, without penalty, weight decay and augmentation, in eval mode, over a seeded draw
of its training images. What is moved are the parameters that the method trained, head included (`which`); an adapter's are
its own matrices. ε is a share of their norm ‖θ‖ (`norm`), or an L2 norm as in the paper. The share makes ε comparable between
methods that move more or larger numbers, but another method's parameters stay another space, and the sentence says so.
Several steps of ascent start from the one step, go `step_size` · ε up the gradient each and are put back into the ball; the
best iterate counts, and one of a smaller ball counts in every larger. What they find is a lower bound of the maximum. λmax is
found by Lanczos on products of Hessian and vector (two backward passes); it counts when its residual is within `tolerance` of
it, else only what it is at least is given. DoRA takes norms as constants in its gradient: its ascent follows that, and it has
no eigenvalue here. Intervals: 95 %, Student's t over the images, at the move that was found on these images; for random
slices, over the directions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import scipy
import torch
from pydantic import Field
from torch import Tensor

from rift.captures import Arrays, Data
from rift.diagnostics import _landscape, _sharpness_page
from rift.diagnostics._landscape import Landscape
from rift.model import Backbone, Classifier

TITLE = "Sharpness"
PRESETS: dict[str, dict] = {
    "quick": {"images": 24, "radii": 3, "steps": 3, "iterations": 8, "directions": 3, "points": 2, "grid": 2},
    "thorough": {"images": 500, "radii": 5, "steps": 20, "iterations": 60, "directions": 10, "points": 10, "grid": 5},
}
GRADIENT, HESSIAN = 3, 11  # what they cost, in passes through the model (measured): for the time left


def capture(
    pretrained: Backbone,
    finetuned: Classifier,
    data: Data,
    *,
    images: Annotated[int, Field(ge=2, le=5000, description="training images drawn for the loss, without augmentation")] = 100,
    which: Annotated[
        Literal["trained", "backbone", "all"],
        Field(description="what is moved: what the method trained, head included; the whole backbone; backbone and head"),
    ] = "trained",
    norm: Annotated[
        Literal["relative", "absolute"], Field(description="whether ε is a share of the norm of what is moved, or an L2 norm")
    ] = "relative",
    radius: Annotated[float, Field(gt=0, le=1000, description="the largest ε")] = 0.0005,
    radii: Annotated[int, Field(ge=1, le=6, description="how many ε, each half of the next")] = 3,
    steps: Annotated[int, Field(ge=1, le=200, description="steps of ascent after the first")] = 5,
    step_size: Annotated[float, Field(gt=0, le=2, description="length of such a step, as a share of ε")] = 0.5,
    iterations: Annotated[int, Field(ge=1, le=500, description="Hessian-vector products at most, for the eigenvalue")] = 12,
    tolerance: Annotated[
        float, Field(gt=0, lt=1, description="residual, as a share of the eigenvalue, at which it counts")
    ] = 0.05,
    directions: Annotated[
        int, Field(ge=2, le=50, description="seeded random directions; the plane is that of the first two")
    ] = 3,
    span: Annotated[
        float, Field(gt=0, le=2, description="how far random slices go, as a share of the norm of what is moved")
    ] = 0.2,
    points: Annotated[int, Field(ge=1, le=25, description="points of a slice on either side of the minimum")] = 4,
    grid: Annotated[int, Field(ge=1, le=12, description="the same for the slice in two directions")] = 2,
) -> Arrays:
    """Return the loss of each image at the minimum and in the balls, the course of Lanczos, and mean losses along the slices.

    `loss` `(n,)`; `one_step`, `several_steps` `(radii, n)`; `ritz`, `residual` `(k,)`; `slice_gradient` and
    `slice_line` `(2 points + 1,)`, the line empty where there is none; `slice_random` `(directions, 2 points + 1)`; `surface`
    `(g, g)`, y first. Only `loss` where it is not finite, or empty as no training image has a label. Raises `run.missing` for
    a run without task.
    """
    chosen, names = _drawn(data, images), _names(finetuned, which)
    arrays = _about(finetuned, names) | {"n_train": np.array(len(data.train)), "which": np.array(which)}
    if not len(chosen):
        return arrays | {"loss": np.zeros(0)}
    land = _landscape.landscape(finetuned, names, data, chosen)
    arrays["loss"], up = land.gradient(land.center)
    if not np.isfinite(arrays["loss"]).all() or not torch.isfinite(up).all():
        return arrays | {"loss": np.full(len(chosen), np.nan)}
    arrays["gradient_norm"], size = np.array(_landscape.norm(up)), _landscape.norm(land.center)
    random = _landscape.gaussian(land, data.seed)
    toward = _landscape.unit(up if up.any() else random)
    grids = np.linspace(-1, 1, 2 * points + 1), np.linspace(-1, 1, 2 * grid + 1)
    passes = radii * (steps + 1) * GRADIENT + iterations * HESSIAN + (directions + 2) * len(grids[0]) + len(grids[1]) ** 2
    done = [0]

    def tick(cost: int = 1) -> None:
        done[0] += cost
        data.progress(done[0], passes, "passes through the model")

    epsilons = radius * 0.5 ** np.arange(radii)[::-1]
    arrays |= {
        "radii": epsilons,
        "radii_absolute": epsilons * (size if norm == "relative" else 1.0),
        "tolerance": np.array(tolerance),
    }
    climb = functools.partial(_landscape.ascend, land, toward, steps=steps, step_size=step_size, tick=lambda: tick(GRADIENT))
    balls = [data.part(f"ball-{i}", functools.partial(climb, float(r))) for i, r in enumerate(arrays["radii_absolute"])]
    arrays |= {key: np.stack([ball[key] for ball in balls]) for key in balls[0]}
    bend = functools.partial(_landscape.lanczos, land, toward + random, iterations=iterations, tolerance=tolerance)
    arrays |= data.part("hessian", lambda: bend(tick=lambda: tick(HESSIAN)))
    line, reason = _line(pretrained, finetuned, names)
    arrays |= {"line_reason": np.array(reason), "offsets": span * grids[0], "plane": span * grids[1]}
    return arrays | _slices(land, data, span, directions, grids, float(arrays["radii_absolute"][-1]) * toward, line, tick)


def _drawn(data: Data, images: int) -> np.ndarray:
    """Return the places of the training images of the loss: a seeded draw of those with a label, the same for every arm."""
    labels = np.asarray(data.train.labels)
    known = np.flatnonzero(labels >= 0) if labels.ndim == 1 else np.arange(len(labels))
    return np.sort(np.random.default_rng(data.seed).permutation(known)[:images])


def _names(finetuned: Classifier, which: str) -> list[str]:
    """Return the names of the parameters that are moved."""
    wanted = {
        "trained": lambda name, value: value.requires_grad,
        "backbone": lambda name, value: name.startswith("backbone."),
        "all": lambda name, value: True,
    }[which]
    return [name for name, value in finetuned.named_parameters() if wanted(name, value)]


def _about(finetuned: Classifier, names: list[str]) -> Arrays:
    values = dict(finetuned.named_parameters())
    norm = _landscape.norm(torch.cat([values[name].detach().reshape(-1) for name in names]))
    sizes = np.array([values[name].numel() for name in names])
    return {"names": np.array(names, dtype=np.str_), "sizes": sizes, "norm": np.array(norm)}


def _line(pretrained: Backbone, finetuned: Classifier, names: list[str]) -> tuple[Tensor | None, str]:
    """Return the way `(d,)` from the pretrained to the finetuned backbone, under the head as it is; or None and why."""
    before, after = dict(pretrained.named_parameters()), dict(finetuned.named_parameters())
    if more := sorted(before.keys() ^ dict(finetuned.backbone.named_parameters()).keys()):
        return (
            None,
            f"the method adds parts that the pretrained model lacks (such as {more[0]}), so no line leads from one to the other",
        )
    ways = [after[name] - before.get(name.removeprefix("backbone."), after[name]) for name in names]
    way = torch.cat([one.detach().reshape(-1) for one in ways])
    if not way.any():
        return None, "nothing that is moved here differs from the pretrained model, save the head, which it lacks"
    return way, ""


def _slices(
    land: Landscape,
    data: Data,
    span: float,
    directions: int,
    grids: tuple[np.ndarray, np.ndarray],
    up: Tensor,
    line: Tensor | None,
    tick: Callable[[], None],
) -> Arrays:
    """Return mean losses along the gradient, the line, random directions, and in the plane of the first two of these."""

    def along(ways: list[tuple[np.ndarray, Tensor]], count: int) -> Arrays:
        found = []
        for i in range(count):
            shift = sum((steps[i] * way for steps, way in ways), torch.zeros_like(land.center))
            found.append(land.losses(land.center + shift).mean())
            tick()
        return {"loss": np.array(found)}

    def random(i: int) -> Tensor:
        return _landscape.random_direction(land, 1000 * data.seed + i)

    ways, plane = grids[0], grids[1]
    found = {"slice_gradient": data.part("gradient", lambda: along([(ways, up)], len(ways)))["loss"]}
    found["slice_line"] = data.part("line", lambda: along([(ways, line)], len(ways)))["loss"] if line is not None else np.zeros(0)
    each = [
        data.part(f"random-{i}", functools.partial(lambda i: along([(span * ways, random(i))], len(ways)), i))
        for i in range(directions)
    ]
    x, y = random(0), random(1)
    rows = [
        data.part(
            f"plane-{i}",
            functools.partial(lambda at: along([(span * plane, x), (np.full(len(plane), span * at), y)], len(plane)), at),
        )
        for i, at in enumerate(plane)
    ]
    return found | {"slice_random": np.stack([one["loss"] for one in each]), "surface": np.stack([row["loss"] for row in rows])}


def measure(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the loss, its rise by ε `(radii,)`, the largest eigenvalue, and the rise along the slices; losses in nats.

    `sharpness` is the rise of several steps in the largest ball, `random_rise` that at the ends of the random slices. Intervals
    of 95 % as `…_low`, `…_high`. What is undefined is nan or None, and `<name>_reason` says why.
    """
    loss, sizes = np.asarray(arrays["loss"], np.float64), np.asarray(arrays["sizes"])
    of_head = np.char.startswith(names := np.asarray(arrays["names"]), "head.")
    result: dict[str, Any] = {
        "n": len(loss),
        "n_train": int(arrays["n_train"]),
        "which": str(arrays["which"]),
        "names": names,
        "n_parameters": int(sizes.sum()),
        "n_head_parameters": int(sizes[of_head].sum()),
    }
    if not len(loss) or not np.isfinite(loss).all():
        why = (
            "the loss or its gradient is not finite at the final weights" if len(loss) else "no training image has a known label"
        )
        every = ("norm", "loss", "gradient_norm", "sharpness", "rise", "one_step_rise", "eigenvalue", "random_rise", "surface")
        return result | dict.fromkeys(every) | {f"{name}_reason": why for name in every}
    result |= _interval("loss", loss) | {key: float(arrays[key]) for key in ("norm", "gradient_norm")}
    result |= {key: np.asarray(arrays[key]) for key in ("radii", "radii_absolute", "offsets", "plane")}
    result["entries"] = np.array([f"ε = {share:.3g}" for share in arrays["radii"]], dtype=np.str_)  # rows of the data table
    result |= _balls(arrays, loss) | _eigenvalue(arrays) | _along(arrays, float(loss.mean()))
    return result


def _interval(name: str, values: np.ndarray) -> dict[str, Any]:
    """Return the mean of values `(n,)` with its interval by Student's t."""
    mean = float(values.mean())
    if len(values) < 2 or not np.isfinite(mean):
        reason = "one image gives no interval" if len(values) < 2 else "the loss is not finite there"
        ends = {f"{name}_{end}": None for end in ("low", "high")} | {f"{name}_{end}_reason": reason for end in ("low", "high")}
        return ends | ({name: mean} if np.isfinite(mean) else {name: None, f"{name}_reason": reason})
    reach = float(scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return {name: mean, f"{name}_low": mean - reach, f"{name}_high": mean + reach}


def _balls(arrays: Mapping[str, np.ndarray], loss: np.ndarray) -> dict[str, Any]:
    """Return the rise by ε of one step and of several; the center and the smaller balls are part of a ball."""
    one, several = (np.asarray(arrays[key], np.float64) - loss for key in ("one_step", "several_steps"))
    best, inside = np.zeros_like(loss), []
    for rises in several:
        best = rises if rises.mean() > best.mean() else best
        inside.append(best)
    result: dict[str, Any] = {}
    for name, rows in (("one_step_rise", one), ("rise", np.array(inside))):
        each = [_interval("at", row) for row in rows]
        for end in ("", "_low", "_high"):
            values = np.array([np.nan if row[f"at{end}"] is None else row[f"at{end}"] for row in each])
            result[f"{name}{end}"] = values if np.isfinite(values).any() else None
            if not np.isfinite(values).all():
                result[f"{name}{end}_reason"] = next(row[f"at{end}_reason"] for row in each if row[f"at{end}"] is None)
    return result | _interval("sharpness", inside[-1])


def _eigenvalue(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the largest eigenvalue, or None and why; what it is at least is the last Ritz value."""
    ritz, residual = (float(np.append(np.nan, arrays[key])[-1]) for key in ("ritz", "residual"))
    result: dict[str, Any] = {"hessian_products": len(arrays["ritz"])}
    if not len(arrays["ritz"]):
        reason = "DoRA takes norms as constants in its gradient, so that differentiating it again gives another Hessian"
    elif not np.isfinite([ritz, residual]).all():
        reason = "the second derivatives are not finite"
    elif residual > float(arrays["tolerance"]) * abs(ritz):
        reason = (
            f"not converged after {len(arrays['ritz'])} products (residual {residual:.3g} at {ritz:.3g}): allow more iterations"
        )
        result |= {"eigenvalue_at_least": ritz, "eigenvalue_residual": residual}
    else:
        found = {"eigenvalue": ritz, "eigenvalue_relative": ritz * float(arrays["norm"]) ** 2}
        return result | found | {"eigenvalue_at_least": ritz, "eigenvalue_residual": residual}
    every = ("eigenvalue", "eigenvalue_relative", "eigenvalue_at_least", "eigenvalue_residual")
    missing = [name for name in every if name not in result]
    return result | dict.fromkeys(missing) | {f"{name}_reason": reason for name in missing}


def _along(arrays: Mapping[str, np.ndarray], loss: float) -> dict[str, Any]:
    """Return the rise along each slice, of the random ones the mean over directions with its interval at every point."""
    random = np.asarray(arrays["slice_random"], np.float64) - loss
    each = [_interval("at", column) for column in random.T]
    result: dict[str, Any] = {"n_directions": len(random)}
    for end in ("", "_low", "_high"):
        result[f"slice_random{end}"] = np.array([np.nan if one[f"at{end}"] is None else one[f"at{end}"] for one in each])
    result |= _interval("random_rise", random[:, [0, -1]].mean(1))
    for name in ("slice_gradient", "slice_line", "surface"):
        values = np.asarray(arrays[name], np.float64) - loss
        result[name] = values if np.isfinite(values).any() else None
    for name in ("slice_random", "slice_random_low", "slice_random_high", "slice_gradient", "slice_line", "surface"):
        if result[name] is None or not np.isfinite(result[name]).all():
            result[f"{name}_reason"] = "the loss is not finite in places"
    if result["slice_line"] is None and str(arrays["line_reason"]):
        result["slice_line_reason"] = str(arrays["line_reason"])
    return result


figure, sentence = _sharpness_page.figure, _sharpness_page.sentence

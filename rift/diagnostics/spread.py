"""Do models whose layers forget unevenly hold out worse against corrupted images? One point for every kept epoch of every run.
Spread of forgetting = standard deviation over blocks of 1 - STIR(finetuned block | pretrained block), against corrupted accuracy.

Stated by Merlin 2023 (arXiv 2307.06006), of which we had a summary only: the standard deviation of forgetting across layers
correlates with robustness (0.78), more so after few epochs, and could tell when to stop. Its models and corruptions are not known
to us. What is our choice: the corruptions and their severity, the number of images and steps, Pearson's r with Fisher's interval
and Spearman's rho beside it. Points of one run are not independent, and an interval over epochs treats them as if they were; the
last epochs of at least ten runs are, and only they get a statement. A run that kept no epochs (`keep=last`) has one point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import plotly.graph_objects as go
import scipy
import torch
from pydantic import Field

from rift import figures
from rift.captures import Arrays, Data, Images
from rift.diagnostics import _corruptions, _grams, _inversion
from rift.diagnostics._inversion import Settings
from rift.model import Backbone, Classifier, fingerprint
from rift.tasks.reconstruction import NO_CLASS

TITLE = "Forgetting and robustness"
EVERY_RUN = True  # the figure takes all seeds of an arm, not the first alone
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"most_epochs": 4},
    "thorough": {"corruptions": "all", "count": 200, "robust_images": 500, "iterations": 100, "step": 10.0, "layers": "all"},
}
FEW = ("gaussian_noise", "defocus_blur", "jpeg", "contrast", "stain")
SEVERITY = 3
FEWEST_RUNS, FEWEST_EPOCHS, FEWEST_IMAGES = 10, 4, 50


def capture(
    pretrained: Backbone,
    finetuned: Classifier,
    data: Data,
    *,
    count: Annotated[int, Field(ge=2, le=2000, description="test images that are inverted, evenly spaced")] = 50,
    layers: Annotated[Literal["every second", "all"], Field(description="blocks whose forgetting is spread")] = "all",
    iterations: Annotated[int, Field(ge=1, le=5000, description="gradient steps of an inversion")] = 20,
    step: Annotated[float, Field(gt=0, le=100, description="length of the first step at 224 px; steps shrink to 0")] = 20.0,
    corruptions: Annotated[Literal["few", "all"], Field(description="few: noise, blur, JPEG, contrast, color")] = "few",
    robust_images: Annotated[int, Field(ge=2, le=100_000, description="test images that are corrupted, drawn by seed")] = 150,
    most_epochs: Annotated[int, Field(ge=1, le=1000, description="kept epochs that are measured, evenly spaced")] = 20,
) -> Arrays:
    """Return for e epochs `stir` `(e, l)`, the same without each image `(e, l, n)`, and which corrupted images were got right.

    `right` `(e, c, m)` of c corruptions, `clean` `(e, m)`; of findings the share of right answers. The pretrained model's
    inversions are those of `stir` with the same settings.
    """
    places = np.unique(np.linspace(0, len(data.test) - 1, min(count, len(data.test))).round().astype(int))
    pixels = np.ascontiguousarray(data.test.pixels[places])
    blocks = list(range(1, pretrained.layers + 1, 2 if layers == "every second" else 1))
    how, mark = Settings(iterations, step, "decay", False, 0), fingerprint(pretrained)
    pretrained.requires_grad_(False)
    epochs = _chosen(data.epochs, most_epochs)
    total = sum(blocks) * iterations * len(pixels)
    seen, before = [0], 0
    data = replace(data, batch_size=_inversion.BATCH)  # what is shared with stir is found by it too
    inverted = []

    def tell(n: int) -> None:
        seen[0] += n
        data.progress(before + seen[0], total, "passes through a block")

    for block in blocks:
        seen[0] = 0
        inverted.append(_inversion.of_pretrained(pretrained, mark, block, data, pixels, how, lambda n, b=block: tell(n * b)))  # type: ignore[misc]
        before += block * iterations * len(pixels)
    names = FEW if corruptions == "few" else tuple(_corruptions.CORRUPTIONS)
    robust = _corruptions.some(data.test, robust_images, data.seed)

    def at(epoch: int) -> Arrays:
        model = finetuned if epoch == 0 or data.at_epoch is None else data.at_epoch(epoch)
        given = _inversion.grams(model.backbone, blocks, data, pixels, False)
        again = [
            _inversion.grams(model.backbone, [block], data, one["pixels"], False)[0]
            for block, one in zip(blocks, inverted, strict=True)
        ]
        found = [_grams.cka(one, other) for one, other in zip(given, again, strict=True)]
        corrupted = [_right(model, robust, data, name) for name in names]
        return {
            "stir": np.array([value[0] for value, _ in found]),
            "stir_loo": np.stack([without[0] for _, without in found]),
            "right": np.stack(corrupted),
            "clean": _right(model, robust, data, None),
        }

    each = []
    for place, epoch in enumerate(epochs):
        data.progress(place, len(epochs), "epochs")
        each.append(data.part(f"epoch-{epoch}", lambda epoch=epoch: at(epoch)))  # type: ignore[misc]
    fixed = {"epochs": np.array(epochs), "n": np.array(len(pixels)), "blocks": np.array(blocks), "corruptions": np.array(names)}
    fixed |= {"names_classes": np.array(not finetuned.reads_tokens)}
    return fixed | {key: np.stack([one[key] for one in each]) for key in each[0]}


def _chosen(epochs: Sequence[int], most: int) -> list[int]:
    """Evenly spaced kept epochs, the last among them; 0 stands for the finished model of a run that kept none."""
    if not epochs:
        return [0]
    return [epochs[place] for place in np.unique(np.linspace(len(epochs) - 1, 0, min(most, len(epochs))).round().astype(int))]


@torch.no_grad()
def _right(model: Classifier, images: Images, data: Data, name: str | None) -> np.ndarray:
    """Return for each image with a known label whether (of findings: what share) the model answers rightly, `(m,)`."""
    if model.reads_tokens:
        return np.zeros(0)
    chunks = _corruptions.chunks(images) if name is None else _corruptions.corrupted(images, name, SEVERITY, data.seed)
    logits = torch.cat([model(one.to(data.device))[1].float().cpu() for one in chunks]).numpy()
    if images.labels.ndim == 2:
        return ((logits >= 0) == (images.labels > 0)).mean(1)
    known = images.labels >= 0
    return (logits.argmax(1) == images.labels)[known].astype(float)


def measure(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return by epoch, `(e,)`, the spread of forgetting with its 95 % interval, accuracy under corruption and clean accuracy.

    `…_last` are those of the last epoch, `correlation` is Pearson's over this run's epochs with Fisher's interval. `n` images
    were inverted, `n_robust` corrupted. What is undefined is None, and `<name>_reason` says why.
    """
    epochs, right = np.asarray(arrays["epochs"]), np.asarray(arrays["right"])
    kept = bool(epochs[-1])
    result: dict[str, Any] = {
        "n": int(arrays["n"]),
        "n_robust": right.shape[2],
        "epochs": epochs,
        "entries": np.array([f"epoch {epoch}" if kept else "the end" for epoch in epochs], dtype=np.str_),
    }
    spread, without = np.std(1 - arrays["stir"], axis=1), np.std(1 - arrays["stir_loo"], axis=1)
    reach = 1.96 * _grams.deviation(without)
    values = {"spread": spread, "spread_low": spread - reach, "spread_high": spread + reach}
    values |= {"forgetting": np.mean(1 - arrays["stir"], axis=1)}
    why = "CKA is undefined where a layer puts all images in one place, or there are too few of them"
    result |= _found(values, why)
    m = max(1, right.shape[2])  # without an image the sums are 0, and then nothing is defined
    robust, clean = right.mean(1).sum(1) / m, np.asarray(arrays["clean"]).sum(1) / m
    if not right.shape[2]:
        robust, clean = robust * np.nan, clean * np.nan
    why = "no test image has a known label" if arrays["names_classes"] else NO_CLASS
    result |= _found({"robust_accuracy": robust, "clean_accuracy": clean}, why)
    result |= correlated("correlation", spread, robust, FEWEST_EPOCHS, "epochs")
    return result


def _found(values: Mapping[str, np.ndarray], reason: str) -> dict[str, Any]:
    """Arrays by epoch, and the last of each as a number; None with a reason where undefined."""
    result: dict[str, Any] = {}
    for name, one in values.items():
        defined = bool(np.isfinite(one).all())
        result |= {name: one if defined else None, f"{name}_last": float(one[-1]) if defined else None}
        if not defined:
            result |= {f"{name}_reason": reason, f"{name}_last_reason": reason}
    return result


def correlated(name: str, x: np.ndarray, y: np.ndarray, fewest: int, what: str) -> dict[str, Any]:
    """Return Pearson's r, with Fisher's 95 % interval, and Spearman's rho of points `(k,)`, or None and why."""
    reason = ""
    if len(x) < fewest:
        reason = f"{len(x)} {what} are too few for a correlation; it takes {fewest}"
    elif not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(x) == 0 or np.ptp(y) == 0:
        reason = f"one of the two numbers is undefined or the same at all {len(x)} {what}"
    names = (name, f"{name}_low", f"{name}_high", f"{name}_ranks")
    if reason:
        return dict.fromkeys(names) | {f"{one}_reason": reason for one in names}
    found = scipy.stats.pearsonr(x, y)
    low, high = found.confidence_interval(0.95)
    return dict(zip(names, map(float, (found.statistic, low, high, scipy.stats.spearmanr(x, y).statistic)), strict=True))


def last_of(results: Mapping[str, dict]) -> dict[str, Any]:
    """Return `correlated` of the last epochs of all runs, at least ten, and their number `runs`."""
    points = [(one["spread_last"], one["robust_accuracy_last"]) for one in _defined(results).values()]
    x, y = np.array(points, float).reshape(-1, 2).T
    return {"runs": len(points)} | correlated("correlation", x, y, FEWEST_RUNS, "runs")


def _defined(results: Mapping[str, dict]) -> dict[str, dict]:
    return {run: one for run, one in results.items() if one.get("spread") is not None and one.get("robust_accuracy") is not None}


def _arm(run: str) -> str:
    return run.rsplit(", seed ", 1)[0]


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Accuracy under corruption against the spread of forgetting; a line follows a run's epochs to its last, the large mark."""
    runs = _defined(results)
    if not runs:
        reasons = (one.get("spread_reason") or one.get("robust_accuracy_reason") for one in results.values())
        return figures.empty(next(filter(None, reasons), "no run was measured"))
    plot, arms = go.Figure(), list(dict.fromkeys(map(_arm, runs)))
    for run, one in runs.items():
        arm = _arm(run)
        color, many = figures.color(arm, arms), len(one["epochs"])
        plot.add_scatter(
            x=figures.numbers(one["spread"]),
            y=figures.numbers(one["robust_accuracy"]),
            mode="lines+markers",
            name=figures.text(arm),
            legendgroup=arm,
            showlegend=arm not in {trace.legendgroup for trace in plot.data},
            line={"color": color, "width": 1.5, "dash": figures.dash(arm, arms)},
            marker={"symbol": figures.symbol(arm, arms), "color": color, "size": [5] * (many - 1) + [12]},
            customdata=one["epochs"],
            hovertemplate=f"{figures.text(run)}, epoch %{{customdata}}: spread %{{x:.3f}}, accuracy %{{y:.3f}}",
        )
    plot.update_xaxes(title_text="spread of forgetting over blocks")
    plot.update_yaxes(title_text="accuracy under corruption")
    return figures.style(plot, 420)


def sentence(results: Mapping[str, dict]) -> str:
    """Say whether robustness went with an even forgetting, over the last epochs of ten runs or, descriptively, within one."""
    runs = _defined(results)
    if not runs:
        reasons = (one.get("spread_reason") or one.get("robust_accuracy_reason") for one in results.values())
        return f"Nothing can be compared: {next(filter(None, reasons), 'no run was measured')}."
    few = min(one["n"] for one in runs.values())
    found = last_of(results)
    if found["correlation"] is None:
        within = [f"{run}: r = {one['correlation']:.2f}" for run, one in runs.items() if one.get("correlation") is not None]
        over = f" Over the epochs of one run, which are not independent: {'; '.join(within)}." if within else ""
        return f"No statement: {found['correlation_reason']}.{over}"
    low, high = found["correlation_low"], found["correlation_high"]
    way = "more" if low > 0 else "less" if high < 0 else ""
    said = f"runs whose layers forget unevenly are {way} robust here" if way else "no relation can be told here"
    said = said if few >= FEWEST_IMAGES else f"{few} inverted images are too few to say what it means"
    return (
        f"Over the last epochs of {found['runs']} runs, spread of forgetting and accuracy under corruption have r = "
        f"{found['correlation']:.2f} (95 % interval {low:.2f} to {high:.2f}, ranks {found['correlation_ranks']:.2f}): {said}."
    )

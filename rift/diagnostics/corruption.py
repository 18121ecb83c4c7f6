"""How much of what a model can do is left when its images get worse: noisy, blurred, compressed, dark, tinted, turned, hidden?
Mean corruption error = mean over corruptions and severities of 1 - accuracy, after Hendrycks and Dietterich 2019 (1903.12261).

Stated by the paper (arXiv 1903.12261): each corruption's error is divided by AlexNet's, then averaged. Our choice: divided by
nothing, since AlexNet has no head for these classes. The relative corruption error is the mean one over the same model's clean
error. Severities are our own too (`_corruptions.py`), so numbers compare within this page and with nothing published.

Drift under corruption is the debiased CKA of a model's embeddings of corrupted images with its own of the same images clean: 1 is
no drift. All arms and the pretrained model see the very same corrupted pixels, so scores may be compared image by image; that is
not done here, and nothing here is a test. Intervals of means are a jackknife's over images, those of single accuracies Wilson's
and MOVER's. They speak of other images, not of other training seeds or corruptions. Of findings the score is the mean average
precision (mAP).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import plotly.graph_objects as go
import torch
from pydantic import Field
from torch import Tensor

from rift import figures
from rift.captures import Arrays, Data
from rift.diagnostics import _corruption_numbers, _corruption_plots
from rift.diagnostics._corruption_numbers import each, summary, with_interval
from rift.diagnostics._corruptions import CORRUPTIONS, SEVERITIES, chunks, corrupted, some
from rift.model import Backbone, Classifier, NaturalHead
from rift.similarity import debiased_cka
from rift.statistics import folds, leave_out

TITLE = "Corruption"
LEVELS = {"one": (3,), "three": (1, 3, 5), "all": tuple(range(1, SEVERITIES + 1))}
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"severities": "one", "images": 60, "natural_images": 20},
    "thorough": {"images": 2000, "natural_images": 1000},
}
MODELS = {"": "finetuned", "pretrained_": "pretrained"}
SETS = {"": "test", "_natural": "natural"}


def capture(
    pretrained: Backbone,
    finetuned: Classifier,
    data: Data,
    *,
    severities: Annotated[
        Literal["one", "three", "all"], Field(description="of the five severities: the third; first, third and fifth; or all")
    ] = "all",
    images: Annotated[int, Field(ge=1, le=100_000, description="test images, drawn from the run's seed; all where fewer")] = 300,
    natural_images: Annotated[int, Field(ge=0, le=100_000, description="natural images, drawn likewise")] = 100,
) -> Arrays:
    """Return for c corruptions in v severities what both models make of corrupted images.

    `logits` `(c, v, n, k)`, `named` and `pretrained_named` `(c, v, n_natural)` as indices into the natural classes (-1 without a
    head), and `[pretrained_]cka[_natural]` `(c, v, 1 + folds)`: of all images, then without each fold; nan where undefined. The
    same of clean images as `clean_…`, and one test image as `pictures` `(1 + c · v, s, s, 3)` uint8, the clean one first.
    """
    sets = {"": some(data.test, images, data.seed), "_natural": some(data.natural, natural_images, data.seed)}
    models = {"": finetuned.backbone, "pretrained_": pretrained}
    clean = {(model, one): _embed(models[model], chunks(sets[one]), data) for model in models for one in sets}

    def at(name: str, severity: int) -> Arrays:
        found: dict[str, Any] = {}
        for one in sets:
            pixels = list(corrupted(sets[one], name, severity, data.seed))
            for model in models:
                embeddings = _embed(models[model], pixels, data)
                found[f"{model}cka{one}"] = _cka(clean[model, one], embeddings)
                found |= _outputs(model, one, finetuned, embeddings, data)
            if not one:
                found["pictures"] = _picture(pixels[0])
        return found

    def under(name: str) -> Arrays:
        each = [at(name, severity) for severity in LEVELS[severities]]
        return {key: np.stack([one[key] for one in each]) for key in each[0]}

    parts = []
    for place, name in enumerate(CORRUPTIONS):
        data.progress(place, len(CORRUPTIONS), "corruptions")
        parts.append(data.part(name, lambda name=name: under(name)))  # type: ignore[misc]
    found = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
    for (model, one), embeddings in clean.items():
        found |= {f"clean_{key}": value for key, value in _outputs(model, one, finetuned, embeddings, data).items()}
    pictures = found["pictures"].reshape(-1, *found["pictures"].shape[2:])
    test, natural = sets.values()
    return found | {
        "pictures": np.concatenate([_picture(next(chunks(test)))[None], pictures]),
        "corruptions": np.array(list(CORRUPTIONS)),
        "severities": np.array(LEVELS[severities]),
        "ids": test.ids,
        "labels": test.labels,
        "natural_labels": natural.labels,
        "scored": np.isin(natural.labels, [data.natural.classes.index(label) for label in _known(data.natural_head)]),
    }


@torch.inference_mode()
def _embed(model: Backbone, pixels: Iterable[Tensor], data: Data) -> np.ndarray:
    found = [model(one.to(data.device)).float().cpu() for one in pixels]
    return torch.cat(found).numpy() if found else np.zeros((0, model.width), np.float32)


@torch.inference_mode()
def _outputs(model: str, images: str, finetuned: Classifier, embeddings: np.ndarray, data: Data) -> Arrays:
    """What is predicted from a model's embeddings of the test or the natural images; the pretrained model has no task head."""
    if images:
        head = data.natural_head
        if head is None or not head.classes:
            return {f"{model}named": np.full(len(embeddings), -1)}
        places = np.array([data.natural.classes.index(label) for label in head.classes])
        return {f"{model}named": places[head.logits(torch.from_numpy(embeddings)).argmax(1).numpy()]}
    if finetuned.reads_tokens:  # it reconstructs, and names no class
        return {} if model else {"logits": np.zeros((len(embeddings), 0), np.float32)}
    return {} if model else {"logits": finetuned.head(torch.from_numpy(embeddings).to(data.device)).float().cpu().numpy()}


def _known(head: NaturalHead | None) -> tuple[str, ...]:
    return head.classes if head else ()


def _cka(clean: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    def of(kept: np.ndarray) -> float:
        try:
            return debiased_cka(clean[kept], embeddings[kept])
        except ValueError:
            return np.nan

    return leave_out(of, folds(len(clean))) if len(clean) > 1 else np.array([np.nan])


def _picture(pixels: Tensor) -> np.ndarray:
    return pixels[0].mul(255).round().byte().permute(1, 2, 0).numpy()


def measure(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return scores in [0, 1] of c corruptions in v severities, CKA in [-1, 1], their means and 95 % intervals.

    For each of the scores (`accuracy`, `balanced_accuracy`; of findings `average_precision`, `accuracy`), of `natural_accuracy`
    and of `cka_debiased`, these two also `pretrained_…`: `NAME` `(c, v)`, `corruption_NAME` `(c,)` its mean over severities,
    `severity_NAME` `(5,)` that over corruptions, nan where a severity was not asked for, and `mean_NAME`, each bounded by
    `…_low` and `…_high`. `image_score` `(n,)` is the share of right answers under all corruptions, image by image, -1 where the
    label is not known. `n` test and `n_natural` natural images are scored. What is undefined is nan or None, and
    `<name>_reason` says why.
    """
    labels, scored = np.asarray(arrays["labels"]), np.asarray(arrays["scored"], bool)
    known = np.arange(len(labels)) if labels.ndim == 2 else np.flatnonzero(labels >= 0)
    known = known if arrays["logits"].shape[-1] else known[:0]
    severities, shape = np.asarray(arrays["severities"]), arrays["logits"].shape[:2]
    result: dict[str, Any] = {
        "n": len(known),
        "n_images": len(labels),
        "n_natural": int(scored.sum()),
        "n_natural_images": len(scored),
        "corruptions": arrays["corruptions"],
        "severities": severities,
        "entries": arrays["corruptions"],  # names the rows of the data table
        "score": "average_precision" if labels.ndim == 2 else "accuracy",
    }
    result |= _corruption_numbers.task(arrays, labels, known)
    unnamed = "no natural image has a label that the natural head knows, or there is no such head"
    for model in MODELS:
        name = f"{model}natural_accuracy"
        right, clean = ((arrays[f"{kind}{model}named"] == arrays["natural_labels"])[..., scored] for kind in ("", "clean_"))
        n = right.shape[-1]
        found = each(lambda kept, right=right: right[..., kept].mean(-1), n, shape)  # type: ignore[misc]
        result |= summary(name, found, severities, unnamed)
        found = each(lambda kept, clean=clean: clean[kept].mean(), n, ())  # type: ignore[misc]
        result |= with_interval(f"clean_{name}", found, unnamed)
        for images, few in SETS.items():
            reason = f"CKA is undefined where the {few} images are fewer than 4 or are all embedded alike"
            found = np.moveaxis(arrays[f"{model}cka{images}"], -1, 0)
            result |= summary(f"{model}cka{images}_debiased", found, severities, reason, low=-1.0)
    return result


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Top, the score and drift by severity; below, the score under each corruption at the third severity, by arm."""
    return _corruption_plots.figure(results)


def sentence(results: Mapping[str, dict]) -> str:
    """Say each arm's mean corruption error beside its clean one, what hurt it most, and how far its embeddings drifted."""
    arms = {arm: one for arm, one in results.items() if one.get("mean_corruption_error") is not None}
    if not arms:
        reasons = (one.get("mean_corruption_error_reason") for one in results.values())
        return f"No arm has a corruption error: {next(filter(None, reasons), 'nothing was measured')}."
    first = next(iter(arms.values()))
    score = _corruption_plots.SCORES[first["score"]]
    severities = ", ".join(str(one) for one in first["severities"])
    drift = first.get("mean_pretrained_cka_debiased")
    pretrained = f" The pretrained model's own CKA is {drift:.3f}." if drift is not None else ""
    return (
        f"Mean corruption error (1 - {score}) on {first['n']} test images under {len(first['corruptions'])} corruptions, "
        f"severities {severities}: {'; '.join(_said(arm, one) for arm, one in arms.items())}.{pretrained} "
        "Severities are our own, and the intervals speak of other images only: this describes these models and ranks none."
    )


def _said(arm: str, one: Mapping[str, Any]) -> str:
    low, high, drift = (
        one.get(name) for name in ("mean_corruption_error_low", "mean_corruption_error_high", "mean_cka_debiased")
    )
    interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    worst = one["corruptions"][int(figures.numbers(one[f"corruption_{one['score']}"]).argmin())]
    kept = "" if drift is None else f", CKA with its own clean embeddings {drift:.3f}"
    clean = 1 - one[f"clean_{one['score']}"]
    return f"{arm} {one['mean_corruption_error']:.3f}{interval}, clean {clean:.3f}, most under {_words(worst)}{kept}"


def _words(name: str) -> str:
    return str(name).replace("_", " ")


def gallery(results: Mapping[str, dict]) -> list[dict[str, Any]]:
    """Return one test image under each corruption, a row for each severity, the clean image first; all arms saw these pixels."""
    arm, one = next(iter(results.items()), ("", {}))
    names, severities = list(one.get("corruptions") or []), list(one.get("severities") or [])

    def cell(caption: str, index: int) -> dict[str, Any]:
        return {"caption": caption, "arm": arm, "array": "pictures", "index": index}

    return [
        {
            "caption": f"A test image, severity {severity}",
            "pictures": [
                cell("clean", 0),
                *(cell(_words(name), 1 + row * len(severities) + place) for row, name in enumerate(names)),
            ],
        }
        for place, severity in enumerate(severities)
    ]

"""Which differences between images does each layer ignore, and did finetuning change that? An image is rebuilt from noise until
one model's layer takes it for the original; STIR says whether the other model does too. 1: both ignore the same differences.

STIR(m_e | m_r) = linear CKA(m_e(X), m_e(X')), X' inverted through m_r (Nanda 2022, arXiv 2206.11939); we follow its code but
not its defects (`_inversion`). Of Merlin 2023 (arXiv 2307.06006) we had no full text and read, from the names in its notebooks:
forgetting of a layer = 1 - STIR(finetuned | pretrained), learning = 1 - STIR(pretrained | finetuned), and invariance flow, the
matrix of all pairs of layers beside the same within one model. What is our choice: each number stands beside a measured floor,
since no inversion is perfect (a model against itself, which the study sets to 1); compression is the mean over all pairs of an
evaluated layer before the inverted one of how much the flow exceeds its baseline there, negative differences counted as 0; CKA
debiased beside linear; intervals by the jackknife over images, given this noise; and no statement below 50 images.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import plotly.graph_objects as go
import torch
from pydantic import Field

from rift.captures import Arrays, Data
from rift.diagnostics import _grams, _invariance, _inversion
from rift.diagnostics._inversion import Settings
from rift.model import Backbone, Classifier, fingerprint

TITLE = "Invariances (STIR)"
FIRST_SECONDS = 60.0  # what the quick preset was chosen for
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"layers": "three", "count": 50, "iterations": 20, "step": 20.0, "schedule": "decay"},
    "thorough": {"layers": "all", "count": 200, "iterations": 100, "step": 10.0, "schedule": "decay"},
    "paper": {"layers": "all", "count": 500, "iterations": 500, "step": 0.5, "schedule": "constant", "batch": 250},
}
SHOWN = 4  # images of the gallery
DRAWS = 20  # orders of the images for the floor of CKA


def capture(
    pretrained: Backbone,
    finetuned: Classifier,
    data: Data,
    *,
    images: Annotated[Literal["test", "natural"], Field(description="which images are inverted")] = "test",
    count: Annotated[int, Field(ge=2, le=2000, description="at most so many, evenly spaced; a statement takes 50")] = 50,
    layers: Annotated[
        Literal["three", "every second", "all"],
        Field(description="blocks, and the embedding last; three: the first, the middle one and the embedding"),
    ] = "three",
    latent: Annotated[
        Literal["all tokens", "pooled"], Field(description="what of a layer must agree; pooled: the class token or mean patch")
    ] = "all tokens",
    iterations: Annotated[int, Field(ge=1, le=5000, description="gradient steps for each image and layer")] = 20,
    step: Annotated[
        float, Field(gt=0, le=100, description="length of the first step at 224 px, in the L2 norm of pixels")
    ] = 20.0,
    schedule: Annotated[Literal["decay", "constant"], Field(description="decay: steps shrink to 0 as a cosine")] = "decay",
    start: Annotated[int, Field(ge=0, le=10**6, description="number of the noise that all inversions start from")] = 0,
    batch: Annotated[int, Field(ge=1, le=500, description="images at a time")] = _inversion.BATCH,
) -> Arrays:
    """Return STIR of all pairs of layers, `(2, l, l)`, linear and debiased, evaluated layer first, as `<evaluated>_<inverted>`.

    Each has `…_loo` `(2, l, l, n)`, the same with one image left out. Beside it CKA `(2, l)`, what an untrained copy of the model
    makes of the same inversions, CKA with the images in another order, the loss, and a few inverted images for people.
    """
    chosen, data = data.test if images == "test" else data.natural, replace(data, batch_size=batch)
    places = np.unique(np.linspace(0, len(chosen) - 1, min(count, len(chosen))).round().astype(int))
    pixels = np.ascontiguousarray(chosen.pixels[places])
    nodes = _nodes(pretrained.layers, layers)
    how = Settings(iterations, step, schedule, latent == "pooled", start)
    models = {"pre": pretrained.requires_grad_(False), "ft": finetuned.backbone.requires_grad_(False)}
    inverted = _inverted(models, nodes, data, pixels, how)
    found: Arrays = {"layers": np.array(nodes), "depth": np.array(pretrained.layers), "images": np.array(images)}
    given = {one: _inversion.grams(model, nodes, data, pixels, how.pooled) for one, model in models.items()}
    pairs = [_grams.cka(given["pre"][i], given["ft"][i]) for i in range(len(nodes))]
    found |= {"cka": np.stack([value for value, _ in pairs], 1), "cka_loo": np.stack([out for _, out in pairs], 1)}
    untrained = _untrained(pretrained).to(data.device)
    given["random"] = _inversion.grams(untrained, nodes, data, pixels, how.pooled)
    for reference in models:
        for evaluated, model in (models | {"random": untrained}).items():
            again = [_inversion.grams(model, nodes, data, one["pixels"], how.pooled) for one in inverted[reference]]
            found |= _stir(f"{evaluated}_{reference}", given[evaluated], again)
        found[f"loss_{reference}"] = np.stack([one["loss"] for one in inverted[reference]])
    return found | _shown(inverted, pixels, places, chosen.ids)


def _nodes(depth: int, layers: str) -> list[int]:
    """Blocks from 1, the embedding as depth + 1."""
    blocks = {"three": [1, (depth + 1) // 2 + (depth < 3)], "every second": range(1, depth + 1, 2), "all": range(1, depth + 1)}
    return [*sorted({one for one in blocks[layers] if one <= depth}), depth + 1]


def _inverted(
    models: Mapping[str, Backbone], nodes: Sequence[int], data: Data, pixels: np.ndarray, how: Settings
) -> dict[str, list[Arrays]]:
    """All images through each layer of both models; those of the pretrained model are for all runs of the lab."""
    depth, done = models["pre"].layers, 0
    cost = {layer: min(layer, depth) * how.iterations * len(pixels) for layer in nodes}
    total = len(models) * sum(cost.values())
    mark = fingerprint(models["pre"])
    found: dict[str, list[Arrays]] = {"pre": [], "ft": []}
    for name, model in models.items():
        for layer in nodes:
            before, seen = done, [0]

            def tell(n: int, layer: int = layer, before: int = before, seen: list[int] = seen) -> None:
                seen[0] += n * min(layer, depth)
                data.progress(before + seen[0], total, "passes through a block")

            if name == "pre":
                found[name].append(_inversion.of_pretrained(model, mark, layer, data, pixels, how, tell))
            else:
                found[name].append(_inversion.through(model, layer, data, pixels, f"inverted-{name}", how, tell))
            done += cost[layer]
    return found


def _stir(name: str, given: np.ndarray, again: Sequence[np.ndarray]) -> Arrays:
    """CKA of a model's answers to the originals and to each layer's inversions; of the untrained one layer by layer only."""
    n = given.shape[1]
    if name.startswith("random"):
        return {name: np.stack([_grams.cka(given[i], one[i])[0] for i, one in enumerate(again)], 1)}
    values, without = np.empty((2, len(given), len(again))), np.empty((2, len(given), len(again), n))
    for i in range(len(given)):
        for j, one in enumerate(again):
            values[:, i, j], without[:, i, j] = _grams.cka(given[i], one[i])
    found: Arrays = {name: values, f"{name}_loo": without.astype(np.float32)}
    if name in ("ft_pre", "pre_ft"):
        found[f"{name}_mixed"] = np.stack([_grams.permuted(given[i], one[i], DRAWS).mean(1) for i, one in enumerate(again)], 1)
    return found


def _untrained(backbone: Backbone) -> Backbone:
    """The same architecture with each layer as PyTorch starts it, and free parameters small: nothing learned."""
    found = copy.deepcopy(backbone).cpu()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for module in found.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if reset:
                reset()
            else:
                for parameter in module.parameters(recurse=False):
                    parameter.normal_(std=0.02)
    return found.eval()


def _shown(inverted: Mapping[str, Sequence[Arrays]], pixels: np.ndarray, places: np.ndarray, ids: np.ndarray) -> Arrays:
    """A few images inverted through an early, a middle and a late layer of both models, 8 bits, and how far all went."""
    few = np.unique(np.linspace(0, len(places) - 1, min(SHOWN, len(places))).round().astype(int))
    top = np.iinfo(pixels.dtype).max
    found = {"shown": places[few], "shown_ids": ids[places[few]].astype(np.str_), "n": np.array(len(places))}
    for name, layers in inverted.items():
        away = [np.sqrt(np.square(one["pixels"] / 65535 - pixels / top).mean((1, 2, 3))) for one in layers]
        found[f"away_{name}"] = np.array([one.mean() for one in away])
        for place in {0, len(layers) // 2, len(layers) - 1}:
            found[f"inverted_{name}_{place}"] = (layers[place]["pixels"][few] / 257.0).round().astype(np.uint8)
    return found


def measure(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return forgetting and learning of each layer, `(l,)`, with floors and 95 % intervals, the flow matrices and compression.

    `…_floor` is what the model shows against itself, `…_above` what is left beyond it, `…_untrained` and `…_mixed` what an
    untrained model and unrelated images show. `n` images. What is undefined is nan or None, and `<name>_reason` says why.
    """
    return _invariance.measured(arrays)


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Forgetting, learning and 1 - CKA by layer, with floors; below, for each arm, how invariances flow between layers."""
    return _invariance.figure(results)


def sentence(results: Mapping[str, dict]) -> str:
    """Say how much each arm forgot and learned beyond the floor, and whether invariances moved; nothing below 50 images."""
    return _invariance.sentence(results)


def gallery(results: Mapping[str, dict]) -> list[dict[str, Any]]:
    """Return rows of pictures: an image, and what an early, a middle and a late layer of each model takes for it."""
    arms = {arm: one for arm, one in results.items() if one.get("shown") is not None}
    if not arms:
        return []
    first = next(iter(arms.values()))
    names, rows = list(first["entries"]), []
    wanted = sorted({0, len(names) // 2, len(names) - 1})
    for index, (place, image) in enumerate(zip(first["shown"], first["shown_ids"], strict=True)):
        origin = {"natural": int(place)} if first["images"] == "natural" else {"id": str(image)}
        cells: list[dict[str, Any]] = [{"caption": "original"} | origin]
        for layer in wanted:
            cell: dict[str, Any] = {"arm": next(iter(arms)), "array": f"inverted_pre_{layer}", "index": index}
            cells.append({"caption": f"as seen by the pretrained model, {names[layer]}"} | cell)
            for arm in arms:
                cell = {"arm": arm, "array": f"inverted_ft_{layer}", "index": index}
                cells.append({"caption": f"as seen by {arm}, {names[layer]}"} | cell)
        rows.append({"caption": f"{image}: every picture is the same image to the layer named below it", "pictures": cells})
    return rows

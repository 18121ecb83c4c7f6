"""Which images does a model find most alike? The k nearest others by cosine, z_i·z_j / (‖z_i‖ ‖z_j‖): the share of them that
shows the same (precision at k, as in image retrieval), and the share that the pretrained model finds too (mutual k-NN, as in
Huh 2024, arXiv 2405.07987).

Test images ask; test and training images are looked up, without the one that asks. Natural images ask and are looked up among
themselves. An image of several findings shows the same as one that shares a finding with it, or where neither shows any (our
choice); one without a label does not ask for its class, and is never the same. Chance is what images drawn at random would give.
Cosine and neighbors do not change when all embeddings turn together, though a fixed head then errs. Intervals are Wilson's over
the images that ask, on the wide side; that they have neighbors in common is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from pydantic import Field

from rift import figures, findings
from rift.diagnostics._intervals import Result, nothing, number, share
from rift.snapshot import Snapshot

TITLE = "Retrieval"
SETS = (("", "medical", 8), ("natural_", "natural", 4))  # together a dozen images are shown with their neighbors
SHARES = ("pretrained_same_class", "same_class", "neighbors_kept")
PARTS = ("images", "classes", "distances", "same")
EVERY = [f"{part}_{model}" for model in ("before", "after") for part in ("neighbors", "neighbor_distances")]
SHOWN = ["query_images", "query_classes", *(f"near_{part}_{model}" for model in ("before", "after") for part in PARTS)]


class Library(NamedTuple):
    """Images that are looked up, and which of them ask."""

    images: np.ndarray  # (m,) str, their ids; of natural images int, their places in the set
    labels: np.ndarray  # (m,) int, -1 unknown; of findings (m, f)
    names: np.ndarray  # (m,) str
    before: np.ndarray  # (m, d)
    after: np.ndarray  # (m, d)
    asking: np.ndarray  # (n,) indices


def measure(
    before: Snapshot,
    after: Snapshot,
    *,
    k: Annotated[int, Field(ge=1, le=50, description="neighbors of each image")] = 5,
) -> Result:
    """Return shares in [0, 1] with their intervals, by set, and the neighbors of a dozen evenly chosen images.

    `same_class` is precision at k of the finetuned model, `pretrained_same_class` of the pretrained one, `neighbors_kept` the
    mean share of an image's neighbors that both models find, with `kept` `(n,)` of each. `neighbors_…` `(n, k)` are those of
    every test image, nearest first, as places among the images looked up (test, then training images, each in their order), with
    `neighbor_distances_…` 1 - cosine in [0, 2]. `near_…` `(shown, k)` say the same of the dozen: ids (of natural images places
    in their set), classes, distances, and whether they show the same.
    """
    result: Result = {"k": k}
    for prefix, images, shown in SETS:
        library = _medical(before, after) if images == "medical" else _natural(before, after)
        of = ("n_looked_up", "n") if images == "medical" else ("n_natural_looked_up", "n_natural")
        if isinstance(library, str):
            result |= dict.fromkeys(of, 0) | nothing(_names(prefix), library)
            continue
        result |= dict(zip(of, (len(library.images), len(library.asking)), strict=True))
        result |= _neighborhoods(prefix, library, k, shown)
    return result


def _names(prefix: str) -> list[str]:
    names = [
        *(key for name in SHARES for key in number(name)),
        "same_class_chance",
        "neighbors_kept_chance",
        "kept",
        *EVERY,
        *SHOWN,
    ]
    return [prefix + name for name in names]


def _medical(before: Snapshot, after: Snapshot) -> Library | str:
    if not all("test" in one.sets and len(one.sets["test"].labels) for one in (before, after)):
        return "there are no test images"
    parts = [name for name in ("test", "train") if name in before.sets and name in after.sets]
    then, now = ([one.sets[name] for name in parts] for one in (before, after))
    labels = np.concatenate([one.labels for one in now])
    single, names = (labels, after.classes) if labels.ndim == 1 else findings.one_each(labels, after.classes)
    return Library(
        np.concatenate([one.ids for one in now]),
        labels,
        np.array([*names, "label unknown"])[single],
        np.concatenate([one.embeddings for one in then]),
        np.concatenate([one.embeddings for one in now]),
        np.arange(len(now[0].labels)),
    )


def _natural(before: Snapshot, after: Snapshot) -> Library | str:
    then, now = (one.sets.get("natural") for one in (before, after))
    if then is None or now is None or not len(now.labels):
        return "there are no natural images"
    names = np.array([*after.natural_classes, "label unknown"])[now.labels]
    return Library(np.arange(len(now.ids)), now.labels, names, then.embeddings, now.embeddings, np.arange(len(now.labels)))


def _neighborhoods(prefix: str, library: Library, k: int, shown: int) -> Result:
    """Return every share of one library, and the neighbors of the images that are shown."""
    others = len(library.images) - 1
    if others < k:
        return nothing(_names(prefix), f"{k} neighbors need at least {k + 1} images, and there are {others + 1}")
    for embeddings, model in ((library.before, "pretrained"), (library.after, "finetuned")):
        if reason := _without_neighbors(embeddings, model):
            return nothing(_names(prefix), reason)
    (near_before, far_before), (near_after, far_after) = (_nearest(z, library.asking, k) for z in (library.before, library.after))
    kept = np.array([len(np.intersect1d(a, b)) for a, b in zip(near_before, near_after, strict=True)]) / k
    result: Result = {f"{prefix}kept": kept, f"{prefix}neighbors_kept_chance": k / others} | share(
        f"{prefix}neighbors_kept", kept
    )
    alike = _alike(library)
    known = library.labels[library.asking] >= 0 if library.labels.ndim == 1 else np.ones(len(library.asking), bool)
    same = {"before": np.take_along_axis(alike, near_before, 1), "after": np.take_along_axis(alike, near_after, 1)}
    for name, model in ((f"{prefix}pretrained_same_class", "before"), (f"{prefix}same_class", "after")):
        result |= share(name, same[model][known].mean(1)) if known.any() else nothing(number(name), "no image has a known label")
    if known.any():
        result[f"{prefix}same_class_chance"] = float(alike[known].sum(1).mean() / others)
    else:
        result |= nothing([f"{prefix}same_class_chance"], "no image has a known label")
    chosen = np.unique(np.linspace(0, len(library.asking) - 1, min(shown, len(library.asking))).astype(int))
    places = library.asking[chosen]
    result |= {f"{prefix}query_images": library.images[places], f"{prefix}query_classes": library.names[places]}
    for model, near, far in (("before", near_before, far_before), ("after", near_after, far_after)):
        if not prefix:  # a page shows them of any test image
            result |= {f"neighbors_{model}": near, f"neighbor_distances_{model}": far.round(4)}
        values = (library.images[near[chosen]], library.names[near[chosen]], far[chosen].round(4), same[model][chosen])
        result |= {f"{prefix}near_{part}_{model}": value for part, value in zip(PARTS, values, strict=True)}
    return result


def _without_neighbors(embeddings: np.ndarray, model: str) -> str:
    """Say why no image is nearer than another; empty where some are."""
    if not np.isfinite(embeddings).all():
        return f"the {model} model's embeddings are not finite numbers: its training diverged"
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    equal = np.abs(unit - unit[0]).max() <= 4 * np.finfo(np.float32).eps
    return f"the {model} model's embeddings all point the same way, so that no image is nearer than another" if equal else ""


def _nearest(embeddings: np.ndarray, asking: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest others `(n, k)` of the images that ask, nearest first, and 1 - cosine to each."""
    from sklearn.neighbors import NearestNeighbors  # takes a second to import

    # One more than k, as each image finds itself; where copies of it come first, the farthest goes instead
    search = NearestNeighbors(n_neighbors=k + 1, metric="cosine", algorithm="brute").fit(embeddings)
    distances, near = search.kneighbors(embeddings[asking])
    itself = near == asking[:, None]
    itself[~itself.any(1), -1] = True
    return near[~itself].reshape(-1, k), distances[~itself].reshape(-1, k)


def _alike(library: Library) -> np.ndarray:
    """Return whether each image looked up shows what the one that asks shows, `(n, m)`; none is alike to itself."""
    asked, labels = library.labels[library.asking], library.labels
    if labels.ndim == 1:
        alike = (asked[:, None] == labels) & (labels >= 0)
    else:
        shows, one = labels > 0, asked > 0
        alike = (one.astype(np.float32) @ shows.T.astype(np.float32) > 0) | (~one.any(1)[:, None] & ~shows.any(1))
    alike[np.arange(len(asked)), library.asking] = False
    return alike


def gallery(results: Mapping[str, dict]) -> list[dict[str, Any]]:
    """Return rows of pictures: each image that was chosen, evenly over its set, and its neighbors under each model in turn."""
    rows = []
    for prefix, images, _ in SETS:
        arms = {arm: one for arm, one in results.items() if one.get(f"{prefix}query_images") is not None}
        if not arms:
            continue
        first = next(iter(arms.values()))
        models = [("pretrained", first, "before"), *((arm, one, "after") for arm, one in arms.items() if arm != "pretrained")]
        asked = list(zip(first[f"{prefix}query_images"], first[f"{prefix}query_classes"], strict=True))
        for i, (image, shows) in list(enumerate(asked))[::2]:  # the others are in the data: a page of all is a long one
            for model, one, key in models:
                near = zip(*(one[f"{prefix}near_{part}_{key}"][i] for part in PARTS), strict=True)
                cells = [
                    _cell(images, other, f"{'same' if same else 'other'}: {name} ({far:.3f})") for other, name, far, same in near
                ]
                count = sum(cell["caption"].startswith("same") for cell in cells)
                caption = f"{model}, {images} image {i + 1} of {len(asked)}: {count} of {len(cells)} neighbors show the same"
                rows.append({"caption": caption, "pictures": [_cell(images, image, f"asked: {shows}"), *cells]})
    return rows


def _cell(images: str, image: Any, caption: str) -> dict[str, Any]:
    return {"caption": caption} | ({"id": str(image)} if images == "medical" else {"natural": int(image)})


def figure(results: Mapping[str, dict]) -> go.Figure:
    """Share of neighbors that show the same and share kept, by set and model, with intervals; grey bars are chance."""
    plot = go.Figure()
    arms = {arm: one for arm, one in results.items() if arm != "pretrained"} or dict(results)
    groups = [(prefix, images, key) for prefix, images, _ in SETS for key in ("same_class", "neighbors_kept")]
    groups = [one for one in groups if any(arm.get(one[0] + one[2]) is not None for arm in arms.values())]
    if not groups:
        reasons = (one.get("neighbors_kept_reason") for one in results.values())
        return figures.empty(next(filter(None, reasons), "no arm was measured"))
    first = next(iter(arms.values()))
    chance = figures.numbers([first.get(f"{prefix}{key}_chance") for prefix, _, key in groups])
    bar = {"symbol": "line-ew-open", "size": 40, "color": figures.GREY, "line": {"width": 2}}
    places, step = np.arange(len(groups)), min(0.12, 0.7 / len(arms))
    plot.add_scatter(x=places, y=chance, mode="markers", name="chance", marker=bar, hovertemplate="chance %{y:.3f}")
    _points(
        plot,
        "pretrained",
        first,
        [(prefix, f"pretrained_{key}") for prefix, _, key in groups],
        places - step * len(arms) / 2,
        list(results),
    )
    for place, (arm, one) in enumerate(arms.items(), 1):
        keys = [(prefix, key) for prefix, _, key in groups]
        _points(plot, arm, one, keys, places + step * (place - len(arms) / 2), list(results))
    ticks = [f"{'same class' if key == 'same_class' else 'neighbors kept'}<br>{images}" for _, images, key in groups]
    plot.update_xaxes(tickvals=places, ticktext=ticks, range=[-0.5, len(groups) - 0.5])
    plot.update_yaxes(title_text=f"share of the {first['k']} nearest", range=[-0.03, 1.03])
    return figures.style(plot, 400).update_layout(meta={"min_width": 100 + 115 * len(groups)})


def _points(plot: go.Figure, arm: str, one: dict, keys: list[tuple[str, str]], x: np.ndarray, arms: list[str]) -> None:
    value, low, high = (
        figures.numbers([one.get(f"{prefix}{key}{end}") for prefix, key in keys]) for end in ("", "_low", "_high")
    )
    plot.add_scatter(
        x=x,
        y=value,
        error_y={"type": "data", "array": high - value, "arrayminus": value - low, "thickness": 1.5, "width": 3},
        mode="markers",
        name=figures.text(arm),
        marker={"color": figures.color(arm, arms), "symbol": figures.symbol(arm, arms), "size": 10},
        customdata=np.stack([low, high], axis=1),
        hovertemplate="%{y:.3f} (%{customdata[0]:.3f} to %{customdata[1]:.3f})",
    )


def sentence(results: Mapping[str, dict]) -> str:
    """Say how many neighbors show the same before and after, and how many are still the pretrained model's."""
    arms = {arm: one for arm, one in results.items() if arm != "pretrained"} or dict(results)
    parts = []
    for prefix, images, _ in SETS:
        found = {arm: one for arm, one in arms.items() if one.get(f"{prefix}neighbors_kept") is not None}
        if not found:
            continue
        first = next(iter(found.values()))
        asked = first["n_natural" if prefix else "n"]
        parts.append(f"The {first['k']} nearest of each of {asked} {images} images:")
        if first.get(f"{prefix}same_class") is not None:
            after = "; ".join(f"{arm} {_interval(one, f'{prefix}same_class')}" for arm, one in found.items())
            before, chance = first[f"{prefix}pretrained_same_class"], first[f"{prefix}same_class_chance"]
            parts.append(f"this share shows the same: pretrained {before:.3f}; {after}; by chance {chance:.3f};")
        kept = "; ".join(f"{arm} {_interval(one, f'{prefix}neighbors_kept')}" for arm, one in found.items())
        chance = first[f"{prefix}neighbors_kept_chance"]
        parts.append(f"this share is the pretrained model's too: {kept}; by chance {chance:.3f}.")
    reasons = (one.get("neighbors_kept_reason") for one in results.values())
    return " ".join(parts) or f"There are no neighbors to compare: {next(filter(None, reasons), 'nothing ran')}."


def _interval(one: Mapping, key: str) -> str:
    return f"{one[key]:.3f} ({one[f'{key}_low']:.3f} to {one[f'{key}_high']:.3f})"

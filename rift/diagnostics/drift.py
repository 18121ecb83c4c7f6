"""How much of the pretrained model's arrangement of the images is left, layer by layer: 1 is all of it, 0 none.

Linear CKA (Kornblith 2019, arXiv 1905.00414) of finetuned with pretrained embeddings of the same images, and its debiased
form (Song 2012, Eq. 5), which is the headline: with few images the biased one stays high between unrelated features. Both
ignore rotation, scale and the mean, so they say nothing of whether old directions, and so old predictions, still hold. They
weigh the widest directions most, and a few far images can move them (Davari 2022, arXiv 2210.16156), hence the others:

- Procrustes sees what no one rotation and scale undo; with few images it fits noise, so compare it with its floor.
- Mutual k-NN and CKNNA (Huh 2024, arXiv 2405.07987) see near neighbors only; what happens far away, they do not.
- The cosine of an image with itself sees a rotation and a shift of the mean, as old predictions do; it ignores scale.

The layer by layer table compares every finetuned layer with every pretrained one; that of the pretrained model with itself is
what it has to be read against, since neighboring layers are alike anyway. A floor is what is left when it is shuffled which
image is which: the 95th percentile for CKA, the mean for Procrustes. The interval of the headline is a jackknife over images
(see `statistics.py`): it takes every image as drawn for itself and speaks of this one model. What is shuffled, how often and
how many neighbors are our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from rift import figures, statistics
from rift.diagnostics._drift_figure import SETS, or_nan
from rift.diagnostics._drift_figure import figure as figure  # part of this file, which would be too long with it
from rift.layers import cross_cka
from rift.similarity import cka, cknna, cosine, debiased_cka, mutual_knn, procrustes, shuffled_cka
from rift.snapshot import Arrays, Snapshot

Result = dict[str, Any]
MEASURES: tuple[tuple[str, Callable[..., float]], ...] = (("", cka), ("_debiased", debiased_cka))
PRESETS = {"thorough": {"shuffles": 1000, "sample": 4000}}
FEW = 3  # shuffles of Procrustes, which hardly vary and are dear


def measure(
    before: Snapshot,
    after: Snapshot,
    *,
    neighbors: Annotated[int, Field(ge=2, le=100, description="nearest images that mutual k-NN and CKNNA look at")] = 10,
    shuffles: Annotated[int, Field(ge=20, le=10_000, description="times that the images are shuffled for CKA's floor")] = 100,
    sample: Annotated[
        int, Field(ge=50, le=10_000, description="images, drawn where there are more, for neighbors and shuffles")
    ] = 1000,
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="of the shuffles and of that draw")] = 0,
) -> Result:
    """Return similarities on the test and, as `…_natural`, on the natural images: numbers of embeddings, `(l,)` of layers.

    `cka_layer_pairs` `(l, l)` holds debiased CKA of pretrained (rows) with finetuned layers on the test images, and
    `cka_layer_pairs_pretrained` that of the pretrained model with itself. `n_sample` images stand for all in neighbors and
    in the floors of CKA. A layer for which one is undefined is nan; a number for which it is undefined is None, and
    `<name>_reason` says why.
    """
    result: Result = {"neighbors": neighbors, "shuffles": shuffles}
    for images, suffix, _ in SETS:
        x, y = before.sets.get(images), after.sets.get(images)
        if x is None or y is None:
            names = [name for name in _names(suffix) if not name.startswith("n_")]
            result |= {f"n{suffix}": 0, f"n_sample{suffix}": 0} | dict.fromkeys(names)
            result |= {f"{name}_reason": f"there are no {images} images" for name in names}
        else:
            result |= _embeddings(x, y, suffix, neighbors, shuffles, sample, seed) | _layers(x, y, suffix, shuffles, sample, seed)
    return result


def _names(suffix: str) -> list[str]:
    """Every number and array that is measured on one set of images."""
    head, layers = f"cka{suffix}", f"cka{suffix}_layers"
    names = [head, f"{head}_floor", *(f"{head}_debiased{end}" for end in ("", "_low", "_high", "_floor"))]
    names += [f"{name}{suffix}" for name in ("procrustes", "mutual_knn", "cknna", "cosine")]
    names += [f"procrustes{suffix}_floor", f"mutual_knn{suffix}_floor", layers, f"{layers}_debiased", f"cosine{suffix}_layers"]
    return names if suffix else [*names, f"{layers}_debiased_floor", "cka_layer_pairs", "cka_layer_pairs_pretrained"]


def _embeddings(x: Arrays, y: Arrays, suffix: str, neighbors: int, shuffles: int, sample: int, seed: int) -> Result:
    one, two = x.embeddings, y.embeddings
    some = _drawn(len(two), sample, seed)
    a, b, random = one[some], two[some], np.random.default_rng(seed)
    orders = [random.permutation(len(two)) for _ in range(FEW)]
    numbers: dict[str, Callable[[], float]] = {
        f"cka{suffix}": lambda: cka(one, two),
        f"cka{suffix}_floor": lambda: _floor(a, b, False, shuffles, seed),
        f"cka{suffix}_debiased": lambda: debiased_cka(one, two),
        f"cka{suffix}_debiased_floor": lambda: _floor(a, b, True, shuffles, seed),
        f"procrustes{suffix}": lambda: procrustes(one, two),
        f"procrustes{suffix}_floor": lambda: float(np.mean([procrustes(one, two[order]) for order in orders])),
        f"mutual_knn{suffix}": lambda: mutual_knn(a, b, neighbors),
        f"mutual_knn{suffix}_floor": lambda: _chance(len(some), neighbors),
        f"cknna{suffix}": lambda: cknna(a, b, neighbors),
        f"cosine{suffix}": lambda: float(cosine(one, two).mean()),
    }
    result: Result = {f"n{suffix}": len(two), f"n_sample{suffix}": len(some)}
    for name, number in numbers.items():
        result |= _number(name, number)
    return result | _interval(f"cka{suffix}_debiased", one, two, seed)


def _layers(x: Arrays, y: Arrays, suffix: str, shuffles: int, sample: int, seed: int) -> Result:
    some = _drawn(x.activations.shape[1], sample, seed)
    names: list[tuple[str, Callable[..., float]]] = [(f"cka{suffix}_layers{kind}", function) for kind, function in MEASURES]
    names.append((f"cosine{suffix}_layers", lambda a, b: float(cosine(a, b).mean())))
    if not suffix:
        names.append(("cka_layers_debiased_floor", lambda a, b: _floor(a[some], b[some], True, shuffles, seed)))
    result: Result = {}
    for name, function in names:
        each = [_tried(function, a, b) for a, b in zip(x.activations, y.activations, strict=True)]
        reasons = [f"layer {layer}: {reason}" for layer, (_, reason) in enumerate(each, 1) if reason]
        found = len(reasons) < len(each)
        result[name] = np.array([np.nan if value is None else value for value, _ in each]) if found else None
        if reasons or not found:
            result[f"{name}_reason"] = reasons[0] if reasons else "there are no layers"
    return result if suffix else result | _pairs(x.activations, y.activations)


def _pairs(before: np.ndarray, after: np.ndarray) -> Result:
    """Return debiased CKA of every pretrained with every finetuned and every pretrained layer; nan for a layer without it."""
    everything, l = [*before, *after], len(before)  # noqa: E741 - layers
    reasons = [""] * (2 * l)
    table, failed = _tried(lambda: cross_cka(everything[:l], everything, debiased=True))
    if failed:
        reasons = [_tried(debiased_cka, layer, layer)[1] for layer in everything]
        known, table = np.array([not reason for reason in reasons], bool), np.full((l, 2 * l), np.nan)
        if known[:l].any():
            rows, columns = ([everything[i] for i in np.flatnonzero(which)] for which in (known[:l], known))
            table[np.ix_(known[:l], known)] = cross_cka(rows, columns, debiased=True)
    result: Result = {}
    for name, part in (("cka_layer_pairs", table[:, l:]), ("cka_layer_pairs_pretrained", table[:, :l])):
        result[name] = part if np.isfinite(part).any() else None
        if not part.size or not np.isfinite(part).all():
            missing = [f"layer {place % l + 1}: {reason}" for place, reason in enumerate(reasons) if reason]
            result[f"{name}_reason"] = missing[0] if missing else "there are no layers"
    return result


def _chance(n: int, neighbors: int) -> float:
    """Return the share of neighbors that unrelated features of n images have in common."""
    if n <= neighbors:
        raise ValueError(f"{neighbors} neighbors need more than {neighbors} images, not {n}")
    return neighbors / (n - 1)


def _drawn(n: int, sample: int, seed: int) -> np.ndarray:
    return np.arange(n) if n <= sample else np.sort(np.random.default_rng(seed).permutation(n)[:sample])


def _floor(x: np.ndarray, y: np.ndarray, debiased: bool, shuffles: int, seed: int) -> float:
    return float(np.quantile(shuffled_cka(x, y, debiased=debiased, shuffles=shuffles, seed=seed), 0.95))


def _interval(name: str, x: np.ndarray, y: np.ndarray, seed: int) -> Result:
    """Return the 95 % jackknife interval of debiased CKA; it ends at 1, above which there is none."""

    def both() -> tuple[float, float]:
        debiased_cka(x, y)  # its reason is the better one
        parts = statistics.leave_out(lambda kept: debiased_cka(x[kept], y[kept]), statistics.folds(len(y), seed=seed))
        found = statistics.paired_statistic_difference(parts, np.zeros_like(parts), len(y))
        return found.low, min(1.0, found.high)

    ends, reason = _tried(both)
    low, high = ends or (None, None)
    return {f"{name}_low": low, f"{name}_high": high} | (
        {f"{name}_low_reason": reason, f"{name}_high_reason": reason} if reason else {}
    )


def _number(name: str, function: Callable[[], float]) -> Result:
    value, reason = _tried(function)
    return {name: value} | ({f"{name}_reason": reason} if reason else {})


def _tried(function: Callable[..., Any], *given: np.ndarray) -> tuple[Any, str]:
    try:
        return function(*given), ""
    except ValueError as error:
        return None, str(error)


def sentence(results: Mapping[str, dict]) -> str:
    """Say how much similarity each arm kept on medical and on natural images, what chance leaves, and what the others say."""
    arms = {arm: one for arm, one in results.items() if arm != "pretrained"}
    if not arms:
        return "No arm was measured."
    parts = []
    for arm, one in arms.items():
        kept = [_kept(one, suffix, images) for _, suffix, images in SETS if one.get(f"cka{suffix}_debiased") is not None]
        reason = one.get("cka_debiased_reason", "it did not run")
        parts.append(f"{arm} {' and '.join(kept) or 'cannot be computed, as ' + reason}")
    return f"Similarity kept, where 1 is the pretrained model itself: {'; '.join(parts)}.{_chance_said(arms)}{_others(arms)}"


def _kept(one: Mapping[str, Any], suffix: str, images: str) -> str:
    name = f"cka{suffix}_debiased"
    low, high = one.get(f"{name}_low"), one.get(f"{name}_high")
    interval = "" if low is None or high is None else f" (95 % interval {low:.3f} to {high:.3f})"
    return f"{one[name]:.3f}{interval} on {one[f'n{suffix}']} {images} images"


def _chance_said(arms: Mapping[str, dict]) -> str:
    found = [
        f"{max(floors):.3f} on {images} images"
        for _, suffix, images in SETS
        if (floors := [v for one in arms.values() if (v := one.get(f"cka{suffix}_debiased_floor")) is not None])
    ]
    return f" Shuffled images reach {' and '.join(found)} in one of 20 shuffles." if found else ""


def _others(arms: Mapping[str, dict]) -> str:
    """Say cosine and neighbors of each arm, and how many layers are most like the layer that they were."""
    parts = []
    for arm, one in arms.items():
        said = []
        if one.get("mutual_knn") is not None:
            chance = or_nan(one.get("mutual_knn_floor"))
            said.append(f"keeps {one['mutual_knn']:.0%} of the {one['neighbors']} nearest images (chance {chance:.0%})")
        if one.get("cosine") is not None:
            said.append(f"turns an image's embedding to a cosine of {one['cosine']:.2f}")
        pairs = figures.numbers(one.get("cka_layer_pairs"))
        if pairs.size and np.isfinite(pairs).all():
            same = int((pairs.argmax(0) == np.arange(len(pairs))).sum())
            said.append(f"has {same} of {len(pairs)} layers that are most like the pretrained layer of the same place")
        if said:
            parts.append(f"{arm} {', '.join(said[:-1])}{' and ' if said[:-1] else ''}{said[-1]}")
    return f" On medical images, {'; '.join(parts)}." if parts else ""

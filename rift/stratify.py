"""Who goes where: the parts of a split, few-shot draws and balanced epochs, as seeded functions of labels.

`columns` `(n, c)` says which of c kinds each image is: its class, or each finding it shows and each it does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import scipy

T = TypeVar("T")
MOST_MADE = 64
_made: dict[str, Any] = {}


def once(arrays: Sequence[np.ndarray | None], asked: Sequence[object], make: Callable[[], T]) -> T:
    """Return what is made of arrays and settings, for the last MOST_MADE of them made once: each page asks for its own again."""
    mark = hashlib.sha256(repr((asked, [one is None or (one.shape, one.dtype) for one in arrays])).encode())
    for one in arrays:
        mark.update(b"" if one is None else np.ascontiguousarray(one).tobytes())
    key = mark.hexdigest()
    if (found := _made.get(key)) is None:
        found = _made[key] = make()
        while len(_made) > MOST_MADE:
            _made.pop(next(iter(_made)), None)  # another thread may have dropped it
    return found


def columns_of(labels: np.ndarray) -> np.ndarray:
    """Return the kinds `(n, c)` bool of labels: one class each `(n,)`, or findings `(n, k)` with and without, c = 2 k."""
    if labels.ndim == 2:
        return np.concatenate([labels > 0, labels == 0], axis=1)
    return labels[:, None] == np.arange(labels.max(initial=-1) + 1)


def connected(n: int, links: Sequence[tuple[int, int]] | np.ndarray) -> np.ndarray:
    """Return a number for each of n things `(n,)`, the same for those that links `(m, 2)` connect; from 0, as they appear."""
    ones, others = np.array(links, dtype=np.int64).reshape(-1, 2).T
    graph = scipy.sparse.coo_array((np.ones(len(ones), bool), (ones, others)), shape=(n, n))
    _, first, numbers = np.unique(
        scipy.sparse.csgraph.connected_components(graph, directed=False)[1], return_index=True, return_inverse=True
    )
    return first.argsort().argsort()[numbers]


def units_of(groupings: Sequence[np.ndarray], n: int) -> np.ndarray:
    """Return the unit of each of n images `(n,)`: those that share a number in any of the groupings `(n,)` stay together."""
    if len(groupings) < 2:
        return np.unique(groupings[0], return_inverse=True)[1] if groupings else np.arange(n)
    links = []
    for one in groupings:
        _, first, numbers = np.unique(one, return_index=True, return_inverse=True)
        links.append(np.stack([np.arange(n), first[numbers]], axis=1))
    return connected(n, np.concatenate(links))


def cut(
    columns: np.ndarray, units: np.ndarray, shares: np.ndarray, generator: np.random.Generator, *, rarest_first: bool = False
) -> np.ndarray | None:
    """Return the part of each image `(n,)`, or None: first each part gets a unit of each kind, then the rest is dealt out.

    A unit (an image, or all images of a patient) goes where most of its kinds is missing; with `rarest_first`, for images of
    several findings, where most of the rarest kind is missing that is still to be dealt (Sechidis 2011, iterative
    stratification; units and the first round are our choice: scikit-learn's grouped splitter leaves parts without a rare class).
    """
    order = np.argsort(units, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(units[order])) + 1)
    contents = [_kinds(columns[member]) for member in members]
    queue = sorted(generator.permutation(len(members)), key=lambda unit: -len(members[unit]))
    missing = shares[:, None] * columns.sum(0)  # (parts, kinds), images still wanted
    filled = np.zeros(missing.shape, dtype=bool)
    part_of = np.full(len(members), -1)

    def give(unit: int, part: int) -> None:
        part_of[unit] = part
        kinds, counts = contents[unit]
        missing[part, kinds] -= counts
        filled[part, kinds] = True

    holders: list[list[int]] = [[] for _ in columns.T]
    for unit in reversed(queue):  # the smallest first
        for kind in contents[unit][0]:
            holders[kind].append(unit)
    for kind in sorted(np.flatnonzero(columns.any(0)), key=lambda kind: len(holders[kind])):
        for part in np.argsort(shares, kind="stable"):
            if not filled[part, kind]:
                free = next((unit for unit in holders[kind] if part_of[unit] < 0), None)
                if free is None:
                    return None
                give(free, part)
    while rarest_first and len(waiting := [unit for unit in queue if part_of[unit] < 0]):
        left = columns[np.isin(units, units[[members[unit][0] for unit in waiting]])].sum(0)
        rarest = int(np.argmin(np.where(left > 0, left, np.inf)))
        for unit in waiting:
            if rarest in contents[unit][0]:
                give(unit, max(range(len(shares)), key=lambda part: (missing[part, rarest], missing[part].sum())))
    for unit in queue:
        if part_of[unit] < 0:
            kinds, counts = contents[unit]
            give(unit, int(np.argmax(missing[:, kinds] @ counts)))
    chosen = np.empty(len(columns), dtype=np.int64)
    for unit, member in enumerate(members):
        chosen[member] = part_of[unit]
    return chosen


def _kinds(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts = columns.sum(0)
    return np.flatnonzero(counts), counts[counts > 0]


def few(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Return the sorted indices of a seeded draw of `shots` images of each class, all of a class that has fewer.

    A draw of classes holds every smaller one of the same seed. Of findings `(n, k)`, from the rarest to the commonest, images
    that show it are added until at least `shots` drawn ones do; and, our choice, as many that show none of them.
    """
    multi = labels.ndim == 2
    kinds = np.concatenate([labels > 0, ~(labels > 0).any(1, keepdims=True)], axis=1) if multi else columns_of(labels)
    order = np.random.default_rng([seed, 1]).permutation(len(labels))  # 1: not the stream that orders the batches
    drawn = np.zeros(len(labels), dtype=bool)
    for kind in np.argsort(kinds.sum(0), kind="stable"):
        holders = order[kinds[order, kind]]
        lacking = max(0, shots - int(drawn[holders].sum()))
        drawn[holders[~drawn[holders]][:lacking]] = True
    return np.flatnonzero(drawn)


def balanced(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return as many indices as there are images, shuffled, each class of `(n,)` equally often (but for one image).

    The images of a class come as evenly often as can be: twice only when each came once.
    """
    classes = generator.permutation(np.unique(labels))
    counts = np.full(len(classes), len(labels) // len(classes))
    counts[: len(labels) % len(classes)] += 1
    drawn = []
    for label, count in zip(classes, counts, strict=True):
        members = np.flatnonzero(labels == label)
        rounds = [generator.permutation(members) for _ in range(-(-count // len(members)))]
        drawn.append(np.concatenate(rounds)[:count] if rounds else members[:0])
    return generator.permutation(np.concatenate(drawn))

"""What attention weights are turned into: maps over the patches, what two maps have in common, and boxes around the most of one.

All arrays hold patches row by row in their last axis, and a map is nonnegative and sums to 1 over them.
"""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np
import scipy
import torch
from scipy.special import xlogy
from torch import Tensor

from rift.model import Attention

MOST_BOXES = 3


class Box(TypedDict):
    """A part of a square image, its edges as shares of the side from the top left corner."""

    left: float
    top: float
    right: float
    bottom: float
    mass: float  # the share of the map that its region holds


def rollout(weights: Tensor) -> Tensor:
    """Return how attention `(layers, n, heads, t, t)` carries tokens from first to last, `(n, t, t)`; rows sum to 1.

    Abnar and Zuidema 2020 (arXiv 2005.00928): the product over layers of 0.5 · (mean over heads) + 0.5 · I, the last layer
    leftmost. Rows are renormalized, which matters only where prompts were left out.
    """
    same = torch.eye(weights.shape[-1], device=weights.device)
    carried = same.expand(weights.shape[1], -1, -1)
    for layer in weights:
        step = 0.5 * layer.float().mean(1) + 0.5 * same
        carried = step / step.sum(2, keepdim=True) @ carried
    return carried


def head_maps(found: Attention) -> Tensor:
    """Return the map of every head `(layers, n, heads, patches)`: what the tokens that the embedding is read from look at."""
    seen = torch.einsum("nq,lnhqk->lnhk", found.reading, found.weights.float())[..., found.prefix :]
    return seen / seen.sum(-1, keepdim=True)


def maps(found: Attention) -> Tensor:
    """Return the map of every layer, its heads averaged, and last that of the rollout: `(layers + 1, n, patches)`."""
    mean = torch.einsum("nq,lnqk->lnk", found.reading, found.weights.float().mean(2))
    carried = torch.einsum("nq,nqk->nk", found.reading, rollout(found.weights))
    seen = torch.cat([mean, carried[None]])[..., found.prefix :]
    return seen / seen.sum(-1, keepdim=True)


def distance(found: Attention) -> Tensor:
    """Return how far each head's patches look, on average: `(layers, n, heads)`, as a share of the image's side.

    Dosovitskiy 2020 (arXiv 2010.11929, Appendix D.7): the distance between two patches weighted by attention, averaged over the
    patches that ask. Attention to other tokens does not count; the unit is our choice (theirs is pixels).
    """
    patches = found.weights[..., found.prefix :, found.prefix :].float()
    side = math.isqrt(patches.shape[-1])
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1).float().to(patches.device) / side
    return ((patches * torch.cdist(places, places)).sum(-1) / patches.sum(-1)).mean(-1)


def entropy(maps: np.ndarray) -> np.ndarray:
    """Return how evenly maps `(…, patches)` spread, in [0, 1]: their entropy over its largest value, log of the patches."""
    return -xlogy(maps, maps).sum(-1) / math.log(maps.shape[-1])


def agreement(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return 1 - JSD of maps `(…, patches)`, in [0, 1]: 1 for equal maps, 0 where no patch has weight in both.

    JSD is the Jensen-Shannon divergence to base 2 (Lin 1991); to make it a similarity is our choice.
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    middle = (p + q) / 2
    divergence = (xlogy(p, p) / 2 + xlogy(q, q) / 2 - xlogy(middle, middle)).sum(-1) / math.log(2)
    return np.clip(1 - divergence, 0, 1)


def rank_correlation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of maps `(…, patches)` over the patches, in [-1, 1]; nan where one of them is constant."""
    ranks = [scipy.stats.rankdata(one, axis=-1) for one in np.broadcast_arrays(p, q)]
    a, b = (one - one.mean(-1, keepdims=True) for one in ranks)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1))


def region(maps: np.ndarray, mass: float) -> np.ndarray:
    """Return the fewest patches that hold a share `mass` of each map `(…, patches)`, as True."""
    order = np.argsort(-maps, axis=-1, kind="stable")
    falling = np.take_along_axis(np.asarray(maps, np.float64), order, -1)
    needed = np.cumsum(falling, -1) - falling < mass - 1e-9  # what the patches before hold is not enough yet
    chosen = np.empty(maps.shape, bool)
    np.put_along_axis(chosen, order, needed, -1)
    return chosen


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the patches in both regions `(…, patches)` over those in either (IoU), in [0, 1]."""
    return (a & b).sum(-1) / (a | b).sum(-1)


def boxes(map_: np.ndarray, mass: float, most: int = MOST_BOXES) -> list[Box]:
    """Return boxes around the connected parts of the region of one map `(patches,)`, those that hold most first.

    Patches touch by an edge. The rule is our choice.
    """
    side = math.isqrt(len(map_))
    parts, count = scipy.ndimage.label(region(map_, mass).reshape(side, side))
    held = scipy.ndimage.sum_labels(map_.reshape(side, side), parts, np.arange(1, count + 1))
    places = scipy.ndimage.find_objects(parts)
    return [
        Box(
            left=places[i][1].start / side,
            top=places[i][0].start / side,
            right=places[i][1].stop / side,
            bottom=places[i][0].stop / side,
            mass=float(held[i]),
        )
        for i in np.argsort(-held, kind="stable")[:most]
    ]

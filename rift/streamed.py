"""CKA of every layer of one model with every layer of another in one pass over batches, for sets too large to keep features of.

Memory grows with the layers' widths and not with n, and all layers are multiplied at once on the device that the batches are
on, in double precision. `layers.cross_cka` does the same for features that are kept, as a `Snapshot` keeps them; this is for
those that are not, say a million natural images: `cross_cka((a.activations(x), b.activations(x)) for x in batches)`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rift.layers import named, ratio

Batch = tuple[Sequence[Tensor], Sequence[Tensor]]


def cross_cka(batches: Iterable[Batch], *, debiased: bool = False) -> np.ndarray:
    """Return the linear CKA `(l, m)` of each of l with each of m layers, from batches of their features on the same images.

    A batch is l features `(b, d)` and m features `(b, e)`; a tensor `(l, b, d)` is l of them. Entry by entry that of
    `layers.cross_cka` of all images at once. ValueError, naming the layer, where one of the entries is undefined.
    """
    moments = Moments()
    for xs, ys in batches:
        moments.add(xs, ys)
    return moments.cka(debiased=debiased)


@dataclass
class _Sums:
    """Sums over images of products of l layers' rows x, m layers' rows y, about their means, and each layer's |x|² and |y|²."""

    xy: Tensor  # (D, E), D and E the widths of all l and of all m layers together
    ay: Tensor  # (l, E) of |x|² y
    bx: Tensor  # (m, D) of |y|² x
    ab: Tensor  # (l, m) of |x|² |y|²

    def move(self, n: int, x: _Step, y: _Step) -> None:
        """Add `x.by` and `y.by` to all n rows: each sum written out, with Σ x = Σ y = 0."""
        across, back = x.blocks @ self.xy, y.blocks @ self.xy.T
        self.ab += 2 * (self.ay @ y.blocks.T + x.blocks @ self.bx.T) + 4 * across @ y.blocks.T
        self.ab += torch.outer(x.squares, y.own) + torch.outer(x.own, y.squares) + n * torch.outer(x.own, y.own)
        self.ay += 2 * across + torch.outer(x.squares + n * x.own, y.by)
        self.bx += 2 * back + torch.outer(y.squares + n * y.own, x.by)
        self.xy.addr_(x.by, y.by, alpha=n)

    def add(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> None:
        self.xy.addmm_(x.T, y)
        self.ay.addmm_(a.T, y)
        self.bx.addmm_(b.T, x)
        self.ab.addmm_(a.T, b)


@dataclass
class _Step:
    """What is added to every row of some layers."""

    by: Tensor  # (D,)
    blocks: Tensor  # (l, D): row i holds layer i's part of `by`, else 0
    own: Tensor  # (l,) the part's square
    squares: Tensor  # (l,) Σ |x|² before


class Moments:
    """Sums over `n` images that covariances and CKA follow from: batch by batch, or merged from parts in any order.

    Chan 1983 (The American Statistician 37), extended to the sums of third and fourth order that HSIC_1 takes: everything is
    about the means so far, which are kept as differences from the first image, so that a large common mean costs no digits.
    It can be pickled: parts may come from other processes or ranks.
    """

    def __init__(self) -> None:
        self.n = 0
        self._eps = float(np.finfo(np.float64).eps)  # the coarsest of what came

    def add(self, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> None:
        """Add the images that l features `(b, d)` and m features `(b, e)` are of."""
        given = [*xs, *ys]
        shapes = {(one.ndim, len(one)) for one in given}
        if not len(xs) or not len(ys) or len(shapes) > 1 or given[0].ndim != 2:
            found = ", ".join(str(tuple(one.shape)) for one in given)
            raise ValueError(f"a batch needs features (b, d) of the same images from layers of two models, not {found or 'none'}")
        if not len(given[0]):
            return
        self._eps = max([self._eps, *(torch.finfo(one.dtype).eps for one in given if one.is_floating_point())])
        sides = [torch.cat([one.double() for one in side], 1) for side in (xs, ys)]
        if not self.n:
            self._begin([[one.shape[1] for one in side] for side in (xs, ys)], [side[0].clone() for side in sides])
        elif self.widths != [[one.shape[1] for one in side] for side in (xs, ys)]:
            raise ValueError(f"this batch's layers are not as wide as those before, {self.widths}")
        rows = [side - origin for side, origin in zip(sides, self.origins, strict=True)]
        share = len(given[0]) / (self.n + len(given[0]))
        self._move([mean + share * (one.mean(0) - mean) for mean, one in zip(self.means, rows, strict=True)])
        rows = [one - mean for one, mean in zip(rows, self.means, strict=True)]
        self._gather(rows)
        self.n += len(given[0])

    def merge(self, other: Moments) -> None:
        """Add the images of another part, which stays as it is."""
        if not other.n:
            return
        other = copy.deepcopy(other)
        if not self.n:
            self.__dict__ = other.__dict__
            return
        if self.widths != other.widths:
            raise ValueError(f"both parts must be of layers of the same widths, not {self.widths} and {other.widths}")
        apart = [theirs - ours for theirs, ours in zip(other.origins, self.origins, strict=True)]
        share, pairs = other.n / (self.n + other.n), zip(self.means, other.means, apart, strict=True)
        means = [ours + share * (theirs + gap - ours) for ours, theirs, gap in pairs]
        self._move(means)
        other._move([mean - gap for mean, gap in zip(means, apart, strict=True)])
        for ours, theirs in zip(self._sums(), other._sums(), strict=True):
            for name, value in vars(ours).items():
                value += getattr(theirs, name)
        for mine, its in zip(self.squares, other.squares, strict=True):
            mine += its
        self.n, self._eps = self.n + other.n, max(self._eps, other._eps)

    def covariances(self) -> list[Tensor]:
        """Return the covariance `(d, d)`, with 1 / (n - 1), of each layer of the first model, then of the second."""
        return [one.xy / (self.n - 1) for one in self.own]

    def cross_covariance(self, i: int, j: int) -> Tensor:
        """Return that `(d, e)` of layer i of the first with layer j of the second model, both from 0."""
        return self.cross.xy.split(self.widths[0])[i].split(self.widths[1], 1)[j] / (self.n - 1)

    def cka(self, *, debiased: bool = False) -> np.ndarray:
        """Return the linear CKA `(l, m)` of all pairs of layers; ValueError, naming the layer, where one is undefined."""
        if self.n < 2:
            raise ValueError(f"features must be of at least 2 images, not {self.n}")
        self._check()
        table = torch.stack([_sizes(rows.split(self.widths[1], 1)) for rows in self.cross.xy.split(self.widths[0])])
        squares, fourths = _sizes(one.xy for one in self.own), torch.cat([one.ab[0] for one in self.own])
        given = table, squares, torch.cat(self.squares), self.cross.ab, fourths
        cross, own, sums, both, each = (one.cpu().numpy() for one in given)
        return ratio(cross, own, sums, both, each, self.n, debiased=debiased)

    def _begin(self, widths: list[list[int]], origins: list[Tensor]) -> None:
        def sums(ds: list[int], es: list[int]) -> _Sums:
            shapes = (sum(ds), sum(es)), (len(ds), sum(es)), (len(es), sum(ds)), (len(ds), len(es))
            return _Sums(*(origins[0].new_zeros(shape) for shape in shapes))

        self.widths, self.origins, self.means = widths, origins, [torch.zeros_like(one) for one in origins]
        self.squares = [origins[0].new_zeros(len(side)) for side in widths]  # Σ |x|²
        self.cross, self.own = sums(*widths), [sums([d], [d]) for d in (*widths[0], *widths[1])]

    def _sums(self) -> list[_Sums]:
        return [self.cross, *self.own]

    def _move(self, means: list[Tensor]) -> None:
        """Take the sums about other means."""
        steps, single = [], []
        for widths, mean, now, squares in zip(self.widths, means, self.means, self.squares, strict=True):
            by = now - mean
            parts = by.split(widths)
            lengths = torch.stack([part.square().sum() for part in parts])
            steps.append(_Step(by, torch.block_diag(*parts), lengths, squares.clone()))
            single += [_Step(one, one[None], lengths[i : i + 1], squares[i : i + 1].clone()) for i, one in enumerate(parts)]
            squares += self.n * lengths
        self.cross.move(self.n, *steps)
        for sums, step in zip(self.own, single, strict=True):
            sums.move(self.n, step, step)
        self.means = means

    def _gather(self, rows: list[Tensor]) -> None:
        """Add rows that are about the means already."""
        layers = [one.split(widths, 1) for one, widths in zip(rows, self.widths, strict=True)]
        lengths = [torch.stack([one.square().sum(1) for one in side], 1) for side in layers]
        self.cross.add(*rows, *lengths)
        every = torch.cat(lengths, 1).split(1, 1)
        for sums, one, square in zip(self.own, (*layers[0], *layers[1]), every, strict=True):
            sums.add(one, one, square, square)
        for squares, side in zip(self.squares, lengths, strict=True):
            squares += side.sum(0)

    def _check(self) -> None:
        """Raise ValueError, naming the layer, for features that are not finite or do not vary."""
        l = len(self.widths[0])  # noqa: E741 - layers
        full = [(origin + mean).split(w) for origin, mean, w in zip(self.origins, self.means, self.widths, strict=True)]
        means = torch.stack([one.square().sum() for one in (*full[0], *full[1])])
        for place, (spread, mean) in enumerate(zip(torch.cat(self.squares).tolist(), means.tolist(), strict=True)):
            if not np.isfinite(spread):
                raise ValueError(f"{named(place, l)}: features hold values that are not finite")
            if np.sqrt(spread) <= 4 * self._eps * np.sqrt(spread + self.n * mean):
                d = (*self.widths[0], *self.widths[1])[place]
                raise ValueError(
                    f"{named(place, l)}: features are constant: all {self.n} images have the same {d} values up to rounding"
                )


def _sizes(parts: Iterable[Tensor]) -> Tensor:
    """Return the square of each matrix's Frobenius norm."""
    return torch.stack([torch.linalg.vector_norm(one).square() for one in parts])

"""Pictures that are the same but for how they were saved: encoded again, resized, mirrored or turned upside down.

A picture is shrunk to 48 x 48 gray levels; its cosine transform, each coefficient times its frequency, is a signature whose odd
rows or columns change sign when the picture is mirrored. Two pictures are near copies when their signatures point the same way
(cosine of at least 0.975), also without what all pictures of the set have in common. The weights and thresholds are our choice:
on X-rays, MRI, skin, blood and tissue, copies saved at half the size or quality had 0.988 or more, and different pictures,
neighboring slices too, 0.966 or less. Cut-outs, other turns and strongly changed contrast are not found.
"""

from __future__ import annotations

import numpy as np
import scipy
from PIL import Image

SIDE, KEPT = 48, 24  # pixels of a side, and how many frequencies of each direction count
LEAST, LEAST_ALONE = 0.975, 0.9  # cosine of whole signatures, and of what remains without the common part
COMMON = 30  # pictures from which on a set has a common part
FAINT = 2.0  # gray levels that a picture varies by: a fainter one has nothing to go by
MOST = 40_000  # pictures; all pairs of more would take minutes
FOLLOWERS = 4  # copies of a picture that are looked at: all others are copies of these
BLOCK = 64  # pictures that are compared with all others at once
WAYS = ("", "mirrored", "upside down", "turned by 180 degrees")

_ORDER = np.arange(KEPT)
_WEIGHTS = np.hypot(*np.meshgrid(_ORDER, _ORDER)).astype(np.float32)
_FLIP = 1 - 2 * (_ORDER % 2)
_SIGNS = [np.outer(_FLIP**down, _FLIP**right).ravel() for down in (0, 1) for right in (0, 1)]  # in the order of WAYS
_PARITY = (_ORDER[:, None] % 2 * 2 + _ORDER % 2).ravel()  # of a coefficient: which of the four kinds of mirror image it is


def signature(pixels: np.ndarray) -> np.ndarray:
    """Return the signature `(576,)` float16 of a picture `(h, w, 3)`: of length 1, or 0 where the picture is all but empty."""
    height, width, levels = *pixels.shape[:2], 1 if pixels.dtype == np.uint8 else 257
    step = max(1, min(height, width) // (4 * SIDE))  # large ones are averaged in squares first, which takes no memory
    if step > 1:
        squares = pixels[: height // step * step, : width // step * step].reshape(height // step, step, width // step, step, 3)
        pixels = squares.mean(axis=(1, 3), dtype=np.float32)
    gray = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / levels
    small = np.asarray(Image.fromarray(gray).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    if small.std() < FAINT:
        return np.zeros(KEPT * KEPT, np.float16)
    weighted = scipy.fft.dctn(small, norm="ortho")[:KEPT, :KEPT] * _WEIGHTS
    return (weighted / np.linalg.norm(weighted)).ravel().astype(np.float16)


def pairs(signatures: np.ndarray) -> list[tuple[int, int, str]]:
    """Return near copies `(i, j, how)`, i < j, of pictures with signatures `(n, 576)`, enough of them to connect all of them."""
    whole = signatures.astype(np.float32)
    common = whole.mean(0) if len(whole) >= COMMON else np.zeros(whole.shape[1], np.float32)
    kinds = [np.ascontiguousarray(whole[:, parity == _PARITY]) for parity in range(4)]
    shared = np.stack([whole @ (common * signs) for signs in _SIGNS])  # (4, n), with the common part, mirrored in each way
    alone = np.sqrt(
        np.maximum(np.einsum("nd,nd->n", whole, whole) - 2 * shared + common @ common, 0)
    )  # (4, n), lengths of what remains
    found = []
    for start in range(0, len(whole), BLOCK):
        here = slice(start, start + BLOCK)
        even, right, down, both = (kind[here] @ kind[start:].T for kind in kinds)
        cosines = np.stack([even + right + down + both, even - right + down - both, even + right - down - both])
        cosines = np.concatenate([cosines, [even - right - down + both]])  # (4, BLOCK, n - start)
        if cosines.max(initial=0) < LEAST:
            continue
        remaining = cosines - shared[:1, here, None] - shared[:, None, start:] + common @ common
        copied = (cosines >= LEAST) & (remaining >= LEAST_ALONE * alone[:1, here, None] * alone[:, None, start:])
        for row in np.flatnonzero(copied.any((0, 2))):
            after = row + 1 + np.flatnonzero(copied[:, row, row + 1 :].any(0))
            for column in after[:FOLLOWERS].tolist():
                way = np.where(copied[:, row, column], cosines[:, row, column], -1).argmax()
                found.append((start + int(row), start + column, WAYS[way]))
    return found

"""What the drawings of `phantoms` share: smooth random fields, strokes, and the camera that hides color differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

SIZE = 128  # pixels of a finished drawing
FINE = 2 * SIZE  # pixels of the sheet it is drawn on; halving it again smooths the edges
Stroke = tuple[Sequence[tuple[float, float]], float]


def smooth_noise(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Return a random field `(FINE, FINE)` of zero mean and unit deviation whose blobs are `scale` sheet pixels wide."""
    coarse = max(3, round(FINE / scale) + 2)
    field = ndimage.zoom(rng.standard_normal((coarse, coarse)), FINE / coarse, order=3, mode="nearest", grid_mode=True)
    return (field - field.mean()) / (field.std() + 1e-9)


def grid() -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates x (to the right) and y (down) of the sheet's pixels, each from -1 to 1."""
    axis = (np.arange(FINE) + 0.5) / (FINE / 2) - 1
    return np.meshgrid(axis, axis)


def strokes(lines: Iterable[Stroke]) -> np.ndarray:
    """Return the cover `(FINE, FINE)` in [0, 1] of lines with round ends, given as points in [-1, 1] and a full width."""
    factor = 2
    sheet = Image.new("L", (FINE * factor, FINE * factor))
    pen = ImageDraw.Draw(sheet)
    half = FINE * factor / 2
    for points, width in lines:
        radius = width * half / 2
        at = [((x + 1) * half, (y + 1) * half) for x, y in points]
        if len(at) > 1:
            pen.line(at, fill=255, width=max(1, round(2 * radius)))
        for x, y in at:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(sheet.reduce(factor), np.float64) / 255


def expose(
    light: np.ndarray, seen: np.ndarray, rng: np.random.Generator, *, mean: Sequence[float], blur: float, noise: float
) -> np.ndarray:
    """Photograph light `(FINE, FINE, 3)` as `(SIZE, SIZE, 3)` uint8; the mean color over `seen` does not depend on the class.

    Each channel is scaled to a mean drawn around `mean`, as a camera's white balance and exposure would, so that no class can be
    told by its mean color. `blur` is in finished pixels, `noise` a standard deviation of values in [0, 1].
    """
    picture = ndimage.gaussian_filter(light * seen[..., None], (2 * blur, 2 * blur, 0))
    picture = picture.reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3))
    cover = seen.reshape(SIZE, 2, SIZE, 2).mean((1, 3))[..., None]
    target = np.asarray(mean) * (1 + 0.06 * rng.standard_normal() + 0.025 * rng.standard_normal(3))
    for _ in range(4):  # clipping moves the mean a little, so the gain is found in a few rounds
        now = (np.clip(picture, 0, 1) * cover).sum((0, 1)) / cover.sum()
        picture *= target / now
    picture += noise * rng.standard_normal(picture.shape) * np.sqrt(0.2 + np.clip(picture, 0, 1)) * cover
    return np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)

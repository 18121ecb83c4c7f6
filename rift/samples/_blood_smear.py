"""Blood smears drawn by code: stains absorb light (Beer and Lambert), so overlapping cells darken as they do on a slide.

Red cells differ in outline and in their profile of thickness, white cells in the shape of the nucleus.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from rift.samples._canvas import FINE, expose, smooth_noise

CLASSES = ("round_red_cells", "sickle_cells", "target_cells", "white_cell_round_nucleus", "white_cell_segmented_nucleus")

# How much red, green and blue light one unit of stain takes away: eosin in red cells, azure in nuclei, both in pale cytoplasm.
EOSIN, AZURE, PALE = np.array([0.10, 0.52, 0.40]), np.array([0.95, 1.55, 0.50]), np.array([0.30, 0.36, 0.12])


class Cell(NamedTuple):
    """A place on the sheet: row and column of the middle, and radius, in sheet pixels."""

    middle: np.ndarray  # (2,)
    radius: float

    def window(self) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
        """Return the part of the sheet around the cell and how far below and right of its middle each pixel there lies."""
        low, high = (np.clip(self.middle + sign * (1.8 * self.radius + 6), 0, FINE).astype(int) for sign in (-1, 1))
        part = slice(low[0], high[0]), slice(low[1], high[1])
        down, right = np.mgrid[part].astype(np.float64)
        return part, down - self.middle[0], right - self.middle[1]


def draw(name: str, rng: np.random.Generator, difficulty: float) -> np.ndarray:
    """Return one field of view `(SIZE, SIZE, 3)` uint8 of the named class."""
    scale = rng.uniform(0.9, 1.15)
    red, nucleus, plasma = (np.zeros((FINE, FINE)) for _ in range(3))
    white = name.startswith("white")
    cells = _places(rng, scale, white)
    special = max(2, round(len(cells) * rng.uniform(0.6, 0.9) * (1 - 0.6 * difficulty)))
    for i, cell in enumerate(cells):
        if white and i == 0:
            _white_cell(nucleus, plasma, cell, rng, name.endswith("segmented_nucleus"), difficulty)
        elif name == "sickle_cells" and i < special:
            _sickle(red, cell, rng, difficulty)
        else:
            _disc(red, cell, rng, 1 - 0.6 * difficulty if name == "target_cells" and i < special else 0.0)
    for _ in range(rng.integers(2, 7)):  # platelets, on every slide
        part, down, right = (spot := Cell(rng.uniform(0, FINE, 2), rng.uniform(2.5, 5) * scale)).window()
        nucleus[part] += 0.45 * _cover(np.hypot(down, right * rng.uniform(0.7, 1.3)) - spot.radius, 2.5)
    grain = 1 + 0.03 * smooth_noise(rng, 6)
    amounts = 1 + 0.12 * rng.standard_normal(3)
    stains = zip((red, nucleus, plasma), (EOSIN, AZURE, PALE), amounts, strict=True)
    light = _lamp(rng)[..., None] * np.exp(-sum((grain * layer)[..., None] * color * amount for layer, color, amount in stains))
    blur, noise = rng.uniform(0.25, 0.5 + 0.5 * difficulty), rng.uniform(0.008, 0.015 + 0.03 * difficulty)
    return expose(light, np.ones((FINE, FINE)), rng, mean=(0.84, 0.71, 0.75), blur=blur, noise=noise)


def _lamp(rng: np.random.Generator) -> np.ndarray:
    """Uneven light: a slope, a slightly dark rim and faint clouds of plasma."""
    y, x = np.mgrid[:FINE, :FINE] / FINE - 0.5
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.16)
    cloud = rng.uniform(0.004, 0.016) * smooth_noise(rng, rng.uniform(30, 90))
    return 1 + slope * (np.cos(angle) * x + np.sin(angle) * y) - rng.uniform(0, 0.18) * (x**2 + y**2) + cloud


def _places(rng: np.random.Generator, scale: float, white: bool) -> list[Cell]:
    """Scatter cells that overlap a little at most: a white one first and near the middle, then from the middle outward."""
    first = [Cell(FINE * rng.uniform(0.28, 0.72, 2), scale * rng.uniform(43, 50))] if white else []
    cells: list[Cell] = []
    wanted = rng.integers(12, 20)
    for _ in range(600):
        cell = Cell(rng.uniform(-12, FINE + 12, 2), scale * rng.normal(27, 1.8))
        if all(np.hypot(*(cell.middle - c.middle)) > 0.93 * (cell.radius + c.radius) for c in first + cells):
            cells.append(cell)
        if len(cells) == wanted:
            break
    return first + sorted(cells, key=lambda cell: np.abs(cell.middle - FINE / 2).max())


def _cover(outside: np.ndarray, softness: float) -> np.ndarray:
    """Turn a distance in sheet pixels (negative inside) into a cover from 0 to 1."""
    return 1 / (1 + np.exp(np.clip(outside / softness * 4, -60, 60)))


def _edge(down: np.ndarray, right: np.ndarray, radius: float, rng: np.random.Generator, wobble: float) -> np.ndarray:
    """Return, in the direction of each pixel, how far a wavy and slightly oval outline is from the middle."""
    angle = np.arctan2(down, right)
    waves = [wobble / k * rng.standard_normal() * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4)]
    return radius * (1 + sum(waves))


def _disc(red: np.ndarray, cell: Cell, rng: np.random.Generator, target: float) -> None:
    """A round red cell, thin in the middle; with `target` up to 1 a thick spot grows there inside a thin ring."""
    part, down, right = cell.window()
    distance, edge = np.hypot(down, right), _edge(down, right, cell.radius, rng, 0.05)
    at = distance / edge
    pallor, width = rng.uniform(0.5, 0.7), rng.uniform(0.42, 0.52)
    plain = 1 - pallor * np.exp(-((at / width) ** 4))
    ringed = 1 - pallor * np.exp(-(((at - 0.48) / 0.2) ** 2)) + 0.75 * np.exp(-((at / 0.3) ** 4))
    rim = 0.12 * np.exp(-(((at - 0.9) / 0.1) ** 2))
    red[part] += rng.uniform(0.85, 1.1) * ((1 - target) * plain + target * ringed + rim) * _cover(distance - edge, 2.5)


def _sickle(red: np.ndarray, cell: Cell, rng: np.random.Generator, difficulty: float) -> None:
    """A bent cell with two pointed ends: an arc whose half-width falls to zero at both."""
    part, down, right = cell.window()
    turn, bend = rng.uniform(0, 2 * np.pi), cell.radius * rng.uniform(0.95, 1.45) * (1 + 0.6 * difficulty)
    reach = cell.radius * rng.uniform(1.35, 1.6) / bend  # half the angle that the arc spans
    half = cell.radius * rng.uniform(0.26, 0.36) * (1 + 0.7 * difficulty)
    down, right = down - 0.75 * bend * np.sin(turn), right - 0.75 * bend * np.cos(turn)
    angle = np.angle(np.exp(1j * (np.arctan2(down, right) - turn - np.pi)))
    taper = 1 - np.clip(np.abs(angle) / reach, 0, 1) ** 1.7
    off = np.hypot(down, right) - bend
    body = _cover(np.abs(off) - half * taper, 2.5) * _cover((np.abs(angle) - reach) * bend, 2.5)
    red[part] += rng.uniform(1.0, 1.25) * body * (1 - 0.22 * np.exp(-((off / half) ** 2) * 5))


def _white_cell(
    nucleus: np.ndarray, plasma: np.ndarray, cell: Cell, rng: np.random.Generator, segmented: bool, difficulty: float
) -> None:
    """A large pale cell; its nucleus is one round body or three to five lobes joined by threads, of about the same area."""
    part, down, right = cell.window()
    body = _cover(np.hypot(down, right) - _edge(down, right, cell.radius, rng, 0.06), 3)
    plasma[part] += body * (0.75 + 0.35 * np.clip(smooth_noise(rng, 5), -1, 2)[part])
    if segmented:
        outside = _lobes(down, right, cell.radius, rng, difficulty)
    else:
        down, right = down - cell.radius * rng.uniform(-0.12, 0.12), right - cell.radius * rng.uniform(-0.12, 0.12)
        edge = _edge(down, right, cell.radius * rng.uniform(0.6, 0.7), rng, 0.06 + 0.3 * difficulty)
        outside = np.hypot(down, right) - edge
    chromatin = 0.9 + 0.13 * ndimage.gaussian_filter(smooth_noise(rng, 7), 1)[part]
    nucleus[part] += _cover(outside, 3) * np.clip(chromatin, 0.4, 1.5)


def _lobes(down: np.ndarray, right: np.ndarray, radius: float, rng: np.random.Generator, difficulty: float) -> np.ndarray:
    """Return the distance in sheet pixels from a nucleus of several lobes on a ring, negative inside."""
    count, start, span = rng.integers(3, 6), rng.uniform(0, 2 * np.pi), rng.uniform(3.6, 4.8)
    ring, size = radius * (0.52 - 0.16 * difficulty), radius * 0.56 / np.sqrt(count) * (1 + 0.2 * difficulty)
    along = np.angle(np.exp(1j * (np.arctan2(down, right) - start - span / 2)))
    outside = np.where(np.abs(along) < span / 2, np.abs(np.hypot(down, right) - ring) - 0.07 * radius, np.inf)
    for angle in np.linspace(start, start + span, count):
        below, beside = down - ring * np.sin(angle), right - ring * np.cos(angle)
        outside = np.minimum(outside, np.hypot(below, beside) - _edge(below, beside, size * rng.uniform(1.0, 1.2), rng, 0.12))
    return outside

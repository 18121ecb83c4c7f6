"""Blood smears drawn by code: stains absorb light (Beer and Lambert), so overlapping cells darken as they do on a slide.

Red cells differ in outline and in their profile of thickness, white cells in the shape of the nucleus.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from rift.samples._canvas import FINE, expose, smooth_noise

CLASSES = ("round_red_cells", "sickle_cells", "target_cells", "white_cell_round_nucleus", "white_cell_segmented_nucleus")

# How much red, green and blue light one unit of stain takes away: eosin in red cells, azure in nuclei, both in pale cytoplasm.
EOSIN, AZURE, PALE = np.array([0.10, 0.52, 0.40]), np.array([0.95, 1.55, 0.50]), np.array([0.30, 0.36, 0.12])
ROWS, COLUMNS = np.mgrid[:FINE, :FINE].astype(np.float64)


def draw(name: str, rng: np.random.Generator, difficulty: float) -> np.ndarray:
    """Return one field of view `(SIZE, SIZE, 3)` uint8 of the named class."""
    scale = rng.uniform(0.88, 1.15)
    red, nucleus, plasma = np.zeros((FINE, FINE)), np.zeros((FINE, FINE)), np.zeros((FINE, FINE))
    white = name.startswith("white")
    places = _places(rng, scale, white)
    special = max(2, round(len(places) * rng.uniform(0.55, 0.85) * (1 - 0.65 * difficulty)))
    for i, (y, x, radius) in enumerate(places):
        if white and i == 0:
            _white_cell(nucleus, plasma, (y, x, radius), rng, name.endswith("segmented_nucleus"), difficulty)
        elif name == "sickle_cells" and i < special:
            red += _sickle((y, x, radius), rng, difficulty)
        else:
            target = 1 - 0.45 * difficulty if name == "target_cells" and i < special else 0.0
            red += _disc((y, x, radius), rng, target)
    for _ in range(rng.integers(2, 7)):  # platelets, on every slide
        y, x = rng.uniform(0, FINE, 2)
        nucleus += 0.45 * _cover(np.hypot(ROWS - y, (COLUMNS - x) * rng.uniform(0.7, 1.3)) - rng.uniform(2.5, 5) * scale, 2.5)
    stain = 1 + 0.12 * rng.standard_normal(3)
    grain = 1 + 0.03 * smooth_noise(rng, 6)
    absorbed = sum(
        (grain * layer)[..., None] * color * amount
        for layer, color, amount in zip((red, nucleus, plasma), (EOSIN, AZURE, PALE), stain, strict=True)
    )
    light = _lamp(rng)[..., None] * np.exp(-absorbed)
    blur, noise = rng.uniform(0.25, 0.5 + 0.5 * difficulty), rng.uniform(0.008, 0.015 + 0.03 * difficulty)
    return expose(light, np.ones((FINE, FINE)), rng, mean=(0.84, 0.71, 0.75), blur=blur, noise=noise)


def _lamp(rng: np.random.Generator) -> np.ndarray:
    """Uneven light: a slope, a slightly dark rim and faint clouds of plasma."""
    y, x = (ROWS / FINE - 0.5), (COLUMNS / FINE - 0.5)
    angle = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(0, 0.16) * (np.cos(angle) * x + np.sin(angle) * y)
    return 1 + slope - rng.uniform(0, 0.18) * (x**2 + y**2) + rng.uniform(0.004, 0.016) * smooth_noise(rng, rng.uniform(30, 90))


def _places(rng: np.random.Generator, scale: float, white: bool) -> list[tuple[float, float, float]]:
    """Scatter cells (row, column, radius) that overlap a little at most; a white cell comes first and near the middle."""
    placed: list[tuple[float, float, float]] = []
    if white:
        y, x = FINE / 2 + rng.uniform(-0.22, 0.22, 2) * FINE
        placed.append((y, x, scale * rng.uniform(43, 50)))
    wanted = len(placed) + rng.integers(11, 20)
    for _ in range(600):
        y, x = rng.uniform(-12, FINE + 12, 2)
        radius = scale * rng.normal(27, 1.8)
        if all(np.hypot(y - b, x - a) > 0.93 * (radius + other) for b, a, other in placed):
            placed.append((y, x, radius))
        if len(placed) >= wanted:
            break
    middle = placed[:1] if white else []
    rest = placed[len(middle) :]
    rest.sort(key=lambda cell: max(abs(cell[0] - FINE / 2), abs(cell[1] - FINE / 2)))  # what is special lies well in view
    return middle + rest


def _cover(outside: np.ndarray, softness: float) -> np.ndarray:
    """Turn a distance in sheet pixels (negative inside) into a cover from 0 to 1."""
    return 1 / (1 + np.exp(np.clip(outside / softness * 4, -60, 60)))


def _outline(cell: tuple[float, float, float], rng: np.random.Generator, wobble: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance from the middle and that of a wavy, slightly oval outline, for each pixel of the sheet."""
    y, x, radius = cell
    angle = np.arctan2(ROWS - y, COLUMNS - x)
    edge = np.ones_like(angle)
    for wave in (2, 3, 4):
        edge += wobble / wave * rng.standard_normal() * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    return np.hypot(ROWS - y, COLUMNS - x), radius * edge


def _disc(cell: tuple[float, float, float], rng: np.random.Generator, target: float) -> np.ndarray:
    """A round red cell, thin in the middle; a target cell carries a thick spot inside the thin ring."""
    distance, edge = _outline(cell, rng, 0.05)
    part = distance / edge
    pallor, width = rng.uniform(0.5, 0.7), rng.uniform(0.42, 0.52)
    thick = 1 - pallor * np.exp(-((part / width) ** 4) if not target else -(((part - 0.48) / 0.2) ** 2) * 1.0)
    spot = 0.75 * target * np.exp(-((part / 0.3) ** 4))
    if target:  # between a plain cell and a full target, as difficulty asks
        plain = 1 - pallor * np.exp(-((part / width) ** 4))
        thick = target * thick + (1 - target) * plain
    rim = 0.12 * np.exp(-(((part - 0.9) / 0.1) ** 2))
    return rng.uniform(0.85, 1.1) * (thick + spot + rim) * _cover(distance - edge, 2.5)


def _sickle(cell: tuple[float, float, float], rng: np.random.Generator, difficulty: float) -> np.ndarray:
    """A curved cell with two pointed ends: an arc whose half-width falls to zero at both."""
    y, x, radius = cell
    turn, bend = rng.uniform(0, 2 * np.pi), radius * rng.uniform(1.05, 1.6) * (1 + 0.5 * difficulty)
    reach = radius * rng.uniform(1.25, 1.5) / bend  # half the angle the arc spans
    half = radius * rng.uniform(0.36, 0.48) * (1 + 0.35 * difficulty)
    down, right = ROWS - (y + bend * np.sin(turn)), COLUMNS - (x + bend * np.cos(turn))
    angle = np.angle(np.exp(1j * (np.arctan2(down, right) - turn - np.pi)))
    width = half * np.clip(1 - (angle / reach) ** 2, 0.0, 1) ** 0.8
    off = np.abs(np.hypot(down, right) - bend)
    body = _cover(off - width, 2.5) * (np.abs(angle) < reach)
    return rng.uniform(0.95, 1.2) * body * (1.05 - 0.25 * np.exp(-((off / half) ** 2) * 4))


def _white_cell(
    nucleus: np.ndarray, plasma: np.ndarray, cell: tuple[float, float, float], rng: np.random.Generator, segmented: bool, difficulty: float
) -> None:
    """A large pale cell; its nucleus is one round body or three to five lobes joined by threads, of about the same area."""
    y, x, radius = cell
    distance, edge = _outline(cell, rng, 0.06)
    body = _cover(distance - edge, 3)
    plasma += body * (0.75 + 0.35 * np.clip(smooth_noise(rng, 5), -1, 2))
    shape = np.full_like(plasma, np.inf)
    if segmented:
        lobes = rng.integers(3, 6)
        start, span = rng.uniform(0, 2 * np.pi), rng.uniform(3.6, 4.8)
        ring = radius * (0.52 - 0.12 * difficulty)
        size = radius * 0.56 / np.sqrt(lobes) * (1 + 0.15 * difficulty)
        for k in range(lobes):
            angle = start + span * k / (lobes - 1)
            at = (y + ring * np.sin(angle), x + ring * np.cos(angle), size * rng.uniform(1.0, 1.2))
            inner, lobe = _outline(at, rng, 0.12)
            shape = np.minimum(shape, inner - lobe)
        along = np.angle(np.exp(1j * (np.arctan2(ROWS - y, COLUMNS - x) - start - span / 2)))
        thread = np.where(np.abs(along) < span / 2, np.abs(np.hypot(ROWS - y, COLUMNS - x) - ring) - 0.07 * radius, np.inf)
        shape = np.minimum(shape, thread)
    else:
        offset = radius * rng.uniform(-0.12, 0.12, 2)
        inner, lobe = _outline((y + offset[0], x + offset[1], radius * rng.uniform(0.6, 0.7)), rng, 0.06 + 0.06 * difficulty)
        shape = inner - lobe
    chromatin = 0.9 + 0.13 * ndimage.gaussian_filter(smooth_noise(rng, 7), 1)
    nucleus += _cover(shape, 3) * np.clip(chromatin, 0.4, 1.5)

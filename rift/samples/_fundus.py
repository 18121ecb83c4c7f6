"""Pictures of the back of the eye drawn by code: a lit disc with a vessel tree that grows out of the optic nerve head.

The vessels are random walks that split and thin; lesions and the cup of the nerve head are added by class.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from rift.samples._canvas import Stroke, expose, grid, smooth_noise, strokes

CLASSES = ("normal", "exudates", "hemorrhages", "cupped_disc")

TISSUE, DISC, CUP = np.array([0.80, 0.36, 0.15]), np.array([1.0, 0.62, 0.28]), np.array([1.0, 0.83, 0.52])
BLOOD, LIPID = np.array([0.30, 1.0, 0.95]), np.array([1.0, 0.78, 0.28])


def draw(name: str, rng: np.random.Generator, difficulty: float) -> np.ndarray:
    """Return one picture `(SIZE, SIZE, 3)` uint8 of the named class; the retina is lit, the corners are black."""
    x, y = grid()
    side = rng.choice([-1, 1])  # left or right eye: the disc lies toward the nose
    nerve = np.array([side * rng.uniform(0.38, 0.52), rng.uniform(-0.1, 0.1)])
    macula = nerve - [side * rng.uniform(0.72, 0.84), rng.uniform(-0.12, 0.02)]
    field = rng.uniform(0.93, 1.02)
    size = rng.uniform(0.165, 0.205)
    ratio = rng.uniform(0.7, 0.86) - 0.2 * difficulty if name == "cupped_disc" else rng.uniform(0.28, 0.42) + 0.1 * difficulty
    light = _tissue(x, y, macula, rng)
    _nerve_head(light, np.hypot(x - nerve[0], (y - nerve[1]) / rng.uniform(1.02, 1.15)), size, ratio)
    root = nerve + np.array([side * 0.75 * size * ratio, 0])  # vessels climb the wall of the cup that is nearer to the nose
    vessels = strokes(_tree(root, macula, side, rng))
    light *= np.exp(-0.75 * rng.uniform(0.8, 1.15) * ndimage.gaussian_filter(vessels, 0.8)[..., None] * BLOOD)
    if name == "hemorrhages":
        spots = _hemorrhages(x, y, nerve, rng, difficulty)
        light *= np.exp(-(1.15 - 0.6 * difficulty) * spots[..., None] * BLOOD)
    if name == "exudates":
        spots = (1 - 0.55 * difficulty) * _exudates(macula, rng, difficulty)[..., None]
        light = light * (1 - spots) + spots * LIPID
    turn, shade = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
    light *= (1 - rng.uniform(0.2, 0.45) * (x**2 + y**2) + shade * (np.cos(turn) * x + np.sin(turn) * y))[..., None]
    seen = 1 / (1 + np.exp(np.clip((np.hypot(x, y) - field) * 90, -60, 60)))
    blur, noise = rng.uniform(0.25, 0.45 + 0.5 * difficulty), rng.uniform(0.006, 0.012 + 0.03 * difficulty)
    return expose(light, seen, rng, mean=(0.60, 0.29, 0.13), blur=blur, noise=noise)


def _tissue(x: np.ndarray, y: np.ndarray, macula: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The orange ground with faint clouds and grain, darker at the macula."""
    clouds = 0.05 * smooth_noise(rng, 60) + 0.025 * smooth_noise(rng, 14) + 0.012 * smooth_noise(rng, 4)
    away = np.hypot(x - macula[0], y - macula[1])
    dark = rng.uniform(0.25, 0.4) * np.exp(-((away / rng.uniform(0.16, 0.24)) ** 2)) + 0.1 * np.exp(-((away / 0.06) ** 2))
    color = TISSUE * np.exp(0.06 * rng.standard_normal(3))
    return color * np.exp(clouds - dark)[..., None] ** np.array([0.7, 1.1, 1.2])


def _nerve_head(light: np.ndarray, away: np.ndarray, size: float, ratio: float) -> None:
    """The bright disc of radius `size` and in it the brighter cup, `ratio` as wide; `away` is the distance from their middle."""
    light *= 1 + 0.2 * np.exp(-((away / (2 * size)) ** 2))[..., None]
    for width, color, strength in ((size, DISC, 0.9), (size * ratio, CUP, 0.95)):
        cover = strength / (1 + np.exp(np.clip((away - width) * 150, -60, 60)))[..., None]
        light[:] = light * (1 - cover) + cover * color


def _tree(root: np.ndarray, macula: np.ndarray, side: int, rng: np.random.Generator) -> list[Stroke]:
    """Grow four pairs of vessels: two arch around the macula, two run toward the nose."""
    outward = np.pi if side > 0 else 0.0  # the direction from the disc to the macula
    lines: list[Stroke] = []
    for up in (-1, 1):
        for width in (rng.uniform(0.030, 0.038), rng.uniform(0.022, 0.028)):  # a vein and an artery
            steep = outward + side * up * rng.uniform(1.15, 1.5)
            _grow(
                lines, root + rng.normal(0, 0.015, 2), steep, outward + side * up * rng.uniform(-0.25, 0.25), width, rng, macula
            )
            steep = outward + side * up * rng.uniform(1.9, 2.4)
            _grow(lines, root + rng.normal(0, 0.015, 2), steep, steep + rng.uniform(-0.3, 0.5), 0.8 * width, rng, macula)
    return lines


def _grow(
    lines: list[Stroke],
    here: np.ndarray,
    heading: float,
    goal: float,
    width: float,
    rng: np.random.Generator,
    macula: np.ndarray,
) -> None:
    """Walk from `here`, turning slowly from `heading` to `goal`; thin out, split, and stop at the rim or before the macula."""
    bend, step, walked = 0.0, 0.035, 0
    while width > 0.006 and np.hypot(*here) < 1.15 and np.hypot(*(here - macula)) > 0.17:
        bend = 0.7 * bend + 0.07 * rng.standard_normal()
        heading += bend + 0.055 * np.angle(np.exp(1j * (goal - heading)))
        after = here + step * np.array([np.cos(heading), np.sin(heading)])
        lines.append(([tuple(here), tuple(after)], width))
        here, walked = after, walked + 1
        width *= 0.975
        if walked > 2 and rng.random() < 0.10:
            turn = rng.choice([-1, 1]) * rng.uniform(0.45, 0.9)
            _grow(lines, here, heading + turn, heading + 0.7 * turn, 0.68 * width, rng, macula)
            width *= 0.92


def _exudates(macula: np.ndarray, rng: np.random.Generator, difficulty: float) -> np.ndarray:
    """Cover of small sharp bright grains in a few clusters, some in an arc, between the macula and the arcades."""
    dots: list[Stroke] = []
    for _ in range(rng.integers(2, 5) if difficulty < 0.8 else 1):
        center = macula + rng.uniform(0.15, 0.5) * np.array([np.cos(t := rng.uniform(0, 2 * np.pi)), np.sin(t)])
        arc, radius, start = rng.random() < 0.4, rng.uniform(0.08, 0.17), rng.uniform(0, 2 * np.pi)
        for _ in range(round(rng.integers(9, 20) * (1 - 0.5 * difficulty))):
            angle, away = (
                (start + rng.uniform(0, 3.5), radius) if arc else (rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.random()))
            )
            spot = center + away * np.array([np.cos(angle), np.sin(angle)]) + rng.normal(0, 0.012, 2)
            dots.append(([tuple(spot), tuple(spot + rng.normal(0, 0.012, 2))], rng.uniform(0.018, 0.045)))
    return strokes(dots)


def _hemorrhages(x: np.ndarray, y: np.ndarray, nerve: np.ndarray, rng: np.random.Generator, difficulty: float) -> np.ndarray:
    """Cover of dark blots with ragged edges, some drawn out like flames along the nerve fibers that run from the disc."""
    cover = np.zeros_like(x)
    ragged = 0.28 * smooth_noise(rng, 9)
    for _ in range(max(2, round(rng.integers(6, 13) * (1 - 0.6 * difficulty)))):
        away, angle = 0.85 * np.sqrt(rng.uniform(0.05, 1)), rng.uniform(0, 2 * np.pi)
        at = away * np.array([np.cos(angle), np.sin(angle)])
        size, flame = rng.uniform(0.03, 0.085) * (1 - 0.3 * difficulty), rng.random() < 0.35
        along = np.arctan2(at[1] - nerve[1], at[0] - nerve[0])
        right, down = x - at[0], y - at[1]
        length = (right * np.cos(along) + down * np.sin(along)) / (size * (1.7 if flame else 1))
        across = (down * np.cos(along) - right * np.sin(along)) / (size * (0.55 if flame else 1))
        cover = np.maximum(cover, 1 / (1 + np.exp(np.clip((np.hypot(length, across) - 1 + ragged) * 9, -60, 60))))
    return cover

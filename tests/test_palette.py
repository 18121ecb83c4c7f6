"""Colors that can be told apart: contrast by the formula of WCAG 2.2, and how they look with red-green blindness.

Simulated after Machado, Oliveira and Fernandes 2009 (A Physiologically-based Model for Simulation of Color Vision Deficiency,
IEEE TVCG 15(6), severity 1.0), on linear RGB; distances are CIEDE2000. That 8 suffices beside symbols is our choice.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from rift import figures

VISION = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
PAGES = {"light": ("#ffffff", "#f8fafc"), "dark": ("#0a0f1e", "#0f172a", "#1e293b")}  # as the browser computes page and panels
SIX = [*figures.ARMS, "a fourth", "a fifth", "a sixth"]
CSS = (Path(figures.__file__).parents[1] / "assets" / "app.css").read_text()


def rgb(color: str) -> np.ndarray:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def linear(color: str) -> np.ndarray:
    c = rgb(color)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    high, low = sorted((float(linear(color) @ [0.2126, 0.7152, 0.0722]) for color in (one, other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def seen(color: str, vision: str) -> np.ndarray:
    """A color as CIE Lab, as somebody with this vision sees it."""
    c = np.clip(np.asarray(VISION[vision]) @ linear(color), 0, 1)
    return rgb2lab(np.where(c <= 0.0031308, 12.92 * c, 1.055 * c ** (1 / 2.4) - 0.055)[None, None])[0, 0]


def distance(one: str, other: str, vision: str) -> float:
    return float(deltaE_ciede2000(seen(one, vision), seen(other, vision)))


def test_the_formulas_are_those_of_their_sources():
    assert contrast("#ffffff", "#000000") == pytest.approx(21) and contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    for vision, matrix in VISION.items():
        assert np.allclose(np.sum(matrix, axis=1), 1, atol=1e-5), f"white stays white: {vision}"
    red, green = "#c80000", "#3f6f00"  # a pair that the usual eye tells apart and others do not
    assert distance(red, green, "usual") > 50 > 25 > distance(red, green, "deuteranopia")


@pytest.mark.parametrize("page", [page for both in PAGES.values() for page in both])
def test_every_mark_stands_out_from_every_panel(page):
    looks = {look[0] for look in (*figures.ARMS.values(), *figures.FURTHER)} | set(figures.CLASS_COLORS) | {figures.GREY}
    assert {color: round(contrast(color, page), 2) for color in looks if contrast(color, page) < 3} == {}


def accents() -> dict[str, str]:
    """The accent of the page in each theme, from the stylesheet itself."""
    found = re.findall(r"--accent: (#[0-9a-f]{6})", CSS)
    return dict(zip(PAGES, found, strict=True))


@pytest.mark.parametrize("theme", PAGES)
def test_links_can_be_read_as_text(theme):
    assert min(contrast(accents()[theme], page) for page in PAGES[theme]) >= 4.5


@pytest.mark.parametrize(("theme", "name"), [("light", "checkbox_border_color"), ("dark", "checkbox_border_color_dark")])
def test_an_empty_box_is_seen(theme, name):
    from rift.ui import _theme

    edge = getattr(_theme(), getattr(_theme(), name).removeprefix("*"))
    assert min(contrast(edge, page) for page in PAGES[theme]) >= 3


@pytest.mark.parametrize("vision", VISION)
def test_six_arms_are_told_apart_by_color_even_with_red_green_blindness(vision):
    colors = {arm: figures.color(arm, SIX) for arm in SIX}
    near = {pair: distance(*(colors[arm] for arm in pair), vision) for pair in itertools.combinations(SIX, 2)}
    assert min(near.values()) >= 8, min(near, key=near.get)
    trained = {pair: one for pair, one in near.items() if "pretrained" not in pair}  # which is grey and always dotted
    assert min(trained.values()) >= 10, min(trained, key=trained.get)


def test_without_any_color_the_symbols_differ():
    looks = [(figures.symbol(arm, SIX), figures.dash(arm, SIX)) for arm in SIX]
    assert len(set(looks)) == len({symbol for symbol, _ in looks}) == len(SIX)
    assert len({look[1] for look in (*figures.ARMS.values(), *figures.FURTHER)}) == 10


def test_a_long_curve_keeps_its_symbols():
    steps = list(range(500))
    drawn = figures.curves({arm: (steps, steps) for arm in SIX}, "step", "loss")
    assert all("markers" in trace.mode and trace.marker.maxdisplayed == figures.MOST_SYMBOLS for trace in drawn.data)
    assert len({trace.marker.symbol for trace in drawn.data}) == len(SIX)

"""The common look: fixed arms, contrast in both themes, and nothing of a user's markup."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest

from rift import figures


def _luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def _contrast(a: str, b: str) -> float:
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


ARM_COLORS = [look[0] for look in (*figures.ARMS.values(), *figures.FURTHER)]


@pytest.mark.parametrize("color", sorted({*ARM_COLORS, *figures.CLASS_COLORS}))
def test_every_color_reads_on_white_and_on_the_dark_page(color):
    assert min(_contrast(color, "#ffffff"), _contrast(color, "#14171b")) >= 3


def test_arms_keep_their_look_and_further_arms_differ():
    arms = ["pretrained", "none", "rift", "rsc", "feature_l2", "rift [strength = 10]"]
    assert figures.color("none") == figures.color("none", arms) == "#D55E00"
    assert len({figures.color(arm, arms) for arm in arms}) == len({figures.symbol(arm, arms) for arm in arms}) == len(arms)
    assert figures.dash("pretrained") == "dot" != figures.dash("rift")


def test_classes_are_told_apart_by_color_and_symbol():
    assert len({figures.class_look(i) for i in range(56)}) == 56
    assert figures.class_look(0)[1] != figures.class_look(8)[1]


def test_text_takes_no_markup_and_stays_short():
    assert figures.text("<a href='http://x'>click</a>", 40) == "&lt;a href='http://x'&gt;click&lt;/a&gt;"
    assert figures.text("a\u202eb\x00c\n") == "a b c"
    short = figures.text("very long class name number one", 11)
    assert len(short) == 11 and short.startswith("very") and short.endswith("one")


def test_style_is_transparent_fixed_in_height_and_serializes():
    plot = figures.style(go.Figure(go.Scatter(x=[1, 2], y=[3, 4])), 300)
    layout = plot.layout
    assert (layout.paper_bgcolor, layout.height, layout.uirevision, layout.title.text) == ("rgba(0,0,0,0)", 300, "rift", None)
    assert layout.template.layout == go.Layout() and plot.to_json()
    assert "why not" in figures.empty("why not").to_json()


def test_numbers_that_are_missing_become_nan():
    assert np.isnan(figures.numbers([1, None])).tolist() == [False, True]
    assert figures.numbers(None).shape == (0,)
    assert figures.faded("#ff0080", 0.5) == "rgba(255,0,128,0.5)"


def test_names_that_differ_look_different():
    names = ["white_cell_round_nucleus", "white_cell_segmented_nucleus", "short"]
    shown = figures.texts(names, 16)
    assert len(set(shown)) == 3 and shown[2] == "short" and max(map(len, shown)) <= 32
    assert figures.texts(["a" * 40, "b" * 40], 16) == [figures.text("a" * 40, 16), figures.text("b" * 40, 16)]
    assert len(figures.texts(["a" * 100 + "x" + "a" * 100, "a" * 100 + "y" + "a" * 100], 16)) == 2, (
        "it ends even where nothing helps"
    )

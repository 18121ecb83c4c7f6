"""The front of task metric against what was kept, on points made by hand, and its figure, sentence and table."""

import itertools

import numpy as np
import pytest

from rift import tradeoff


def arm(name, accuracy, cka, natural=None, *, strength=1.0, regularizer=None, error=0.01):
    mean = {"balanced_accuracy": accuracy, "cka_debiased": cka, "natural_accuracy": natural, "average_precision": 0.5}
    return {
        "name": name,
        "method": {"name": "full"},
        "regularizer": {"name": regularizer or name},
        "strength": strength,
        "runs": [{}, {}, {}],
        "mean": mean,
        "standard_error": {key: None if value is None else error for key, value in mean.items()},
    }


ARMS = [
    arm("none", 0.80, 0.30, 0.30, strength=0.0),
    arm("rift[strength=0.1]", 0.79, 0.60, 0.35, strength=0.1, regularizer="rift"),
    arm("rift[strength=10]", 0.60, 0.95, 0.31, strength=10.0, regularizer="rift"),
    arm("rsc", 0.70, 0.55, 0.33),
]


def points(*arms):
    return tradeoff.points({"arms": list(arms or ARMS)})


def test_the_front_is_what_no_other_point_beats():
    x, y = [0.30, 0.60, 0.95, 0.55], [0.80, 0.79, 0.60, 0.70]
    assert tradeoff.front(x, y) == [0, 1, 2]
    assert tradeoff.front([1, 1], [2, 2]) == [0, 1]  # equals do not beat each other
    assert tradeoff.front([1, 1], [2, 3]) == [1]
    assert tradeoff.front([], []) == []


def test_the_front_agrees_with_its_definition_on_random_points_and_follows_their_order():
    draw = np.random.default_rng(0).integers(0, 6, (2, 40)).astype(float)
    found = tradeoff.front(*draw)
    for i in range(40):
        beaten = any((draw[:, j] >= draw[:, i]).all() and (draw[:, j] > draw[:, i]).any() for j in range(40))
        assert (i in found) != beaten
    assert all(draw[0][i] <= draw[0][j] for i, j in itertools.pairwise(found))
    order = np.random.default_rng(1).permutation(40)
    assert {int(order[i]) for i in tradeoff.front(*draw[:, order])} == set(found)


def test_the_sentence_names_the_front_of_each_panel():
    text = tradeoff.sentence(points())
    first, second = text.split("Balanced")[1:]
    assert "none, rift[strength=0.1], rift[strength=10] (of 4)" in first and "rsc" not in first
    assert "none, rift[strength=0.1] (of 4)" in second and "strength=10" not in second


def test_the_figure_has_every_arm_in_both_panels_and_joins_the_strengths():
    figure = tradeoff.figure(points())
    rift = [trace for trace in figure.data if trace.name == "rift"]
    assert [list(trace.x) for trace in rift] == [[0.60, 0.95], [0.35, 0.31]]
    assert [list(trace.error_y.array) for trace in rift] == [[0.01, 0.01]] * 2
    front = [trace for trace in figure.data if trace.name == "front"]
    assert list(front[0].x) == [0.30, 0.60, 0.95] and list(front[1].x) == [0.30, 0.35]
    assert sum(trace.showlegend for trace in figure.data) == 4
    assert figure.layout.yaxis.title.text == "balanced accuracy"


def test_an_arm_without_one_number_is_left_out_of_that_panel_only():
    figure = tradeoff.figure(points(*ARMS[:2], arm("rsc", 0.7, 0.55, None)))
    assert len([trace for trace in figure.data if trace.name == "rsc"]) == 1
    assert "(of 3)" in tradeoff.sentence(points(*ARMS[:2], arm("rsc", 0.7, 0.55, None)))


def test_findings_are_compared_by_mean_average_precision():
    findings = [{**one, "mean": {**one["mean"], "balanced_accuracy": None}} for one in ARMS]
    assert tradeoff.figure(points(*findings)).layout.yaxis.title.text == "mean average precision"
    assert tradeoff.table(points(*findings))[0] == ("mean average precision", [0.5] * 4)


def test_nothing_measured_is_said():
    nothing = [arm("none", 0.5, None), arm("rift", 0.5, None)]
    assert "measured" in tradeoff.sentence(points(*nothing))
    assert "no finished arm" in tradeoff.figure(points(*nothing)).layout.annotations[0].text


@pytest.mark.parametrize("row", range(3))
def test_the_table_has_a_cell_for_each_arm(row):
    assert len(tradeoff.table(points())[row][1]) == 4

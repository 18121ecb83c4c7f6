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


def test_a_path_rises_in_strength_from_the_arm_without_penalty_and_has_one_regularizer():
    arms = points(*ARMS, arm("none, long", 0.9, 0.2, strength=0.0, regularizer="none") | {"settings": " (epochs=9)"})
    found = tradeoff.paths(arms)
    assert {group: [one.name for one in path] for group, path in found.items()} == {
        "full with rift": ["none", "rift[strength=0.1]", "rift[strength=10]"],
        "full with rsc": ["none", "rsc"],
    }
    automatic = arm("rift[auto]", 0.7, 0.7, strength="auto", regularizer="rift")
    assert [one.strength for one in tradeoff.paths(points(*ARMS, automatic))["full with rift"]] == [0.0, 0.1, 10.0, "auto"]


def test_an_arm_is_said_with_its_seeds_or_its_interval_and_who_beats_it():
    arms = points()
    said = tradeoff.said(arms, arms[3], {})
    assert "0.700 ± 0.010" in said and "over 3 seeds" in said
    assert "it is beaten by rift[strength=0.1]; with natural accuracy it is beaten by rift[strength=0.1]" in said
    assert "on the front" in tradeoff.said(arms, arms[1], {})
    single = arm("one", 0.5, 0.5, error=None) | {"runs": [{}]}
    (point,) = points(single | {"standard_error": dict.fromkeys(single["mean"])})
    said = tradeoff.said([point], point, {"cka_debiased": (0.4, 0.6, 12)})
    assert "0.500 (95 % interval 0.400 to 0.600, n = 12)" in said and "no interval was measured" in said
    assert "natural accuracy not measured" in said and "one seed" in said


def test_the_ring_is_around_the_arm_in_each_panel_that_has_it():
    arms = points(*ARMS[:2], arm("rsc", 0.70, 0.55))
    first, second = tradeoff.ring(arms, arms[1])
    assert (first["x"], first["y"], first["xaxis"]) == ([0.60], [0.79], "x") and (second["x"], second["xaxis"]) == ([0.35], "x2")
    assert len(tradeoff.ring(arms, arms[2])) == 1, "its natural accuracy is not known"

"""Single images across models: cells, fixed and broken, disagreements and neighbors, by hand and on the shipped example."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from rift import dataset, example, linked, measuring, service, strengths, tradeoff
from rift.diagnostics import interpolation
from rift.linked import Answers

TRUTH = np.eye(3, dtype=bool)[[0, 0, 1, 1, 2, 2]]
A = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
B = np.array([[0.4, 0.5, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.2, 0.1, 0.7]])
IDS = tuple(f"{i}.png" for i in range(6))


def made(several: bool = False) -> Answers:
    return Answers(IDS, ("x", "y", "z"), TRUTH, {"a": A, "b": B}, several, {"a": IDS, "b": IDS})


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    lab = example.place(tmp_path_factory.mktemp("lab") / "example")
    (name,) = service.comparisons(lab)
    return lab, name


def test_the_cells_of_a_model_part_the_images_as_its_confusion_matrix_counts_them():
    found = made()
    assert linked.cell(found, "a", 0, 1).tolist() == [1]
    assert linked.cell(found, "a", 1, 1).tolist() == [3, 2], "the surest answer first"
    every = np.concatenate([linked.cell(found, "a", t, c) for t in range(3) for c in range(3)])
    assert sorted(every) == list(range(6))
    assert linked.most_confused(found) == ("b", 0, 1), "two images, more than any other wrong cell"


def test_findings_have_cells_of_there_or_not_and_named_or_not():
    found = made(several=True)
    truths, calls = linked.cells(found)
    assert truths[:2] == ["shows x", "does not show x"] and calls == ["named", "not named"]
    assert linked.cell(found, "a", 0, 0).tolist() == [0]
    assert linked.cell(found, "a", 1, 0).tolist() == [4]
    assert len(np.concatenate([linked.cell(found, "b", t, c) for t in (2, 3) for c in (0, 1)])) == 6
    assert linked.most_confused(found) == ("b", 0, 1), "x is shown and not named on two images"
    assert found.right("a").tolist() == [True, False, True, True, False, True]


def test_fixed_and_broken_are_each_others_mirror_and_the_test_is_mcnemars():
    found = made()
    fixed, broken = linked.exchanged(found, "a", "b")
    assert (fixed.tolist(), broken.tolist()) == ([0, 2], [4])
    assert [one.tolist() for one in linked.exchanged(found, "b", "a")] == [[4], [0, 2]]
    words = linked.exchanged_said(found, "a", "b")
    assert "a gets 2 right that b gets wrong, and 1 the other way" in words and "looks at these 3" in words
    assert f"p = {binomtest(2, 3).pvalue:.2g}" in words
    assert "right on the same images" in linked.exchanged_said(found, "a", "a")


def test_the_top_disagreements_are_the_largest_gaps_on_the_true_class():
    gaps = np.array([A[i, TRUTH[i].argmax()] - B[i, TRUTH[i].argmax()] for i in range(6)])
    found = linked.disagreements(made(), "a", "b")
    assert [i for i, _ in found] == np.argsort(-np.abs(gaps), kind="stable").tolist()
    assert [gap for _, gap in found] == pytest.approx(gaps[np.argsort(-np.abs(gaps), kind="stable")])
    assert linked.disagreements(made(), "a", "a") == []
    assert [gap for _, gap in linked.disagreements(made(several=True), "a", "b", most=1)] == pytest.approx([0.4])


@pytest.mark.parametrize("value", ["", "6", "-1", "1.5", "x", None, "²", "9" * 30, "1 2", "<b>"])
def test_what_is_no_image_is_none(value):
    assert linked.picked(made(), value) is None
    assert linked.picked_cell(made(), value) is None


def test_what_a_page_names_is_an_image_or_a_cell():
    assert linked.picked(made(), "5") == 5
    assert linked.picked_cell(made(), "0 2 a") == ("a", 0, 2)
    for value in ("0 3 a", "3 0 a", "0 0 c", "0 0", "0 -1 a", "0 0 a "):
        assert linked.picked_cell(made(), value) is None
    assert linked.picked_cell(made(several=True), "5 1 b") == ("b", 5, 1)
    assert linked.picked_cell(made(several=True), "0 2 b") is None


def test_the_example_says_the_same_as_its_confusion_matrices(shipped):
    found = linked.answers(*shipped)
    for arm, one in measuring.results(*shipped, "accuracy").items():
        k = range(len(found.classes))
        assert [[len(linked.cell(found, arm, t, c)) for c in k] for t in k] == one["confusion"]
        assert [found.classes.index(found.called(arm, i)) for i in range(len(found))] == one["predictions"]
    assert found.ids == tuple(measuring.results(*shipped, "pca")["none"]["ids"]), "a point is the image of that place"
    data, places = linked.places(*shipped)
    ids = dataset.load(shipped[0].data / data).ids
    assert all(ids[places[one]] == one for one in found.ids)


def test_the_example_has_the_neighbors_of_every_test_image(shipped):
    found, measured = linked.answers(*shipped), measuring.results(*shipped, "retrieval")
    shares = {arm: [] for arm in found.arms}
    for i in range(len(found)):
        near, missing = linked.neighbors(*shipped, found, i)
        assert list(near) == ["pretrained", "none", "rift"] and not missing
        for arm, share in shares.items():
            assert len(near[arm]) == 5 and found.ids[i] not in [one.id for one in near[arm]]
            share.append(np.mean([one.kept for one in near[arm]]))
            assert [one.distance for one in near[arm]] == sorted(one.distance for one in near[arm])
    for arm, share in shares.items():
        assert np.mean(share) == pytest.approx(measured[arm]["neighbors_kept"], abs=0.02), "the shipped weights are rounded"
        same = [one.same for i in range(len(found)) for one in linked.neighbors(*shipped, found, i)[0][arm]]
        assert np.mean(same) == pytest.approx(measured[arm]["same_class"], abs=0.02)


def test_what_was_not_stored_is_said(shipped):
    lab, name = shipped
    paths = [run.path / "measures" / "retrieval.json" for run in measuring.runs(lab, name, "retrieval").values()]
    before = [path.read_bytes() for path in paths]
    try:
        for path in paths:
            document = json.loads(path.read_bytes())
            (values,) = document["runs"].values()
            values.pop("neighbors_after")
            path.write_text(json.dumps(document))
        near, missing = linked.neighbors(lab, name, linked.answers(lab, name), 0)
        assert not near and "were not stored" in missing and "measure Retrieval again" in missing
        paths[0].write_bytes(before[0])
        near, missing = linked.neighbors(lab, name, linked.answers(lab, name), 0)
        assert list(near) == ["pretrained", "none"] and missing == "Not stored: the neighbors of rift."
    finally:
        for path, data in zip(paths, before, strict=True):
            path.write_bytes(data)


def test_the_strengths_of_the_example_begin_without_a_penalty(shipped):
    lab, name = shipped
    arms = strengths.arms(lab, name)
    ((group, path),) = tradeoff.paths(arms).items()
    assert group.startswith("full with rift") and [one.strength for one in path] == [0.0, 1.0]
    found = strengths.intervals(lab, path[1])
    accuracy = measuring.results(lab, name, "accuracy")["rift"]
    assert found["balanced_accuracy"] == (accuracy["balanced_accuracy_low"], accuracy["balanced_accuracy_high"], 40)
    assert found["natural_accuracy"][2] == 11
    words = tradeoff.said(arms, path[1], found)
    assert words.startswith("λ = 1, rift: balanced accuracy") and "n = 40" in words and "n = 11" in words and "one seed" in words


def test_alpha_takes_the_nearest_measured_value(shipped):
    found = measuring.results(*shipped, "interpolation")
    for row, one in zip(interpolation.at(found, 0.43), found.values(), strict=True):
        place = int(np.argmin(np.abs(np.array(one["alphas"]) - 0.43)))
        assert row["alpha"] == one["alphas"][place] and row["accuracy"] == one["accuracy"][place]
        assert row["accuracy_low"] == one["accuracy_low"][place] and row["cka_debiased_low"] is None
    ring, *lines = interpolation.ring(found, 0.43)
    assert ring["x"] == [row["natural_accuracy"] for row in interpolation.at(found, 0.43)] and len(lines) == len(found)
    assert interpolation.at({"none": {"alphas": None}}, 0.5) == []

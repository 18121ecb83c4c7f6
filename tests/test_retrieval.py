"""Retrieval: neighbors by brute force, chance by permutation, what is alike, and a gallery whose pictures exist."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from rift import similarity
from rift.diagnostics import retrieval
from rift.measures import plain
from rift.snapshot import Snapshot
from tests.test_diagnostics import CLASSES, arrays, finetuned, pretrained, rotation, with_set


def with_train(n: int = 60, n_train: int = 45, labels: int = 3, seed: int = 0) -> Snapshot:
    """Return a model with test and training images, whose ids begin with the name of their set."""
    random = np.random.default_rng(seed)
    sets = {}
    for name, count in (("test", n), ("train", n_train)):
        truth = np.arange(count) % labels
        one = arrays(3 * np.eye(16)[truth] + random.normal(size=(count, 16)), truth)
        sets[name] = dataclasses.replace(one, ids=np.array([f"{name}/{i}" for i in range(count)]))
    return Snapshot(sets, CLASSES, (), None)


def by_hand(z: np.ndarray, asking: int, k: int) -> tuple[list[list[int]], list[list[float]]]:
    z = z.astype(float)
    near, far = [], []
    for i in range(asking):
        distances = [1 - z[i] @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j]) if j != i else np.inf for j in range(len(z))]
        order = np.argsort(distances, kind="stable")[:k]
        near.append(order.tolist())
        far.append([distances[j] for j in order])
    return near, far


def all_of(snapshot: Snapshot) -> np.ndarray:
    return np.concatenate([snapshot.sets[name].embeddings for name in ("test", "train")])


def test_neighbors_shares_and_chance_by_brute_force():
    before = with_train()
    after = finetuned(before, rotation(0.9), 1.2)
    for name in ("test", "train"):
        after = with_set(after, name, ids=before.sets[name].ids)
    found = retrieval.measure(before, after, k=4)
    labels = np.concatenate([before.sets[name].labels for name in ("test", "train")])
    ids = np.concatenate([before.sets[name].ids for name in ("test", "train")])
    (was, _), (now, far) = (by_hand(all_of(one), 60, 4) for one in (before, after))
    kept = [len(set(a) & set(b)) / 4 for a, b in zip(was, now, strict=True)]
    assert found["kept"].tolist() == kept and found["neighbors_kept"] == pytest.approx(np.mean(kept))
    for name, near in (("pretrained_same_class", was), ("same_class", now)):
        same = np.mean([labels[row] == labels[i] for i, row in enumerate(near)])
        assert found[name] == pytest.approx(same) and found[f"{name}_low"] < same < found[f"{name}_high"]
    chosen = np.unique(np.linspace(0, 59, 8).astype(int))
    assert found["query_images"].tolist() == ids[chosen].tolist() and found["n"] == 60 and found["n_looked_up"] == 105
    assert found["near_images_after"].tolist() == [ids[now[i]].tolist() for i in chosen]
    np.testing.assert_allclose(found["near_distances_after"], [far[i] for i in chosen], atol=1e-4)
    assert found["near_same_before"].tolist() == [(labels[was[i]] == labels[i]).tolist() for i in chosen]
    pairs = [labels[i] == labels[j] for i in range(60) for j in range(105) if i != j]
    assert found["same_class_chance"] == pytest.approx(np.mean(pairs)) and found["neighbors_kept_chance"] == 4 / 104


def test_unrelated_embeddings_give_chance():
    random = np.random.default_rng(3)
    before = with_train(300, 200)
    sets = {name: arrays(random.normal(size=(len(one.labels), 16)), one.labels) for name, one in before.sets.items()}
    found = retrieval.measure(before, dataclasses.replace(before, sets=sets))
    for name in ("same_class", "neighbors_kept"):
        assert found[f"{name}_low"] < found[f"{name}_chance"] < found[f"{name}_high"]
    assert found["pretrained_same_class_low"] > found["same_class_chance"] + 0.3


def test_a_turned_model_keeps_all_neighbors():
    before = pretrained()
    found = retrieval.measure(before, finetuned(before, rotation(1.3)))
    assert found["neighbors_kept"] == found["natural_neighbors_kept"] == 1
    assert found["same_class"] == found["pretrained_same_class"] and found["neighbors_kept_low"] < 1
    np.testing.assert_allclose(found["near_distances_before"], found["near_distances_after"], atol=1e-3)


def test_natural_images_agree_with_mutual_knn_of_directions():
    before = pretrained()
    after = finetuned(before, noise=0.8)
    found = retrieval.measure(before, after, k=7)
    x, y = (one.sets["natural"].embeddings.astype(float) for one in (before, after))
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    x, y = (np.concatenate([z, -z]) for z in (x, y))  # mirrored, so that the mean is 0 and centring changes nothing
    near = [np.argsort(-(z[:120] @ z[:120].T) + 9 * np.eye(120), axis=1)[:, :7] for z in (x, y)]
    assert found["natural_neighbors_kept"] == pytest.approx(
        np.mean([len(set(a) & set(b)) / 7 for a, b in zip(*near, strict=True)])
    )
    assert similarity.mutual_knn(x, x, 7) == 1 and found["n_natural"] == found["n_natural_looked_up"] == 120


def test_copies_of_an_image_are_found_and_it_never_finds_itself():
    before = with_train(12, 0)
    z = before.sets["test"].embeddings.copy()
    z[:7] = z[0]  # six copies of the first: more than k
    found = retrieval.measure(*[with_set(before, "test", embeddings=z)] * 2, k=3)
    for query, near in zip(found["query_images"], found["near_images_after"], strict=True):
        assert query not in near and len(set(near)) == 3


def test_findings_are_the_same_where_they_share_one_or_have_none():
    truth = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0], [1, 0, 1]])
    z = np.random.default_rng(0).normal(size=(6, 16))
    snapshot = Snapshot({"test": arrays(z, truth)}, CLASSES, (), None)
    found = retrieval.measure(snapshot, snapshot, k=5)  # all others
    same = [[1, 5], [0], [5], [4], [3], [0, 2]]
    assert found["same_class"] == pytest.approx(np.mean([len(one) / 5 for one in same])) == found["same_class_chance"]
    assert found["query_classes"].tolist()[0] == "several findings" and found["query_classes"].tolist()[3] == "no finding"


def test_an_image_without_a_label_is_looked_up_but_is_never_the_same():
    before = with_train(12, 0)
    labels = before.sets["test"].labels.copy()
    labels[6:] = -1
    before = with_set(before, "test", labels=labels)
    found = retrieval.measure(before, before, k=11)
    assert found["same_class"] == pytest.approx(1 / 11) and found["n"] == 12 and "label unknown" in found["query_classes"]
    nothing = retrieval.measure(*[with_set(before, "test", labels=np.full(12, -1))] * 2)
    assert nothing["same_class"] is None and nothing["same_class_chance_reason"] and nothing["neighbors_kept"] == 1
    assert "is the pretrained model's too" in retrieval.sentence({"none": nothing})


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("no sets", "there are no test images"),
        ("few", "5 neighbors need at least 6 images, and there are 5"),
        ("constant", "all point the same way"),
        ("not finite", "training diverged"),
    ],
)
def test_what_has_no_neighbors_says_why(case, reason):
    before = with_train(5, 0) if case == "few" else with_train(20, 0)
    one = before.sets["test"]
    value = {"constant": 2.0, "not finite": np.nan}.get(case)
    after = with_set(before, "test", embeddings=np.full_like(one.embeddings, value)) if value else before
    if case == "no sets":
        before = after = dataclasses.replace(before, sets={})
    found = retrieval.measure(before, after)
    assert found["neighbors_kept"] is None and reason in found["neighbors_kept_reason"]
    assert all(found[f"{key}_reason"] for key, value in found.items() if value is None)
    assert reason in retrieval.sentence({"none": found}) and retrieval.gallery({"none": found}) == []
    assert retrieval.figure({"none": found}).layout.annotations


def test_the_gallery_shows_images_under_every_model_with_pictures_that_exist():
    before = pretrained()
    results = {arm: retrieval.measure(before, finetuned(before, noise=noise)) for arm, noise in (("none", 0.9), ("rift", 0.2))}
    again = json.loads(json.dumps(plain(results), allow_nan=False))
    rows = retrieval.gallery(again)
    assert rows == json.loads(json.dumps(retrieval.gallery(results))) and len(rows) == 6 * 3, "every second of a dozen"
    ids = set(before.sets["test"].ids)
    for row in rows:
        asked, *near = row["pictures"]
        assert asked["caption"].startswith("asked: ") and len(near) == 5
        for cell in row["pictures"]:
            assert (cell["id"] in ids) if "id" in cell else 0 <= cell["natural"] < 120
        assert f"{sum(cell['caption'].startswith('same') for cell in near)} of 5" in row["caption"]
    assert [row["caption"].split(",")[0] for row in rows[:3]] == ["pretrained", "none", "rift"]
    assert sum("natural" in row["pictures"][0] for row in rows) == 2 * 3


def test_figure_and_sentence_show_every_model_and_chance():
    before = pretrained()
    results = {arm: retrieval.measure(before, finetuned(before, noise=noise)) for arm, noise in (("none", 0.9), ("rift", 0.2))}
    again = json.loads(json.dumps(plain(results), allow_nan=False))
    plot = retrieval.figure(again)
    assert [trace.name for trace in plot.data] == ["chance", "pretrained", "none", "rift"]
    assert list(plot.data[2].y)[1] == pytest.approx(results["none"]["neighbors_kept"])
    said = retrieval.sentence(again)
    assert said == retrieval.sentence(results) and "by chance" in said and "120 natural images" in said
    assert len(json.dumps(again["none"])) < 40_000  # a third of it the neighbors of every image
    near = results["none"]["neighbors_after"]
    assert near.shape == (90, 5) and near.max() < results["none"]["n_looked_up"] and not (near == np.arange(90)[:, None]).any()
    kept = [len(set(a) & set(b)) / 5 for a, b in zip(results["none"]["neighbors_before"], near, strict=True)]
    assert kept == pytest.approx(results["none"]["kept"].tolist())

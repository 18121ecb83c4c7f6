"""The drift diagnostic on made-up embeddings whose answers are known: layer pairs, floors, intervals, neighbors, cosines."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from rift import catalog, similarity, statistics
from rift.config import Choice
from rift.diagnostics import drift
from rift.errors import SettingError
from rift.measures import plain
from tests.test_diagnostics import LAYERS, finetuned, pretrained, rotation, with_set


def test_layer_pairs_and_their_reference_are_those_of_the_single_measures():
    before = pretrained()
    after = finetuned(before, rotation(0.4), noise=0.9)
    found = drift.measure(before, after)
    one, two = (snapshot.sets["test"].activations for snapshot in (before, after))
    for name, other in (("cka_layer_pairs", two), ("cka_layer_pairs_pretrained", one)):
        expected = [[similarity.debiased_cka(x, y) for y in other] for x in one]
        np.testing.assert_allclose(found[name], expected, atol=1e-6)
    np.testing.assert_allclose(found["cka_layer_pairs"].diagonal(), found["cka_layers_debiased"], atol=1e-6)
    np.testing.assert_allclose(found["cosine_layers"], [similarity.cosine(x, y).mean() for x, y in zip(one, two, strict=True)])


def test_a_rotation_is_seen_by_the_cosine_alone():
    before = pretrained()
    turned = drift.measure(before, finetuned(before, rotation(1.2)))
    for name in ("cka", "cka_debiased", "procrustes", "mutual_knn", "cknna"):
        assert (
            turned[name] == pytest.approx(1, abs=1e-5)
            and turned[f"{name}_natural" if "cka" not in name else "cka_natural"] > 0.999
        )
    assert turned["cosine"] == pytest.approx(np.cos(1.2), abs=1e-5) and turned["cosine_natural"] == pytest.approx(
        np.cos(1.2), abs=1e-5
    )


def test_shuffled_images_lie_at_the_floor_and_kept_ones_above_it():
    before = pretrained(n=200)
    mixed = np.random.default_rng(3).permutation(200)
    shuffled = with_set(
        before,
        "test",
        embeddings=before.sets["test"].embeddings[mixed],
        activations=before.sets["test"].activations[:, mixed],
    )
    kept, gone = drift.measure(before, finetuned(before, noise=0.5)), drift.measure(before, shuffled)
    for name in ("cka", "cka_debiased", "mutual_knn"):
        assert kept[name] > 3 * kept[f"{name}_floor"] and abs(gone[name]) < 2.5 * gone[f"{name}_floor"], name
    assert (
        gone["procrustes"] == pytest.approx(gone["procrustes_floor"], abs=0.05)
        and kept["procrustes"] > 2 * kept["procrustes_floor"]
    )
    assert abs(gone["cknna"]) < 0.15 < kept["cknna"] and gone["mutual_knn_floor"] == 10 / 199
    assert (kept["cka_layers_debiased"] > 3 * kept["cka_layers_debiased_floor"]).all()


def test_the_interval_is_the_jackknife_around_the_number_and_ends_at_one():
    before = pretrained()
    found = drift.measure(before, finetuned(before, noise=0.8), seed=4)
    x, y = before.sets["test"].embeddings, finetuned(before, noise=0.8).sets["test"].embeddings
    fold = statistics.folds(len(x), seed=4)
    parts = [similarity.debiased_cka(x[fold != i], y[fold != i]) for i in range(20)]
    reach = 2.093 * np.sqrt(19 * np.var(parts))  # Student's t with 19 degrees of freedom
    assert found["cka_debiased_low"] == pytest.approx(found["cka_debiased"] - reach, abs=1e-4)
    assert found["cka_debiased_high"] == pytest.approx(found["cka_debiased"] + reach, abs=1e-4)
    near = drift.measure(before, finetuned(before, noise=0.01))
    assert near["cka_debiased_low"] < near["cka_debiased"] <= near["cka_debiased_high"] <= 1
    itself = drift.measure(before, before)
    assert itself["cka_debiased_low"] == pytest.approx(1) == itself["cka_debiased_high"]


def test_settings_change_what_they_say_and_have_bounds():
    before = pretrained(n=120)
    after = finetuned(before, noise=1.0)
    few, sampled = drift.measure(before, after, neighbors=3), drift.measure(before, after, sample=60, seed=1)
    x, y = (snapshot.sets["test"].embeddings for snapshot in (before, after))
    assert few["neighbors"] == 3 and few["mutual_knn"] == similarity.mutual_knn(x, y, 3)
    assert (sampled["n"], sampled["n_sample"]) == (120, 60) and sampled["mutual_knn_floor"] == 10 / 59
    assert sampled["cka_debiased"] == few["cka_debiased"] and sampled["mutual_knn"] != few["mutual_knn"]
    assert plain(drift.measure(before, after)) == plain(drift.measure(before, after)), "all that is drawn is seeded"
    for wrong in ({"neighbors": 1}, {"shuffles": 5}, {"sample": 10}):
        with pytest.raises(SettingError):
            catalog.check("diagnostics", Choice(name="drift", options=wrong))
    assert catalog.check("diagnostics", Choice(name="drift", options={"preset": "thorough"})).options["shuffles"] == 1000


def test_too_few_images_leave_reasons_that_name_the_need():
    before = pretrained(n=5, n_natural=3)
    found = drift.measure(before, finetuned(before, noise=0.5))
    assert found["mutual_knn"] is None and "k = 10 neighbors need 1 <= k < n" in found["mutual_knn_reason"]
    assert found["mutual_knn_floor"] is None and "need more than 10 images, not 5" in found["mutual_knn_floor_reason"]
    assert found["cka_natural_debiased_low"] is None and "at least 4 images, not 3" in found["cka_natural_debiased_low_reason"]
    assert found["cka_debiased"] is not None and found["cka_natural"] is not None
    bare = dataclasses.replace(before, sets={"test": before.sets["test"]})
    none = drift.measure(bare, bare)
    for name in drift._names("_natural"):
        assert none[name] is None and none[f"{name}_reason"] == "there are no natural images"
    full = drift.measure(pretrained(), pretrained())
    assert {*drift._names(""), *drift._names("_natural")} == {
        key for key in full if not key.startswith("n_") and key not in ("n", "neighbors", "shuffles")
    }, "what is missing with the images is all that is measured with them"


def test_a_layer_without_cka_is_left_out_of_the_pairs_with_its_reason():
    before = pretrained()
    activations = before.sets["test"].activations.copy()
    activations[1] = 1.0
    found = drift.measure(before, with_set(before, "test", activations=activations))
    pairs = found["cka_layer_pairs"]
    assert np.isnan(pairs[:, 1]).all() and np.isfinite(np.delete(pairs, 1, axis=1)).all()
    assert (
        "layer 2: features are constant" in found["cka_layer_pairs_reason"] and "cka_layer_pairs_pretrained_reason" not in found
    )
    drift.figure({"none": plain(found)}).to_json()
    assert drift.sentence({"none": plain(found)}).endswith(".")


def test_the_figure_holds_curves_floor_and_a_map_of_each_arm_beside_the_reference():
    before = pretrained()
    results = {
        arm: drift.measure(before, finetuned(before, noise=noise)) for arm, noise in (("none", 1.5), ("rift", 0.2), ("rsc", 0.6))
    }
    results = json.loads(json.dumps(plain({"pretrained": drift.measure(before, before), **results})))
    plot = drift.figure(results)
    maps = [one for one in plot.data if one.type == "heatmap"]
    assert len(maps) == 4 and plot.layout.meta["min_width"] <= 700
    np.testing.assert_allclose(np.array(maps[0].z, float).diagonal(), 1, atol=1e-6)
    assert np.array(maps[1].z, float).tolist() == results["none"]["cka_layer_pairs"]
    lines = {one.name: one for one in plot.data if one.type == "scatter"}
    assert len(lines) == 7 and len(lines["rift, medical"].y) == LAYERS + 1
    floor = next(one for name, one in lines.items() if name.startswith("floor"))
    assert max(floor.y) < 0.2 and floor.y[0] == max(
        one["cka_layers_debiased_floor"][0] for arm, one in results.items() if arm != "pretrained"
    )
    bars = lines["none, medical"].error_y
    assert lines["none, medical"].y[-1] + bars.array[-1] == pytest.approx(results["none"]["cka_debiased_high"])
    assert lines["none, medical"].y[-1] - bars.arrayminus[-1] == pytest.approx(results["none"]["cka_debiased_low"])


def test_the_sentence_says_interval_chance_and_neighbors():
    before = pretrained()
    one = plain(drift.measure(before, finetuned(before, noise=0.7)))
    said = drift.sentence({"none": one})
    assert (
        f"none {one['cka_debiased']:.3f} (95 % interval {one['cka_debiased_low']:.3f} to {one['cka_debiased_high']:.3f})" in said
    )
    assert f"reach {one['cka_debiased_floor']:.3f} on medical images" in said
    assert f"keeps {one['mutual_knn']:.0%} of the 10 nearest images (chance 11%)" in said
    assert f"cosine of {one['cosine']:.2f}" in said and f"of {LAYERS} layers" in said

"""Diagnostics on made-up embeddings whose answers are known: rotations, permutations, absent classes, too few images."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from rift import similarity
from rift.diagnostics import accuracy, drift, pca, zero_shot
from rift.snapshot import Arrays, Snapshot

WIDTH, LAYERS = 16, 3
HOSTILE = "<img src=x onerror=alert(1)>"
CLASSES = ("nevus", "melanoma", HOSTILE)


def arrays(embeddings: np.ndarray, labels: np.ndarray, logits: np.ndarray | None = None, bend: float = 0.0) -> Arrays:
    """Wrap embeddings `(n, d)`; the layers are noisier copies, the noise larger with `bend`."""
    noise = np.random.default_rng(7).normal(size=(LAYERS, *embeddings.shape))
    layers = embeddings + bend * np.arange(1, LAYERS + 1)[:, None, None] * noise
    ids = np.array([f"{i:04d}.png" for i in range(len(labels))])
    return Arrays(ids, labels, embeddings.astype(np.float32), layers.astype(np.float32), logits)


def pretrained(n: int = 90, n_natural: int = 120, seed: int = 0) -> Snapshot:
    """Return a model that sees three medical classes, and names 10 natural labels of which one has no row."""
    random = np.random.default_rng(seed)
    labels, natural = np.arange(n) % len(CLASSES), np.arange(n_natural) % 10
    centers = random.normal(size=(len(CLASSES), WIDTH))
    rows = np.linalg.qr(random.normal(size=(WIDTH, 10)))[0].T
    medical = centers[labels] + 0.7 * random.normal(size=(n, WIDTH))
    seen = 3 * rows[natural] + 0.4 * random.normal(size=(n_natural, WIDTH))
    rows[9] = np.nan
    names = (*(f"thing {i}" for i in range(8)), HOSTILE, "unknown thing")
    sets = {"test": arrays(medical, labels), "natural": arrays(seen, natural)}
    return Snapshot(sets, CLASSES, names, rows.astype(np.float32), 10.0)


def finetuned(before: Snapshot, turn: np.ndarray | None = None, noise: float = 0.0, seed: int = 1) -> Snapshot:
    """Return the model with its embeddings turned and made noisy, and a head that reads the class centers."""
    random = np.random.default_rng(seed)
    turn = np.eye(WIDTH) if turn is None else turn
    sets = {}
    for name, one in before.sets.items():
        embeddings = one.embeddings @ turn + noise * random.normal(size=one.embeddings.shape)
        logits = None
        if name == "test":
            centers = np.stack([embeddings[one.labels == c].mean(0) for c in range(len(before.classes))])
            logits = -np.square(embeddings[:, None] - centers).sum(2)
        sets[name] = arrays(embeddings, one.labels, logits, bend=noise / 3)
    return dataclasses.replace(before, sets=sets)


def rotation(angle: float) -> np.ndarray:
    """Return a rotation of `(WIDTH, WIDTH)` by one angle in every second plane."""
    turn = np.eye(WIDTH)
    for i in range(0, WIDTH, 2):
        turn[i : i + 2, i : i + 2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


def with_set(snapshot: Snapshot, name: str, **changes) -> Snapshot:
    """Return the snapshot with some arrays of one set replaced."""
    return dataclasses.replace(snapshot, sets={**snapshot.sets, name: dataclasses.replace(snapshot.sets[name], **changes)})


ALL = (accuracy, drift, pca, zero_shot)


@pytest.mark.parametrize("diagnostic", ALL)
def test_measure_survives_json_and_its_figure_and_sentence_take_both(diagnostic):
    from rift.measures import plain

    before = pretrained()
    results = {
        "pretrained": diagnostic.measure(before, before),
        "none": diagnostic.measure(before, finetuned(before, rotation(0.8), 0.5)),
        "rift": diagnostic.measure(before, finetuned(before, noise=0.2)),
    }
    read_back = json.loads(json.dumps(plain(results), allow_nan=False))
    for given in (results, read_back):
        assert len(diagnostic.figure(given).data) >= 2
        text = diagnostic.figure(given).to_json()
        assert "<img" not in text.replace("\\u003c", "<")
        assert "none" in diagnostic.sentence(given) and diagnostic.sentence(given).endswith(".")
    assert diagnostic.sentence(results) == diagnostic.sentence(read_back)


@pytest.mark.parametrize("diagnostic", ALL)
@pytest.mark.parametrize("case", ["constant", "one image", "two images", "nothing", "no sets", "not finite"])
def test_degenerate_input_gives_none_and_a_reason_instead_of_a_crash(diagnostic, case):
    before = pretrained()
    after = finetuned(before, noise=0.3)
    if case == "no sets":
        before, after = (dataclasses.replace(one, sets={}) for one in (before, after))
    for name in list(after.sets):
        keep = {"one image": 1, "two images": 2, "nothing": 0}.get(case, len(after.sets[name].labels))
        value = {"constant": 0.0, "not finite": np.nan}.get(case)
        for which in ("before", "after"):
            one = (before if which == "before" else after).sets[name]
            parts = {k: v for k, v in vars(one).items() if v is not None}
            parts = {k: v[:, :keep] if k == "activations" else v[:keep] for k, v in parts.items()}
            if value is not None and (which == "after" or case == "constant"):
                parts = {k: np.full_like(v, value) if v.dtype.kind == "f" else v for k, v in parts.items()}
            changed = with_set(before if which == "before" else after, name, **parts)
            before, after = (changed, after) if which == "before" else (before, changed)
    result = diagnostic.measure(before, after)
    for name, value in result.items():
        if value is None:
            assert result[f"{name}_reason"], name
        elif isinstance(value, float):
            assert np.isfinite(value), name
    if case in ("no sets", "nothing", "not finite"):
        assert {"accuracy", "cka", "cka_debiased", "before", "natural_accuracy"} & {k for k, v in result.items() if v is None}
    diagnostic.figure({"none": result}).to_json()
    assert diagnostic.sentence({"none": result})


def test_accuracy_counts_as_by_hand():
    before = pretrained(n=6)
    logits = np.log(np.array([[8, 1, 1], [8, 1, 1], [1, 8, 1], [1, 8, 1], [1, 1, 8], [8, 1, 1]]) / 10)
    after = with_set(finetuned(before), "test", labels=np.array([0, 0, 1, 0, 2, 2]), logits=logits)
    result = accuracy.measure(before, after)
    assert result["n"] == 6 and result["accuracy"] == pytest.approx(4 / 6)
    assert result["confusion"].tolist() == [[2, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert result["recall"] == pytest.approx([2 / 3, 1, 1 / 2])
    assert result["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert result["confidence"] == pytest.approx([0.8] * 6)
    assert result["accuracy_low"] < 4 / 6 < result["accuracy_high"]


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    before = pretrained()
    after = finetuned(before, noise=1.5)
    result = accuracy.measure(before, after)
    logits, labels = after.sets["test"].logits, after.sets["test"].labels
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    pairs = [np.sign(p[labels == c, c][:, None] - p[labels != c, c][None]) for c in range(3)]
    assert result["auroc"] == pytest.approx(np.mean([(one.mean() + 1) / 2 for one in pairs]), abs=1e-9)


def test_a_class_without_test_images_is_named_and_left_out_of_the_means():
    before = pretrained()
    after = finetuned(before, noise=0.3)
    keep = after.sets["test"].labels != 1
    after = with_set(
        after, "test", **{k: v[keep] for k, v in vars(after.sets["test"]).items() if k != "activations" and v is not None}
    )
    result = accuracy.measure(before, after)
    assert np.isnan(result["recall"][1]) and "melanoma" in result["recall_reason"]
    assert result["balanced_accuracy"] == pytest.approx(np.nanmean(result["recall"]))
    assert np.isfinite(result["auroc"])
    assert "melanoma" in accuracy.sentence({"none": result})


def test_images_without_a_label_are_not_scored():
    before = pretrained()
    after = finetuned(before, noise=0.3)
    labels = after.sets["test"].labels.copy()
    labels[:30] = -1
    result = accuracy.measure(before, with_set(after, "test", labels=labels))
    assert result["n"] == 60 == result["confusion"].sum()
    assert len(result["predictions"]) == 90


def test_changed_finds_what_was_fixed_and_broken():
    baseline = {"predictions": np.array([0, 1, 1, 2]), "labels": np.array([0, 0, 1, 1])}
    other = {"predictions": np.array([1, 0, 1, 0]), "labels": np.array([0, 0, 1, 1])}
    both = accuracy.changed(baseline, other)
    assert both["fixed"].tolist() == [1] and both["broken"].tolist() == [0]
    assert not len(accuracy.changed({"predictions": None}, other)["fixed"])


def test_the_sentence_counts_what_an_arm_fixed_and_broke():
    before = pretrained()
    none = accuracy.measure(before, finetuned(before))
    labels = np.asarray(none["labels"])
    wrong = (labels + 1) % len(CLASSES)
    one, other = none | {"predictions": labels.copy()}, none | {"predictions": labels.copy()}
    one["predictions"][:3] = wrong[:3]
    other["predictions"][2:7] = wrong[2:7]
    assert "rift fixed 2 images that none got wrong and broke 4." in accuracy.sentence({"none": one, "rift": other})
    assert "fixed" not in accuracy.sentence({"none": one})


def test_drift_is_blind_to_rotation_and_sees_permutation():
    before = pretrained()
    turned = drift.measure(before, finetuned(before, rotation(1.2)))
    assert turned["cka"] == pytest.approx(1, abs=1e-6) and turned["cka_natural_debiased"] == pytest.approx(1, abs=1e-6)
    assert turned["cka_layers"].shape == turned["cka_natural_layers_debiased"].shape == (LAYERS,)
    mixed = with_set(before, "test", embeddings=np.random.default_rng(0).permutation(before.sets["test"].embeddings))
    assert abs(drift.measure(before, mixed)["cka_debiased"]) < 0.1
    few = [one.sets["test"].embeddings[:12] for one in (before, mixed)]
    labels = before.sets["test"].labels[:12]
    small = drift.measure(*(with_set(before, "test", **vars(arrays(one, labels))) for one in few))
    assert small["cka_debiased"] == pytest.approx(similarity.debiased_cka(*few)) and small["cka_debiased"] < small["cka"] - 0.2
    assert drift.measure(before, mixed)["n"] == 90 and drift.measure(before, mixed)["n_natural"] == 120


def test_drift_of_layers_falls_with_depth_where_noise_grows():
    before = pretrained()
    layers = drift.measure(before, finetuned(before, noise=1.5))["cka_layers_debiased"]
    assert (np.diff(layers) < 0).all()


def test_one_constant_layer_does_not_hide_the_others():
    before = pretrained()
    activations = before.sets["test"].activations.copy()
    activations[1] = 1.0
    result = drift.measure(before, with_set(before, "test", activations=activations))
    assert np.isnan(result["cka_layers"]).tolist() == [False, True, False]
    assert "layer 2" in result["cka_layers_reason"]


def test_pca_panels_share_the_pretrained_basis():
    before = pretrained()
    shifted = with_set(before, "test", embeddings=before.sets["test"].embeddings + 5)
    still, moved = pca.measure(before, before), pca.measure(before, shifted)
    assert still["before"] == pytest.approx(still["after"])
    assert still["before"].mean(0) == pytest.approx([0, 0], abs=1e-5)
    gap = moved["after"] - moved["before"]
    assert gap == pytest.approx(np.repeat(gap[:1], 90, 0), abs=1e-4) and np.abs(gap).max() > 1
    assert 0 < still["explained_before"] <= 1 and still["explained"].sum() == pytest.approx(still["explained_before"], abs=1e-6)
    assert still["natural_after"].shape == (120, 2)
    plot = pca.figure({"none": still, "rift": moved})
    assert plot.layout.xaxis2.matches == "x" and plot.layout.xaxis3.matches == "x" and plot.layout.yaxis3.matches == "y"


def test_joint_basis_shows_the_pretrained_model_once_per_arm():
    before = pretrained()
    results = {arm: pca.measure(before, finetuned(before, noise=s), basis="joint") for arm, s in (("none", 0.8), ("rift", 0.1))}
    titles = [a.text for a in pca.figure(results).layout.annotations]
    assert titles == ["pretrained", "none", "pretrained, basis of rift", "rift"]


def test_zero_shot_falls_with_a_rotation_and_comes_back_when_it_is_undone():
    before = pretrained(n_natural=400)
    result = zero_shot.measure(before, finetuned(before, rotation(1.4)))
    assert result["pretrained_natural_accuracy"] > 0.95
    assert result["natural_accuracy"] < 0.6
    assert result["natural_accuracy_unrotated"] > 0.9
    assert result["natural_accuracy_low"] < result["natural_accuracy"] < result["natural_accuracy_high"]
    assert result["natural_agreement"] == pytest.approx(np.mean(result["top5"][:, 0] == result["pretrained_top5"][:, 0]))


def test_zero_shot_of_an_unchanged_model_changes_nothing():
    before = pretrained()
    result = zero_shot.measure(before, before)
    assert result["natural_agreement"] == 1
    assert result["natural_accuracy"] == result["pretrained_natural_accuracy"] == result["natural_accuracy_unrotated"]


def test_labels_without_a_row_are_neither_scored_nor_guessed():
    before = pretrained()
    result = zero_shot.measure(before, before)
    assert result["n"] == 108 and result["n_unscored"] == 12 and len(result["top5"]) == 120
    assert 9 not in result["top5"]
    cosine = before.sets["natural"].embeddings @ before.rows[:9].T
    scored = before.sets["natural"].labels < 9
    assert result["natural_accuracy"] == pytest.approx((cosine.argmax(1) == before.sets["natural"].labels)[scored].mean())
    assert result["top5_probability"].shape == (120, 5) and (np.diff(result["top5_probability"]) <= 0).all()
    assert result["margin"] == pytest.approx(result["top5_probability"][:, 0] - result["top5_probability"][:, 1])


def test_zero_shot_says_why_there_is_no_number():
    before = pretrained(n_natural=2 * WIDTH - 1)
    few = zero_shot.measure(before, before)
    assert few["natural_accuracy_unrotated"] is None and str(2 * WIDTH) in few["natural_accuracy_unrotated_reason"]
    assert few["natural_accuracy"] is not None
    lonely = dataclasses.replace(pretrained(n_natural=10), rows=None)
    headless = zero_shot.measure(lonely, lonely)
    for name in ("natural_accuracy", "natural_knn_accuracy", "natural_head", "pretrained_natural_knn_accuracy", "top5"):
        assert headless[name] is None and "no natural head" in headless[f"{name}_reason"]
    assert "nearest mean takes two images of each of at least two labels" in zero_shot.sentence({"none": headless})
    rows = before.rows.copy()
    rows[5:] = np.nan
    five = zero_shot.measure(dataclasses.replace(before, rows=rows), before)
    assert five["natural_top5"] is None and "5 labels" in five["natural_top5_reason"] and five["top5"].shape[1] == 5


def test_unrotation_is_cross_fitted_by_the_seed_it_is_given():
    before = pretrained()
    after = finetuned(before, rotation(1.0), 0.8)
    one, two, labels = before.sets["natural"].embeddings, after.sets["natural"].embeddings, after.sets["natural"].labels
    right = (similarity.unrotate(one, two, 3) @ before.rows[:9].T).argmax(1) == labels
    assert zero_shot.measure(before, after, seed=3)["natural_accuracy_unrotated"] == pytest.approx(right[labels < 9].mean())


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def test_without_a_natural_head_each_image_is_named_by_the_pretrained_means_and_neighbors_of_the_other_half():
    before = dataclasses.replace(pretrained(n_natural=60), rows=None)
    after = finetuned(before, rotation(0.9), 0.6)
    result = zero_shot.measure(before, after, seed=3)
    assert result["natural_head"] == "nearest mean" and result["n"] == 60 and result["n_unscored"] == 0
    then, now = (one.sets["natural"].embeddings.astype(float) for one in (before, after))
    labels, half = before.sets["natural"].labels, similarity.halves(before.sets["natural"].labels, 3)
    votes = 0
    for i in range(60):
        others = [j for j in range(60) if half[j] != half[i]]
        means = [np.mean([then[j] / np.linalg.norm(then[j]) for j in others if labels[j] == c], axis=0) for c in range(10)]
        assert result["top5"][i, 0] == np.argmax([cosine(now[i], mean) for mean in means])
        near = labels[sorted(others, key=lambda j, i=i: -cosine(now[i], then[j]))[:5]]
        votes += np.bincount(near).argmax() == labels[i]
    assert result["natural_accuracy"] == pytest.approx(np.mean(result["top5"][:, 0] == labels))
    assert result["natural_knn_accuracy"] == pytest.approx(votes / 60)
    assert result["natural_knn_accuracy_low"] < votes / 60 < result["natural_knn_accuracy_high"]


def test_the_pretrained_means_hold_still_so_that_drift_is_a_loss():
    before = dataclasses.replace(pretrained(n_natural=400), rows=None)
    result = zero_shot.measure(before, finetuned(before, rotation(1.4)))
    for name in ("natural_accuracy", "natural_knn_accuracy"):
        assert result[f"pretrained_{name}"] > 0.95 and result[name] < 0.6
    assert result["natural_accuracy_unrotated"] > 0.9
    still = zero_shot.measure(before, before)
    assert still["natural_accuracy"] == still["pretrained_natural_accuracy"] and still["natural_agreement"] == 1


def test_no_image_is_named_by_itself():
    """Labels drawn by lot in more dimensions than images: who is among its own mean or neighbors would look right."""
    random = np.random.default_rng(5)
    labels = random.permutation(np.arange(400) % 2)
    natural = arrays(random.normal(size=(400, 500)), labels)
    before = Snapshot({"natural": natural}, CLASSES, ("cat", "dog"), None)
    result = zero_shot.measure(before, before)
    assert abs(result["natural_accuracy"] - 0.5) < 0.1 and abs(result["natural_knn_accuracy"] - 0.5) < 0.1


def test_a_label_with_one_image_has_no_mean_from_the_other_half():
    before = dataclasses.replace(pretrained(n_natural=45), rows=None)
    keep = np.r_[:40, 41:45]
    keep = keep[(before.sets["natural"].labels[keep] != 7) | (keep == 7)]
    natural = {k: v[:, keep] if k == "activations" else v[keep] for k, v in vars(before.sets["natural"]).items() if v is not None}
    before = with_set(before, "natural", **natural)
    result = zero_shot.measure(before, before)
    assert result["n_unscored"] == 1 and 7 not in result["top5"] and result["n"] == len(keep) - 1
    assert "1 images have a label without a row" in zero_shot.sentence({"none": result})


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("text", "named by the text tower's directions of words."),
        ("classifier", "named by the rows of the pretrained model's own classifier."),
        (None, "neither text tower nor classifier: each image gets the class whose mean pretrained embedding"),
    ],
)
def test_the_page_says_what_names_the_images(head, words, tmp_path):
    before = pretrained(n_natural=400)
    before = dataclasses.replace(before, natural_head=head) if head else dataclasses.replace(before, rows=None)
    before.save(tmp_path / "before.npz")
    before = Snapshot.load(tmp_path / "before.npz")
    result = zero_shot.measure(before, before)
    assert result["natural_head"] == (head or "nearest mean")
    sentence = zero_shot.sentence({"none": result})
    assert words in sentence and ("nearest neighbors" in sentence) == (head is None)


def test_arrays_of_an_earlier_version_do_not_say_what_names_the_images():
    result = zero_shot.measure(pretrained(), pretrained())
    assert result["natural_head"] is None and "earlier version" in result["natural_head_reason"]
    assert zero_shot.sentence({"none": {k: v for k, v in result.items() if not k.startswith("natural_head")}})

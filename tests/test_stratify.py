"""Who goes where: few-shot draws and balanced epochs hold what they promise, and the first version's splits stay."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rift import catalog, dataset, estimate, recipe, stratify, train
from rift.config import Choice, Experiment, Training
from rift.runs import Lab
from tests.test_dataset import image_set

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 12), st.integers(0, 2**31 - 1))
def test_few_shots_are_so_many_of_each_class_and_grow_without_change(sizes, shots, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    drawn = stratify.few(labels, shots, seed)
    assert np.bincount(labels[drawn], minlength=len(sizes)).tolist() == [min(size, shots) for size in sizes]
    assert (np.diff(drawn) > 0).all() and np.array_equal(drawn, stratify.few(labels, shots, seed))
    assert set(drawn) <= set(stratify.few(labels, shots + 1, seed))


def test_another_seed_draws_other_images():
    labels = np.repeat([0, 1], 50)
    assert len({tuple(stratify.few(labels, 5, seed)) for seed in range(10)}) == 10


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 2**31 - 1))
def test_a_balanced_epoch_is_as_long_and_has_every_class_equally_often(sizes, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    drawn = stratify.balanced(labels, np.random.default_rng(seed))
    counts = np.bincount(labels[drawn], minlength=len(sizes))
    assert len(drawn) == len(labels) and counts.max() - counts.min() <= 1
    for label in range(len(sizes)):
        times = np.bincount(drawn, minlength=len(labels))[labels == label]
        assert times.max() - times.min() <= 1, "an image comes again only after all of its class came"


def test_balanced_batches_are_mixed_and_the_plain_ones_stay_as_they_were():
    labels = np.repeat([0, 1], [190, 10])
    shares = [labels[ids].mean() for epoch in range(20) for ids in train.batches(200, 20, epoch, 0, labels)]
    assert np.mean(shares) == pytest.approx(0.5) and np.std(shares) < 0.2 and max(shares) < 1
    assert len(train.batches(200, 20, 0, 0, labels)) == len(train.batches(200, 20, 0, 0))
    expected = np.array_split(np.random.default_rng([3, 1]).permutation(50), 4)
    assert all(np.array_equal(a, b) for a, b in zip(train.batches(50, 16, 1, 3), expected, strict=True))


def test_the_splits_of_the_first_version_stay():
    """Of sets with one class per image, with and without patients: their hash as it was before findings were known."""
    sha = hashlib.sha256()
    for seed, grouped in enumerate([False, True, False, True]):
        random = np.random.default_rng(seed)
        labels = np.concatenate([np.tile(np.arange(5), 4), random.integers(0, 5, 200)])
        groups = random.integers(0, 110, 220) if grouped else None
        parts = dataset.split(image_set(labels, groups), seed)
        for part in (parts.train, parts.validation, parts.test):
            sha.update(part.astype(np.int64).tobytes())
    assert sha.hexdigest()[:16] == "5daaf1eb7bc9d1c7"


@pytest.fixture
def lab(tmp_path) -> Lab:
    lab, random = Lab(tmp_path / "lab"), np.random.default_rng(0)

    def pictures(sizes):
        for name, size in sizes.items():
            for i in range(size):
                yield f"{name}{i}", name, random.integers(0, 255, (16, 16, 3), np.uint8), None, ""

    lab.medical = dataset.store(pictures({"common": 40, "rare": 10}), lab.data, name="uneven")
    lab.natural = dataset.store(pictures({"dog": 3, "cat": 3}), lab.data, name="two words")
    return lab


@pytest.mark.slow
def test_arms_of_a_seed_train_on_the_same_few_images_and_nothing_else_changes(lab, monkeypatch):
    seen, even, balanced = {}, [], stratify.balanced
    monkeypatch.setattr(stratify, "balanced", lambda labels, generator: even.append(len(labels)) or balanced(labels, generator))
    for name, seed in (("none", 0), ("rift", 0), ("none", 1)):
        one = Experiment(
            data=lab.medical.digest,
            natural=lab.natural.digest,
            backbone=catalog.check("backbones", Choice(name="embedded", options={"init": "random"})),
            method=Choice(name="linear"),
            regularizer=catalog.check("regularizers", Choice(name=name)),
            strength=float(name == "rift"),
            training=Training(epochs=2, batch_size=4, views=1, shots=3, balanced=True),
            seed=seed,
        )
        run = lab.submit(one)
        recipe.execute(run, lab, torch.device("cpu"))
        assert run.state == "done", run.end()
        rows = [line.split(",")[:3] for line in (run.path / "predictions.csv").read_text().splitlines()[1:]]
        seen[name, seed] = {part: {row[0] for row in rows if row[2] == part} for part in dataset.PARTS}
        assert sum(event["event"] == "step" for event in run.events()) == 2 * 2, "two batches of three images, twice"
        assert (
            estimate.steps(one, estimate.sizes(lab.medical, lab.natural, dataset.parts(lab.medical, one.training, 0)).train) == 4
        )
    assert set(even) == {6}, "every step's batch comes from a balanced epoch"
    assert seen["none", 0] == seen["rift", 0]
    assert len(seen["none", 0]["train"]) == 6 and seen["none", 0]["train"] != seen["none", 1]["train"]
    whole = dataset.split(lab.medical, 0)
    for parts in seen.values():
        assert parts["test"] == set(lab.medical.ids[whole.test]) and parts["validation"] == set(lab.medical.ids[whole.validation])

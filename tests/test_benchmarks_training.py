"""The contestants of the training benchmark do the same training: the same losses from the same start, all images counted."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from rift import catalog
from rift.config import Training
from tests.benchmarks import course, measured, peers, training
from tests.methods_toys import stripes

BATCH, EPOCHS = 6, 2
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later, of a process with threads


@pytest.fixture(scope="module")
def plain(tmp_path_factory, toy_backbone):
    """A course without augmentation on drawings that are as large as the model wants them: all contestants see equal pixels."""
    from rift import dataset

    folder, size = tmp_path_factory.mktemp("course"), toy_backbone.pixels
    images = dataset.store(stripes(["wide", "narrow"], 9, size, np.random.default_rng(0)), folder / "data", name="stripes")
    chosen = np.array([0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17])
    settings = Training(epochs=EPOCHS, batch_size=BATCH, augment="none", clip=training.UNCLIPPED, learning_rate=1e-3)
    files = course.files(images, chosen, folder / "files")
    return course.Course(images, chosen, np.array([1, 4, 10, 13]), files, toy_backbone, settings, seed=3)


def floats(values) -> list[float]:
    return [float(value) for value in values]


@pytest.fixture(scope="module")
def floor(plain):
    return course.floor(plain)


def same_model(one, other) -> bool:
    """Whether two models are the same to rounding, where they have trained at all."""
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    return all(torch.allclose(a, b, atol=2e-4) for a, b in pairs)


@pytest.mark.parametrize(
    "contestant",
    [
        pytest.param(course.ours, id="ours"),
        pytest.param(peers.image_folder, id="ImageFolder"),
        pytest.param(lambda one: peers.image_folder(one, workers=2), id="two workers"),
        pytest.param(peers.trainer, id="Trainer", marks=pytest.mark.slow),
    ],
)
def test_every_contestant_computes_the_losses_of_the_floor(contestant, plain, floor):
    ran = contestant(plain)
    assert ran.images == floor.images == EPOCHS * len(plain.chosen) and len(floor.losses) == plain.steps == 4
    np.testing.assert_allclose(floats(ran.losses), floats(floor.losses), atol=1e-5)
    assert len(set(floats(ran.losses))) == 4 and same_model(ran.classifier, floor.classifier)
    assert not same_model(ran.classifier.backbone, plain.pretrained)
    assert course.accuracy(ran.classifier, plain) == course.accuracy(floor.classifier, plain)
    assert ran.seconds > 0 and ran.processor_seconds > 0


def test_ours_is_the_floor_to_the_bit_also_with_augmented_views(plain):
    one = replace(plain, training=plain.training.model_copy(update={"augment": "strong"}))
    ours, floor = course.ours(one), course.floor(one)
    assert floats(ours.losses) == floats(floor.losses) != floats(course.floor(plain).losses)
    pairs = zip(ours.classifier.parameters(), floor.classifier.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("name", "naive"), [("rift", course.naive_rift), ("rsc", course.naive_rsc)])
def test_a_naive_penalty_is_ours_in_every_step(name, naive, plain):
    ours, theirs = course.ours(plain, name), course.floor(plain, naive)
    np.testing.assert_allclose(floats(theirs.penalties), floats(ours.penalties), rtol=1e-2, atol=1e-6)
    np.testing.assert_allclose(floats(theirs.losses), floats(ours.losses), atol=1e-4)
    assert max(floats(ours.penalties)) > 1e-4, "the model moved, so that there was something to compare"
    assert "targets" in ours.parts and ours.parts["targets"] > 0 and "a checkpoint" in ours.parts


@pytest.mark.parametrize(("name", "naive"), [("rift", course.naive_rift), ("rsc", course.naive_rsc)])
def test_a_naive_penalty_of_any_two_batches_is_ours(name, naive, toy_backbone):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(20, 8, generator=generator)
    after = before + torch.randn(20, 8, generator=generator)
    ours = catalog.door("regularizers", name)(toy_backbone, copy.deepcopy(toy_backbone), None)
    assert float(naive(after, before)) == pytest.approx(float(ours(after, before)), rel=1e-4)
    assert float(naive(before, before)) == pytest.approx(0, abs=1e-5) and float(naive(after, before)) > 0.05


def test_peers_read_the_pictures_that_ours_decodes(plain):
    found, order = peers.pictures(plain), peers.Order(plain, peers.pictures(plain))
    views, places = plain.views(), list(order)
    assert len(places) == len(plain.chosen) == len(order)
    for epoch_place, ids in zip(places, np.concatenate(plain.order(0)), strict=True):
        image, label = found[epoch_place]
        assert torch.allclose(image, views.images([int(ids)], 0)[0], atol=1e-6) and label == int(views.labels[int(ids)])


@pytest.mark.slow
def test_the_whole_comparison_gives_every_number_that_its_table_tells(plain, monkeypatch):
    monkeypatch.setitem(training.GOALS, "toy", {"floor": 0.95, "peers": 1.5})
    kept = torch.are_deterministic_algorithms_enabled()
    one = training.compare("toy", replace(plain, training=plain.training.model_copy(update={"epochs": 1})), 1, warm=False)
    torch.use_deterministic_algorithms(kept, warn_only=True)
    assert set(one["contestants"]) >= {"floor", "ours", *training.PEERS, "ours, rift", "naive rift"}
    assert ("ours, bf16" in one["contestants"]) != ("ours, bf16" in one["left_out"]), "as the processor is"
    assert one["contestants"]["floor"]["to_floor"]["median"] == 1 and set(one["left_out"]) <= {"ours, bf16"}
    speeds = {who: row["images_per_second"]["median"] for who, row in one["contestants"].items()}
    for goal in one["goals"]:
        assert goal["ratio"]["median"] == pytest.approx(speeds["ours"] / speeds[goal["ours_to"]], rel=0.02)
        assert goal["met"] == (goal["ratio"]["median"] >= goal["goal"])
    text = training.table({"data": "drawings", "models": [one]})
    bound = 1 / one["contestants"]["ImageFolder"]["to_floor"]["median"]
    assert any(line.startswith("| ImageFolder |") and f"| {bound:.2f} | ≥ 1.5 |" in line for line in text.splitlines())
    assert all(f"| {who} |" in text for who in [*one["contestants"], "naive rsc, beside ours with rsc"])


def test_contestants_take_turns_and_ratios_are_taken_within_a_round():
    asked = []
    found = measured.in_turn({name: (lambda turn, name=name: asked.append(name) or turn) for name in "abc"}, 4)
    assert "".join(asked) == "abc" + "bca" + "cab" + "abc" and found == {name: [0, 1, 2, 3] for name in "abc"}
    assert measured.ratios([2, 30], [1, 10]) == {"median": 2.5, "quarter": 2.25, "three_quarters": 2.75}


def test_a_trainer_that_is_not_installed_is_left_out_by_name(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "accelerate" else object())
    found, left_out = training.contestants(torch.device("cpu"))
    assert "Trainer" not in found and left_out["Trainer"] == "accelerate not installed"


@pytest.mark.parametrize("able", [True, False])
def test_half_precision_takes_part_where_the_processor_has_it(monkeypatch, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})
    found, left_out = training.contestants(torch.device("cpu"))
    assert ("ours, bf16" in found) == able and ("ours, bf16" in left_out) != able


@pytest.mark.slow
@pytest.mark.parametrize(("drawn", "most"), [(12, 16), (24, 16)])
def test_a_course_takes_whole_batches_and_decodes_hardly_more_than_it_needs(drawn, most):
    settings = Training(epochs=1, batch_size=8)
    with course.course(f"sample:phantoms:images_per_class={drawn}", "embedded", "", course.CPU, settings, most) as one:
        assert len(one.chosen) == 16 and len(one.images) <= max(2 * most, 5 * 12) and one.steps == 2
        assert not set(one.chosen) & set(one.judged) and len(set(one.labels)) > 2
        assert len(list(one.folder.rglob("*.png"))) == 16
        kept = one.folder
    assert not kept.exists()

"""Storing, loading and splitting image sets: nothing lost, nothing left behind, no patient on two sides."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rift import dataset, images, stratify
from rift.dataset import ImageSet, Report, load, split, store
from rift.errors import DataError, SettingError


def picture(seed: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size + 4, 3), dtype=np.uint8)


def entries(*sizes: int, first: int = 0) -> list[tuple]:
    """Return entries of different pictures, `sizes[k]` of class k."""
    names = [f"c{label}" for label, size in enumerate(sizes) for _ in range(size)]
    return [(f"{name}/{number}.png", name, picture(first + number), None, "") for number, name in enumerate(names)]


def image_set(labels, groups=None, given_parts=None) -> ImageSet:
    """Return a set without pictures, for splitting."""
    labels = np.asarray(labels)
    n = len(labels)
    return ImageSet(
        folder=Path(),
        name="x",
        digest="0",
        classes=tuple(f"c{label}" for label in range(labels.max() + 1)),
        ids=np.array([f"{number:05d}" for number in range(n)]),
        labels=labels,
        groups=None if groups is None else np.asarray(groups),
        given=np.array([""] * n if given_parts is None else given_parts),
        report=Report(kept=n),
    )


def test_store_keeps_pixels_labels_and_order(tmp_path):
    stored = store(reversed(entries(3, 2)), tmp_path, name="two\nlines", about="drawn")
    assert stored.name == "two lines" and stored.about == "drawn" and stored.classes == ("c0", "c1")
    assert stored.ids.tolist() == sorted(stored.ids.tolist()) and stored.labels.tolist() == [0, 0, 0, 1, 1]
    assert stored.folder == tmp_path / stored.digest and stored.groups is None and set(stored.given) == {""}
    for number, fitted in enumerate(stored.pixels(16)):
        np.testing.assert_array_equal(fitted, picture(number)[:, 2:18])
    again = load(stored.folder)
    assert again.report == stored.report and again.ids.tolist() == stored.ids.tolist()


def test_the_digest_is_of_the_content_alone(tmp_path):
    rows = entries(3, 3)
    base = store(rows, tmp_path, name="a").digest
    encoded = [(*row[:2], images.encode(row[2]), *row[3:]) for row in rows]
    assert store(encoded, tmp_path, name="b").digest == base
    assert load(tmp_path / base).name == "b"  # the last upload's name
    assert [path.name for path in tmp_path.iterdir()] == [base]
    for column, value in enumerate(("other.png", "c1", picture(99), "p1", "test")):
        other = [tuple(value if index == column else cell for index, cell in enumerate(rows[0])), *rows[1:]]
        assert store(other, tmp_path, name="a").digest != base


def test_a_second_store_with_other_encodings_leaves_the_bytes_readable(tmp_path):
    rows = entries(2, 2)
    store([(*row[:2], images.encode(row[2]) + bytes(100), *row[3:]) for row in rows], tmp_path, name="padded")
    np.testing.assert_array_equal(store(rows, tmp_path, name="plain").pixels(16)[0], picture(0)[:, 2:18])


def test_pixels_are_decoded_once_and_writing_into_them_is_private(tmp_path, monkeypatch):
    stored = store(entries(2, 2), tmp_path, name="x")
    first = np.array(stored.pixels(8))
    monkeypatch.setattr(images, "read", lambda *_, **__: pytest.fail("decoded again"))
    mapped = stored.pixels(8)
    np.testing.assert_array_equal(mapped, first)
    mapped[:] = 0
    np.testing.assert_array_equal(stored.pixels(8), first)


def _sum(stored: ImageSet, queue) -> None:
    queue.put(int(stored.pixels(24).sum()))


def test_two_processes_may_decode_at_once(tmp_path):
    stored = store(entries(20, 20), tmp_path, name="x")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_sum, args=(stored, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    sums = [queue.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join()
    assert sums[0] == sums[1] == int(stored.pixels(24).sum())
    assert sorted(path.name for path in stored.folder.iterdir()) == ["blobs.bin", "manifest.json", "pixels-24.npy"]


def test_deep_pictures_share_one_scale_with_shallow_ones(tmp_path):
    bright, dark = np.full((16, 16), 4095, np.uint16), np.full((16, 16), 1000, np.uint16)
    bright[0, 0] = dark[0, 0] = 0
    rows = [("a", "x", bright, None, ""), ("b", "x", dark, None, ""), ("c", "x", np.full((16, 16), 255, np.uint8), None, "")]
    stored = store(rows, tmp_path, name="x")
    pixels = stored.pixels(16)
    assert pixels.dtype == np.uint16
    assert pixels[0].max() == 65535 and pixels[2].max() == 65535
    assert pixels[1].max() == round(1000 * 65535 / 4095)  # its own depth of 10 bits would have made it white
    assert "4095" in next(item.message for item in stored.report.warnings if item.code == "data.depth")
    assert [item.file for item in stored.report.changed] == ["a", "b"]


def refused(tmp_path: Path, rows: list[tuple], code: str, *words: str, **options) -> None:
    with pytest.raises(DataError) as caught:
        store(rows, tmp_path, name="x", **options)
    assert caught.value.code == code, str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_refusals_name_what_is_wrong_and_leave_nothing(tmp_path):
    same = [("c0/a.png", "c0", picture(0), None, ""), ("c1/b.png", "c1", picture(0), None, "")]
    refused(tmp_path, same, "data.conflict", "c0/a.png", "c1/b.png")
    refused(tmp_path, entries(3), "data.one_class", "c0", "2", least_classes=2)
    refused(tmp_path, entries(3, 1, 2), "data.too_few", "c1 (1)", "c2 (2)", "--leave-out-small", least=3, least_classes=2)
    refused(tmp_path, entries(3, 1), "data.one_class", "c0", least=3, least_classes=2, leave_out_small=True)
    refused(tmp_path, entries(1, 1, 1), "data.too_many", "3 classes", limits=replace(dataset.LOCAL, classes=2))
    refused(tmp_path, [("a", "Cat", picture(0), None, ""), ("b", "cat", picture(1), None, "")], "data.conflict", "'Cat'", "'cat'")
    refused(tmp_path, [("a", "x", b"no picture", None, "")], "data.image", "'a'", "PNG, JPEG")
    refused(tmp_path, [], "data.too_few", "No image")


def test_a_fault_in_the_reader_leaves_nothing(tmp_path):
    def broken():
        raise RuntimeError("pulled out")

    with pytest.raises(RuntimeError):
        store([*entries(2), ("z", "c0", broken, None, "")], tmp_path, name="x")
    assert list(tmp_path.iterdir()) == []


def test_copies_are_dropped_and_the_test_part_keeps_its_own(tmp_path):
    rows = [("a.png", "x", picture(0), None, "train"), ("b.png", "x", picture(0), None, "test"), *entries(1, first=5)]
    stored = store(rows, tmp_path, name="x")
    assert stored.ids.tolist() == ["b.png", "c0/0.png"]  # sorted by id
    mixed = [(f"{number}.png", "x", picture(number), None, part) for number, part in enumerate(("train", "", "test", "train"))]
    assert store(mixed, tmp_path, name="x").given.tolist() == ["train", "", "test", "train"]
    (item,) = stored.report.skipped
    assert (item.file, item.code) == ("a.png", "data.duplicate") and "both test and train" in item.message


def test_small_classes_can_be_left_out(tmp_path):
    stored = store(entries(3, 1, 3), tmp_path, name="x", least=3, least_classes=2, leave_out_small=True)
    assert stored.classes == ("c0", "c2") and len(stored) == 6
    assert [item.code for item in stored.report.skipped] == ["data.left_out"]
    assert [item.code for item in stored.report.warnings] == ["data.left_out", "data.few"]


def test_warnings_about_the_whole_set(tmp_path):
    gray = [(f"g{number}.jpg", "gray", np.full((16, 16), number, np.uint8), None, "") for number in range(3)]
    leak = [(f"p{part}.png", "c0", picture(100 + number), "p", part) for number, part in enumerate(("train", "test"))]
    stored = store([*entries(40), *gray, *leak], tmp_path, name="x", least=3)
    said = {item.code: item.message for item in stored.report.warnings}
    assert set(said) == {"data.constant", "data.extension", "data.mixed", "data.imbalance", "data.few", "data.leak"}
    assert "100% of 'gray' are gray, but 0% of 'c0'" in said["data.mixed"] and "42 images" in said["data.imbalance"]
    assert stored.groups is not None and len(set(stored.groups)) == len(stored) - 1


def test_names_that_look_alike_stay_apart_and_progress_is_told(tmp_path):
    told = []
    rows = [
        ("a\u200b.png", "x", picture(0), None, ""),
        ("a.png", "x", picture(1), None, ""),
        ("a\x1b.png", "x", picture(2), None, ""),
    ]
    stored = store(rows, tmp_path, name="x", progress=lambda done, total, file: told.append((done, total)))
    assert stored.ids.tolist() == ["a.png", "a.png~2", "a.png~3"]
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_missing_set_is_said(tmp_path):
    with pytest.raises(DataError, match="no stored image set") as caught:
        load(tmp_path / "nothing")
    assert caught.value.code == "data.missing"


LABELS = st.lists(st.integers(3, 30), min_size=2, max_size=5).map(lambda sizes: np.repeat(np.arange(len(sizes)), sizes))


@settings(max_examples=60, deadline=None)
@given(LABELS, st.integers(0, 2**31 - 1), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_a_split_is_a_stratified_partition(labels, seed, validation, test):
    images_ = image_set(labels)
    parts = split(images_, seed, validation=validation, test=test)
    joined = np.concatenate([parts.train, parts.validation, parts.test])
    assert sorted(joined) == list(range(len(labels)))
    shares = {"train": 1 - validation - test, "validation": validation, "test": test}
    for name, share in shares.items():
        indices = getattr(parts, name)
        assert (np.diff(indices) > 0).all()
        counts = np.bincount(labels[indices], minlength=labels.max() + 1)
        assert counts.min() >= 1
        assert (abs(counts - share * np.bincount(labels)) <= 2).all()
    assert images_.counts(parts) == {name: len(getattr(parts, name)) for name in shares}
    again = split(images_, seed, validation=validation, test=test)
    assert all(np.array_equal(getattr(parts, name), getattr(again, name)) for name in shares)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), min_size=12, max_size=40), st.integers(0, 10**6))
def test_groups_stay_together(cases, seed):
    labels = np.concatenate([np.full(size, label) for label, size in cases])
    groups = np.concatenate([np.full(size, number) for number, (_, size) in enumerate(cases)])
    if min(Counter(label for label, _ in cases).get(label, 0) for label in range(labels.max() + 1)) < 3:
        with pytest.raises(DataError, match="patients or cases"):
            split(image_set(labels, groups), seed)
        return
    parts = split(image_set(labels, groups), seed)
    sides = [set(groups[indices]) for indices in (parts.train, parts.validation, parts.test)]
    assert not any(a & b for a, b in itertools.combinations(sides, 2)) and len(set().union(*sides)) == len(cases)
    assert all(set(labels[indices]) == set(labels) for indices in (parts.train, parts.validation, parts.test))


def test_groups_of_several_classes_are_split_too():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 30, 400)
    labels = rng.integers(0, 4, 400)
    parts = split(image_set(labels, groups), 1)
    assert not set(groups[parts.train]) & (set(groups[parts.validation]) | set(groups[parts.test]))
    assert 40 <= len(parts.test) <= 120
    whole = image_set([0, 1] * 9, np.repeat([0, 1, 2], 6))
    assert {len(getattr(split(whole, 0), name)) for name in dataset.PARTS} == {6}


def test_given_parts_are_kept_and_missing_ones_cut_from_train():
    labels = np.tile([0, 1], 50)
    given_parts = ["test"] * 20 + ["train"] * 80
    parts = split(image_set(labels, given_parts=given_parts), 0)
    assert parts.test.tolist() == list(range(20)) and len(parts.validation) == 16 and len(parts.train) == 64
    given_parts[20:30] = ["validation"] * 10
    parts = split(image_set(labels, given_parts=given_parts), 0)
    assert parts.validation.tolist() == list(range(20, 30)) and len(parts.train) == 70
    lacking = image_set([0] * 3 + [0, 1] * 10, given_parts=["test"] * 3 + [""] * 20)
    assert set(lacking.labels[split(lacking, 0).train]) == {0, 1}


def test_a_split_that_was_made_is_kept_and_never_given_for_another_set():
    labels, cases = np.repeat([0, 1], 40), np.arange(80) // 2
    plain, told = image_set(labels), image_set(labels, cases)
    first = split(plain, 0)
    assert split(image_set(labels), 0) is first
    with pytest.raises(ValueError, match="read-only"):
        first.test[0] = 1
    assert split(told, 0) is not first and split(image_set(labels[::-1]), 0) is not first
    assert split(image_set(labels, given_parts=["test"] * 10 + [""] * 70), 0) is not first
    assert split(plain, 0, test=0.3) is not first
    for seed in range(1, stratify.MOST_MADE + 2):
        split(plain, seed)
    assert split(plain, 0) is not first and np.array_equal(split(plain, 0).test, first.test)


def test_seeds_give_different_splits_and_impossible_ones_are_refused():
    labels = np.repeat([0, 1], 40)
    assert not np.array_equal(split(image_set(labels), 0).test, split(image_set(labels), 1).test)
    with pytest.raises(DataError, match=r"c1 \(2\).*needs 3") as caught:
        split(image_set([0, 0, 0, 1, 1]), 0)
    assert caught.value.code == "data.too_few"
    with pytest.raises(DataError, match=r"training images in c1 \(0\)"):
        split(image_set([0] * 9 + [1] * 3, given_parts=["train"] * 9 + ["test"] * 3), 0)
    with pytest.raises(DataError, match="cannot be split so that every class"):
        # four cases, each class in another three of them: two cases must share a part, and some class holds both
        split(image_set(*zip(*[(label, case) for label in range(4) for case in range(4) if case != label], strict=True)), 0)
    with pytest.raises(SettingError, match="below 1"):
        split(image_set(labels), 0, validation=0.6, test=0.6)

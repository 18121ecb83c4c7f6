"""Uploads of every kind: what is kept, what is skipped and why, and real packs."""

from __future__ import annotations

import io
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rift import dataset, images
from rift.errors import DataError
from rift.upload import read
from tests.uploads import good, picture, plain_zip, refusal, unpacked, written, zipped

# --- skipped and mended -------------------------------------------------------------------------------------------------------

SKIPPED = {
    "zip in zip": (plain_zip(good()), "data.image", "archive inside"),
    "web page": (b"<html></html>", "data.image", "web page"),
    "empty file": (b"", "data.image", "0 bytes"),
    "DICOM": (bytes(128) + b"DICM", "data.image", "DICOM"),
    "half": (picture(50)[:200], "data.image", "cut short"),
    "copy": (picture(0), "data.duplicate", "same picture as 'cat/0.png'"),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_one_bad_file_is_skipped_with_its_reason(name, tmp_path):
    data, code, words = SKIPPED[name]
    stored = read(zipped(tmp_path / "up.zip", {**good(), "cat/x.png": data}), tmp_path / "root")
    (item,) = stored.report.skipped
    assert stored.report.kept == len(stored) == 6
    assert (item.file, item.code) == ("cat/x.png", code) and words in item.message


def test_a_wrong_checksum_skips_one_file(tmp_path):
    data = plain_zip({**good(), "cat/x.png": picture(50)}, zipfile.ZIP_STORED)
    (tmp_path / "up.zip").write_bytes(data.replace(picture(50)[60:90], bytes(30), 1))
    stored = read(tmp_path / "up.zip", tmp_path / "root")
    assert [(item.file, item.code) for item in stored.report.skipped] == [("cat/x.png", "data.archive")]


def test_litter_is_ignored_and_strays_are_told(tmp_path):
    litter = dict.fromkeys(("__MACOSX/cat/._0.png", ".DS_Store", "cat/Thumbs.db", "dog/desktop.ini"), b"x")
    stored = read(
        zipped(tmp_path / "up.zip", {**good(), **litter, "readme.txt": b"hi", "a.dcm": b"x", "ant/": b""}), tmp_path / "root"
    )
    assert len(stored) == 6 and [item.code for item in stored.report.warnings] == ["data.empty", "data.few"]
    assert "'ant'" in stored.report.warnings[0].message
    assert {item.file: item.code for item in stored.report.skipped} == {"readme.txt": "data.unlabeled", "a.dcm": "data.unlabeled"}
    assert "DICOM" in stored.report.skipped[0].message


def test_altered_pictures_are_counted_once(tmp_path):
    clear = images.encode(np.arange(144, dtype=np.uint16).reshape(12, 12) * 400)
    stored = read(zipped(tmp_path / "up.zip", {**good(), "cat/deep.png": clear}), tmp_path / "root")
    assert [(item.file, item.code) for item in stored.report.changed] == [("cat/deep.png", "data.depth")]
    assert stored.report.kept == 7 and stored.pixels(12).dtype == np.uint16


@pytest.mark.parametrize("raw", ["<img src=x onerror=alert(1)>", "=cmd|'!A1", "CON", "${7*7}{{7*7}}", "😀", "n" * 250])
def test_odd_class_names_are_kept_as_text(raw, tmp_path):
    files = {f"{raw}/{number}.png": picture(number) for number in range(3)}
    stored = read(zipped(tmp_path / "up.zip", {**files, "dog/1.png": picture(9)}), tmp_path / "root", least=1)
    assert raw[:199] in "".join(stored.classes)
    assert max(map(len, stored.classes)) <= 200


def test_invisible_and_composed_characters_merge_and_are_told(tmp_path):
    files = {
        "dog/0.png": 0,
        "caf\u00e9/1.png": 1,
        "cafe\u0301/2.png": 2,
        "caf\u00e9\u200b/3.png": 3,
        "\u202edog/4.png": 4,
        "\u0441at/5.png": 5,
    }
    stored = read(zipped(tmp_path / "up.zip", {name: picture(seed) for name, seed in files.items()}), tmp_path / "root", least=1)
    assert stored.classes == ("café", "dog", "\u0441at")
    told = [item.message for item in stored.report.warnings if item.code == "data.name"]
    assert len(told) == 4 and any("U+200B" in text for text in told) and any("U+202E" in text for text in told)
    assert any("CYRILLIC and LATIN" in text for text in told)


def test_utf8_names_without_the_flag_are_read_as_utf8(tmp_path):
    raw = "épi/x.png".encode()
    data = plain_zip({**good(), "N" * len(raw): picture(99)}).replace(b"N" * len(raw), raw)
    stored = read(written(tmp_path / "up.zip", data), tmp_path / "root", least=1)
    assert stored.classes == ("cat", "dog", "épi")


# --- the same content in any wrapping -----------------------------------------------------------------------------------------


def test_zip_folder_order_and_outer_folders_give_one_digest(tmp_path):
    files = good()
    shuffled = dict(reversed(files.items()))
    wrappings = [
        zipped(tmp_path / "a.zip", files),
        zipped(tmp_path / "b.zip", shuffled, zipfile.ZIP_STORED),
        zipped(tmp_path / "c.zip", good("outer/inner/")),
        unpacked(tmp_path / "folder", files),
        unpacked(tmp_path / "deep", {**good("one/two/"), "readme.txt": b""}),
    ]
    stored = [read(path, tmp_path / "root") for path in wrappings]
    assert len({one.digest for one in stored}) == 1 and len(list((tmp_path / "root").iterdir())) == 1
    assert [one.name for one in stored] == ["a", "b", "c", "folder", "deep"]
    assert read(wrappings[0], tmp_path / "root").report == stored[0].report


def test_train_and_test_folders_are_respected(tmp_path):
    files = {}
    for number, part in enumerate(("Training", "valid", "TEST")):
        files |= {f"pack/{part}/{name}": picture(100 * number + seed) for seed, name in enumerate(good())}
    files["pack/valid/cat/copy.png"] = files["pack/TEST/cat/0.png"]
    stored = read(zipped(tmp_path / "up.zip", files), tmp_path / "root")
    assert stored.classes == ("cat", "dog") and stored.ids[0] == "TEST/cat/0.png"
    assert {part: int((stored.given == part).sum()) for part in dataset.PARTS} == {"train": 6, "validation": 6, "test": 6}
    assert (
        stored.report.skipped[0].file == "valid/cat/copy.png" and "both test and validation" in stored.report.skipped[0].message
    )


@pytest.mark.parametrize("stem", ["person{}_bacteria_{}", "Patient-{}_{}", "P00{}1-{}", "IM-00{}-000{}"])
def test_patients_are_read_from_names_only_when_all_follow_the_rule(stem, tmp_path):
    files = {f"{label}/{stem.format(n // 2, n)}.png": picture(10 * k + n) for k, label in enumerate("ab") for n in range(8)}
    stored = read(zipped(tmp_path / "up.zip", files), tmp_path / "root")
    assert stored.groups is not None and len(set(stored.groups)) == 4
    assert "4 patients" in next(item.message for item in stored.report.warnings if item.code == "data.groups")
    files["a/other.png"] = picture(99)
    assert read(zipped(tmp_path / "up.zip", files), tmp_path / "root").groups is None


def test_natural_sets_need_one_image_of_one_class(tmp_path):
    stored = read(zipped(tmp_path / "up.zip", {"sea lion/1.png": picture(0)}), tmp_path / "root", least=1, least_classes=1)
    assert stored.classes == ("sea lion",) and stored.report.warnings == ()


JUNK = st.sampled_from([b"", b"<svg/>", b"PK\3\4", picture(0)[:99], b"text"])
CONTENT = st.one_of(st.integers(0, 8).map(picture), JUNK)
PART = st.text(st.sampled_from("ab\u200b\u0301é. _~"), min_size=1, max_size=3).filter(lambda text: text not in (".", ".."))
TREE = st.dictionaries(st.lists(PART, min_size=1, max_size=4).map("/".join), CONTENT, max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TREE, st.randoms(use_true_random=False))
def test_every_file_is_kept_or_skipped_or_the_upload_is_refused(tmp_path, tree, shuffle):
    shutil.rmtree(tmp_path / "root", ignore_errors=True)
    try:
        stored = read(zipped(tmp_path / "up.zip", tree), tmp_path / "root", least=1, least_classes=1)
    except DataError:
        assert not (tmp_path / "root").exists() or list((tmp_path / "root").iterdir()) == []
        return
    report = stored.report
    assert report.kept == len(stored) == len(set(stored.ids)) and report.kept + len(report.skipped) == len(tree)
    assert {item.file for item in report.changed} <= set(stored.ids)
    names = list(tree)
    shuffle.shuffle(names)
    again = read(zipped(tmp_path / "up.zip", {name: tree[name] for name in names}), tmp_path / "root", least=1, least_classes=1)
    assert again.digest == stored.digest and again.report == report
    assert [path.name for path in (tmp_path / "root").iterdir()] == [stored.digest]


# --- npz ----------------------------------------------------------------------------------------------------------------------


def saved(path: Path, **arrays) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_medmnist_arrays(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = rng.integers(0, 256, (11, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(11, dtype=np.uint8)[:, None]
    stored = read(saved(tmp_path / "x.npz", **arrays), tmp_path / "root")
    assert stored.classes[:2] == ("00", "01") and stored.ids[0] == "test/000000" and len(stored) == 33
    assert {part: int((stored.given == part).sum()) for part in dataset.PARTS} == dict.fromkeys(dataset.PARTS, 11)
    np.testing.assert_array_equal(stored.pixels(28)[0, ..., 0], arrays["test_images"][0])
    named = read(
        saved(
            tmp_path / "y.npz",
            images=np.stack([arrays["val_images"]] * 3, -1),
            labels=np.arange(11) % 2,
            class_names=["no", "yes"],
        ),
        tmp_path / "root",
    )
    assert named.classes == ("no", "yes") and set(named.given) == {""}


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 16, 16), dtype=np.uint8)
TWO = np.arange(6) % 2
BAD_ARRAYS = {
    "multi-label": ({"images": PIXELS, "labels": np.zeros((6, 14), int)}, "data.label", "14 labels"),
    "lengths": ({"images": PIXELS, "labels": TWO[:5]}, "data.label", "for 6 images"),
    "float labels": ({"images": PIXELS, "labels": TWO / 2}, "data.label", "whole number"),
    "volumes": ({"images": np.zeros((2, 16, 16, 16), np.uint8), "labels": TWO[:2]}, "data.image", "(2, 16, 16, 16)"),
    "float images": ({"images": PIXELS / 255, "labels": TWO}, "data.image", "float64"),
    "names": ({"images": PIXELS, "labels": TWO + 1, "class_names": np.array(["a", "b"])}, "data.label", "2 class_names"),
    "other keys": ({"x": PIXELS, "y": TWO}, "data.archive", "it has x, y"),
    "objects": ({"images": PIXELS, "labels": np.array([{}] * 6, dtype=object)}, "data.archive", "labels.npy"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays_are_refused(name, tmp_path):
    arrays, code, words = BAD_ARRAYS[name]
    error = refusal(saved(tmp_path / "x.npz", **arrays), tmp_path / "root")
    assert error.code == code and words in str(error)


def test_an_array_that_promises_more_than_it_holds_is_refused(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 1000, 1000)})
    path = zipped(tmp_path / "x.npz", {"images.npy": file.getvalue() + bytes(99), "labels.npy": b"\x93NUMPY"})
    assert refusal(path, tmp_path / "root").code == "data.archive"
    assert refusal(written(tmp_path / "y.npz", b"no zip"), tmp_path / "root").code == "data.archive"


# --- real packs ---------------------------------------------------------------------------------------------------------------


def test_a_class_with_a_single_image_is_named_and_can_be_left_out(shared, tmp_path):
    pack = shared / "data/med_wbc_dataset1_5class.zip"
    error = refusal(pack, tmp_path / "root")
    assert error.code == "data.too_few" and "basophil (1)" in str(error) and "--leave-out-small" in str(error)
    stored = read(pack, tmp_path / "root", leave_out_small=True)
    assert len(stored) == 296 and stored.classes == ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
    assert [item.file for item in stored.report.skipped] == ["basophil/wbc1_291.jpg"]


def test_few_images_of_five_classes_are_in_every_part(shared, tmp_path):
    stored = read(shared / "data/med_wbc_dataset2_5class.zip", tmp_path / "root")
    parts = dataset.split(stored, 0)
    assert len(stored) == 100 and sum(stored.counts(parts).values()) == 100
    assert all(set(stored.labels[getattr(parts, part)]) == set(range(5)) for part in dataset.PARTS)


def test_the_given_split_of_the_chest_pack_is_respected(shared, tmp_path):
    stored = read(shared / "data/med_chest_xray_pneumonia_3class.zip", tmp_path / "root")
    assert stored.counts(dataset.split(stored, 0)) == {"train": 519, "validation": 130, "test": 240}
    assert len(stored) == 889 and stored.report.skipped == ()


def test_the_cifar_pack_reads_in_seconds(shared, tmp_path):
    started = time.process_time()
    stored = read(shared / "data/natural_cifar10_test_10class.zip", tmp_path / "root", least=1, least_classes=1)
    assert stored.pixels(32).shape == (1000, 32, 32, 3) and time.process_time() - started < 5
    assert stored.classes[:2] == ("airplane", "automobile") and stored.ids[0] == "airplane/0000.jpg"


def test_dicom_files_without_classes_say_so(shared, tmp_path):
    error = refusal(shared / "data/med_dicom_samples.zip", tmp_path / "root")
    assert "DICOM" in str(error) and "14 files" in str(error)

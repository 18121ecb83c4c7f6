"""Which images belong to one patient: what can be chosen, what it makes of the split, and that a choice loses nothing."""

from __future__ import annotations

import numpy as np
import pytest

from rift import api, dataset, patients, upload
from rift.errors import SettingError
from tests.uploads import picture, unpacked


def table(tmp_path, columns: dict[str, list[str]], n: int = 24):
    """A folder of n pictures of two classes with a table of these further columns."""
    files = {f"img{i}.png": picture(i) for i in range(n)}
    lines = [",".join(["file", "label", *columns])]
    lines += [",".join([f"img{i}.png", "ab"[i % 2], *(values[i] for values in columns.values())]) for i in range(n)]
    return unpacked(tmp_path / "set", files | {"labels.csv": "\n".join(lines).encode()})


def test_a_column_of_the_table_can_name_the_patient(tmp_path):
    person = [f"person {i // 2 % 6}" for i in range(24)]
    source = table(tmp_path, {"who": person, "sex": ["fm"[i % 2] for i in range(24)], "n": [str(i) for i in range(24)]})
    images = upload.read(source, tmp_path / "lab")
    found = patients.offers(images)
    assert list(found) == ["auto", "column:who"], "two sexes are no patients, and neither are 24 numbers of 24 images"
    assert found["column:who"].patients == 6 and patients.chosen(images) == "auto" and images.groups is None

    grouped = patients.choose(images, "column:who")
    assert patients.chosen(grouped) == "column:who" and grouped.digest != images.digest
    assert grouped.ids.tolist() == images.ids.tolist() and (grouped.labels == images.labels).all()
    assert (grouped.pixels(8) == images.pixels(8)).all()
    by_id = dict(zip(grouped.ids.tolist(), grouped.groups.tolist(), strict=True))
    assert all((by_id[f"img{i}.png"] == by_id[f"img{j}.png"]) == (person[i] == person[j]) for i in range(24) for j in range(24))
    parts = dataset.split(grouped, 0)
    sides = [set(grouped.groups[indices].tolist()) for indices in vars(parts).values()]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert [item.message for item in grouped.report.warnings if item.code == "data.groups"] == [
        "Patients are told by the column 'who': 6 of them, each kept in one part of the split."
    ]
    assert patients.choose(grouped, "auto").digest == images.digest, "the way back leads to the same set"
    assert patients.choose(images, "column:who").digest == grouped.digest


def test_file_names_and_folders_can_name_the_patient(tmp_path):
    files = {
        f"{kind}/{p}/{p}-{k}{i}_x.png": picture(100 * k + 10 * p + i)
        for k, kind in enumerate("ab")
        for p in range(4)
        for i in range(2)
    }
    images = upload.read(unpacked(tmp_path / "set", files), tmp_path / "lab")
    found = patients.offers(images)
    assert list(found) == ["auto", "prefix:-", "folder"], "up to the _ each name is another"
    assert found["prefix:-"].patients == 4 and found["folder"].patients == 8, "patient 0 of a is that of b, or is not"
    assert len(set(patients.choose(images, "folder").groups.tolist())) == 8


def test_what_the_upload_says_can_be_taken_back(tmp_path):
    files = {
        f"{kind}/patient{p}_{i}.png": picture(100 * k + 10 * p + i)
        for k, kind in enumerate("ab")
        for p in range(4)
        for i in range(2)
    }
    images = upload.read(unpacked(tmp_path / "set", files), tmp_path / "lab")
    assert list(patients.offers(images)) == ["auto", "none"], "the prefix says the same as the rule"
    alone = patients.choose(images, "none")
    assert alone.groups is None and not [item for item in alone.report.warnings if item.code == "data.groups"]
    assert (patients.choose(alone, "auto").groups == images.groups).all()


def test_a_patient_in_two_given_parts_is_told_with_pictures(tmp_path):
    files = {
        f"{part}/{kind}/{p}-{i}.png": picture(1000 * j + 100 * k + 10 * p + i)
        for j, part in enumerate(("train", "test"))
        for k, kind in enumerate("ab")
        for p in range(4)
        for i in range(3)
    }
    images = upload.read(unpacked(tmp_path / "set", files), tmp_path / "lab")
    (item,) = [item for item in patients.choose(images, "prefix:-").report.warnings if item.code == "data.leak"]
    assert "4 patients" in item.message and len(item.pictures) == 6 and set(item.pictures) <= set(images.ids.tolist())


def test_a_way_that_is_not_there_is_told_with_those_that_are(tmp_path):
    source = table(tmp_path, {"who": [f"p {i // 2 % 6}" for i in range(24)]})
    with pytest.raises(SettingError) as caught:
        api.open_data(source, tmp_path / "lab", patients="column:whom")
    assert caught.value.code == "setting.range" and "auto, column:who" in caught.value.sentence
    assert len(np.unique(api.open_data(source, tmp_path / "lab", patients="column:who").groups)) == 6


def test_a_set_without_any_way_offers_none(tmp_path):
    files = {f"{kind}/{i}.png": picture(10 * k + i) for k, kind in enumerate("ab") for i in range(4)}
    images = upload.read(unpacked(tmp_path / "set", files), tmp_path / "lab")
    assert patients.offers(images) == {} and patients.choose(images, "auto") is images

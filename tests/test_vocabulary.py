"""The vocabulary knows what it should, folds what people write, and says None to everything else."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rift import vocabulary
from rift.vocabulary import TEMPLATES, class_rows, fold, names, rows

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def read(shared: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((shared / "data" / "manifests" / name).read_text(encoding="utf-8").splitlines()))


def test_asset_is_what_build_makes():
    assert json.loads(vocabulary.PATH.read_text(encoding="utf-8")) == vocabulary.build()


def test_every_row_has_a_word_and_every_word_has_rows():
    found = {row for some in names().values() for row in some}
    assert found == set(range(1000))
    assert all(some == tuple(sorted(set(some))) and some for some in names().values())
    assert len(names()) > 2000
    assert all(fold(word) == word for word in names())


def test_every_lemma_is_known_except_parts_of_the_body():
    from timm.data import ImageNetInfo

    info, missing = ImageNetInfo("imagenet-1k"), set()
    for row in range(1000):
        for lemma in info.index_to_description(row).split(","):
            if row not in (rows(lemma) or ()):
                missing.add(lemma.strip())
    assert missing == {"cell", "mole", "groin", "head"}


@pytest.mark.parametrize(
    ("word", "members"),
    [
        ("dog", ["beagle", "chihuahua", "mexican hairless", "standard poodle"]),
        ("bird", ["cock", "albatross", "great grey owl", "king penguin"]),
        ("cat", ["tabby", "egyptian cat"]),
        ("car", ["cab", "convertible", "sports car", "jeep"]),
        ("truck", ["fire engine", "pickup", "trailer truck"]),
        ("food", ["guacamole", "banana", "pizza", "eggnog"]),
        ("fruit", ["granny smith", "pomegranate"]),
        ("guitar", ["acoustic guitar", "electric guitar"]),
        ("butterfly", ["monarch", "admiral", "lycaenid"]),
        ("snake", ["thunder snake", "sidewinder"]),
        ("monkey", ["guenon", "squirrel monkey"]),
    ],
)
def test_everyday_words_hold_their_kinds(word, members):
    for member in members:
        assert set(rows(member)) <= set(rows(word)), member


@pytest.mark.parametrize(
    ("word", "strangers"),
    [
        ("dog", ["timber wolf", "sea lion", "dingo"]),
        ("bird", ["tusker", "axolotl", "dugong"]),
        ("cat", ["cougar", "grey fox"]),
        ("food", ["cup", "plate", "alp"]),
        ("snake", ["triceratops", "trilobite"]),
        ("insect", ["starfish", "black grouse"]),
        ("fruit", ["bell pepper", "hay"]),
    ],
)
def test_everyday_words_hold_nothing_else(word, strangers):
    for stranger in strangers:
        assert not set(rows(stranger)) & set(rows(word)), stranger


def test_cifar10_is_known_and_its_kinds_do_not_overlap():
    known, some, unknown = class_rows(CIFAR10)
    assert known == CIFAR10 and unknown == []
    assert len({row for one in some for row in one}) == sum(map(len, some))
    assert "deer" in vocabulary.nearest() and "dog" not in vocabulary.nearest()
    assert vocabulary.nearest() <= set(names())


@pytest.mark.parametrize(
    "label", ["cell", "asdf", "", " ", "a", "the", "person", "tree", "coin", "normal", "a photo of a cell", "cells", "é", "."]
)
def test_unknown_is_none(label):
    assert rows(label) is None


def test_class_rows_keeps_labels_as_written_and_in_order():
    known, some, unknown = class_rows(["Dogs", "glioma", "Tabby", "polyp"])
    assert (known, some, unknown) == (["Dogs", "Tabby"], [rows("dog"), rows("tabby")], ["glioma", "polyp"])


def test_imagenet_class_names(shared):
    sample = read(shared, "natural_imagenet_sample_1pc_224px.csv")
    order = {wnid: row for row, wnid in enumerate(sorted(record["wnid"] for record in sample))}
    assert len(order) == 1000
    wrong = [record["class_name"] for record in sample if order[record["wnid"]] not in (rows(record["class_name"]) or ())]
    assert wrong == []
    tiny = read(shared, "natural_tiny_imagenet_classes.csv")
    assert len(tiny) == 200
    assert [record["class_name"] for record in tiny if order[record["wnid"]] not in (rows(record["class_name"]) or ())] == []


def test_flowers_are_unknown(shared):
    flowers = sorted({record["class_name"] for record in read(shared, "natural_flowers89_3pc_224px.csv")})
    known, _, unknown = class_rows(flowers)
    assert len(flowers) == 89 and len(unknown) >= 0.95 * 89
    assert known == ["artichoke"]


def test_medical_labels_are_unknown(shared):
    for pack in (shared / "data" / "manifests").glob("med_*.csv"):
        labels = {record.get("label", "") for record in read(shared, pack.name)}
        assert class_rows(sorted(labels))[0] == [], pack.name


@pytest.mark.parametrize(
    ("label", "folded"),
    [
        ("Dogs", "dog"),
        ("butterflies", "butterfly"),
        ("foxes", "fox"),
        ("wolves", "wolf"),
        ("knives", "knife"),
        ("geese", "goose"),
        ("Mice", "mouse"),
        ("churches", "church"),
        ("Golden_Retriever", "golden retriever"),
        ("german-shepherds", "german shepherd"),
        ("sunglasses", "sunglasses"),
        ("the bus", "bus"),
        ("  two \n dogs ", "dog"),
        ("tree-frog", "tree frog"),
        ("yellow lady’s slipper", "yellow lady's slipper"),
        ("A photo of a dog.", "dog"),
        ("an image of the Tabby cat", "tabby cat"),
        ("a picture of two dogs", "dog"),
        ("a blurry photo of many large foxes", "fox"),
        ("Photo of great white shark", "great white shark"),
        ("images of big cats", "big cat"),
        ("a photo of a large polyp", "polyp"),
        ("large polyp", "large polyp"),
        ("a photo of a Newfoundland, a type of pet.", "newfoundland"),
        ("R.V.", "r.v"),
        ("glioma_tumor", "glioma tumor"),
        ("two polyps", "polyps"),
    ],
)
def test_fold(label, folded):
    assert fold(label) == folded


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_is_understood(template):
    for word in ("dog", "great white shark", "R.V.", "golden-retriever", "unheard of thing"):
        assert fold(template.format(word)) == fold(word)


PIECES = ["a", "the", "photo", "of", "dogs", "big", "cats", "İ", "ǅ", "é", ",", ".", "in", "is", "this", "kind"]


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES)).map(" ".join)))
def test_fold_is_idempotent_and_total(text):
    once = fold(text)
    assert fold(once) == once
    assert rows(text) == rows(once)


def test_case_and_composition_do_not_matter():
    assert fold("CAFÉ") == fold("cafe\u0301") == "café"
    assert rows("DOG") == rows("dog")


def test_import_needs_neither_torch_nor_timm():
    code = "import sys, rift.vocabulary as v; v.rows('dogs'); assert not {'torch', 'timm'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=vocabulary.PATH.parents[1])

"""What is told of a whole set: near copies and their side of the split, traits that give the class away, names, changed files."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rift import catalog, copies, dataset, hints, images, intact, lookalikes, patients, recipe, shortcuts, stratify, upload
from rift.config import Choice, Experiment, Training
from rift.errors import DataError
from rift.shortcuts import Traits
from tests.methods_toys import toy_lab


def smooth(seed: int, size: int = 120) -> Image.Image:
    """A picture with coarse and fine structure, as photographs have."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.normal(0, 1, (n, n)).astype(np.float32)).resize((size, size), 3)) for n in (5, 12, 30)
    ]
    levels = (128 + 40 * layers[0] + 25 * layers[1] + 15 * layers[2]).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.repeat(levels[..., None], 3, axis=-1))


def jpeg(picture: Image.Image, quality: int = 60) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def rows(pictures: list[Image.Image | bytes], *, parts: int = 2, given: str = "") -> list[tuple]:
    """Entries of pictures, the classes by turns."""
    content = [one if isinstance(one, bytes) else np.asarray(one) for one in pictures]
    return [(f"{number:03d}", f"c{number % parts}", one, None, given) for number, one in enumerate(content)]


def told(stored: dataset.ImageSet, code: str) -> list[str]:
    return [item.message for item in stored.report.warnings if item.code == code]


# --- near copies --------------------------------------------------------------------------------------------------------------

COPIES = {
    "saved again": lambda one: Image.open(io.BytesIO(jpeg(one, 40))),
    "half the size": lambda one: one.resize((60, 60), Image.Resampling.BILINEAR),
    "twice the size": lambda one: one.resize((240, 240), Image.Resampling.LANCZOS),
    "another shape": lambda one: one.resize((160, 90), Image.Resampling.BICUBIC),
    "mirrored": lambda one: Image.open(io.BytesIO(jpeg(one.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))),
    "upside down": lambda one: Image.open(io.BytesIO(jpeg(one.transpose(Image.Transpose.FLIP_TOP_BOTTOM)))),
    "turned by 180 degrees": lambda one: one.resize((60, 60)).transpose(Image.Transpose.ROTATE_180),
    "16 bits": lambda one: np.asarray(one).astype(np.uint16) * 257,
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_found_among_others_and_how_it_was_made(kind):
    others = [np.asarray(smooth(seed)) for seed in range(40)]
    copy = np.asarray(COPIES[kind](smooth(7)))
    found = copies.pairs(np.stack([copies.signature(one) for one in [*others, copy]]))
    assert found == [(7, 40, kind if kind in copies.WAYS else "")]


def test_large_pictures_and_empty_ones():
    large = np.asarray(smooth(3).resize((1500, 1300), Image.Resampling.BICUBIC))
    blank = [np.full((50, 50, 3), level, np.uint8) for level in (7, 8, 8)]
    found = copies.pairs(np.stack([copies.signature(one) for one in [np.asarray(smooth(3)), large, *blank]]))
    assert found == [(0, 1, "")], "two empty pictures are no copies of each other"


def test_a_mirrored_picture_has_the_same_numbers_with_other_signs():
    picture = np.asarray(smooth(1)).astype(np.uint8)
    plain = copies.signature(picture).astype(np.float32).reshape(copies.KEPT, copies.KEPT)
    mirrored = copies.signature(picture[:, ::-1]).astype(np.float32).reshape(copies.KEPT, copies.KEPT)
    np.testing.assert_allclose(mirrored[:, ::2], plain[:, ::2], atol=2e-3)
    np.testing.assert_allclose(mirrored[:, 1::2], -plain[:, 1::2], atol=2e-3)


def test_pictures_that_share_a_frame_are_no_copies():
    """Fundus photographs of one camera: the bright disc is the same in all of them, what is in it is not."""

    def fundus(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        inside = np.hypot(*np.mgrid[-112:112, -112:112]) < 100
        grain = np.asarray(Image.fromarray(rng.normal(0, 5, (40, 40)).astype(np.float32)).resize((224, 224), 3))
        return np.repeat(np.where(inside, 120 + grain, 2).clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)

    signatures = np.stack([copies.signature(fundus(seed)) for seed in [*range(60), 5]]).astype(np.float32)
    alike = signatures @ signatures.T
    assert np.median(alike) > copies.LEAST, "or there would be nothing to see through"
    assert copies.pairs(signatures) == [(5, 60, "")]


def test_near_copies_stay_on_one_side_of_every_split(tmp_path):
    base = [smooth(seed) for seed in range(40)]
    near = [jpeg(base[seed].resize((90, 90))) for seed in range(0, 20)]
    stored = dataset.store(rows([*base, *near]), tmp_path, name="x", least=3, least_classes=2)
    ids = stored.ids.tolist()
    pairs = [(ids.index(f"{seed:03d}"), ids.index(f"{40 + seed:03d}")) for seed in range(20)]
    assert [stored.near[one] == stored.near[other] for one, other in pairs] == [True] * 20
    assert len(set(stored.near.tolist())) == 40 and stored.groups is None
    (message,) = told(stored, "data.near")
    assert message.startswith("40 pictures are near copies") and "one part of the split" in message
    crossed = 0
    for seed in range(10):
        together, apart = dataset.split(stored, seed), dataset.split(replace_near(stored), seed)
        side = np.empty(60, dtype="<U10")
        for name, chosen in vars(together).items():
            side[chosen] = name
        assert all(side[one] == side[other] for one, other in pairs)
        crossed += sum(one in apart.test and other in apart.train for one, other in pairs)
    assert crossed > 0, "without it some would be on both sides"


def replace_near(stored: dataset.ImageSet) -> dataset.ImageSet:
    return dataclasses.replace(stored, near=None)


def test_patients_and_near_copies_join():
    units = stratify.units_of([np.array([5, 5, 1, 2, 3]), np.array([0, 1, 1, 2, 3])], 5)
    assert len(set(units[:3].tolist())) == 1 and len(set(units.tolist())) == 3


def test_patients_told_in_another_way_keep_the_near_copies_together(tmp_path):
    base = [smooth(seed) for seed in range(16)]
    files = {f"{'ab'[n % 2]}/p{n // 4}_{n}.png": images.encode(np.asarray(one)) for n, one in enumerate(base)}
    files["a/p9_x.jpg"] = jpeg(base[0])
    for name, data in files.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(data)
    stored = upload.read(tmp_path / "up", tmp_path / "root")
    grouped = patients.choose(stored, "prefix:_")
    assert stored.near is not None and (grouped.near == stored.near).all() and grouped.groups is not None
    assert grouped.pixels(8).shape == (17, 8, 8, 3), "its seal holds"


def test_classes_that_would_have_too_little_keep_their_copies_apart_and_say_so(tmp_path):
    base = [smooth(seed) for seed in range(6)]
    few = rows([*base, jpeg(base[1]), smooth(90)])[:7]  # of c0: 0, 2, 4 and 6, the copy of 1
    few += [("x", "c1", jpeg(base[3]), None, "")]
    stored = dataset.store([row for row in few if row[0] != "005"], tmp_path, name="x", least=3, least_classes=2)
    assert stored.near is None and "both sides of the split" in told(stored, "data.near")[0]
    assert dataset.split(stored, 0)


def test_near_copies_across_given_parts_are_told(tmp_path):
    base = [smooth(seed) for seed in range(8)]
    entries = rows(base, given="train") + [(f"t{row[0]}", *row[1:4], "test") for row in rows([jpeg(one) for one in base])]
    stored = dataset.store(entries, tmp_path, name="x", least=3, least_classes=2)
    assert any("more than one of the given parts: for example '000' and 't000'" in text for text in told(stored, "data.near"))
    assert stored.report.warnings[0].pictures


# Taken before near copies were looked for: what runs are keyed by must not change where there are none.
PACKS = {
    "brain_mri_4class": ("13cd0479de0d0ce7", "dc610757acf9"),
    "chest_xray_pneumonia_3class": ("0bb4630840dbac66", "eb9baeac705e"),
    "colon_histology_ebhi_6class": ("16389e471e4d1f04", "c781a5d4af3a"),
    "skin_ham10000_7class": ("45caedd100f56301", "46d269fec744"),
    "wbc_dataset1_5class": ("3b267e082dcda452", "b92aeb4cbc0f"),
    "wbc_dataset2_5class": ("82499cd6e44df729", "d06c7a4252c6"),
}
HINTED = {"brain_mri_4class": 2}


@pytest.mark.parametrize("pack", [name if name[0] in "bw" else pytest.param(name, marks=pytest.mark.slow) for name in PACKS])
def test_real_packs_keep_digest_and_split_and_raise_no_false_alarm(pack, shared, tmp_path):
    stored = upload.read(shared / f"data/med_{pack}.zip", tmp_path, leave_out_small=True)
    parts = dataset.split(stored, 0)
    hashed = hashlib.sha256(b"".join(getattr(parts, name).tobytes() for name in dataset.PARTS)).hexdigest()
    assert (stored.digest[:16], hashed[:12]) == PACKS[pack] and stored.near is None
    assert not told(stored, "data.near") and len(told(stored, "data.shortcut")) == HINTED.get(pack, 0)


# --- shortcuts ----------------------------------------------------------------------------------------------------------------


def trait(width: int = 224, gray: bool = False, kind: str = "JPEG", margins: tuple[float, ...] = (0.0,) * 4) -> Traits:
    return Traits(width, 224, gray, kind, False, margins)  # type: ignore[arg-type]


def found(traits: list[Traits], labels: list[str], units: np.ndarray | None = None) -> list[shortcuts.Hint]:
    return shortcuts.hints(traits, labels, np.arange(len(labels)) if units is None else units)


LABELS = ["ill" if number % 3 else "well" for number in range(90)]
SHORTCUTS = {
    "size": ([trait(width=300 if label == "ill" else 224) for label in LABELS], "a width of more than 262 px"),
    "color": ([trait(gray=label == "ill") for label in LABELS], "no color"),
    "format": ([trait(kind="PNG" if label == "ill" else "JPEG") for label in LABELS], "PNG"),
    "margins": ([trait(margins=(0.1 * (label == "ill"), 0.0, 0.0, 0.0)) for label in LABELS], "an even margin at the top"),
}


@pytest.mark.parametrize("kind", SHORTCUTS)
def test_a_trait_that_gives_the_class_away_is_told_with_its_number(kind):
    traits, words = SHORTCUTS[kind]
    (hint,) = found(traits, LABELS)
    assert (hint.trait, hint.right, hint.commonest) == (kind, 1.0, "ill") and hint.share == pytest.approx(2 / 3)
    sides = {"ill": hint.label == "ill", "well": hint.label == "well"}
    assert hint.inside == 1.0 and sides[hint.label] and hint.there == LABELS.count(hint.label)
    assert words.split()[-1] in hint.where or hint.label == "well"
    assert all(LABELS[place] == hint.label for place in hint.examples)


def test_traits_that_tell_nothing_are_not_told():
    rng = np.random.default_rng(0)
    for seed in range(20):
        traits = [
            trait(width=int(w), gray=bool(g)) for w, g in zip(rng.integers(200, 400, 90), rng.integers(0, 2, 90), strict=True)
        ]
        assert found(traits, LABELS) == [], seed
    assert found([trait()] * 90, LABELS) == []
    assert found([trait(width=300 if label == "ill" else 224) for label in LABELS[:8]], LABELS[:8]) == [], "too few to judge"


def test_the_rule_is_judged_on_patients_that_it_has_not_seen():
    """Each patient has one size and one label by chance: sizes name patients and so labels, and nothing that holds for others."""
    rng = np.random.default_rng(1)
    unit = np.repeat(np.arange(12), 20)
    labels = [["ill", "well"][one] for one in rng.permutation([0, 1] * 6)[unit]]
    traits = [trait(width=200 + 10 * int(one)) for one in rng.permutation(12)[unit]]
    assert found(traits, labels) and found(traits, labels, unit) == []
    folds = shortcuts._folds(np.unique(labels, return_inverse=True)[1], unit)
    assert all(len(set(folds[unit == one].tolist())) == 1 for one in range(12)) and len(set(folds.tolist())) == shortcuts.FOLDS


def test_a_rare_class_that_its_size_names_is_told_though_the_commonest_is_right_for_nearly_all():
    labels = ["rare" if number < 12 else "common" for number in range(240)]
    (hint,) = found([trait(width=300 if label == "rare" else 224) for label in labels], labels)
    assert hint.right > 0.99 and hint.label == "rare" and hint.share == 0.95


def test_margins_are_even_borders_and_not_dark_tissue():
    framed = np.zeros((100, 80, 3), np.uint8)
    framed[20:90, 8:72] = np.random.default_rng(0).integers(40, 255, (70, 64, 3))
    assert shortcuts.of(framed, "PNG").margins == pytest.approx((0.2, 0.1, 0.1, 0.1))
    assert shortcuts.of((framed.astype(np.uint16) + 3) * 257, "PNG").margins == pytest.approx((0.2, 0.1, 0.1, 0.1))
    assert shortcuts.of(np.full((9, 9, 3), 5, np.uint8), "PNG").margins == (1.0,) * 4
    assert shortcuts.of(np.asarray(smooth(0)), "PNG").margins == (0.0,) * 4


def test_the_brain_pack_has_a_shortcut_and_its_number_is_said(shared, tmp_path):
    stored = upload.read(shared / "data/med_brain_mri_4class.zip", tmp_path)
    margins, size = told(stored, "data.shortcut")
    assert "By the size alone" in size and "39% of the pictures" in size and "right for 27%" in size
    assert "58% of the 161 pictures with a ratio of width to height of at most 0.99 are 'no_tumor', and 24% of all" in size
    assert "even margins" in margins and "46% of the pictures" in margins


def test_findings_have_shortcuts_too(tmp_path):
    rng = np.random.default_rng(0)
    entries = [
        (
            f"{n:03d}",
            ("mass",) if n % 2 else ("clear",) * (n % 4 == 0),
            rng.integers(0, 256, (20, 30 if n % 2 else 20, 3), np.uint8),
        )
        for n in range(60)
    ]
    (message,) = told(dataset.store(entries, tmp_path, name="x", least=3, least_classes=2), "data.shortcut")
    assert "right about 'mass' for 100% of the pictures" in message


def test_natural_images_are_not_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(hints, "remark", lambda *_: pytest.fail("asked"))
    dataset.store(rows([smooth(0), smooth(1)]), tmp_path, name="x", least=1)


# --- names --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), [("cat", "c\u0430t"), ("type l", "type 1"), ("Ａ", "A"), ("burn", "bum"), ("ß", "β")])
def test_names_that_look_the_same(one, other):
    assert lookalikes.skeleton(one) == lookalikes.skeleton(other)
    assert lookalikes.alike([one, other, "else"]) == [tuple(sorted([one, other]))]


@pytest.mark.parametrize(
    "names", [("cat", "cap"), ("grade 2", "grade 3"), ("naïve", "naive"), ("рак", "норма"), ("陽性", "陰性")]
)
def test_names_that_do_not(names):
    assert lookalikes.alike(names) == [] and not any(map(lookalikes.mixed, names))


def test_alphabets_mixed_in_one_word_are_told_and_greek_words_are_not():
    assert lookalikes.mixed("c\u0430t") == ["CYRILLIC", "LATIN"] and lookalikes.mixed("β-cell") == []


# --- what was stored is what is read ------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path) -> dataset.ImageSet:
    return dataset.store(rows([smooth(seed, 24) for seed in range(8)]), tmp_path / "data", name="x")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def manifest(stored: dataset.ImageSet) -> dict:
    return json.loads((stored.folder / "manifest.json").read_text())


def test_a_changed_picture_is_noticed_by_its_name(stored):
    flip(stored.folder / "blobs.bin", manifest(stored)["offsets"][3] + 60)
    assert not intact.holds(stored.folder)
    for look in (lambda: stored.pixels(24), lambda: stored.picture(3, 24), lambda: intact.refuse_changed(stored.folder)):
        with pytest.raises(DataError, match="'003' changed") as caught:
            look()
        assert caught.value.code == "data.changed"
    assert stored.picture(2, 24).shape == (24, 24, 3)


def test_changed_pixels_are_made_again_from_the_pictures(stored):
    before = np.array(stored.pixels(24))
    flip(stored.folder / "pixels-24.npy", 500)
    assert np.array_equal(stored.pixels(24), before) and np.array_equal(np.load(stored.folder / "pixels-24.npy"), before)


def test_a_changed_label_is_noticed(stored):
    document = manifest(stored)
    document["labels"][0] = 1 - document["labels"][0]
    (stored.folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="labels of x changed") as caught:
        dataset.load(stored.folder).pixels(24)
    assert caught.value.code == "data.changed"


def test_reading_the_same_images_again_mends_a_damaged_set(stored, tmp_path):
    before = np.array(stored.pixels(24))
    flip(stored.folder / "blobs.bin", 60)
    (stored.folder / "pixels-24.npy").unlink()
    again = dataset.store(rows([smooth(seed, 24) for seed in range(8)]), tmp_path / "data", name="y")
    assert again.digest == stored.digest and np.array_equal(again.pixels(24), before)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [stored.digest]


def test_a_set_of_an_older_version_is_read_as_before(stored):
    document = manifest(stored)
    for key in ("sums", "seal", "near"):
        del document[key]
    (stored.folder / "manifest.json").write_text(json.dumps(document))
    old = dataset.load(stored.folder)
    assert old.near is None and old.pixels(24).shape == (8, 24, 24, 3)
    np.save(stored.folder / "pixels-8.npy", np.zeros((8, 8, 8, 3), np.uint8))
    assert intact.whole(stored.folder / "pixels-8.npy") and not old.pixels(8).any()


def test_a_run_does_not_train_on_a_changed_picture(tmp_path):
    lab = toy_lab(tmp_path)
    one = Experiment(
        data=lab.medical.digest,
        natural=lab.natural.digest,
        backbone=catalog.check(
            "backbones", Choice(name="checkpoint", options={"path": str(lab.weights), "architecture": "test_vit"})
        ),
        training=Training(epochs=1, batch_size=8, views=2),
    )
    flip(lab.medical.folder / "blobs.bin", 60)
    shutil.rmtree(lab.cache, ignore_errors=True)
    run = lab.submit(one)
    recipe.execute(run, lab, torch.device("cpu"))
    assert run.state == "failed" and run.end()["code"] == "data.changed"
    assert not [event for event in run.events() if event["event"] == "step"]

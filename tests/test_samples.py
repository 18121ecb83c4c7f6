"""Samples: phantoms are what they claim, drawn alike each time and not told apart by color; MedMNIST is read from a stand-in."""

from __future__ import annotations

import hashlib
import importlib.util
import typing
import urllib.error
import urllib.request

import numpy as np
import pytest

from rift import catalog
from rift.config import Choice
from rift.errors import DataError, ModelError, SettingError
from rift.samples import medmnist, phantoms
from rift.samples._canvas import expose

KINDS = sorted(phantoms.KINDS)


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pixels and labels of each kind at the default difficulty: 24 drawings per class."""
    sets = {}
    for kind in KINDS:
        entries = list(phantoms._drawings(kind, 24, 0.4, 0))
        names = phantoms.KINDS[kind].CLASSES
        sets[kind] = np.stack([entry.content for entry in entries]), np.array([names.index(entry.label) for entry in entries])
    return sets


@pytest.mark.parametrize("kind", KINDS)
def test_phantoms_are_kept_as_drawn(tmp_path, kind):
    images = phantoms.load(tmp_path / "data", kind=kind, images_per_class=4)
    assert sorted(images.classes) == sorted(phantoms.KINDS[kind].CLASSES) and len(images.classes) >= 4
    assert np.bincount(images.labels).tolist() == [4] * len(images.classes)
    assert images.report.warnings == () and images.report.changed == ()
    assert "ynthetic, drawn by code" in images.about and "patients" in images.about
    assert images.pixels(128).shape == (len(images), 128, 128, 3)


@pytest.mark.slow
def test_phantoms_are_the_same_each_time_and_grow_by_adding(tmp_path):
    few = phantoms.load(tmp_path / "a", kind="fundus", images_per_class=4)
    assert phantoms.load(tmp_path / "b", kind="fundus", images_per_class=4).digest == few.digest
    assert phantoms.load(tmp_path / "a", kind="fundus", images_per_class=4, seed=1).digest != few.digest
    place = few.ids.tolist().index("exudates/0003.png")
    *_, last = (entry for entry, _ in zip(phantoms._drawings("fundus", 6, 0.4, 0), range(10), strict=False))
    assert last.id == "exudates/0003.png"  # the tenth of six normal ones and then exudates, the same as the fourth of four
    assert (few.pixels(128)[place] == last.content).all()


def test_camera_hides_color():
    """The same draw of the camera gives the same mean color, whatever stands before it."""
    seen, means = np.ones((256, 256)), []
    for tint in ((0.9, 0.2, 0.2), (0.3, 0.6, 0.8)):
        light = np.random.default_rng(1).uniform(0.5, 1, (256, 256, 1)) * tint
        means.append(expose(light, seen, np.random.default_rng(0), mean=(0.7, 0.5, 0.4), blur=0.5, noise=0.01).mean((0, 1)))
    assert np.abs(means[0] - means[1]).max() < 1  # of 255 levels
    assert np.abs(means[0] / 255 - (0.7, 0.5, 0.4)).max() < 0.15


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_phantoms_can_be_drawn_at_both_ends(kind, difficulty):
    drawer = phantoms.KINDS[kind]
    for label, name in enumerate(drawer.CLASSES):
        pixels = drawer.draw(name, np.random.default_rng(label), difficulty)
        assert pixels.shape == (128, 128, 3) and pixels.dtype == np.uint8
        assert pixels.std() > 15


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_mean_color_does_not_tell_the_classes(drawn, kind):
    """Leave-one-out nearest class mean on the three color means: by chance 1 / k are right; three deviations more are allowed."""
    pixels, labels = drawn[kind]
    colors = pixels.reshape(len(pixels), -1, 3).mean(1)
    chance = 1 / (labels.max() + 1)
    allowed = chance + 3 * np.sqrt(chance * (1 - chance) / len(labels))
    assert nearest_mean(colors, labels) < allowed
    red = colors + np.outer(labels == 0, [12.0, 0, 0])  # the same test sees a tint of 12 levels on one class
    assert nearest_mean(red, labels) > nearest_mean(colors, labels)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_shape_tells_the_classes(drawn, kind):
    """What remains of the green channel at three scales (strong marks, dark and bright) tells the classes far above chance."""
    from scipy import ndimage

    pixels, labels = drawn[kind]
    green = pixels[..., 1].astype(np.float64)
    marks = []
    for scale in (1, 2, 4):
        band = ndimage.gaussian_filter(green, (0, scale, scale)) - ndimage.gaussian_filter(green, (0, 2 * scale, 2 * scale))
        middle = band[:, 20:-20, 20:-20].reshape(len(band), -1)
        marks.append(np.percentile(middle, [0.5, 2, 10, 90, 98, 99.5], axis=1).T)
        marks.append(middle.std(1, keepdims=True))
    features = np.hstack(marks)
    chance = 1 / (labels.max() + 1)
    assert nearest_mean(features / features.std(0), labels) > chance + 0.25


def nearest_mean(features: np.ndarray, labels: np.ndarray) -> float:
    right = 0
    for i in range(len(labels)):
        rest = np.arange(len(labels)) != i
        means = np.stack([features[rest & (labels == label)].mean(0) for label in range(labels.max() + 1)])
        right += int(np.argmin(((means - features[i]) ** 2).sum(1)) == labels[i])
    return right / len(labels)


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> dict[str, np.ndarray]:
    """A file in MedMNIST's format where the download would put it."""
    info = pytest.importorskip("medmnist", reason="the optional package medmnist is not installed").INFO
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 60), ("val", 12), ("test", 24)):
        arrays[f"{part}_images"] = generator.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{part}_labels"] = np.arange(count, dtype=np.uint8).reshape(-1, 1) % 2
    path = tmp_path / "downloads" / "pneumoniamnist.npz"
    path.parent.mkdir()
    np.savez_compressed(path, **arrays)
    monkeypatch.setitem(info["pneumoniamnist"], "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    return arrays


def test_medmnist_keeps_labels_parts_and_pixels(tmp_path, stand_in):
    images = medmnist.load(tmp_path / "data", subset="pneumoniamnist", size=28, images_per_class=1000)
    assert images.classes == ("normal", "pneumonia") and len(images) == 96
    assert {part: int((images.given == part).sum()) for part in ("train", "validation", "test")} == {
        "train": 60,
        "validation": 12,
        "test": 24,
    }
    place = images.ids.tolist().index("validation/01/000007.png")
    assert images.labels[place] == 1 and images.given[place] == "validation"
    assert (images.pixels(28)[place] == stand_in["val_images"][7][..., None]).all()
    assert "CC BY 4.0" in images.about


def test_medmnist_takes_a_seeded_share_of_every_part(tmp_path, stand_in):
    few = medmnist.load(tmp_path / "data", subset="pneumoniamnist", size=28, images_per_class=16)
    assert np.bincount(few.labels).max() <= 16
    assert [int((few.given == part).sum()) for part in ("train", "validation", "test")] == [20, 4, 8]
    same = medmnist.load(tmp_path / "data", subset="pneumoniamnist", size=28, images_per_class=16)
    other = medmnist.load(tmp_path / "data", subset="pneumoniamnist", size=28, images_per_class=16, seed=1)
    assert same.digest == few.digest != other.digest


def test_medmnist_offline(tmp_path, monkeypatch):
    pytest.importorskip("medmnist", reason="the optional package medmnist is not installed")

    def refuse(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(ModelError) as caught:
        medmnist.load(tmp_path / "data")
    assert caught.value.code == "model.offline"
    assert str(caught.value).startswith(
        "bloodmnist_64.npz of MedMNIST is not on this machine and could not be downloaded (URLError"
    )
    assert "phantoms needs no download" in str(caught.value)


def test_medmnist_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install medmnist") as caught:
        medmnist.load(tmp_path / "data")
    assert caught.value.code == "data.missing"


def test_settings_are_bounded_and_read_from_text():
    for name in catalog.names("samples"):
        assert catalog.summary("samples", name)
        catalog.check("samples", Choice(name=name))
    assert catalog.check("samples", catalog.parse("medmnist:subset=retinamnist,size=128")).options["size"] == 128
    for bad in (
        "medmnist:size=65",
        "medmnist:size=big",
        "medmnist:subset=chestmnist",
        "phantoms:difficulty=1.5",
        "phantoms:kind=mri",
    ):
        with pytest.raises(SettingError, match="is not allowed"):
            catalog.check("samples", catalog.parse(bad))


def test_all_medmnist_sets_on_offer_have_one_label_per_picture():
    info = pytest.importorskip("medmnist", reason="the optional package medmnist is not installed").INFO
    flat = {name for name, about in info.items() if not name.endswith("3d") and not about["task"].startswith("multi-label")}
    assert set(typing.get_args(medmnist.Subset)) == flat

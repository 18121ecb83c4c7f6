"""Corruptions do what they say, to the same pixels each time; numbers by hand on made-up logits; a toy that sees stripes."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from skimage import data as photos
from skimage.color import hsv2rgb, rgb2hsv
from skimage.transform import resize
from sklearn.metrics import average_precision_score, balanced_accuracy_score
from torch import nn

from rift import catalog
from rift.captures import Data, Images
from rift.diagnostics import _corruptions, corruption
from rift.diagnostics._corruptions import CORRUPTIONS, corrupted
from rift.model import Classifier, NaturalHead
from rift.similarity import debiased_cka
from rift.statistics import proportion_interval
from tests.methods_toys import stripes, toy

NAMES = list(CORRUPTIONS)


def pictures(side: int) -> torch.Tensor:
    """Three photographs, `(3, 3, side, side)`."""
    each = [resize(one, (side, side), anti_aliasing=True) for one in (photos.astronaut(), photos.chelsea(), photos.coffee())]
    return torch.from_numpy(np.stack(each).transpose(0, 3, 1, 2).astype(np.float32)).clamp(0, 1)


def striped(each: int = 6, side: int = 32, names: tuple[str, ...] = ("narrow", "wide")) -> Images:
    drawn = list(stripes(names, each, side, np.random.default_rng(0)))
    labels = np.array([names.index(one[1]) for one in drawn])
    return Images(np.stack([one[2] for one in drawn]), np.array([one[0] for one in drawn]), labels, names)


def under(images: torch.Tensor, name: str, severity: int, seed: int = 0) -> torch.Tensor:
    return CORRUPTIONS[name](images, severity, np.random.default_rng(seed))


@pytest.mark.parametrize("side", [32, 64, 96])
@pytest.mark.parametrize("name", NAMES)
def test_a_corruption_keeps_shape_and_range_is_drawn_from_its_seed_and_grows_with_severity(name, side):
    images = pictures(side)
    given = images.clone()
    found = [under(images, name, severity) for severity in range(1, 6)]
    assert torch.equal(images, given)
    for severity, one in enumerate(found, 1):
        assert one.shape == images.shape and one.dtype == torch.float32
        assert float(one.min()) >= 0 and float(one.max()) <= 1
        assert torch.equal(one, under(images, name, severity))
    away = [float((one - images).abs().mean()) for one in found]
    assert away[0] > 0.002 and np.all(np.diff(away) > 0), away


def test_there_are_at_least_twelve_corruptions_and_no_two_are_alike():
    images = pictures(64)
    found = [under(images, name, 3) for name in NAMES]
    assert len(NAMES) >= 12
    for i, one in enumerate(found):
        assert min(float((one - other).abs().mean()) for other in found[i + 1 :] + found[:i]) > 0.005, NAMES[i]


def test_gray_images_are_changed_by_every_corruption():
    gray = pictures(64).mean(1, keepdim=True).expand(-1, 3, -1, -1).contiguous()
    assert all(float((under(gray, name, 1) - gray).abs().mean()) > 0.002 for name in NAMES)


@pytest.mark.parametrize(
    "name", ["gaussian_blur", "defocus_blur", "motion_blur", "pixelate", "rotation", "zoom", "elastic", "contrast"]
)
def test_an_image_of_one_color_has_nothing_to_blur_or_move(name):
    plain = torch.full((2, 3, 64, 64), 0.3)
    assert torch.allclose(under(plain, name, 5), plain, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_at_strength_zero_a_corruption_is_the_identity(name, monkeypatch):
    images = pictures(64)
    if name == "stain":  # at s = 0, by its own arithmetic: a generator that draws 0 for all
        still = type("Still", (), {"uniform": lambda self, low, high, shape: np.zeros(shape)})()
        assert torch.allclose(CORRUPTIONS[name](images, 5, still), images, atol=1e-5)
    if name in ("defocus_blur", "motion_blur"):
        monkeypatch.setattr(_corruptions, "_length", lambda *given: 0.0)
        assert torch.allclose(under(images, name, 5), images, atol=1e-6)
    if name in ("rotation", "zoom"):
        n = len(images)
        still = _corruptions._affine(images, np.ones(n), np.zeros(n), np.zeros((n, 2)))
        assert torch.allclose(still, images, atol=1e-4)


def test_brightness_is_the_value_of_hsv_and_rotation_by_45_degrees_twice_a_quarter_turn():
    images = pictures(32)
    hsv = rgb2hsv(images.numpy(), channel_axis=1)
    hsv[:, 2] = np.minimum(hsv[:, 2] + 0.3, 1)
    assert np.allclose(under(images, "brightness", 3), hsv2rgb(hsv, channel_axis=1), atol=1e-5)
    black = torch.zeros(1, 3, 32, 32)
    assert torch.allclose(under(black, "brightness", 3), torch.full_like(black, 0.3))
    quarter = _corruptions._affine(images, np.zeros(3), np.ones(3), np.zeros((3, 2)))
    assert any(torch.allclose(quarter, images.rot90(turns, (2, 3)), atol=1e-4) for turns in (1, 3))


def test_contrast_keeps_the_mean_color():
    images = pictures(32)
    found = under(images, "contrast", 3)
    assert torch.allclose(found.mean((2, 3)), images.mean((2, 3)), atol=1e-5)
    assert torch.allclose(found.std((2, 3)), 0.2 * images.std((2, 3)), atol=1e-5)


def test_severities_are_those_of_hendrycks_at_both_sides_and_lengths_grow_beyond():
    def at(side):
        return _corruptions._at(torch.zeros(1, 3, side, side), 2, (0, 1, 0, 0, 0), (0, 3, 0, 0, 0))

    assert [at(side) for side in (32, 64, 144, 224, 448)] == [1, 1, 2, 3, 3]
    assert _corruptions._length(torch.zeros(1, 3, 448, 448), 2, (0, 1, 0, 0, 0), (0, 3, 0, 0, 0)) == 6
    noise = under(torch.full((8, 3, 64, 64), 0.5), "gaussian_noise", 2) - 0.5
    assert float(noise.std()) == pytest.approx(0.08, rel=0.02)


def test_pixels_depend_on_the_seed_and_on_an_images_place_only():
    images = striped(20)
    whole = torch.cat(list(corrupted(images, "gaussian_noise", 3, 5)))
    first = torch.cat(list(corrupted(_corruptions.some(images, 999, 0), "gaussian_noise", 3, 5)))
    assert whole.shape == (40, 3, 32, 32) and torch.equal(whole, first)
    assert not torch.equal(whole, torch.cat(list(corrupted(images, "gaussian_noise", 3, 6))))
    gaps = whole - torch.cat(list(_corruptions.chunks(images)))
    assert not torch.allclose(gaps[0], gaps[32], atol=0.01), "two chunks do not share their noise"


def test_uint16_images_are_corrupted_like_the_same_in_uint8():
    images = striped()
    deep = dataclasses.replace(images, pixels=images.pixels.astype(np.uint16) * 257)
    for name in NAMES:
        one, other = (torch.cat(list(corrupted(every, name, 2, 0))) for every in (images, deep))
        assert torch.allclose(one, other, atol=0.02 if name == "jpeg" else 1e-4), name


def made_up(seed: int = 0, n: int = 40, k: int = 3, multi: bool = False, v: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    c = 2
    labels = (random.random((n, k)) < 0.4).astype(int) if multi else np.arange(n) % k
    cka = random.uniform(0.4, 0.9, (c, v, 21))
    named = random.integers(0, 4, (c, v, 10))
    return {
        "logits": random.normal(size=(c, v, n, k)) + 1.5 * (labels if multi else np.eye(k)[labels]),
        "clean_logits": random.normal(size=(n, k)) + 3 * (labels if multi else np.eye(k)[labels]),
        **{f"{model}named": named for model in ("", "pretrained_")},
        **{f"clean_{model}named": np.arange(10) % 4 for model in ("", "pretrained_")},
        **{f"{model}cka{images}": cka for model in ("", "pretrained_") for images in ("", "_natural")},
        "corruptions": np.array(["blur", "noise"]),
        "severities": np.array([1, 3, 5][:v] if v < 5 else [1, 2, 3, 4, 5]),
        "ids": np.array([str(i) for i in range(n)]),
        "labels": labels,
        "natural_labels": np.arange(10) % 4,
        "scored": np.arange(10) < 8,
    }


def test_mean_corruption_error_by_hand():
    arrays = made_up()
    arrays["clean_logits"][:10] = -10 * np.eye(3)[arrays["labels"][:10]]  # ten of the clean images are named wrongly
    found, labels = corruption.measure(arrays), arrays["labels"]
    errors = [[1 - np.mean([one[i].argmax() == labels[i] for i in range(40)]) for one in row] for row in arrays["logits"]]
    clean = np.mean([arrays["clean_logits"][i].argmax() != labels[i] for i in range(40)])
    assert np.allclose(found["accuracy"], 1 - np.array(errors))
    assert found["mean_corruption_error"] == pytest.approx(np.mean(errors))
    assert found["relative_corruption_error"] == pytest.approx(np.mean(errors) / clean)
    assert found["mean_drop"] == pytest.approx(np.mean(errors) - clean)
    assert found["mean_drop_low"] < found["mean_drop"] < found["mean_drop_high"]
    assert np.allclose(found["corruption_accuracy"], 1 - np.mean(errors, axis=1))
    assert np.allclose(found["severity_accuracy"][[0, 2]], 1 - np.mean(errors, axis=0))
    assert np.isnan(found["severity_accuracy"][[1, 3, 4]]).all() and found["severity_accuracy_reason"]
    hits = round(40 * (1 - errors[1][0]))
    assert (found["accuracy_low"][1, 0], found["accuracy_high"][1, 0]) == pytest.approx(proportion_interval(hits, 40))
    assert (found["clean_accuracy_low"], found["clean_accuracy_high"]) == pytest.approx(
        proportion_interval(round(40 * (1 - clean)), 40)
    )
    balanced = balanced_accuracy_score(labels, arrays["logits"][0, 1].argmax(1))
    assert found["balanced_accuracy"][0, 1] == pytest.approx(balanced)
    assert found["image_score"].mean() == pytest.approx(found["mean_accuracy"])
    assert found["natural_accuracy"][0, 0] == pytest.approx(np.mean(arrays["named"][0, 0, :8] == arrays["natural_labels"][:8]))
    assert found["clean_natural_accuracy"] == 1 and found["n_natural"] == 8
    assert found["mean_cka_debiased"] == pytest.approx(arrays["cka"][..., 0].mean())


def test_the_interval_of_a_mean_is_the_textbook_one_where_each_image_is_a_fold():
    arrays = made_up(n=20)
    found = corruption.measure(arrays)
    each = (arrays["logits"].argmax(3) == arrays["labels"]).mean((0, 1))
    reach = 2.093 * each.std(ddof=1) / np.sqrt(20)  # Student's t with 19 degrees of freedom
    assert found["mean_accuracy_low"] == pytest.approx(each.mean() - reach, abs=1e-3)
    assert found["mean_accuracy_high"] == pytest.approx(min(1, each.mean() + reach), abs=1e-3)


def test_without_a_clean_error_there_is_no_relative_one():
    arrays = made_up()
    arrays["clean_logits"] = 10 * np.eye(3)[arrays["labels"]]
    found = corruption.measure(arrays)
    assert found["relative_corruption_error"] is None
    assert found["relative_corruption_error_reason"] == "there is no error on clean images"


def test_of_findings_the_score_is_the_mean_average_precision():
    arrays = made_up(multi=True)
    arrays["labels"][:, 2] = 0  # a finding that no image shows is in no mean
    arrays["logits"] = np.round(arrays["logits"])  # many ties
    found = corruption.measure(arrays)
    truth = arrays["labels"] > 0
    by_hand = [
        [np.mean([average_precision_score(truth[:, j], one[:, j]) for j in (0, 1)]) for one in row] for row in arrays["logits"]
    ]
    assert found["score"] == "average_precision" and "balanced_accuracy" not in found
    assert np.allclose(found["average_precision"], by_hand)
    assert found["mean_corruption_error"] == pytest.approx(1 - np.mean(by_hand))
    assert np.allclose(found["accuracy"], ((arrays["logits"] >= 0) == truth).mean((2, 3)))
    said = corruption.sentence(json.loads(json.dumps({"none": plain(found)})))
    assert "1 - mAP" in said


def plain(found):
    from rift.measures import plain

    return plain(found)


@pytest.mark.parametrize("why", ["labels", "logits", "natural", "one", "findings"])
def test_what_cannot_be_computed_says_why(why):
    arrays = made_up(n=1 if why == "one" else 40, multi=why == "findings")
    if why == "labels":
        arrays["labels"][:] = -1
    if why == "findings":
        arrays["labels"][:] = 1
    if why == "logits":
        arrays["logits"][0, 0, 0, 0] = np.nan
    if why == "natural":
        arrays["scored"][:] = False
    if why == "one":
        for name in ("cka", "pretrained_cka"):
            arrays[name] = np.full((2, 2, 1), np.nan)
    found = plain(corruption.measure(arrays))
    for key, value in found.items():
        assert value is not None or found.get(f"{key}_reason"), key
    expected = {
        "labels": ("mean_corruption_error", "no test image has a known label"),
        "logits": ("mean_corruption_error", "the model's outputs are not finite numbers: its training diverged"),
        "natural": (
            "mean_natural_accuracy",
            "no natural image has a label that the natural head knows, or there is no such head",
        ),
        "one": ("mean_cka_debiased", "CKA is undefined where the test images are fewer than 4 or are all embedded alike"),
        "findings": (
            "mean_corruption_error",
            "average_precision is undefined where every finding is shown by all or by no test image",
        ),
    }
    name, reason = expected[why]
    assert found[name] is None and found[f"{name}_reason"] == reason
    results = {"none": found}
    assert corruption.sentence(results) and json.loads(corruption.figure(results).to_json())["data"] is not None
    if why == "one":
        assert found["mean_accuracy_low"] is None and "too few" in found["mean_accuracy_low_reason"]


def stripe_reader(images: Images) -> Classifier:
    """A toy whose head has learned to tell these stripes apart."""
    backbone = toy()
    head = nn.Linear(backbone.width, 2)
    with torch.no_grad():
        embeddings = torch.cat([backbone(one) for one in _corruptions.chunks(images)])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(embeddings), torch.from_numpy(images.labels)).backward()
        optimizer.step()
    return Classifier(backbone, head).eval()


def test_a_toy_trained_on_stripes_loses_accuracy_with_noise():
    images = striped(12)
    images = dataclasses.replace(images, pixels=images.pixels // 6)  # faint: about as strong as the noise
    reader = stripe_reader(images)
    with torch.inference_mode():
        clean = torch.cat([reader(one)[1] for one in _corruptions.chunks(images)]).argmax(1).numpy()
    assert (clean == images.labels).all()
    noises = ["gaussian_noise", "impulse_noise", "shot_noise"]

    def right(severity: int) -> float:
        chunks = [torch.cat([reader(one)[1] for one in corrupted(images, name, severity, seed=0)]) for name in noises]
        return float(np.mean([(logits.argmax(1).numpy() == images.labels).mean() for logits in chunks]))

    with torch.inference_mode():
        weak, strong = right(1), right(5)
    assert strong < weak and strong < 0.9


def data_of(folder, natural_head=None, batch_size=64, n=6) -> Data:
    folder.mkdir(exist_ok=True)
    images, natural = striped(n), striped(3, names=("dog", "cat"))
    return Data(images, images, natural, natural_head, folder, seed=3, device=torch.device("cpu"), batch_size=batch_size)


@pytest.fixture
def few(monkeypatch):
    """Only three corruptions, so that a capture is quick."""
    kept = {name: CORRUPTIONS[name] for name in ("gaussian_noise", "stain", "zoom")}
    monkeypatch.setattr(corruption, "CORRUPTIONS", kept)
    return kept


def test_both_models_and_all_arms_see_the_same_pixels_and_a_stop_loses_one_part_at_most(tmp_path, few, monkeypatch):
    backbone = toy()
    finetuned = Classifier(copy.deepcopy(backbone), nn.Linear(backbone.width, 2)).eval()
    head = NaturalHead(("dog",), torch.nn.functional.normalize(torch.randn(1, backbone.width), dim=1))
    arrays = corruption.capture(backbone, finetuned, data_of(tmp_path / "a", head), severities="three")
    assert np.array_equal(arrays["cka"], arrays["pretrained_cka"]), "equal models, equal pixels"
    assert np.array_equal(arrays["named"], arrays["pretrained_named"])
    assert arrays["scored"].sum() == 3 and arrays["logits"].shape == (3, 3, 12, 2)
    assert arrays["pictures"].shape == (10, 32, 32, 3) and arrays["pictures"].dtype == np.uint8
    clean = torch.cat(list(_corruptions.chunks(striped())))
    noisy = torch.cat(list(corrupted(striped(), "gaussian_noise", 5, 3)))
    with torch.inference_mode():
        assert arrays["cka"][0, 2, 0] == pytest.approx(debiased_cka(backbone(clean).numpy(), backbone(noisy).numpy()), abs=1e-6)
        assert np.allclose(arrays["logits"][0, 2], finetuned(noisy)[1].numpy(), atol=1e-5)
    assert np.array_equal(arrays["pictures"][3], noisy[0].mul(255).round().byte().permute(1, 2, 0).numpy())

    whole, seen = corruption.corrupted, []

    def stop(images, name, severity, seed):
        if name == "zoom":
            raise KeyboardInterrupt
        return whole(images, name, severity, seed)

    other = data_of(tmp_path / "b", head, batch_size=5)
    monkeypatch.setattr(corruption, "corrupted", stop)
    with pytest.raises(KeyboardInterrupt):
        corruption.capture(backbone, finetuned, other, severities="three")
    assert {path.stem for path in (tmp_path / "b").iterdir()} == {"gaussian_noise", "stain"}
    monkeypatch.setattr(corruption, "corrupted", lambda *given: seen.append(given[1]) or whole(*given))
    again = corruption.capture(backbone, finetuned, other, severities="three")
    assert set(seen) == {"zoom"}
    assert all(np.array_equal(again[key], arrays[key], equal_nan=arrays[key].dtype.kind == "f") for key in arrays)


def test_without_natural_images_or_head_all_else_is_there(tmp_path, few):
    backbone = toy()
    finetuned = Classifier(copy.deepcopy(backbone), nn.Linear(backbone.width, 2)).eval()
    arrays = corruption.capture(backbone, finetuned, data_of(tmp_path / "a"), severities="one", natural_images=0)
    found = corruption.measure(arrays)
    assert (
        found["n_natural_images"] == 0 and found["mean_natural_accuracy"] is None and found["mean_cka_natural_debiased"] is None
    )
    assert 0 <= found["mean_corruption_error"] <= 1 and found["mean_cka_debiased"] <= 1


def test_the_gallery_points_at_the_picture_of_its_caption():
    results = {"none": plain(corruption.measure(made_up()))}
    rows = corruption.gallery(results)
    assert [row["caption"][-1] for row in rows] == ["1", "3"]
    assert [cell["caption"] for cell in rows[1]["pictures"]] == ["clean", "blur", "noise"]
    assert [cell["index"] for cell in rows[1]["pictures"]] == [0, 2, 4]
    assert all(cell["arm"] == "none" and cell["array"] == "pictures" for row in rows for cell in row["pictures"])


def test_the_figure_shows_every_arm_and_the_sentence_its_numbers():
    results = {"none": plain(corruption.measure(made_up(0))), "rift": plain(corruption.measure(made_up(1)))}
    drawn = corruption.figure(results)
    assert {"none", "rift", "pretrained"} <= {trace.name for trace in drawn.data}
    line = next(trace for trace in drawn.data if trace.name == "rift")
    assert list(line.x) == [0, 1, 3] and line.y[0] == results["rift"]["clean_accuracy"]
    said = corruption.sentence(results)
    assert f"rift {results['rift']['mean_corruption_error']:.3f}" in said and "severities 1, 3" in said
    assert corruption.sentence({"none": {}}) == "No arm has a corruption error: nothing was measured."


def test_presets_are_allowed_settings():
    from rift.config import Choice

    for preset in catalog.presets("corruption"):
        catalog.check("diagnostics", Choice(name="corruption", options={"preset": preset}))

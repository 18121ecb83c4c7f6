"""STIR against what must come out: itself, a rotated, an untrained model; inversions kept, shared, gone on with after a stop."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rift import api, captures, catalog, recipe, similarity, trained
from rift.captures import Data, Images
from rift.config import Choice, Experiment, Training
from rift.diagnostics import _grams, _invariance, _inversion, stir
from rift.diagnostics._inversion import Settings
from rift.errors import ModelError
from rift.model import Backbone, Classifier, to_float
from rift.snapshot import Snapshot
from tests.methods_toys import BUILDS, NAMES, adapt, toy, toy_lab, train

HOW = Settings(iterations=12, step=20.0, schedule="decay", pooled=False, start=0)


def pictures(pixels: int, n: int) -> Images:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (n, 4, 4, 3), dtype=np.uint8).repeat(pixels // 4, 1).repeat(pixels // 4, 2)
    return Images(coarse, np.array([f"{i:03}" for i in range(n)]), np.arange(n) % 2, ("a", "b"))


def data(folder: Path, pixels: int = 32, n: int = 8, **more: Any) -> Data:
    one = pictures(pixels, n)
    folder.mkdir(exist_ok=True)
    return Data(one, one, one, None, folder, seed=0, device=torch.device("cpu"), **more)


def classifier(backbone: Backbone) -> Classifier:
    return Classifier(backbone, torch.nn.Linear(backbone.width, 2)).eval()


def moved(backbone: Backbone, by: float = 0.05) -> Backbone:
    other = copy.deepcopy(backbone)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += by * torch.randn_like(parameter)
    return other


def both(pretrained: Backbone, finetuned: Backbone, given: Data, **more: Any) -> tuple[dict, dict]:
    arrays = stir.capture(copy.deepcopy(pretrained), classifier(finetuned), given, **{"iterations": 12, "layers": "three"} | more)
    return arrays, stir.measure(arrays)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key], equal_nan=a[key].dtype.kind == "f") for key in a)


@pytest.mark.parametrize("build", BUILDS)
def test_tokens_are_those_of_the_whole_pass(build):
    backbone = toy(build)
    x = torch.rand(3, 3, backbone.pixels, backbone.pixels)
    layers = range(1, backbone.layers + 2)
    with torch.no_grad():
        every = backbone.tokens(x, layers)
        embeddings, activations = backbone.embed(x)
        assert torch.equal(every[-1][:, 0], embeddings) and torch.equal(backbone.pooled(every[-1]), embeddings)
        for layer, tokens in zip(layers, every, strict=True):
            assert torch.equal(backbone.tokens(x, [layer])[0], tokens)
            if layer <= backbone.layers:
                assert torch.equal(backbone.pooled(tokens), activations[layer - 1])
    x.requires_grad_()
    assert torch.autograd.grad(backbone.tokens(x, [1])[0].sum(), x)[0].abs().max() > 0


def test_only_the_blocks_that_are_needed_run():
    backbone, ran = toy(), []
    for i, block in enumerate(backbone.vit.blocks):
        block.register_forward_hook(lambda *given, i=i: ran.append(i))
    backbone.tokens(torch.rand(1, 3, 32, 32), [2, 3])
    assert ran == [0, 1, 2]


def test_gram_cka_is_that_of_the_features_and_so_is_the_jackknife():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 20)) + 5
    y = x @ rng.normal(size=(20, 7)) + rng.normal(size=(9, 7))
    values, without = _grams.cka(_grams.gram(x), _grams.gram(y))
    assert np.allclose(values, [similarity.cka(x, y), similarity.debiased_cka(x, y)])
    left = [np.delete(np.arange(9), i) for i in range(9)]
    assert np.allclose(without, np.transpose([[similarity.cka(x[k], y[k]), similarity.debiased_cka(x[k], y[k])] for k in left]))
    mean = _grams.deviation(x.T @ (1 - np.eye(9)) / 8)  # of a mean the jackknife is the standard error
    assert np.allclose(mean, x.std(0, ddof=1) / 3)
    assert np.isnan(_grams.cka(_grams.gram(np.ones((9, 3))), _grams.gram(y))[0]).all()
    assert np.abs(_grams.permuted(_grams.gram(x), _grams.gram(y), 200)[1].mean()) < 0.1 < values[1]


@pytest.mark.parametrize("schedule", ["decay", "constant"])
def test_the_best_image_on_the_way_counts_and_all_stay_within_zero_and_one(schedule):
    backbone = toy().requires_grad_(False)
    x = to_float(torch.from_numpy(pictures(32, 5).pixels))
    how, start = replace(HOW, schedule=schedule, step=60.0), _inversion.noise(range(5), 32, 0)
    target = _inversion.latent(backbone, x, [3], False)[0]
    found, loss, last = _inversion.invert(backbone, 3, target, start, how)
    away = (_inversion.latent(backbone, found, [3], False)[0] - target).norm(dim=1) / target.norm(dim=1)
    assert torch.allclose(away, loss, atol=1e-5) and float(found.min()) >= 0 and float(found.max()) <= 1
    assert (loss <= last).all() and (schedule == "decay" or (loss < last).any()), "a long constant step overshoots at times"
    first = (_inversion.latent(backbone, start, [3], False)[0] - target).norm(dim=1) / target.norm(dim=1)
    assert (loss < 0.8 * first).all()


def test_a_step_moves_a_pixel_alike_at_any_size():
    for pixels, build in ((32, "token"), (64, "clip")):
        backbone = toy(build).requires_grad_(False)
        assert backbone.pixels == pixels
        start = 0.25 + 0.5 * _inversion.noise(range(2), pixels, 0)  # far from the ends, so that nothing is clipped
        target = _inversion.latent(backbone, torch.rand_like(start), [1], False)[0]
        one = replace(HOW, iterations=1, step=0.5, schedule="constant")
        found, loss, last = _inversion.invert(backbone, 1, target, start, one)
        assert (loss == last).all()
        assert (found - start).square().mean((1, 2, 3)).sqrt() == pytest.approx(0.5 / 224 / 3**0.5, rel=1e-3)


def test_an_image_starts_and_ends_the_same_in_any_batch(tmp_path):
    backbone, pixels = toy().requires_grad_(False), pictures(32, 6).pixels
    two, six = (
        _inversion.through(backbone, 2, data(tmp_path / str(size), batch_size=size), pixels, "x", HOW, lambda n: None)
        for size in (2, 6)
    )
    assert np.abs(two["pixels"].astype(int) - six["pixels"].astype(int)).max() < 65535 * 1e-3


@pytest.mark.parametrize("zero", [0.0, float("nan")])
def test_a_target_without_length_is_refused_with_a_reason(zero):
    backbone = toy()
    target = _inversion.latent(backbone, torch.rand(3, 3, 32, 32), [2], False)[0].detach()
    target[1] = zero
    with pytest.raises(ModelError, match=r"layer 2 answers 1 of 3 images with zeros only.*choose other layers"):
        _inversion.invert(backbone, 2, target, torch.rand(3, 3, 32, 32), HOW)


def test_against_itself_nothing_is_above_the_floor_and_cka_is_one(tmp_path):
    backbone = toy()
    arrays, found = both(backbone, copy.deepcopy(backbone), data(tmp_path))
    assert same({"x": arrays["ft_pre"]}, {"x": arrays["pre_pre"]}) and np.allclose(found["forgetting_above"], 0)
    assert np.allclose(found["cka"], 1) and found["compression"] == found["compression_back"] == 0
    assert (arrays["pre_pre"][0] > 0.5).all() and (np.diagonal(arrays["pre_pre"][0]) > 0.8).all()
    assert (found["forgetting_floor"] > 0).all(), "an inversion is never perfect, and the floor says so"
    assert (found["forgetting_low"] <= found["forgetting"]).all() and (found["forgetting"] <= found["forgetting_high"]).all()


def test_of_a_rotated_model_it_is_that_of_itself(tmp_path):
    class Rotated(Backbone):
        def tokens(self, images, layers):
            return [one @ turns[one.shape[2]] for one in super().tokens(images, layers)]

    backbone = toy()
    turns = {width: torch.linalg.qr(torch.randn(width, width))[0] for width in {backbone.width, backbone.vit.embed_dim}}
    rotated = copy.deepcopy(backbone)
    rotated.__class__ = Rotated
    arrays, _ = both(backbone, rotated, data(tmp_path))
    assert np.allclose(arrays["ft_pre"], arrays["pre_pre"], atol=1e-4) and np.allclose(arrays["cka"], 1, atol=1e-4)
    assert np.allclose(np.diagonal(arrays["pre_ft"][0]), np.diagonal(arrays["ft_ft"][0]), atol=1e-4)


@pytest.mark.slow
def test_an_untrained_model_is_at_the_floor_that_is_shown_for_one(tmp_path):
    backbone = moved(toy(), 0.3)  # so that its answers are not those of any untrained one
    arrays, found = both(backbone, stir._untrained(backbone), data(tmp_path, n=16), iterations=40)
    assert np.allclose(np.diagonal(arrays["ft_pre"][0]), arrays["random_pre"][0], atol=1e-6)
    assert (found["forgetting_above"][-1] > 0.02) and found["forgetting_untrained"][-1] == pytest.approx(found["forgetting"][-1])


@pytest.mark.slow
def test_a_stop_in_the_middle_goes_on_bit_for_bit(tmp_path, monkeypatch):
    pretrained, finetuned = toy(), moved(toy())
    whole, _ = both(pretrained, finetuned, data(tmp_path / "whole"), batch=4)
    invert, seen, stops = _inversion.invert, [], [4, 10]

    def stop(*given):
        seen.append(given[1])
        if len(seen) in stops:
            raise KeyboardInterrupt
        return invert(*given)

    monkeypatch.setattr(_inversion, "invert", stop)
    for _ in stops:  # 2 batches of 3 layers of 2 models: in the shared parts at first, then in the run's own
        with pytest.raises(KeyboardInterrupt):
            both(pretrained, finetuned, data(tmp_path / "part"), batch=4)
    again, _ = both(pretrained, finetuned, data(tmp_path / "part"), batch=4)
    assert same(whole, again) and len(seen) == 12 + len(stops), "what was done before a stop is not done again"


@pytest.mark.slow
def test_two_runs_of_a_lab_invert_the_pretrained_model_once(tmp_path, monkeypatch):
    pretrained, seen, told, invert = toy(), [], [], _inversion.invert
    monkeypatch.setattr(_inversion, "invert", lambda model, *given: seen.append(id(model)) or invert(model, *given))
    (tmp_path / "lab").mkdir()
    for arm in ("a", "b"):
        tell = lambda done, total, what: told.append((done, total))  # noqa: E731
        both(pretrained, moved(pretrained), data(tmp_path / arm, cache=tmp_path / "lab", progress=tell))
    assert len(seen) == 3 + 3 + 3
    assert told[-1][0] == told[-1][1] and all(0 < done <= total for done, total in told)
    assert len(list((tmp_path / "lab").glob("stir-*.npz"))) == 3
    both(pretrained, moved(pretrained), data(tmp_path / "c", cache=tmp_path / "lab"), step=10.0)
    both(moved(pretrained, 0.01), moved(pretrained), data(tmp_path / "d", cache=tmp_path / "lab"))
    assert len(seen) == 9 + 6 + 6, "other settings and other weights are other inversions"


def test_what_is_shared_is_computed_once_and_its_parts_outlive_a_stop(tmp_path):
    given, calls = data(tmp_path / "run", cache=tmp_path), []

    def compute(inner: Data) -> captures.Arrays:
        inner.part("half", lambda: calls.append("half") or {"x": np.ones(2)})
        calls.append("rest")
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inner.part("half", dict)

    with pytest.raises(KeyboardInterrupt):
        given.shared("x", [1], compute)
    for _ in range(2):
        assert (given.shared("x", [1], compute)["x"] == 1).all()
    assert calls == ["half", "rest", "rest"] and not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("method", NAMES)
def test_every_method_has_numbers(method, tmp_path):
    backbone = toy("average" if method == "bias" else "token")
    finetuned = copy.deepcopy(backbone)
    adapt(method, finetuned)
    finetuned = train(finetuned, 2).backbone
    _, found = both(backbone, finetuned, data(tmp_path, n=6), iterations=3)
    assert all(np.isfinite(found[key]).all() for key in ("forgetting", "learning", "cka", "flow_ft_pre", "flow_pre_ft"))
    assert np.shape(found["flow_ft_ft"]) == (3, 3) and found["entries"].tolist()[-1] == "embedding"


@pytest.mark.parametrize("build", ["average", "attention", "siglip"])
def test_pooled_and_without_a_class_token(build, tmp_path):
    backbone = toy(build)
    _, found = both(backbone, moved(backbone), data(tmp_path, backbone.pixels, 6), iterations=3, latent="pooled")
    assert np.isfinite(found["forgetting"]).all() and (found["loss_pretrained"] < 1.5).all()


def results(n: int, **more: Any) -> dict[str, Any]:
    """Closed forms: STIR .9 on the diagonal within a model, .6 across, with entries before it moved up by .1."""
    loo = lambda m: np.repeat(m[..., None], n, -1) + np.linspace(-1e-3, 1e-3, n)  # noqa: E731
    within, across = np.full((2, 3, 3), 0.9), np.full((2, 3, 3), 0.6) + 0.4 * np.triu(np.ones((3, 3)), 1)
    square = {"ft_pre": across, "pre_pre": within, "pre_ft": across, "ft_ft": within}
    arrays = square | {f"{key}_loo": loo(value) for key, value in square.items()}
    line = np.full((2, 3), 0.5)
    arrays |= {"cka": line, "cka_loo": loo(line)} | {
        key: line for key in ("random_pre", "random_ft", "ft_pre_mixed", "pre_ft_mixed")
    }
    arrays |= {
        f"{key}_{model}": np.full((3, n) if key == "loss" else 3, 0.2) for key in ("loss", "away") for model in ("pre", "ft")
    }
    arrays |= {"layers": np.array([1, 2, 5]), "depth": np.array(4), "n": np.array(n), "images": np.array("test")}
    return stir.measure(arrays | {"shown": np.array([0, n - 1]), "shown_ids": np.array(["a", "b"])} | more)


def test_the_numbers_are_their_closed_forms():
    found = results(60)
    assert np.allclose(found["forgetting"], 0.4) and np.allclose(found["forgetting_above"], 0.3)
    assert np.allclose(found["learning_floor"], 0.1) and found["forgetting_spread"] == pytest.approx(0, abs=1e-9)
    assert found["compression"] == found["compression_net"] == pytest.approx(0.1)
    deviation = 1.96 * np.sqrt(59 / 60 * np.square(np.linspace(-1e-3, 1e-3, 60)).sum())
    assert np.allclose(found["forgetting_high"] - found["forgetting"], deviation)


def test_below_fifty_images_nothing_is_stated_and_from_fifty_on_it_is():
    few, enough = stir.sentence({"rift": results(49)}), stir.sentence({"rift": results(50)})
    assert "too few for a statement" in few and "0.4" not in few
    assert "forgetting is 0.400 in layer 1 (floor 0.100)" in enough and "too few" not in enough
    assert "earlier layers ignore more" in enough
    mixed = stir.sentence({"none": results(50), "rift": results(10)})
    assert "rift: 10 images are too few" in mixed and "none, 50 test images" in mixed


def test_the_gallery_names_pictures_that_are_there(tmp_path):
    arrays, found = both(toy(), moved(toy()), data(tmp_path))
    rows = stir.gallery({"rift": found})
    cells = [cell for row in rows for cell in row["pictures"]]
    assert len(rows) == 4 and rows[-1]["pictures"][0]["id"] == "007" and len(rows[0]["pictures"]) == 1 + 3 * 2
    for cell in cells:
        if "array" in cell:
            picture = arrays[cell["array"]][cell["index"]]
            assert picture.dtype == np.uint8 and picture.shape == (32, 32, 3)
    arrays, found = both(toy(), moved(toy()), data(tmp_path / "n"), images="natural", iterations=1)
    assert stir.gallery({"rift": found})[0]["pictures"][0]["natural"] == 0 and stir.gallery({}) == []


def test_the_figure_has_every_arm_and_survives_gaps():
    arms = {"none": results(60), "rift": results(60)}
    plot = stir.figure(arms)
    assert sum(trace.type == "heatmap" for trace in plot.data) == 12 and plot.layout.meta["min_width"] > 390
    assert {trace.name for trace in plot.data if trace.showlegend is not False} >= {"none", "rift", "1 − CKA"}
    hollow = results(60, ft_pre=np.full((2, 3, 3), np.nan), ft_pre_loo=np.full((2, 3, 3, 60), np.nan))
    assert hollow["forgetting"] is None and hollow["forgetting_reason"] == _invariance.UNDEFINED
    assert stir.figure({"none": hollow}).layout.annotations and "nothing can be said" in stir.sentence({"none": hollow})


@pytest.mark.slow
def test_a_run_from_random_weights_is_measured_against_those_it_started_from(tmp_path):
    lab = toy_lab(tmp_path / "lab", each=12, natural=6)
    run = lab.submit(
        Experiment(
            data=lab.medical.digest,
            natural=lab.natural.digest,
            seed=3,
            backbone=catalog.check("backbones", Choice(name="embedded", options={"init": "random"})),
            method=catalog.check("methods", Choice(name="last_blocks")),
            training=Training(epochs=1, batch_size=16, views=1),
        )
    )
    recipe.execute(run, lab, torch.device("cpu"))
    assert run.state == "done", run.end()
    trained._pretrained.cache_clear()
    torch.manual_seed(99)
    before = Snapshot.load(lab.cache / run.result()["before"]).sets["natural"].embeddings
    with torch.inference_mode():
        now = trained.pretrained(run)(to_float(torch.from_numpy(lab.natural.pixels(64))))
    assert np.allclose(now, before, atol=1e-4)
    found = api.measure(run.id, "stir", {"iterations": 2, "count": 4}, lab=lab.root, device="cpu")["runs"][run.id]
    assert np.isfinite(found["forgetting"]).all() and "too few" in stir.sentence({"none": found})
    assert found["forgetting_above"][0] == pytest.approx(0, abs=1e-5), "the first block did not train"

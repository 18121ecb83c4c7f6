"""Sharpness on losses whose answers are known: quadratic ones, a net small enough for its whole Hessian, and every method's."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn
from torch.func import functional_call

from rift import catalog
from rift.captures import Data, Images
from rift.diagnostics import _landscape, sharpness
from rift.errors import RunError
from rift.measures import plain
from rift.model import Classifier
from tests.methods_toys import NAMES, adapt, toy, train

FEW: dict[str, Any] = {"radii": 2, "steps": 2, "iterations": 3, "directions": 2, "points": 1, "grid": 1}
SIDE = 2


class Tiny(nn.Module):
    """A backbone of 2 x 2 pixels and two embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * SIDE**2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(images.flatten(1)))


def tiny(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(Tiny(), nn.Linear(2, 3)).eval()  # type: ignore[arg-type]


def data(
    folder: Path, side: int = SIDE, n: int = 20, task: Any = None, labels: np.ndarray | None = None, value: int | None = None
):
    rng = np.random.default_rng(5)
    pixels = (
        rng.integers(0, 255, (n, side, side, 3), dtype=np.uint8)
        if value is None
        else np.full((n, side, side, 3), value, np.uint8)
    )
    labels = np.arange(n) % 3 if labels is None else labels
    images = Images(pixels, np.array([f"{i:03}" for i in range(n)]), labels, ("a", "b", "c"))
    task = task or catalog.door("tasks", "single_label")(images.classes)
    folder.mkdir(exist_ok=True)
    return Data(images, images, images, None, folder, seed=3, device=torch.device("cpu"), task=task)


def measured(finetuned: Classifier, given: Data, pretrained: Any = None, **settings: Any) -> dict[str, Any]:
    pretrained = pretrained if pretrained is not None else copy.deepcopy(finetuned.backbone)
    return sharpness.measure(sharpness.capture(pretrained, finetuned, given, **(FEW | settings)))


def loss_at(model: Classifier, given: Data, vector: torch.Tensor) -> torch.Tensor:
    """The run's loss of all images at once with these parameters, by another way than the code's."""
    values, start = {}, 0
    for name, value in model.named_parameters():
        values[name] = vector[start : start + value.numel()].view_as(value)
        start += value.numel()
    x = torch.from_numpy(given.train.pixels).permute(0, 3, 1, 2) / 255
    return given.task.loss(functional_call(model, values, (x,))[1], torch.from_numpy(given.train.labels))  # type: ignore[union-attr]


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in model.parameters()])


# --- curvature ----------------------------------------------------------------------------------------------------------------


def test_the_largest_eigenvalue_is_that_of_the_whole_hessian(tmp_path):
    model, given = tiny(), data(tmp_path)
    hessian = torch.autograd.functional.hessian(lambda at: loss_at(model, given, at), flat(model))
    found = measured(model, given, iterations=40, tolerance=1e-3)
    truth = float(torch.linalg.eigvalsh(hessian)[-1])
    assert found["eigenvalue"] == pytest.approx(truth, rel=1e-4) and found["eigenvalue_residual"] <= 1e-3 * truth
    assert found["eigenvalue_relative"] == pytest.approx(truth * float(flat(model).square().sum()), rel=1e-4)
    assert found["hessian_products"] < 40 and found["n_parameters"] == len(flat(model)) and found["n_head_parameters"] == 9


def test_an_eigenvalue_that_did_not_converge_is_none_and_bounded_from_below(tmp_path):
    model, given = tiny(), data(tmp_path)
    truth = float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(lambda at: loss_at(model, given, at), flat(model)))[-1])
    found = measured(model, given, iterations=1, tolerance=1e-6)
    assert found["eigenvalue"] is None and "not converged after 1 products" in found["eigenvalue_reason"]
    assert 0 < found["eigenvalue_at_least"] <= truth * (1 + 1e-6)
    assert "not settled, at least" in sharpness.sentence({"none": found})


def quadratic(folder: Path, curvature: list[float], at: list[float]) -> tuple[Classifier, Data]:
    """On black images the logits are the bias b of the head, and the loss is ½ Σ curvature · b²."""
    model = tiny()
    bend = torch.tensor(curvature)
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
        model.head.bias.copy_(torch.tensor(at))
    model.backbone.requires_grad_(False)
    task = dataclasses.replace(
        catalog.door("tasks", "single_label")("abc"), loss=lambda logits, labels: (bend * logits.square()).sum(1).mean() / 2
    )
    return model, data(folder, task=task, value=0)


def test_the_rise_at_the_bottom_of_a_parabola_is_half_the_largest_curvature_times_the_radius_squared(tmp_path):
    model, given = quadratic(tmp_path, [1.0, 7.0, 3.0], [0.0, 0.0, 0.0])
    found = measured(model, given, norm="absolute", radius=0.5, steps=60, iterations=10, tolerance=1e-4)
    assert found["eigenvalue"] == pytest.approx(7, rel=1e-4) and found["gradient_norm"] == 0
    assert found["radii_absolute"].tolist() == [0.25, 0.5]
    assert found["rise"] == pytest.approx(7 / 2 * np.array([0.25, 0.5]) ** 2, rel=1e-4)
    assert found["sharpness"] == found["rise"][-1]


@pytest.mark.parametrize("curvature", [[4.0, 4.0, 4.0], [1.0, 7.0, 3.0]])
def test_the_rise_on_a_slope_is_that_of_the_closed_form(tmp_path, curvature):
    at, radius = np.array([0.3, -0.1, 0.2]), 0.4
    model, given = quadratic(tmp_path, curvature, at.tolist())
    found = measured(model, given, norm="absolute", radius=radius, radii=1, steps=80)
    bend = np.array(curvature)
    slope = bend * at
    one = radius * slope / np.linalg.norm(slope)
    assert found["gradient_norm"] == pytest.approx(np.linalg.norm(slope), rel=1e-5)
    assert found["one_step_rise"][0] == pytest.approx(slope @ one + (bend * one**2).sum() / 2, rel=1e-4)
    # on the sphere the highest point solves (m - bend) δ = slope with m above every curvature
    m = brentq(lambda m: np.linalg.norm(slope / (m - bend)) - radius, bend.max() + 1e-9, bend.max() + 1e3)
    best = slope / (m - bend)
    assert found["sharpness"] == pytest.approx(slope @ best + (bend * best**2).sum() / 2, rel=1e-4)
    assert found["sharpness"] >= found["one_step_rise"][0] - 1e-9


def test_epsilon_is_a_share_of_the_norm_or_a_norm_and_a_ball_of_radius_zero_raises_nothing(tmp_path):
    model, given = quadratic(tmp_path, [4.0, 4.0, 4.0], [0.0, 3.0, 4.0])
    found = measured(model, given, radius=0.1)
    assert found["norm"] == pytest.approx(5) and found["radii_absolute"] == pytest.approx([0.25, 0.5])
    land = _landscape.landscape(model, ["head.weight", "head.bias"], given, np.arange(20))
    toward = _landscape.gaussian(land, 0)
    nothing = _landscape.ascend(land, toward, 0.0, steps=3, step_size=0.5)
    assert all((losses == land.losses(land.center)).all() for losses in nothing.values())


# --- slices -------------------------------------------------------------------------------------------------------------------


def test_a_random_direction_is_as_long_as_the_weights_filter_by_filter(tmp_path):
    model, given = tiny(), data(tmp_path)
    land = _landscape.landscape(model, [name for name, _ in model.named_parameters()], given, np.arange(20))
    direction = _landscape.random_direction(land, 1)
    for drawn, (_, value) in zip(land.parts(direction), model.named_parameters(), strict=True):
        rows, wanted = (one.detach().reshape(len(value) if value.ndim > 1 else 1, -1).norm(dim=1) for one in (drawn, value))
        assert torch.allclose(rows, wanted, rtol=1e-5)
    assert not torch.allclose(direction, _landscape.random_direction(land, 2))
    assert torch.equal(direction, _landscape.random_direction(land, 1))


def test_slices_and_plane_hold_the_losses_of_the_moved_model(tmp_path):
    model, given = tiny(), data(tmp_path)
    found = measured(model, given, points=2, grid=1, span=0.3)
    land = _landscape.landscape(model, [name for name, _ in model.named_parameters()], given, np.arange(20))
    x, y = (_landscape.random_direction(land, 3000 + i) for i in range(2))
    here = float(loss_at(model, given, flat(model)).detach())

    def rise(shift: torch.Tensor) -> float:
        return float(loss_at(model, given, flat(model) + shift).detach()) - here

    assert found["loss"] == pytest.approx(here, rel=1e-5) and found["surface"].shape == (3, 3)
    assert found["surface"][0, 2] == pytest.approx(rise(0.3 * x - 0.3 * y), abs=1e-5)
    assert found["surface"][2, 1] == pytest.approx(rise(0.3 * y), abs=1e-5)
    assert found["slice_random"][3] == pytest.approx((rise(0.15 * x) + rise(0.15 * y)) / 2, abs=1e-5)
    ends = [(rise(0.3 * way) + rise(-0.3 * way)) / 2 for way in (x, y)]
    assert found["random_rise"] == pytest.approx(np.mean(ends), abs=1e-5)
    reach = 12.706 * np.std(ends, ddof=1) / math.sqrt(2)  # Student's t, one degree of freedom
    assert found["random_rise_high"] - found["random_rise"] == pytest.approx(reach, rel=1e-2)
    assert found["slice_gradient"][2] == pytest.approx(0, abs=1e-6)


def test_the_line_begins_at_the_pretrained_backbone_under_the_head_as_it_is(tmp_path):
    start, end, given = tiny(1), tiny(2), data(tmp_path)
    found = measured(end, given, pretrained=start.backbone, points=2)
    before = Classifier(start.backbone, end.head)
    rises = [float((loss_at(one, given, flat(one)) - loss_at(end, given, flat(end))).detach()) for one in (before, end)]
    assert found["slice_line"][[0, 2]] == pytest.approx(rises, abs=1e-5)


# --- every method -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_measured_and_its_model_left_as_it_was(name, tmp_path):
    pretrained = toy()
    backbone = copy.deepcopy(pretrained)
    adapt(name, backbone)
    finetuned = train(backbone)
    for value in finetuned.parameters():
        value.grad = None
    next(finetuned.head.parameters()).grad = torch.ones_like(next(finetuned.head.parameters()))
    given = data(tmp_path, side=32, n=6)
    state = {key: value.clone() for key, value in finetuned.state_dict().items()}
    trained = [key for key, value in finetuned.named_parameters() if value.requires_grad]
    random = torch.random.get_rng_state()
    found = measured(finetuned, given, pretrained=pretrained, radii=1, steps=1, iterations=4)
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(value, state[key]) for key, value in finetuned.state_dict().items())
    assert [key for key, value in finetuned.named_parameters() if value.requires_grad] == trained == list(found["names"])
    assert [key for key, value in finetuned.named_parameters() if value.grad is not None] == ["head.weight"]
    assert not any(module.training for module in finetuned.modules()) and not finetuned.head._forward_pre_hooks
    assert found["sharpness"] >= found["one_step_rise"][0] and found["sharpness"] > 0 and np.isfinite(found["surface"]).all()
    assert (found["n_parameters"] == found["n_head_parameters"]) == (name == "linear")
    if name == "dora":
        assert (
            found["eigenvalue"] is None and found["hessian_products"] == 0 and "norms as constants" in found["eigenvalue_reason"]
        )
    else:
        assert found["eigenvalue_at_least"] > 0, found.get("eigenvalue_reason")
    line = name in ("full", "bias", "last_blocks", "lp_ft")
    assert (found["slice_line"] is not None) == line
    assert line or ("adds parts" if name != "linear" else "save the head") in found["slice_line_reason"]
    assert all(value is not None or found[f"{key}_reason"] for key, value in found.items())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dora"])
def test_products_with_the_hessian_are_the_change_of_the_gradient(name, tmp_path):
    backbone = toy()
    adapt(name, backbone)
    exact = dataclasses.replace(catalog.door("tasks", "single_label")("abc"), loss=nn.functional.cross_entropy)  # in float64
    finetuned, given = train(backbone).double(), data(tmp_path, side=32, n=4, task=exact)
    names = [key for key, value in finetuned.named_parameters() if value.requires_grad]
    land = _landscape.landscape(finetuned, names, given, np.arange(4))
    way = _landscape.gaussian(land, 0)
    step = 1e-5
    ahead, behind = (land.gradient(land.center + sign * step * way)[1] for sign in (1, -1))
    change, product = (ahead - behind) / (2 * step), land.hessian_times(way)
    assert float((change - product).norm()) < 1e-4 * float(product.norm())


def test_which_parameters_are_moved_is_a_choice(tmp_path):
    backbone = toy()
    adapt("linear", backbone)
    finetuned, given = train(backbone), data(tmp_path, side=32, n=4)
    every = [key for key, _ in finetuned.named_parameters()]
    wanted = {"trained": ["head.weight", "head.bias"], "backbone": [key for key in every if "head." not in key], "all": every}
    for which, names in wanted.items():
        assert sharpness._names(finetuned, which) == names
    head, whole = (_landscape.landscape(finetuned, wanted[which], given, np.arange(4)) for which in ("trained", "all"))
    assert head.losses(head.center) == pytest.approx(whole.losses(whole.center), abs=1e-6), "what reaches the head is kept"
    assert torch.allclose(head.gradient(head.center)[1], whole.gradient(whole.center)[1][-len(head.center) :], atol=1e-6)


def test_several_findings_an_image_have_their_own_loss(tmp_path):
    task = catalog.door("tasks", "multi_label")(("a", "b", "c"))
    labels = (np.random.default_rng(0).random((20, 3)) < 0.4).astype(np.uint8)
    model, given = tiny(), data(tmp_path, task=task, labels=labels)
    found = measured(model, given, iterations=40, tolerance=1e-3)
    here = flat(model).requires_grad_()
    loss = loss_at(model, given, here)
    assert found["loss"] == pytest.approx(float(loss.detach()), rel=1e-5) and found["n"] == 20
    assert found["gradient_norm"] == pytest.approx(float(torch.autograd.grad(loss, here)[0].norm()), rel=1e-4)
    hessian = torch.autograd.functional.hessian(lambda at: loss_at(model, given, at), flat(model))
    assert found["eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-4)


# --- draws, stops, what cannot be measured ------------------------------------------------------------------------------------


def test_the_images_are_a_seeded_draw_of_those_with_a_label(tmp_path):
    labels = np.where(np.arange(20) < 12, np.arange(20) % 3, -1)
    given = data(tmp_path, labels=labels)
    drawn = sharpness._drawn(given, 5)
    assert len(drawn) == 5 and (drawn < 12).all() and (sharpness._drawn(given, 5) == drawn).all()
    assert sharpness._drawn(given, 100).tolist() == list(range(12))
    assert sharpness._drawn(dataclasses.replace(given, seed=4), 5).tolist() != drawn.tolist()
    found = measured(tiny(), given, images=5)
    assert (found["n"], found["n_train"]) == (5, 20)
    torch.manual_seed(99)
    again = measured(tiny(), dataclasses.replace(given, folder=folder(tmp_path)), images=5)
    assert again["rise"].tolist() == found["rise"].tolist() and again["eigenvalue"] == found["eigenvalue"]


def folder(path: Path) -> Path:
    (path / "again").mkdir()
    return path / "again"


def test_a_stop_keeps_what_was_done_and_goes_on(tmp_path):
    model, told = tiny(), []
    whole = measured(model, data(tmp_path / "whole"))

    def stop(done: int, total: int, what: str) -> None:
        told.append((done, total))
        if done > 0.8 * total:
            raise KeyboardInterrupt

    given = data(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        measured(model, dataclasses.replace(given, progress=stop))
    kept = {path.name: path.stat().st_mtime_ns for path in given.folder.glob("*.npz")}
    assert {"ball-0.npz", "ball-1.npz", "hessian.npz"} <= kept.keys()
    assert plain(measured(model, given)) == plain(whole)
    assert all((given.folder / name).stat().st_mtime_ns == time for name, time in kept.items())
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize("broken", ["nan", "no labels", "far away"])
def test_what_cannot_be_measured_has_a_reason(tmp_path, broken):
    model, given = tiny(), data(tmp_path, labels=np.full(20, -1) if broken == "no labels" else None)
    settings: dict[str, Any] = {}
    if broken == "nan":
        with torch.no_grad():
            model.head.bias[0] = float("nan")
    if broken == "far away":
        with torch.no_grad():
            model.head.weight.mul_(1e37)
        settings = {"radius": 1000.0, "span": 2.0}
    found = measured(model, given, **settings)
    for key, value in found.items():
        assert value is not None or found[f"{key}_reason"], key
        assert not isinstance(value, float) or math.isfinite(value), key
    if broken != "far away":
        reason = {"nan": "not finite at the final weights", "no labels": "no training image has a known label"}[broken]
        assert found["sharpness"] is None and reason in found["sharpness_reason"]
        assert reason in sharpness.sentence({"none": plain(found)})
    assert json.loads(sharpness.figure({"none": plain(found)}).to_json())["layout"]
    assert sharpness.sentence({"none": plain(found)})


def test_a_run_without_task_is_refused(tmp_path):
    with pytest.raises(RunError, match="needs the loss that the run was trained with"):
        measured(tiny(), dataclasses.replace(data(tmp_path), task=None))


# --- what is shown ------------------------------------------------------------------------------------------------------------


def test_the_sentence_says_what_was_moved_and_when_arms_are_not_alike(tmp_path):
    given = data(tmp_path)
    one = plain(measured(tiny(), given))
    said = sharpness.sentence({"none": one, "rift": one})
    assert "the same in every arm" in said and "20 of 20 training images" in said and f"rises by {one['sharpness']:.3g}" in said
    head = tiny()
    head.backbone.requires_grad_(False)
    other = plain(measured(head, data(tmp_path / "head")))
    said = sharpness.sentence({"none": one, "linear": other})
    assert f"Not like for like: the arms moved different parameters (none {one['n_parameters']}, linear 9)" in said
    figure = sharpness.figure({"none": one, "linear": other})
    assert figure.layout.meta["min_width"] and len([trace for trace in figure.data if trace.type == "heatmap"]) == 2
    assert figure.layout.coloraxis.cmax == pytest.approx(max(np.max(one["surface"]), np.max(other["surface"])))


@pytest.mark.parametrize("name", sharpness.PRESETS)
def test_presets_are_settings(name):
    from rift.config import Choice

    assert catalog.check("diagnostics", Choice(name="sharpness", options={"preset": name})).options["images"]

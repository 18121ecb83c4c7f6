"""RIFT's penalty against slow numpy, closed-form gradients, what it can and cannot see, and exact resumption."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from scipy.stats import ortho_group
from torch import Tensor

from rift import catalog
from rift.config import Choice
from rift.errors import DataError, SettingError
from rift.model import Backbone
from rift.regularizers import none
from rift.regularizers.rift import MAPS, build

FORMS = [(statistics, map) for statistics, maps in MAPS.items() for map in maps]
D = 6


def features(n: int = 50, d: int = D, seed: int = 0, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Pretrained and finetuned embeddings `(n, d)` of the same images."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(n, d, generator=generator) * torch.linspace(2, 0.3, d) + 1
    return before, before + noise * torch.randn(n, d, generator=generator) + 0.2


def turn(d: int = D) -> Tensor:
    return torch.from_numpy(ortho_group.rvs(d, random_state=5)).float()


def penalty(before: Tensor, statistics: str, map: str, **options):
    """The module for pretrained embeddings `(n, d)` in one view."""
    width, images = SimpleNamespace(width=before.shape[1]), SimpleNamespace(embeddings=before[None])
    return build(width, None, images, statistics=statistics, map=map, **options)


def number(value: Tensor) -> float:
    return value.detach().item()


def slow_covariance(z: np.ndarray) -> np.ndarray:
    n, d = z.shape
    mean = [sum(z[:, i]) / n for i in range(d)]
    return np.array([[sum((r[i] - mean[i]) * (r[j] - mean[j]) for r in z) / (n - 1) for j in range(d)] for i in range(d)])


def slow_penalty(after: np.ndarray, before: np.ndarray) -> float:
    pairs = list(itertools.product(range(len(before)), repeat=2))
    return sum((after[i, j] - before[i, j]) ** 2 for i, j in pairs) / sum(before[i, j] ** 2 for i, j in pairs)


@pytest.mark.parametrize("n, d", [(40, 5), (7, 15), (2, 4)])
def test_value_agrees_with_double_loops(n: int, d: int) -> None:
    before, after = features(n, d)
    expected = slow_penalty(slow_covariance(after.double().numpy()), slow_covariance(before.double().numpy()))
    assert number(penalty(before, "batch", "identity")(after, before)) == pytest.approx(expected, rel=1e-5)
    assert number(penalty(before, "running", "identity", momentum=0)(after)) == pytest.approx(expected, rel=1e-5)


def test_mean_is_added_relative_to_the_trace() -> None:
    before, after = features()
    shift = float((after.mean(0) - before.mean(0)).square().sum() / torch.cov(before.T).trace())
    for statistics, options in (("batch", {}), ("running", {"momentum": 0})):
        modules = (penalty(before, statistics, "identity", mean=mean, **options) for mean in (False, True))
        without, with_mean = (number(module(after, before)) for module in modules)
        assert with_mean - without == pytest.approx(shift, rel=1e-4)


def test_pretrained_statistics_are_those_of_all_views() -> None:
    views = torch.randn(3, 20, D)
    module = build(None, None, SimpleNamespace(embeddings=views), statistics="running")
    np.testing.assert_allclose(module.before_covariance, np.cov(views.reshape(60, D).numpy().T), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(module.before_mean, views.reshape(60, D).mean(0), rtol=1e-5, atol=1e-6)


def test_embeddings_are_not_computed_unless_needed() -> None:
    class Untouched:
        @property
        def embeddings(self) -> Tensor:
            raise AssertionError("a pass through the pretrained model that this form does not need")

    for map in ("identity", "learned"):
        build(SimpleNamespace(width=D), None, Untouched(), statistics="batch", map=map)
    none.build(None, None, Untouched())


@pytest.mark.parametrize("statistics, map", FORMS)
def test_identical_embeddings_cost_nothing(statistics: str, map: str) -> None:
    before, _ = features()
    value = penalty(before, statistics, map)(before, before)
    assert 0 <= number(value) < 1e-9
    assert value.dtype == torch.float32 and value.shape == ()


@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.95])
def test_running_average_and_its_gradient_over_steps(momentum: float) -> None:
    """Two steps by hand: the gradient is (4 / (n - 1)) Zc (Σ - Σ₀) / ‖Σ₀‖², so 1 - momentum is really divided out."""
    before, _ = features(200)
    module = penalty(before, "running", "identity", momentum=momentum)
    target = torch.cov(before.T)
    average = target
    for step in range(2):
        batch = features(16, seed=10 + step, noise=1.0)[1].requires_grad_()
        value = module(batch)
        (gradient,) = torch.autograd.grad(value, batch)
        with torch.no_grad():
            average = momentum * average + (1 - momentum) * torch.cov(batch.T)
            centred = batch - batch.mean(0)
            expected = 4 / 15 * centred @ (average - target) / target.square().sum()
        assert number(value) == pytest.approx(float((average - target).square().sum() / target.square().sum()), rel=1e-4)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
        assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(module.covariance, average)


@pytest.mark.parametrize("statistics, map", FORMS)
@pytest.mark.parametrize("mean", [False, True])
def test_gradient_agrees_with_finite_differences(statistics: str, map: str, mean: bool) -> None:
    """Of the value in eval mode; there the running forms' value has 1 - momentum of the slope that the gradient gives."""
    if map == "spectrum" and mean:
        return
    before, after = features(20)
    module = penalty(before, statistics, map, momentum=0.75, mean=mean).eval()
    if map == "procrustes":  # Q has no gradient: hold it still
        fixed = module._rotate(after, before)
        module._rotate = lambda embeddings, targets: fixed
    leaf = after.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(leaf, before), leaf)
    direction, step = torch.randn(after.shape), 1e-2
    with torch.no_grad():
        slope = number(module(after + step * direction, before) - module(after - step * direction, before)) / (2 * step)
    share = 0.25 if statistics == "running" else 1.0
    assert slope / share == pytest.approx(float((gradient * direction).sum()), rel=2e-2)
    assert gradient.abs().max() > 1e-4


def test_learned_rotation_gets_a_gradient_and_starts_at_exactly_the_identity() -> None:
    before, after = features()
    for statistics in MAPS:
        module = penalty(before, statistics, "learned")
        assert torch.equal(module.rotation(), torch.eye(D))
        module(after, before).backward()
        (weight,) = module.parameters()
        assert weight.grad.abs().max() > 1e-3
        assert not list(penalty(before, statistics, "identity").parameters())


@pytest.mark.parametrize("statistics, map", FORMS)
def test_hinge(statistics: str, map: str) -> None:
    before, after = features()
    value = number(penalty(before, statistics, map, momentum=0)(after, before))
    assert value > 1e-3
    above = penalty(before, statistics, map, momentum=0, epsilon=value / 4)(after, before)
    assert number(above) == pytest.approx(0.75 * value, rel=1e-4)
    leaf = after.clone().requires_grad_()
    below = penalty(before, statistics, map, momentum=0, epsilon=2 * value)(leaf, before)
    below.backward()
    assert number(below) == 0 and not leaf.grad.any()


@pytest.mark.parametrize("statistics, map", FORMS)
def test_a_saved_module_goes_on_bit_for_bit(statistics: str, map: str) -> None:
    before, _ = features(120)
    mean = map != "spectrum"
    made = [penalty(before, statistics, map, mean=mean) for _ in range(2)]

    def go(module: torch.nn.Module, steps: range) -> list[Tensor]:
        seen = []
        for step in steps:
            pick = torch.arange(120).roll(20 * step)[:20]
            leaf = (before[pick] @ turn() + 0.1 * step).requires_grad_()
            value = module(leaf, before[pick])
            value.backward()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= 0.05 * parameter.grad
                    parameter.grad = None
            seen += [value.detach(), leaf.grad]
        return seen

    go(made[0], range(3))
    kept = {key: value.clone() for key, value in made[0].state_dict().items()}
    through = go(made[0], range(3, 6))
    made[1].load_state_dict(kept)
    assert all(torch.equal(a, b) for a, b in zip(through, go(made[1], range(3, 6)), strict=True))
    if kept:  # and the state matters
        fresh = go(penalty(before, statistics, map, mean=mean), range(3, 6))
        assert not torch.equal(through[0], fresh[0])
    assert bool(kept) == ((statistics, map) != ("batch", "identity"))


@pytest.mark.parametrize("statistics, map", FORMS)
def test_autocast_does_not_reach_inside(statistics: str, map: str) -> None:
    before, after = features()
    outer, same = (penalty(before, statistics, map) for _ in range(2))
    plain = outer(after, before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (after @ after.T).dtype == torch.bfloat16
        inside = same(after, before)
    assert torch.equal(plain, inside)
    assert penalty(before, statistics, map)(after.bfloat16(), before).dtype == torch.float32


@pytest.mark.parametrize("statistics, map", FORMS)
def test_one_image_has_no_covariance(statistics: str, map: str) -> None:
    before, after = features()
    module = penalty(before, statistics, map)
    kept = {key: value.clone() for key, value in module.state_dict().items()}
    assert number(module(after[:1], before[:1])) == 0
    module.eval()
    module(after, before)
    assert all(torch.equal(value, kept[key]) for key, value in module.state_dict().items())  # averages move in train mode only


def test_images_that_are_all_alike_have_no_covariance_to_hold() -> None:
    before, after = features()
    for n in (3, 7, 50):
        alike = before[:1].expand(n, D) / 3
        assert number(penalty(before, "batch", "identity")(after[:n], alike)) == 0
        with pytest.raises(DataError, match="embeds all training images alike; RIFT needs some that differ"):
            penalty(alike, "running", "identity")


@pytest.mark.parametrize("statistics, map", FORMS)
def test_a_diverged_model_gives_nan_and_no_crash(statistics: str, map: str) -> None:
    before, after = features()
    for bad in (torch.nan, torch.inf, 1e25):
        assert not penalty(before, statistics, map, momentum=0.5)(after * bad, before).isfinite()


def test_gradient_reaches_a_real_backbone_once_it_has_moved() -> None:
    vit = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=32)
    backbone = Backbone(vit, pixels=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    images = torch.rand(12, 3, 32, 32)
    with torch.no_grad():
        before = backbone(images)
    modules = {form: penalty(before, *form) for form in FORMS}

    def gradients() -> dict[tuple[str, str], float]:
        found = {}
        for form, module in modules.items():
            backbone.zero_grad()
            module(backbone(images), before).backward()
            found[form] = sum(float(p.grad.square().sum()) for p in backbone.parameters() if p.grad is not None)
        return found

    assert max(gradients().values()) < 1e-6
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    assert min(gradients().values()) > 1e-5


def test_pairs_that_do_not_go_together() -> None:
    before, after = features()
    pairs = (("running", "procrustes", "learned, spectrum"), ("batch", "spectrum", "learned, procrustes"))
    for statistics, map, allowed in pairs:
        sentence = f"map = '{map}' does not go with statistics = '{statistics}'; use one of identity, {allowed}"
        with pytest.raises(SettingError, match=sentence) as error:
            penalty(before, statistics, map)
        assert error.value.code == "setting.range"
    with pytest.raises(SettingError, match="no rotation to turn the mean with; set mean to false"):
        penalty(before, "running", "spectrum", mean=True)
    with pytest.raises(ValueError, match="compares with targets"):
        penalty(before, "batch", "identity")(after)


def test_settings_come_from_the_signature() -> None:
    checked = catalog.check("regularizers", Choice(name="rift", options={"epsilon": "0.1", "mean": "true"}))
    assert checked.options == {"statistics": "batch", "map": "identity", "mean": True, "epsilon": 0.1, "momentum": 0.9}
    for bad in ({"momentum": 1}, {"epsilon": -1}, {"map": "cayley"}, {"momentum": float("nan")}):
        with pytest.raises(SettingError, match="is not allowed"):
            catalog.check("regularizers", Choice(name="rift", options=bad))
    assert catalog.check("regularizers", Choice(name="none")).options == {}
    assert "2503.07399" in catalog.summary("regularizers", "rift")


def test_none_changes_no_bit() -> None:
    module = none.build(None, None, None)
    leaf = torch.randn(4, D, requires_grad=True)
    value = module(leaf)
    assert number(value) == 0 and not value.requires_grad and not module.needs_targets and not module.state_dict()
    task = leaf.square().sum()
    (plain,) = torch.autograd.grad(task, leaf, retain_graph=True)
    (with_none,) = torch.autograd.grad(task + 1e6 * value, leaf)
    assert torch.equal(plain, with_none)

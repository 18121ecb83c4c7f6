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

from rift import catalog, similarity
from rift.config import Choice
from rift.errors import SettingError
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
    return build(SimpleNamespace(width=before.shape[1]), None, SimpleNamespace(embeddings=before[None]), statistics=statistics, map=map, **options)


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
    assert float(penalty(before, "batch", "identity")(after, before)) == pytest.approx(expected, rel=1e-5)
    assert float(penalty(before, "running", "identity", momentum=0)(after)) == pytest.approx(expected, rel=1e-5)


def test_mean_is_added_relative_to_the_trace() -> None:
    before, after = features()
    shift = float((after.mean(0) - before.mean(0)).square().sum() / torch.cov(before.T).trace())
    for statistics, options in (("batch", {}), ("running", {"momentum": 0})):
        without, with_mean = (float(penalty(before, statistics, "identity", mean=mean, **options)(after, before)) for mean in (False, True))
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
    assert 0 <= float(value) < 1e-9
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
        assert float(value) == pytest.approx(float((average - target).square().sum() / target.square().sum()), rel=1e-4)
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
        slope = float(module(after + step * direction, before) - module(after - step * direction, before)) / (2 * step)
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
def test_turned_embeddings_cost_nothing_with_a_map_and_something_without(statistics: str, map: str) -> None:
    before, _ = features(400)
    module = penalty(before, statistics, map, momentum=0)
    if map == "learned":
        module.rotation.weight = turn()
    value = float(module(before @ turn(), before))
    assert value > 0.3 if map == "identity" else value < 1e-9


def test_turned_mean_costs_nothing_with_a_map() -> None:
    before, _ = features(400)
    fitted = penalty(before, "batch", "procrustes", momentum=0, mean=True)
    assert float(fitted(before @ turn(), before)) < 1e-9
    assert float(penalty(before, "batch", "identity", mean=True)(before @ turn(), before)) > 0.3
    learned = penalty(before, "running", "learned", momentum=0, mean=True)
    learned.rotation.weight = turn()
    assert float(learned(before @ turn())) < 1e-9


def test_fitted_rotation_works_with_fewer_images_than_dimensions_and_follows_over_steps() -> None:
    before, _ = features(8, 20)
    assert float(penalty(before, "batch", "procrustes", momentum=0)(before @ turn(20), before)) < 1e-9
    assert float(penalty(before, "batch", "identity")(before @ turn(20), before)) > 0.1
    before, _ = features(300)
    module, picks = penalty(before, "batch", "procrustes", momentum=0.5), torch.arange(300).split(30)
    values = [float(module(before[pick] @ turn(), before[pick])) for pick in (*picks, *picks)]
    assert values[-1] < 1e-6 < 1e-3 < values[0]  # it starts at the identity


@pytest.mark.parametrize("statistics", list(MAPS))
def test_learned_rotation_is_found_by_training(statistics: str) -> None:
    before, _ = features(200)
    skew = torch.randn(D, D)
    turned = before @ torch.linalg.matrix_exp(0.3 * (skew - skew.T))
    module = penalty(before, statistics, "learned", momentum=0)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    values = []
    for _ in range(300):
        optimizer.zero_grad()
        value = module(turned, before)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.01 * values[0]
    torch.testing.assert_close(module.rotation() @ module.rotation().T, torch.eye(D), atol=1e-5, rtol=0)


def test_spectrum_is_the_best_that_any_rotation_reaches() -> None:
    """Hoffman-Wielandt, in float64 numpy: attained by Q = V₀ D V₁ᵀ for any signs D, never beaten."""
    before, after = features()
    s0, s1 = (np.cov(z.double().numpy().T) for z in (before, after))
    value = float(penalty(before, "running", "spectrum", momentum=0)(after)) * np.square(s0).sum()
    v0, v1 = (np.linalg.eigh(s)[1] for s in (s0, s1))
    random = np.random.default_rng(0)
    for _ in range(20):
        q = v0 @ np.diag(random.choice([-1, 1], D)) @ v1.T
        assert np.square(s1 - q.T @ s0 @ q).sum() == pytest.approx(value, rel=1e-3)
        q = ortho_group.rvs(D, random_state=random)
        assert np.square(s1 - q.T @ s0 @ q).sum() > value


def test_covariances_alone_cannot_tell_which_rotation_it_was() -> None:
    """Sign-flipped eigenbasis: every Q = V₀ D V₁ᵀ makes the penalty 0, one restores the embeddings, pairs tell which."""
    before, _ = features(400)
    after = before @ turn()
    v0, v1 = (torch.linalg.eigh(torch.cov(z.T))[1] for z in (before, after))
    module = penalty(before, "batch", "learned")
    restored = 0
    for signs in itertools.product([-1.0, 1.0], repeat=D):
        q = v0 @ torch.diag(torch.tensor(signs)) @ v1.T
        module.rotation.weight = q
        assert float(module(after, before)) < 1e-9
        restored += torch.allclose(after @ q.T, before, atol=1e-3)
    assert restored == 1
    q = torch.from_numpy(similarity.rotation(before.numpy(), after.numpy())).float()
    torch.testing.assert_close(after @ q.T, before, atol=1e-5, rtol=1e-5)


def test_exchanged_images_cost_nothing_over_the_whole_set_but_do_in_mini_batches() -> None:
    before, _ = features(400)
    after = before[torch.randperm(400)]
    assert abs(similarity.debiased_cka(before.numpy(), after.numpy())) < 0.05  # nothing of the arrangement is left
    assert float(penalty(before, "running", "identity", momentum=0)(after)) < 1e-9
    whole = penalty(before, "batch", "identity")
    assert float(whole(after, before)) < 1e-9
    assert min(float(whole(after[i : i + 20], before[i : i + 20])) for i in range(0, 400, 20)) > 0.01


@pytest.mark.parametrize(
    "change, seen_by",
    [
        ("rotation", {"cosine", "identity"}),
        ("scale", {"identity", "spectrum"}),
        ("mean shift", {"cosine"}),
        ("exchange", {"cosine", "cka", "debiased_cka", "procrustes", "mutual_knn"}),
    ],
)
def test_sensitivity_table(change: str, seen_by: set[str]) -> None:
    """What each measure sees, as the table in rift/similarity.py says; here in numbers."""
    before, _ = features(300)
    after = {"rotation": before @ turn(), "scale": 2 * before, "mean shift": before + 3, "exchange": before[torch.randperm(300)]}[change]
    x, y = before.numpy(), after.numpy()
    drift = {name: 1 - getattr(similarity, name)(x, y) for name in ("cka", "debiased_cka", "procrustes", "mutual_knn")}
    drift["cosine"] = 1 - float(torch.cosine_similarity(before, after).mean())
    drift |= {map: float(penalty(before, "running", map, momentum=0)(after)) for map in ("identity", "spectrum")}
    assert {name for name, value in drift.items() if value > 0.05} == seen_by
    assert all(abs(drift[name]) < 1e-5 for name in drift.keys() - seen_by)


@pytest.mark.parametrize("statistics, map", FORMS)
def test_hinge(statistics: str, map: str) -> None:
    before, after = features()
    value = float(penalty(before, statistics, map)(after, before))
    assert value > 1e-3
    assert float(penalty(before, statistics, map, epsilon=value / 4)(after, before)) == pytest.approx(0.75 * value, rel=1e-4)
    leaf = after.clone().requires_grad_()
    below = penalty(before, statistics, map, epsilon=2 * value)(leaf, before)
    below.backward()
    assert float(below) == 0 and not leaf.grad.any()


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
    plain = penalty(before, statistics, map)(after, before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (after @ after.T).dtype == torch.bfloat16
        inside = penalty(before, statistics, map)(after, before)
    assert torch.equal(plain, inside)
    assert penalty(before, statistics, map)(after.bfloat16(), before).dtype == torch.float32


@pytest.mark.parametrize("statistics, map", FORMS)
def test_one_image_has_no_covariance(statistics: str, map: str) -> None:
    before, after = features()
    module = penalty(before, statistics, map)
    kept = {key: value.clone() for key, value in module.state_dict().items()}
    assert float(module(after[:1], before[:1])) == 0
    module.eval()
    module(after, before)
    assert all(torch.equal(value, kept[key]) for key, value in module.state_dict().items())  # averages move in train mode only
    assert float(penalty(before, "batch", "identity")(after[:4], before[:1].expand(4, D))) == 0  # nothing to hold to


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
    modules = {form: build(backbone, backbone, SimpleNamespace(embeddings=before[None]), statistics=form[0], map=form[1]) for form in FORMS}

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
    for statistics, map, allowed in (("running", "procrustes", "learned, spectrum"), ("batch", "spectrum", "learned, procrustes")):
        with pytest.raises(SettingError, match=f"map = '{map}' does not go with statistics = '{statistics}'; use .* {allowed}") as error:
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
    assert float(value) == 0 and not value.requires_grad and not module.needs_targets and not module.state_dict()
    task = leaf.square().sum()
    (plain,) = torch.autograd.grad(task, leaf, retain_graph=True)
    (with_none,) = torch.autograd.grad(task + 1e6 * value, leaf)
    assert torch.equal(plain, with_none)

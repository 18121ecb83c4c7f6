"""RIFT's rivals against scipy and plain loops, their gradients on and off the pretrained point, odd batches, and resumption."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.special import rel_entr, softmax
from scipy.stats import ortho_group
from torch import Tensor
from torch.nn import functional as F

from rift import catalog, similarity, train, vocabulary
from rift.config import Choice, Training
from rift.errors import DataError, SettingError
from rift.model import Backbone, Classifier, NaturalHead
from rift.regularizers import feature_l2, l2_sp, logit_distillation, procrustes, rsc
from rift.regularizers.rift import MAPS
from rift.views import Views

README = (Path(__file__).parents[1] / "README.md").read_text()
D, NAMES = 6, ("cat", "dog", "truck", "owl", "ship")
ROWS = F.normalize(torch.randn(len(NAMES), D, generator=torch.Generator().manual_seed(7)), dim=1)
FORMS: dict[str, dict[str, Any]] = {
    "rsc": {},
    "rsc[debiased]": {"debiased": True},
    "procrustes": {},
    "feature_l2": {},
    "logit_distillation": {"labels": "+".join(NAMES)},
}


def features(n: int = 40, d: int = D, seed: int = 0, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Pretrained and finetuned embeddings `(n, d)` of the same images."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(n, d, generator=generator) * torch.linspace(2, 0.3, d) + 1
    return before, before + noise * torch.randn(n, d, generator=generator) + 0.2


def made(name: str, before: Tensor, **options: Any) -> Any:
    """The module of a form for pretrained embeddings `(n, d)` in one view."""
    head = NaturalHead(NAMES, ROWS, scale=20.0)
    pretrained: Any = SimpleNamespace(width=before.shape[1], natural_head=lambda labels: head)
    door = catalog.door("regularizers", name.split("[")[0])
    return door(pretrained, None, SimpleNamespace(embeddings=before[None]), **{**FORMS[name], **options})


def number(value: Tensor) -> float:
    return value.detach().item()


def moved(backbone: Backbone, amount: float = 0.03) -> Backbone:
    """A copy whose weights all differ a little."""
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += amount * torch.randn_like(parameter)
    return other


@pytest.mark.parametrize("n, d", [(40, 5), (12, 30), (4, 6)])
def test_rsc_is_one_minus_the_cka_of_similarity(n: int, d: int) -> None:
    before, after = features(n, d)
    for name, measure in (("rsc", similarity.cka), ("rsc[debiased]", similarity.debiased_cka)):
        expected = 1 - measure(before.numpy(), after.numpy())
        assert number(made(name, before)(after, before)) == pytest.approx(expected, abs=2e-6)


def test_debiased_rsc_calls_unrelated_embeddings_unrelated() -> None:
    before, after = torch.randn(32, 192), torch.randn(32, 192)
    assert number(made("rsc", before)(after, before)) < 0.2  # the floor: about b / (d + b) is all that it can rise to
    assert number(made("rsc[debiased]", before)(after, before)) > 0.9


@pytest.mark.parametrize("n, d", [(40, 5), (12, 30), (2, 4), (30, 30)])
def test_procrustes_is_the_residual_of_scipys_rotation(n: int, d: int) -> None:
    before, after = features(n, d)
    x, y = ((z - z.mean(0)).double().numpy() for z in (before, after))
    turn, overlap = orthogonal_procrustes(x, y)
    expected = np.square(x @ turn - y).sum() / np.square(x).sum()
    assert expected == pytest.approx((np.square(x).sum() + np.square(y).sum() - 2 * overlap) / np.square(x).sum())
    assert number(made("procrustes", before)(after, before)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_feature_l2_and_distillation_agree_with_numpy() -> None:
    before, after = features()
    z0, z = before.double().numpy(), after.double().numpy()
    expected = np.square(z - z0).sum(1).mean() / np.trace(np.cov(z0.T))
    assert number(made("feature_l2", before)(after, before)) == pytest.approx(expected, rel=1e-5)

    def answers(z: np.ndarray, temperature: float) -> np.ndarray:
        return softmax(20 / temperature * z / np.linalg.norm(z, axis=1, keepdims=True) @ ROWS.double().numpy().T, axis=1)

    for temperature in (0.5, 2.0, 10.0):
        p0, p = answers(z0, temperature), answers(z, temperature)
        expected = rel_entr(p0, p).sum(1).mean() / rel_entr(p0, p0.mean(0)).sum(1).mean()
        module = made("logit_distillation", before, temperature=temperature)
        assert number(module(after, before)) == pytest.approx(expected, rel=1e-4)


def test_a_penalty_of_one_is_the_average_for_every_image() -> None:
    before, _ = features(400)
    average = before.mean(0).expand_as(before)
    assert number(made("feature_l2", before)(average, before)) == pytest.approx(1, abs=0.01)
    assert number(made("procrustes", before)(average, before)) == pytest.approx(1, abs=1e-5)
    assert number(made("rsc", before)(average, before)) == 1


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("n, d", [(40, D), (5, D)])
def test_gradient_agrees_with_finite_differences(name: str, n: int, d: int) -> None:
    before, after = features(n, d, seed=3)
    module = made(name, before)
    leaf = after.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(leaf, before), leaf)
    direction, step = gradient / gradient.norm() + 0.3 * torch.randn(n, d) / (n * d) ** 0.5, 1e-2
    with torch.no_grad():
        slope = number(module(after + step * direction, before) - module(after - step * direction, before)) / (2 * step)
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=2e-2)
    assert gradient.abs().max() > 1e-4


def test_procrustes_gradient_is_that_of_the_nuclear_norm() -> None:
    """With distinct singular values the derivative of the SVD exists, and holding the rotation gives the same."""
    before, after = features(40)
    leaf, wide = after.clone().requires_grad_(), after.double().requires_grad_()
    (gradient,) = torch.autograd.grad(made("procrustes", before)(leaf, before), leaf)
    x, y = before.double() - before.double().mean(0), wide - wide.mean(0)
    nuclear = torch.linalg.svdvals(x.T @ y).sum()
    (expected,) = torch.autograd.grad((x.square().sum() + y.square().sum() - 2 * nuclear) / x.square().sum(), wide)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("n", [2, 5, 6, 40])
def test_procrustes_gradient_is_finite_where_singular_values_meet_or_vanish(n: int) -> None:
    generator = torch.Generator().manual_seed(1)
    isotropic = torch.linalg.qr(torch.randn(40, D, generator=generator)).Q[:n] * 5
    flat = torch.outer(torch.arange(n) + 1.0, torch.eye(D)[0])  # rank 1
    for before in (isotropic, flat, torch.randn(n, D, generator=generator)):
        for after in (before, -before, 3 * before, flat, before.mean(0).expand_as(before), 1e-4 * isotropic):
            leaf = after.clone().requires_grad_()
            value = made("procrustes", before)(leaf, before)
            value.backward()
            assert number(value) >= 0 and leaf.grad.isfinite().all()
            descended = (after - 1e-3 * leaf.grad).detach()
            assert number(made("procrustes", before)(descended, before)) <= number(value) + 1e-6


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("n", [40, 5])
def test_at_the_pretrained_point_penalty_and_gradient_vanish_but_stay_finite(name: str, n: int) -> None:
    before, _ = features(n)
    leaf = before.clone().requires_grad_()
    value = made(name, before)(leaf, before)
    value.backward()
    assert 0 <= number(value) < 1e-9 and value.shape == () and value.dtype == torch.float32
    assert leaf.grad.isfinite().all() and leaf.grad.abs().max() < 1e-4


@pytest.mark.parametrize("name", FORMS)
def test_rounding_puts_no_penalty_below_zero(name: str) -> None:
    for seed in range(30):
        before, after = features(12, seed=seed, noise=1e-6)
        assert number(made(name, before)(after - 0.2, before)) >= 0


@pytest.mark.parametrize("name", FORMS)
def test_a_batch_of_one(name: str) -> None:
    before, after = features()
    value = number(made(name, before)(after[:1], before[:1]))
    if name in ("feature_l2", "logit_distillation"):  # each image has a distance of its own
        each = [number(made(name, before)(after[i : i + 1], before[i : i + 1])) for i in range(40)]
        assert value > 0 and np.mean(each) == pytest.approx(number(made(name, before)(after, before)), rel=1e-4)
    else:  # one image has no relation to another
        assert value == 0


def test_batches_too_small_or_all_alike() -> None:
    before, after = features()
    assert number(made("rsc[debiased]", before)(after[:3], before[:3])) == 0
    for name in ("rsc", "rsc[debiased]", "procrustes"):
        for n in (5, 7, 40):
            alike = before[:1].expand(n, D) / 3
            assert number(made(name, before)(after[:n], alike)) == 0
            leaf = (alike * 1.7).clone().requires_grad_()
            value = made(name, before)(leaf, before[:n])
            assert number(value) == pytest.approx(1, abs=1e-5)
            if value.requires_grad:
                value.backward()
                assert leaf.grad.isfinite().all()


def test_debiased_rsc_where_each_image_has_a_direction_of_its_own() -> None:
    before, after = 3 * torch.eye(8)[:5], features(5, 8)[1]
    assert number(made("rsc[debiased]", before)(after, before)) == 0
    leaf = before.clone().requires_grad_()
    assert number(made("rsc[debiased]", before)(leaf, after)) == 1


def test_pretrained_embeddings_that_say_nothing_are_refused() -> None:
    alike = torch.ones(40, D) / 3
    with pytest.raises(DataError, match="embeds all training images alike; feature_l2 needs some that differ"):
        made("feature_l2", alike)
    with pytest.raises(DataError, match="same answer among cat, dog, truck, …; choose other labels"):
        made("logit_distillation", alike)


@pytest.mark.parametrize("name", FORMS)
def test_autocast_around_changes_nothing(name: str) -> None:
    before, after = features()
    module = made(name, before)
    plain = module(after, before)
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(after, before)
    assert torch.equal(plain, inside)
    assert module(after.bfloat16(), before).dtype == torch.float32


@pytest.mark.parametrize("name", FORMS)
def test_a_diverged_model_gives_nan_and_no_crash(name: str) -> None:
    before, after = features()
    module = made(name, before)
    for bad in (torch.nan, torch.inf):
        for wrong in (after * bad, torch.cat([after[:-1], after[-1:] * bad])):
            assert not module(wrong, before).isfinite()
    huge = module(after * 1e30, before)  # its squares are not finite
    assert not huge.isfinite() or (name == "logit_distillation" and number(huge) < 10)


@pytest.mark.parametrize("name", FORMS)
def test_a_saved_module_goes_on_bit_for_bit(name: str) -> None:
    before, after = features()
    module, other = made(name, before), made(name, before)
    other.load_state_dict({key: value.clone() for key, value in module.state_dict().items()})
    assert torch.equal(module(after, before), other(after, before))
    assert not list(module.parameters())  # nothing for the optimizer


@pytest.mark.parametrize("name", FORMS)
def test_targets_are_asked_for(name: str) -> None:
    before, after = features()
    module = made(name, before)
    assert module.needs_targets
    with pytest.raises(ValueError, match="compares with targets"):
        module(after)


def test_procrustes_costs_of_a_scale_and_of_an_exchange() -> None:
    before, _ = features()
    turn = torch.from_numpy(ortho_group.rvs(D, random_state=5)).float()
    for scale in (0.5, 1.0, 3.0):
        value = number(made("procrustes", before)(scale * before @ turn + 4, before))
        assert value == pytest.approx((scale - 1) ** 2, abs=1e-5)
    assert number(made("procrustes", before)(before.flip(0), before)) > 0.1


# feature_l2 with layers: activations inside, read by hooks in the one pass of the step


def toy(pool: str = "token") -> Backbone:
    options = {"class_token": False, "global_pool": "avg"} if pool == "avg" else {}
    vit = timm.create_model("test_vit", num_classes=0, img_size=32, **options)
    return Backbone(vit, pixels=32, mean=(0.5,) * 3, std=(0.5,) * 3).eval()


def views_of(backbone: Backbone, n: int = 12, **settings: Any) -> Views:
    pixels = np.random.default_rng(0).integers(0, 255, (n, 32, 32, 3), dtype=np.uint8)
    views = Views(pixels, np.arange(n) % 2, Training(batch_size=6, precision="fp32", **settings), seed=0)
    views.pretrained = backbone
    return views


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("layers", [1, 2, 6])
def test_layers_agree_with_a_second_pass(pool: str, layers: int) -> None:
    pretrained = toy(pool)
    finetuned, views = moved(pretrained), views_of(pretrained)
    module = feature_l2.build(pretrained, finetuned, views, layers=layers)
    assert module.blocks == {1: (5,), 2: (2, 5), 6: (0, 1, 2, 3, 4, 5)}[layers]
    ids = np.array([3, 1, 8, 5])
    value = module(finetuned(views.images(ids, 1)), views.targets(module.blocks)[1, ids])
    with torch.no_grad():
        every = [pretrained.embed(views.images(np.arange(12), view)) for view in range(views.views)]
        (z0, a0), (z, a) = every[1], finetuned.embed(views.images(ids, 1))
    places = [(z, z0, [z for z, _ in every])] + [(a[b], a0[b], [a[b] for _, a in every]) for b in module.blocks]
    expected = []
    for after, before, whole in places:
        spread = np.trace(np.cov(torch.cat(whole).double().numpy().T))
        expected.append(float((after - before[ids]).double().square().sum(1).mean()) / spread)
    assert number(value) == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("method", catalog.names("methods"))
def test_layers_are_read_right_under_every_method(method: str, pool: str) -> None:
    """Prompts among the tokens, wrapped layers, branches: what the hooks read is what a second pass gives."""
    pretrained = toy(pool)
    finetuned, views = moved(pretrained), views_of(pretrained)
    catalog.door("methods", method)(finetuned)
    module = feature_l2.build(pretrained, finetuned, views, layers=2)
    x, targets = views.images(np.arange(12), 0), views.targets(module.blocks)[0]
    with torch.no_grad():
        embeddings, activations = finetuned.embed(x)
        now = torch.cat([embeddings, *activations[list(module.blocks)]], 1)
        squares = (now - targets).square().sum(0).split(64)
        expected = float((torch.stack([part.sum() for part in squares]) / 12 / module.spreads).mean())
    assert number(module(finetuned(x), targets)) == pytest.approx(expected, rel=1e-4)


def test_layers_cost_nothing_at_the_pretrained_point_and_reach_early_blocks_off_it() -> None:
    pretrained = toy()
    views = views_of(pretrained)
    same = copy.deepcopy(pretrained)
    module = feature_l2.build(pretrained, same, views, layers=3)
    targets = views.targets(module.blocks)[0]
    assert number(module(same(views.images(np.arange(12), 0)), targets)) < 1e-9
    finetuned = moved(pretrained)
    module = feature_l2.build(pretrained, finetuned, views, layers=3)
    embeddings = finetuned(views.images(np.arange(12), 0))
    module(embeddings.detach(), targets).backward()  # nothing can come from the embedding now
    reached = [float(block.attn.qkv.weight.grad.abs().max()) for block in finetuned.vit.blocks]
    assert min(reached) > 0


def test_layers_need_the_pass_of_this_batch_unless_the_backbone_is_frozen() -> None:
    pretrained = toy()
    views, finetuned = views_of(pretrained), moved(pretrained)
    module = feature_l2.build(pretrained, finetuned, views, layers=2)
    targets, embeddings = views.targets(module.blocks)[0], views.embeddings[0]
    x = views.images(np.arange(12), 0)
    with torch.inference_mode():
        finetuned(x)  # a look at the probe leaves nothing behind
    with pytest.raises(ValueError, match="run the finetuned backbone on it first"):
        module(embeddings, targets)
    module(finetuned(x), targets)
    with pytest.raises(ValueError, match="run the finetuned backbone on it first"):
        module(embeddings, targets)  # one pass serves one step
    finetuned.requires_grad_(False)
    assert number(module(embeddings, targets)) == 0


def test_targets_of_blocks_are_cached_beside_the_embeddings(tmp_path, monkeypatch) -> None:
    pretrained = toy()
    views = views_of(pretrained)
    views.cache = tmp_path / "views.npz"
    targets = views.targets((2, 5))
    assert targets.shape == (views.views, 12, 3 * 64) and torch.equal(targets[..., :64], views.embeddings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["views-2-5.npz", "views.npz"]
    again = views_of(pretrained)
    again.cache, again.pretrained = views.cache, None  # no model at hand: it must come from the file
    assert torch.equal(again.targets((2, 5)), targets) and again.from_cache
    monkeypatch.setattr(Backbone, "embed", lambda *_: pytest.fail("a second pass"))
    assert views.targets((2, 5)) is targets


@pytest.mark.parametrize("method", ["full", "linear"])
def test_layers_train_and_run_the_pretrained_model_no_more(method: str) -> None:
    pretrained = toy()
    task = catalog.door("tasks", "single_label")(("a", "b"))
    classifier = Classifier(copy.deepcopy(pretrained), task.head(pretrained))
    catalog.door("methods", method)(classifier.backbone)
    training = Training(batch_size=6, epochs=2, precision="fp32", learning_rate=1e-3)
    views = views_of(pretrained)
    module = feature_l2.build(pretrained, classifier.backbone, views, layers=2)
    _ = views.embeddings
    views.pretrained = None
    state = train.State(classifier, module, train.make_optimizer(classifier, module, training))
    penalties = [e.values["penalty"] for e in train.train(state, task, views, training, 1.0, 0, dict) if e.kind == "step"]
    assert len(penalties) == 4 and np.isfinite(penalties).all()
    assert penalties == [0] * 4 if method == "linear" else penalties[-1] > 1e-6


def test_more_layers_than_blocks_are_refused() -> None:
    with pytest.raises(SettingError, match="layers = 7, but this backbone has 6 blocks") as error:
        feature_l2.build(toy(), toy(), None, layers=7)
    assert error.value.code == "setting.range"


# l2_sp: the weights themselves


def test_l2_sp_agrees_with_plain_loops_and_its_gradient_is_not_silently_zero() -> None:
    pretrained = toy()
    finetuned = moved(pretrained)
    module = l2_sp.build(pretrained, finetuned, None)
    pairs = list(zip(finetuned.parameters(), pretrained.parameters(), strict=True))
    pairs = [(a.detach().double().numpy(), b.detach().double().numpy()) for a, b in pairs]
    size = sum(np.square(b).sum() for _, b in pairs)
    value = module(torch.randn(4, 64))
    assert number(value) == pytest.approx(sum(np.square(a - b).sum() for a, b in pairs) / size, rel=1e-4)
    value.backward()
    for parameter, (a, b) in zip(finetuned.parameters(), pairs, strict=True):
        np.testing.assert_allclose(parameter.grad.numpy(), 2 * (a - b) / size, rtol=1e-3, atol=1e-10)
        assert parameter.grad.abs().max() > 0
    assert all(p.grad is None for p in pretrained.parameters())


def test_l2_sp_brings_the_weights_back_to_where_they_began() -> None:
    pretrained = toy()
    finetuned = copy.deepcopy(pretrained)
    module = l2_sp.build(pretrained, finetuned, None)
    embeddings = torch.zeros(2, 64)
    value = module(embeddings)
    value.backward()
    assert number(value) == 0 and all(not p.grad.any() for p in finetuned.parameters())  # at the starting point
    finetuned.load_state_dict(moved(pretrained).state_dict())
    optimizer = torch.optim.SGD(finetuned.parameters(), lr=0.25 * module.size)
    start = number(module(embeddings))
    for _ in range(3):
        optimizer.zero_grad()
        module(embeddings).backward()
        optimizer.step()
    assert start > 0.1 and number(module(embeddings)) == pytest.approx(start / 4**3, rel=1e-3)


def test_l2_sp_holds_what_trains_and_both_models_have() -> None:
    pretrained = toy()
    finetuned = moved(pretrained)
    finetuned.requires_grad_(False)
    finetuned.adapter = torch.nn.Linear(8, 8)  # trains, but began from nothing
    module = l2_sp.build(pretrained, finetuned, None)
    value = module(torch.zeros(2, 64))
    assert number(value) == 0 and not value.requires_grad
    finetuned.vit.blocks[5].requires_grad_(True)
    module = l2_sp.build(pretrained, finetuned, None)
    after, before = (torch.cat([p.detach().flatten() for p in one.vit.blocks[5].parameters()]) for one in (finetuned, pretrained))
    expected = (after - before).square().sum() / before.square().sum()
    assert number(module(torch.zeros(2, 64))) == pytest.approx(float(expected), rel=1e-4)
    assert not list(module.parameters()) and not module.state_dict() and not module.needs_targets


def test_l2_sp_keeps_copies() -> None:
    only = toy()
    module = l2_sp.build(only, only, None)
    with torch.no_grad():
        for parameter in only.parameters():
            parameter += 0.1
    assert number(module(torch.zeros(2, 64))) > 0.01


def test_l2_sp_where_only_untrained_biases_train() -> None:
    pretrained = toy()
    with torch.no_grad():
        for name, parameter in pretrained.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
            if name.endswith("bias"):
                parameter.zero_()
    module = l2_sp.build(pretrained, moved(pretrained), None)
    assert module.size == pytest.approx(sum(number(p.square().sum()) for p in pretrained.parameters()), rel=1e-4)
    assert 0 < number(module(torch.zeros(2, 64))) < 1


def test_l2_sp_gives_nan_for_a_diverged_model() -> None:
    pretrained = toy()
    finetuned = copy.deepcopy(pretrained)
    module = l2_sp.build(pretrained, finetuned, None)
    with torch.no_grad():
        finetuned.vit.blocks[0].attn.qkv.weight[0, 0] = torch.nan
    with torch.autocast("cpu", torch.bfloat16):
        value = module(torch.zeros(2, 64))
    assert value.isnan() and value.dtype == torch.float32


# logit_distillation: which names


def test_names_come_from_the_vocabulary_or_from_a_list() -> None:
    asked = []

    def head(labels: tuple[str, ...]) -> NaturalHead:
        asked.append(labels)
        return NaturalHead(tuple(labels), F.normalize(torch.randn(len(labels), D), dim=1))

    before, after = features()
    pretrained: Any = SimpleNamespace(natural_head=head)
    for labels in ("", " cat + dog+ cat ,traffic light"):
        module = logit_distillation.build(pretrained, pretrained, SimpleNamespace(embeddings=before[None]), labels=labels)
        assert number(module(after, before)) > 0
    everything, few = asked
    assert few == ("cat", "dog", "traffic light")
    assert 900 < len(everything) <= 1000 and len(set(everything)) == len(everything)
    assert {"tench", "goldfish", "zebra", "banana"} <= set(everything) and "animal" not in everything
    assert not vocabulary.nearest() & set(everything)


def test_a_backbone_without_words_and_names_without_meaning_are_refused() -> None:
    before, _ = features()

    def build(head: NaturalHead | None, labels: str) -> None:
        pretrained: Any = SimpleNamespace(natural_head=lambda labels: head)
        logit_distillation.build(pretrained, pretrained, SimpleNamespace(embeddings=before[None]), labels=labels)

    cases = (
        (None, "", "needs a natural head .* this backbone has none; choose another backbone, or feature_l2 or rift"),
        (
            NaturalHead(("cat", "dog"), ROWS[:2], ("xyzzy", "plugh")),
            "cat+dog+xyzzy+plugh",
            "does not know xyzzy, plugh; known are",
        ),
        (NaturalHead(("cat",), ROWS[:1]), "cat", "labels = 'cat' is one name; give at least two"),
    )
    for head, labels, sentence in cases:
        with pytest.raises(SettingError, match=sentence) as error:
            build(head, labels)
        assert error.value.code == "setting.range"


def test_the_embedded_model_can_be_held_to_its_own_words() -> None:
    pretrained = catalog.door("backbones", "embedded")()
    with torch.no_grad():
        before = pretrained(torch.rand(12, 3, 64, 64))
    for labels in ("", "cat+dog+truck"):
        module = logit_distillation.build(pretrained, pretrained, SimpleNamespace(embeddings=before[None]), labels=labels)
        assert number(module(before, before)) < 1e-6 < number(module(before.flip(0), before))


def test_settings_come_from_the_signature() -> None:
    chosen = catalog.check("regularizers", catalog.parse("logit_distillation:labels=cat+dog,temperature=1"))
    assert chosen.options == {"labels": "cat+dog", "temperature": 1.0}
    assert catalog.check("regularizers", Choice(name="feature_l2")).options == {"layers": 0}
    for name, bad in (("feature_l2", {"layers": 49}), ("rsc", {"debiased": "perhaps"}), ("procrustes", {"scale": 1})):
        with pytest.raises(SettingError):
            catalog.check("regularizers", Choice(name=name, options=bad))
    papers = {rsc: "2503.07399", procrustes: "2108.01661", feature_l2: "2308.13320", l2_sp: "1802.01483"}
    for module, paper in {**papers, logit_distillation: "1606.09282"}.items():
        assert paper in (module.__doc__ or "") and "our choice" in (module.__doc__ or "")


# the table in the README: what each penalty can see

SEEN = ("rotation", "scale", "mean", "pairing", "orientation")
TABLE = dict(
    re.findall(r"^\| `((?:none|rift|rsc|procrustes|feature_l2|l2_sp|logit_distillation)[^`]*)` \| (.*) \|$", README, re.M)
)


def changes(before: Tensor) -> dict[str, Tensor]:
    """The pretrained embeddings `(n, d)` after each of the changes that the table asks about."""
    mean = before.mean(0)
    turn = torch.from_numpy(ortho_group.rvs(D, random_state=5)).float()
    axes = torch.linalg.eigh(torch.cov(before.T)).eigenvectors
    mirror = axes @ torch.diag(torch.tensor([1.0, -1.0] * (D // 2))) @ axes.T
    return {
        "rotation": (before - mean) @ special(turn) + mean,
        "scale": 2 * before,
        "mean": before + torch.linspace(-1, 2, D),
        "pairing": before.roll(7, 0),
        "orientation": (before - mean) @ mirror + mean,
    }


def special(turn: Tensor) -> Tensor:
    """A proper rotation: the trained map cannot mirror."""
    return turn @ torch.diag(torch.tensor([float(torch.det(turn).sign())] + [1.0] * (D - 1)))


def lowest(choice: Choice, before: Tensor, after: Tensor) -> float:
    """The penalty of a choice; with a trained map, that of the better of its start and the right rotation."""
    head = NaturalHead(NAMES, ROWS, scale=20.0)
    images, backbone = SimpleNamespace(embeddings=before[None]), toy()
    pretrained: Any = SimpleNamespace(
        width=D, natural_head=lambda labels: head, named_parameters=backbone.named_parameters, parameters=backbone.parameters
    )
    options = choice.options | ({"momentum": 0.0} if choice.name == "rift" else {})
    module = catalog.door("regularizers", choice.name)(pretrained, copy.deepcopy(backbone), images, **options)
    value = number(module(after, before))
    if options.get("map") == "learned":
        module.rotation.weight = special(torch.from_numpy(similarity.rotation(before, after)).float())
        value = min(value, number(module(after, before)))
    return value


@pytest.mark.parametrize("text", TABLE)
def test_the_readme_says_what_a_penalty_can_see(text: str) -> None:
    choice, said = catalog.check("regularizers", catalog.parse(text)), TABLE[text].split(" | ")
    assert len(said) == len(SEEN) and set(said) <= {"sees", "–"}
    before, _ = features(60, seed=2)
    assert lowest(choice, before, before) < 1e-9
    for change, word in zip(SEEN, said, strict=True):
        value = lowest(choice, before, changes(before)[change])
        assert value > 0.02 if word == "sees" else value < 1e-6, (change, value)


def test_the_table_holds_every_penalty_and_every_form_of_rift() -> None:
    chosen = [catalog.check("regularizers", catalog.parse(text)) for text in TABLE]
    assert {one.name for one in chosen} == set(catalog.names("regularizers"))
    forms = {(one.options["statistics"], one.options["map"]) for one in chosen if one.name == "rift"}
    assert forms == {(statistics, map) for statistics, maps in MAPS.items() for map in maps}
    assert f"| penalty | {' | '.join(SEEN)} |" in README

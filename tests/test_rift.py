"""What RIFT's penalty sees and what it cannot see (method: rotation, signs, exchange of images), in numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from rift import similarity
from rift.regularizers.rift import MAPS
from tests.test_regularizers import FORMS, D, features, number, penalty, turn


@pytest.mark.parametrize("statistics, map", FORMS)
def test_turned_embeddings_cost_nothing_with_a_map_and_something_without(statistics: str, map: str) -> None:
    before, _ = features(400)
    module = penalty(before, statistics, map, momentum=0)
    if map == "learned":
        module.rotation.weight = turn()
    value = number(module(before @ turn(), before))
    assert value > 0.3 if map == "identity" else value < 1e-9


def test_turned_mean_costs_nothing_with_a_map() -> None:
    before, _ = features(400)
    fitted = penalty(before, "batch", "procrustes", momentum=0, mean=True)
    assert number(fitted(before @ turn(), before)) < 1e-9
    assert number(penalty(before, "batch", "identity", mean=True)(before @ turn(), before)) > 0.3
    learned = penalty(before, "running", "learned", momentum=0, mean=True)
    learned.rotation.weight = turn()
    assert number(learned(before @ turn())) < 1e-9


def test_fitted_rotation_works_with_fewer_images_than_dimensions_and_follows_over_steps() -> None:
    before, _ = features(8, 20)
    assert number(penalty(before, "batch", "procrustes", momentum=0)(before @ turn(20) + 9, before)) < 1e-9
    assert number(penalty(before, "batch", "identity")(before @ turn(20), before)) > 0.1
    before, _ = features(300)
    module, picks = penalty(before, "batch", "procrustes", momentum=0.5), torch.arange(300).split(30)
    values = [number(module(before[pick] @ turn(), before[pick])) for pick in (*picks, *picks)]
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
        values.append(number(value.detach()))
    assert values[-1] < 0.01 * values[0]
    torch.testing.assert_close(module.rotation() @ module.rotation().T, torch.eye(D), atol=1e-5, rtol=0)


def test_spectrum_is_the_best_that_any_rotation_reaches() -> None:
    """Hoffman-Wielandt, in float64 numpy: attained by Q = V₀ D V₁ᵀ for any signs D, never beaten."""
    before, after = features()
    s0, s1 = (np.cov(z.double().numpy().T) for z in (before, after))
    value = number(penalty(before, "running", "spectrum", momentum=0)(after)) * np.square(s0).sum()
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
        assert number(module(after, before)) < 1e-9
        restored += torch.allclose(after @ q.T, before, atol=1e-3)
    assert restored == 1
    q = torch.from_numpy(similarity.rotation(before.numpy(), after.numpy())).float()
    torch.testing.assert_close(after @ q.T, before, atol=1e-5, rtol=1e-5)


def test_exchanged_images_cost_nothing_over_the_whole_set_but_do_in_mini_batches() -> None:
    before, _ = features(400)
    after = before[torch.randperm(400)]
    assert abs(similarity.debiased_cka(before.numpy(), after.numpy())) < 0.05  # nothing of the arrangement is left
    assert number(penalty(before, "running", "identity", momentum=0)(after)) < 1e-9
    whole = penalty(before, "batch", "identity")
    assert number(whole(after, before)) < 1e-9
    assert min(number(whole(after[i : i + 20], before[i : i + 20])) for i in range(0, 400, 20)) > 0.01


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
    exchanged = before[torch.randperm(300)]
    after = {"rotation": before @ turn(), "scale": 2 * before, "mean shift": before + 3, "exchange": exchanged}[change]
    x, y = before.numpy(), after.numpy()
    drift = {name: 1 - getattr(similarity, name)(x, y) for name in ("cka", "debiased_cka", "procrustes", "mutual_knn")}
    drift["cosine"] = 1 - float(torch.cosine_similarity(before, after).mean())
    drift |= {map: number(penalty(before, "running", map, momentum=0)(after)) for map in ("identity", "spectrum")}
    assert {name for name, value in drift.items() if value > 0.05} == seen_by
    assert all(abs(drift[name]) < 1e-5 for name in drift.keys() - seen_by)

"""The toys show what they say: closed forms at both ends of each slider, and the proposition reached with equality."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rift import catalog, similarity
from rift.toys import latent_rotation, layerwise_rotation, permuted_samples, rotated_embedding
from rift.toys._turn import turn


@pytest.mark.parametrize("name", catalog.names("toys"))
def test_a_toy_has_three_sentences_one_slider_and_a_figure_that_fits_a_page(name):
    toy = catalog.module("toys", name)
    assert catalog.summary("toys", name).count(". ") == 2, "three sentences"
    ((key, field),) = catalog.settings("toys", name).model_fields.items()
    for value in (
        field.default,
        *(getattr(bound, end) for bound in field.metadata for end in ("ge", "le") if hasattr(bound, end)),
    ):
        found = toy.run(**{key: value})
        drawn = toy.figure(found).to_json()
        assert len(json.loads(drawn)["data"]) >= 1 and len(drawn) < 200_000
        assert toy.sentence(found).endswith((".", ")."))


@pytest.mark.parametrize("degrees", [0, 37, 90, 180])
def test_a_turn_is_a_rotation_that_turns_every_direction_by_its_angle(degrees):
    rotation = turn(8, degrees)
    assert np.allclose(rotation @ rotation.T, np.eye(8)) and np.isclose(np.linalg.det(rotation), 1)
    vectors = np.random.default_rng(0).normal(size=(20, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.allclose(np.sum(vectors * (vectors @ rotation), axis=1), np.cos(np.deg2rad(degrees)))


def test_a_turned_code_keeps_its_similarity_and_only_the_turned_decoder_reads_it():
    still, turned = latent_rotation.run(angle=0), latent_rotation.run(angle=90)
    assert still["error"] == pytest.approx(0, abs=1e-12) and turned["error"] > 0.1
    assert turned["cka"] == pytest.approx(1) and turned["error_turned_decoder"] == pytest.approx(0, abs=1e-12)
    assert np.allclose(turned["turned_decoder"], turned["pictures"]) and not np.allclose(
        turned["same_decoder"], turned["pictures"]
    )
    drawn = latent_rotation._pictures()[: latent_rotation.SHOWN]
    seen = still["pictures"].reshape(drawn.shape)
    assert np.corrcoef(drawn.ravel(), seen.ravel())[0, 1] > 0.9, "the code holds most of what is drawn"


def test_turned_embeddings_lose_their_names_and_get_them_back():
    still, turned, back = (rotated_embedding.run(angle=angle) for angle in (0, 90, 180))
    assert still["accuracy"] > 0.99 and turned["accuracy"] < 0.15 and back["accuracy"] == 0
    for found in (still, turned, back):
        assert found["cka"] == pytest.approx(1, abs=1e-9) and found["accuracy_unrotated"] > 0.99
    assert rotated_embedding.run(angle=40)["accuracy"] in rotated_embedding.run(angle=0)["curves"]["accuracy"]


def test_swapped_pictures_cost_nothing_and_lose_all_similarity():
    still, half, all_ = (permuted_samples.run(share=share) for share in (0, 0.5, 1))
    assert still["cka"] == pytest.approx(1) and 0.1 < half["cka"] < 0.6 and abs(all_["cka"]) < 0.05
    for found in (half, all_):
        assert found["penalty"] == pytest.approx(0, abs=1e-20)
        assert np.allclose(np.sort(found["after"], 0), np.sort(found["before"], 0)), "the very same points"
    assert sum(np.any(half["after"] != half["before"], axis=1)) <= permuted_samples.N / 2


def test_the_penalty_of_the_toy_is_that_of_the_app():
    import torch

    before = permuted_samples._cloud()[0]
    after = before @ turn(permuted_samples.WIDTH, 30)
    penalty = catalog.door("regularizers", "rift")(type("Backbone", (), {"width": 16})(), None, None, statistics="batch")
    mine = np.sum((np.cov(after.T) - np.cov(before.T)) ** 2) / np.sum(np.cov(before.T) ** 2)
    theirs = float(penalty(torch.from_numpy(after).float(), torch.from_numpy(before).float()))
    assert mine == pytest.approx(theirs, rel=1e-4) and mine > 0.1


def test_layers_turned_onto_each_other_reach_the_bound_and_keep_their_own_singular_values():
    weights, x = layerwise_rotation._net()
    turned = layerwise_rotation._turns(weights, 1.0) @ weights
    own = [np.linalg.svd(one, compute_uv=False) for one in (weights, turned)]
    assert np.allclose(*own), "each layer alone is as it was"
    product = np.linalg.multi_dot(list(turned[::-1]))
    found = layerwise_rotation.run(amount=1.0)
    assert np.linalg.norm(product, 2) == pytest.approx(np.prod([one.max() for one in own[0]]))
    assert found["linear"]["stretch"] == pytest.approx(found["bound"]) and found["bound"] > 2
    assert found["linear"]["ckas"][0] == pytest.approx(1) and found["linear"]["ckas"][-1] < 0.5
    assert found["cka_of_last"] == pytest.approx(1) and found["stretch_of_last"] == pytest.approx(1)
    still = layerwise_rotation.run(amount=0)
    assert all(still[kind]["stretch"] == pytest.approx(1) and np.allclose(still[kind]["ckas"], 1) for kind in ("linear", "relu"))
    assert np.allclose(layerwise_rotation._forward(weights, x, "linear")[0][-1], x @ np.linalg.multi_dot(list(weights[::-1])).T)


def test_the_jacobian_of_the_relu_net_is_its_difference_quotient():
    weights, x = layerwise_rotation._net()
    _, jacobian = layerwise_rotation._forward(weights, x[:3], "relu")
    step = 1e-6 * np.random.default_rng(0).normal(size=x[:3].shape)
    high, low = (layerwise_rotation._forward(weights, x[:3] + sign * step, "relu")[0][-1] for sign in (1, -1))
    assert np.allclose((high - low) / 2, np.einsum("nij,nj->ni", jacobian, step), atol=1e-12)
    assert similarity.debiased_cka(x, x @ turn(x.shape[1], 50)) == pytest.approx(1)

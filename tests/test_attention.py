"""Attention: weights as the model uses them, rollout by hand, maps and boxes of known shape, and one photo side by side."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import spearmanr
from torch import nn

from rift import figures, measures
from rift.captures import Data, Images
from rift.diagnostics import _attention as maths
from rift.diagnostics import attention
from rift.errors import RunError, SettingError
from rift.model import Attention, Classifier
from tests import methods_toys as toys


def of_weights(*layers: list, prefix: int = 1, reading: list | None = None) -> Attention:
    """Attention of one image, one head a layer, read from the first token unless told."""
    weights = torch.tensor(layers)[:, None, None]
    shares = torch.eye(weights.shape[-1])[:1] if reading is None else torch.tensor([reading])
    return Attention(weights, shares, prefix, "class token")


def random_map(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1])


def test_rollout_of_two_layers_by_hand():
    """Â_1 = [[.75 .25 0] [0 1 0] [.25 0 .75]], Â_2 = [[.5 .25 .25] [0 .5 .5] [0 0 1]]; Â_2 Â_1 worked out on paper."""
    first = [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]
    second = [[0.0, 0.5, 0.5], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    found = of_weights(first, second)
    by_hand = [[0.4375, 0.375, 0.1875], [0.125, 0.5, 0.375], [0.25, 0.0, 0.75]]
    torch.testing.assert_close(maths.rollout(found.weights)[0], torch.tensor(by_hand))
    torch.testing.assert_close(maths.maps(found)[-1, 0], torch.tensor([0.375, 0.1875]) / 0.5625)  # without the class token
    torch.testing.assert_close(maths.maps(found)[1, 0], torch.tensor([0.5, 0.5]))


def test_rollout_averages_heads_so_their_order_means_nothing_and_layers_have_one():
    weights = torch.rand(3, 2, 4, 5, 5).softmax(-1)
    shuffled = weights[:, :, torch.tensor([2, 0, 3, 1])]
    torch.testing.assert_close(maths.rollout(weights), maths.rollout(shuffled))
    assert not torch.allclose(maths.rollout(weights), maths.rollout(weights.flip(0)), atol=1e-4)
    slow = torch.eye(5)
    for layer in weights:
        slow = (0.5 * layer[0].mean(0) + 0.5 * torch.eye(5)) @ slow
    torch.testing.assert_close(maths.rollout(weights)[0], slow)


def test_rows_that_lost_a_share_to_prompts_are_made_whole():
    found = of_weights([[0.2, 0.2], [0.4, 0.0]])
    torch.testing.assert_close(maths.rollout(found.weights)[0], torch.tensor([[6 / 7, 1 / 7], [2 / 7, 5 / 7]]))


def test_uniform_attention_spreads_evenly_and_looks_as_far_as_patches_lie_apart():
    found = of_weights(*[np.full((5, 5), 0.2, np.float32).tolist()] * 2)
    for one in (maths.maps(found), maths.head_maps(found)):
        torch.testing.assert_close(one, torch.full_like(one, 0.25))
    np.testing.assert_allclose(maths.entropy(maths.maps(found).numpy()), 1, atol=1e-6)
    apart = (0 + 0.5 + 0.5 + np.sqrt(0.5)) / 4  # of a patch of the 2 x 2 to all four
    np.testing.assert_allclose(maths.distance(found).numpy(), apart, rtol=1e-6)
    own = of_weights(torch.eye(5).tolist(), reading=[0.0, 1.0, 0.0, 0.0, 0.0])
    assert maths.distance(own).item() == 0 and maths.entropy(maths.maps(own).numpy())[0, 0] == 0


def test_agreement_is_what_scipy_says():
    p, q = random_map(7, 16), random_map(7, 16, seed=1)
    np.testing.assert_allclose(maths.agreement(p, q), 1 - jensenshannon(p, q, base=2, axis=1) ** 2, atol=1e-12)
    np.testing.assert_allclose(maths.rank_correlation(p, q), [spearmanr(*pair)[0] for pair in zip(p, q, strict=True)], atol=1e-12)
    assert (maths.agreement(p, p) == 1).all() and np.allclose(maths.rank_correlation(p, p), 1)
    assert maths.agreement(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 0
    assert np.isnan(maths.rank_correlation(np.full(4, 0.25), np.arange(4) / 6))


def test_a_region_is_the_fewest_patches_that_hold_the_mass():
    one = np.array([0.05, 0.4, 0.1, 0.25, 0.2])
    assert maths.region(one, 0.5).tolist() == [False, True, False, True, False]
    assert maths.region(one, 0.4).sum() == 1 and maths.region(one, 0.41).sum() == 2
    assert maths.region(np.full(8, 1 / 8), 0.5).sum() == 4
    assert maths.overlap(maths.region(one, 0.5), maths.region(one, 0.5)) == 1
    assert maths.overlap(np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)) == pytest.approx(1 / 3)


def test_boxes_surround_connected_parts_heaviest_first():
    one = np.full((5, 5), 0.001)
    one[0, 0], one[0, 1], one[4, 2:5], one[2, 4] = 0.1, 0.1, 0.09, 0.12
    one[3, 3] = 0.08  # joins the row below it, touches (2, 4) at a corner only
    one /= one.sum()
    found = maths.boxes(one.ravel(), 0.9)
    edges = [tuple(round(box[side] * 5) for side in ("left", "top", "right", "bottom")) for box in found]
    assert edges == [(2, 3, 5, 5), (0, 0, 2, 1), (4, 2, 5, 3)]
    assert [box["mass"] for box in found] == pytest.approx(
        [one[3:, 2:].sum() - one[3, 2] - one[3, 4], one[0, :2].sum(), one[2, 4]]
    )
    assert len(maths.boxes(one.ravel(), 0.9, most=2)) == 2


@torch.no_grad()
def qk(backbone, images) -> torch.Tensor:
    """The weights once more: the tokens before each block, its norm, its qkv, softmax(q kᵀ / √d); without timm's attention."""
    found, handles = [], []

    def hook(block, inputs):
        tokens, heads = block.norm1(inputs[0]), block.attn.num_heads
        q, k, _ = block.attn.qkv(tokens).chunk(3, dim=-1)
        q, k = (one.reshape(len(one), -1, heads, one.shape[-1] // heads).transpose(1, 2) for one in (q, k))
        found.append((q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1))

    for block in backbone.vit.blocks:
        handles.append(block.register_forward_pre_hook(hook))  # after those of prompts, which were there first
    backbone(images)
    for handle in handles:
        handle.remove()
    return torch.stack(found)


@pytest.mark.parametrize("build", toys.BUILDS)
def test_attention_is_softmax_of_queries_and_keys_in_every_build(build):
    backbone = toys.toy(build)
    x, before = toys.images(backbone), toys.outputs(backbone)
    fused = [block.attn.fused_attn for block in backbone.vit.blocks]
    found = backbone.attention(x)
    torch.testing.assert_close(found.weights, qk(backbone, x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(found.weights.shape[:-1]))
    torch.testing.assert_close(found.reading.sum(1), torch.ones(len(x)))
    assert found.reader == {"average": "mean of the patches", "attention": "pooling head", "siglip": "pooling head"}.get(
        build, "class token"
    )
    assert toys.same(toys.outputs(backbone), before), "asking changed what the model computes"
    assert [block.attn.fused_attn for block in backbone.vit.blocks] == fused
    assert not any(block.attn.attn_drop._forward_pre_hooks for block in backbone.vit.blocks)
    maps = maths.maps(found)
    assert maps.shape == (backbone.layers + 1, len(x), (backbone.pixels // backbone.vit.patch_embed.patch_size[0]) ** 2)
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))


@pytest.mark.parametrize("build", ["attention", "siglip"])
def test_the_pooling_heads_weights_are_those_of_torchs_own_attention(build):
    backbone = toys.toy(build)
    vit, x = backbone.vit, toys.images(backbone)
    pool, width = vit.attn_pool, vit.embed_dim
    theirs = nn.MultiheadAttention(width, pool.num_heads, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([pool.q.weight, pool.kv.weight]))
        theirs.in_proj_bias.copy_(torch.cat([pool.q.bias, pool.kv.bias]))
        tokens = vit.forward_features((x - backbone.mean) / backbone.std)
        tokens = tokens if vit.pool_include_prefix else tokens[:, vit.num_prefix_tokens :]
        weights = theirs(pool.latent.expand(len(x), -1, -1), tokens, tokens)[1][:, 0]
    torch.testing.assert_close(backbone.attention(x).reading[:, -weights.shape[1] :], weights, atol=1e-5, rtol=1e-4)


def test_everything_is_as_before_even_after_an_error():
    backbone = toys.toy("token")
    fused = [block.attn.fused_attn for block in backbone.vit.blocks]
    with pytest.raises((RuntimeError, AssertionError)):
        backbone.attention(torch.rand(1, 3, 5, 5))
    assert [block.attn.fused_attn for block in backbone.vit.blocks] == fused and any(fused)
    assert not any(block.attn.attn_drop._forward_pre_hooks for block in backbone.vit.blocks)


@pytest.mark.parametrize("name", toys.NAMES)
@pytest.mark.parametrize("build", ["token", "average"])
def test_attention_after_every_method(name, build):
    backbone = toys.toy(build)
    pretrained = backbone.attention(x := toys.images(backbone))
    toys.adapt(name, backbone)
    toys.train(backbone)
    before, found = toys.outputs(backbone), backbone.attention(x)
    assert found.weights.shape == pretrained.weights.shape, "prompts are left out"
    direct = qk(backbone, x)
    if name == "vpt":
        own = [*range(found.prefix), *range(found.prefix + 10, direct.shape[-1])]
        direct = direct[..., own, :][..., own]
        assert (found.weights.sum(-1) < 1).all()
    torch.testing.assert_close(found.weights, direct, atol=1e-5, rtol=1e-4)
    assert toys.same(toys.outputs(backbone), before)
    if name not in ("linear", "last_blocks"):
        assert (maths.maps(found) - maths.maps(pretrained)).abs().max() > 1e-5, "its change reaches the maps"


def test_the_embedded_model_has_no_class_token_and_reads_the_mean_of_its_patches():
    from rift.backbones import embedded

    backbone = embedded.load()
    found = backbone.attention(torch.rand(2, 3, 64, 64))
    assert found.weights.shape == (4, 2, 3, 64, 64) and found.prefix == 0 and found.reader == "mean of the patches"
    torch.testing.assert_close(maths.maps(found)[:4], found.weights.mean((2, 3)))


def pair(tmp_path, build: str = "token", noise: float = 0.05, n: int = 6) -> tuple:
    pretrained = toys.toy(build)
    finetuned = Classifier(copy.deepcopy(pretrained), nn.Linear(pretrained.width, 2)).eval()
    with torch.no_grad():
        for parameter in finetuned.backbone.parameters():
            parameter += noise * torch.randn_like(parameter)
    pixels = np.random.default_rng(0).integers(0, 255, (n, pretrained.pixels, pretrained.pixels, 3), dtype=np.uint8)
    some = Images(pixels, np.array([f"{i}" for i in range(n)]), np.arange(n) % 2, ("a", "b"))
    data = Data(some, some, some, None, tmp_path, seed=0, device=torch.device("cpu"))
    return pretrained, finetuned, data


def test_a_model_agrees_with_itself_and_less_with_another(tmp_path):
    pretrained, finetuned, data = pair(tmp_path)
    itself = Classifier(copy.deepcopy(pretrained), nn.Linear(pretrained.width, 2)).eval()
    (tmp_path / "self").mkdir()
    same = attention.measure(attention.capture(pretrained, itself, dataclasses.replace(data, folder=tmp_path / "self")))
    other = attention.measure(attention.capture(pretrained, finetuned, data))
    for name in attention.MEASURES:
        for suffix in ("", "_natural"):
            assert same[f"{name}{suffix}"] == pytest.approx(1) and np.allclose(same[f"{name}{suffix}_layers"], 1)
            assert same[f"{name}{suffix}_floor"] < 1 - 1e-6
            low, high = (other[f"{name}{suffix}_{end}"] for end in ("low", "high"))
            assert low < other[f"{name}{suffix}"] < high and other[f"{name}{suffix}"] < 1 - 1e-6
    np.testing.assert_allclose(same["distance_layers"], same["pretrained_distance_layers"])
    assert same["n"] == same["n_natural"] == 6 and other["distance_heads"].shape == (6, 2)


def test_the_means_the_floor_and_the_interval_are_those_of_the_images(tmp_path):
    pretrained, finetuned, data = pair(tmp_path)
    arrays = attention.capture(pretrained, finetuned, data, images=5)
    found, before, after = attention.measure(arrays), arrays["before_test_maps"], arrays["after_test_maps"]
    assert len(set(arrays["test_ids"])) == 5 and (arrays["test_ids"] == arrays["natural_ids"]).all()
    each = np.array([1 - jensenshannon(p, q, base=2) ** 2 for p, q in zip(before[-1], after[-1], strict=True)])
    assert found["agreement"] == pytest.approx(each.mean(), abs=1e-6)
    assert found["agreement_high"] - found["agreement"] == pytest.approx(2.776445 * each.std(ddof=1) / np.sqrt(5), rel=1e-4)
    floor = [1 - jensenshannon(before[2, i - 1], after[2, i], base=2) ** 2 for i in range(5)]
    assert found["agreement_layers_floor"][2] == pytest.approx(np.mean(floor), abs=1e-6)
    index = [list(data.test.ids).index(one) for one in arrays["test_ids"]]
    x = torch.from_numpy(data.test.pixels[index]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(torch.from_numpy(after), maths.maps(finetuned.backbone.attention(x)), atol=1e-5, rtol=1e-4)


def test_what_is_undefined_has_a_reason(tmp_path):
    pretrained, finetuned, data = pair(tmp_path, n=1)
    one = attention.measure(attention.capture(pretrained, finetuned, data))
    assert one["agreement"] is not None and one["agreement_low"] is None and one["agreement_floor"] is None
    assert "no other" in one["agreement_low_reason"] and "no other" in one["agreement_layers_floor_reason"]
    assert attention.sentence({"none": one}) and attention.figure({"none": one}).data
    (tmp_path / "lost").mkdir()
    with torch.no_grad():
        finetuned.backbone.vit.blocks[2].attn.qkv.weight.fill_(torch.nan)
    lost = attention.capture(pretrained, finetuned, dataclasses.replace(data, folder=tmp_path / "lost"))
    diverged = measures.plain(attention.measure(lost))
    assert diverged["agreement"] is None and "diverged" in diverged["agreement_reason"]
    assert diverged["agreement_layers"][1] is not None and diverged["agreement_layers"][2] is None
    assert "diverged" in attention.sentence({"none": diverged}) and attention.figure({"none": diverged})
    assert attention.figure({}).layout.annotations


def look(build: str = "token", **settings) -> dict:
    pretrained = toys.toy(build)
    moved = copy.deepcopy(pretrained)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    arms = {"pretrained": pretrained, "same": copy.deepcopy(pretrained), "<b>moved": moved}
    return attention.look(arms, toys.images(pretrained)[0], **settings)


def test_a_photo_is_shown_once_for_each_model_with_boxes_and_agreement():
    found = look()
    assert found["agreement"][1] == 1 and found["overlap"][1] == 1 and found["agreement"][2] < 1
    assert found["boxes"][0] == found["boxes"][1] and found["by_layer"].shape == (3, 7)
    shown = json.loads((figure := attention.look_figure(found)).to_json())
    assert len(shown["layout"]["images"]) == 4 and len(shown["layout"]["shapes"]) == 2 * sum(map(len, found["boxes"]))
    titles = [one["text"] for one in shown["layout"]["annotations"]]
    assert titles[:2] == ["the photo", "pretrained"] and titles[2] == "same<br>agreement 1.000"
    assert titles[3] == f"&lt;b&gt;moved<br>agreement {found['agreement'][2]:.3f}"
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"
    text = attention.look_sentence(found)
    assert "rollout" in text and "class token" in text and "anecdote" in text and "50 %" in text
    assert f"{found['spread'][0] * 100:.0f} % of the patches" in text and found["spread"][0] <= 0.52
    assert attention.LOOK_WORDS is False


def test_layer_and_head_choose_the_map_and_the_pooling_is_named():
    found, backbone = look(layer=3, head=2), toys.toy()
    weights = backbone.attention(toys.images(backbone)[:1]).weights[2, 0, 1, 0, 1:]
    np.testing.assert_allclose(found["maps"][0], (weights / weights.sum()).numpy(), rtol=1e-4)
    mean = look(layer=3)["maps"][0]
    assert not np.allclose(mean, found["maps"][0]) and not np.allclose(mean, look()["maps"][0])
    assert "layer 3, head 2" in attention.look_sentence(found)
    assert "no class token" in attention.look_sentence(look("average"))
    assert "pooling head" in attention.look_sentence(look("siglip", mass=0.3))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layer": 7}, ["layer = 7", "has 6 layers", "1 to 6"]),
        ({"layer": 1, "head": 3}, ["head = 3", "has 2 heads", "1 to 2"]),
        ({"head": 1}, ["head = 1", "rollout", "choose a layer from 1 to 6"]),
    ],
)
def test_a_layer_or_head_that_is_not_there_is_refused(settings, words):
    with pytest.raises(SettingError) as caught:
        look(**settings)
    assert caught.value.code == "setting.range" and all(word in caught.value.sentence for word in words)


def test_a_model_that_diverged_is_named():
    pretrained = toys.toy()
    broken = copy.deepcopy(pretrained)
    with torch.no_grad():
        broken.vit.blocks[0].attn.qkv.weight.fill_(torch.nan)
    with pytest.raises(RunError, match="attention of none is not finite") as caught:
        attention.look({"pretrained": pretrained, "none": broken}, toys.images(pretrained)[0])
    assert caught.value.code == "run.diverged"


def test_a_large_photo_and_many_models_stay_small_enough_for_the_page():
    noise = torch.rand(3, 384, 384)
    for models in (2, 10):
        maps = random_map(models, 576)
        found = {
            **{"models": [f"arm {i}" for i in range(models)], "maps": maps, "agreement": np.ones(models)},
            "photo": attention_photo(noise, models),
            "boxes": [maths.boxes(one, 0.5) for one in maps],
        }
        assert found["photo"].shape[0] <= 224
        assert len(attention.look_figure(found).to_json()) < 400_000


def attention_photo(image: torch.Tensor, models: int) -> np.ndarray:
    from rift.diagnostics import _attention_look

    return _attention_look._photo(image, models)


def test_a_map_is_seen_in_both_themes():
    """The heat is transparent at 0 and one hue, so what it lies on is the photo and never the page."""
    plot = attention.look_figure(look())
    colors = [color for _, color in plot.layout.coloraxis.colorscale]
    assert colors[0].endswith(",0)") and {color.rsplit(",", 1)[0] for color in colors} == {colors[0].rsplit(",", 1)[0]}
    assert plot.layout.font.color == figures.GREY

"""Adapters compute what their papers write: each against the equation done by hand; and budgets buy what they say."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from rift import catalog
from rift.errors import SettingError
from rift.model import Backbone, trainable
from tests.methods_toys import BUILDS, EVERY_LAYER, adapt, images, outputs, toy, train


def close(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.allclose(x, y, atol=2e-4, rtol=1e-4) for x, y in zip(a, b, strict=True))


def merged(backbone: Backbone, name: str) -> Backbone:
    """The same function with plain linear layers: each weight by the method's equation, the rest as it was pretrained."""
    plain = copy.deepcopy(backbone)
    weights = {}
    for key, layer in plain.vit.named_modules():
        if not hasattr(layer, "base_layer"):
            continue
        w0 = layer.base_layer.weight.detach().clone()
        if name == "oft":
            weights[key] = w0 @ rotation(layer.oft_R["default"].weight.detach(), layer.in_features)
            continue
        v = w0 + 4 / 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        if name == "dora":
            m = layer.lora_magnitude_vector["default"].weight
            v = m[:, None] * v / v.pow(2).sum(1, keepdim=True).sqrt()
        weights[key] = v.detach()
    catalog.module("methods", name).remove(plain)
    for key, weight in weights.items():
        plain.vit.get_submodule(key).weight.data.copy_(weight)
    return plain


def rotation(upper: torch.Tensor, inputs: int) -> torch.Tensor:
    """The block-diagonal Cayley rotation of the upper triangles of skew matrices, in double precision."""
    blocks = []
    size = inputs // len(upper)
    for row in upper.double():
        skew = torch.zeros(size, size, dtype=torch.float64)
        skew[tuple(torch.triu_indices(size, size, 1))] = row
        skew = skew - skew.T
        one = torch.eye(size, dtype=torch.float64)
        blocks.append((one + skew) @ torch.linalg.inv(one - skew))
        assert torch.allclose(blocks[-1] @ blocks[-1].T, one, atol=1e-12)
    return torch.block_diag(*blocks).float()


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", ["lora", "dora", "oft"])
def test_adapted_weights_follow_the_equation(name, build):
    backbone = toy(build)
    before = outputs(backbone)
    adapt(name, backbone, **({"block_size": 8} if name == "oft" else {"rank": 3, "alpha": 4}), **EVERY_LAYER)
    train(backbone, 4)
    assert close(outputs(backbone), outputs(merged(backbone, name))) and not close(outputs(backbone), before)


@pytest.mark.parametrize("build", BUILDS)
def test_adaptformer_adds_the_branch_to_the_mlp_of_the_normed_tokens(build):
    backbone = toy(build)
    adapt("adaptformer", backbone, bottleneck=5, scale=0.3)
    train(backbone, 4)
    branches = [(b.mlp.down.weight, b.mlp.down.bias, b.mlp.up.weight, b.mlp.up.bias) for b in backbone.vit.blocks]
    plain = copy.deepcopy(backbone)
    catalog.module("methods", "adaptformer").remove(plain)

    def by_hand(block, branch):
        down, down_bias, up, up_bias = branch

        def forward(x):
            x = x + block.ls1(block.attn(block.norm1(x)))
            normed = block.norm2(x)
            return x + block.ls2(block.mlp(normed)) + 0.3 * (F.relu(normed @ down.T + down_bias) @ up.T + up_bias)

        return forward

    untouched = outputs(plain)
    for block, branch in zip(plain.vit.blocks, branches, strict=True):
        block.forward = by_hand(block, branch)
    assert close(outputs(backbone), outputs(plain)) and not close(outputs(backbone), untouched)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("deep", [True, False])
def test_prompts_stand_between_class_token_and_patches(deep, build):
    """The paper's loop over blocks, prompts kept in the sequence to the end, as its authors' code has it."""
    backbone = toy(build)
    adapt("vpt", backbone, prompts=4, deep=deep)
    train(backbone, 3)
    ours, prompts = outputs(backbone), backbone.vit.prompts.tokens.detach()
    assert len(prompts) == (backbone.layers if deep else 1)
    catalog.module("methods", "vpt").remove(backbone)
    vit, n = backbone.vit, backbone.vit.num_prefix_tokens
    with torch.no_grad():
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed((images(backbone) - 0.5) / 0.5)))
        x = torch.cat([x[:, :n], prompts[0].expand(len(x), -1, -1), x[:, n:]], 1)
        pooled = []
        for i, block in enumerate(vit.blocks):
            if deep and i:
                x = torch.cat([x[:, :n], prompts[i].expand(len(x), -1, -1), x[:, n + 4 :]], 1)
            x = block(x)
            pooled.append(x[:, 0] if backbone._pools_class_token else x[:, n + 4 :].mean(1))
        embeddings = vit.forward_head(vit.norm(torch.cat([x[:, :n], x[:, n + 4 :]], 1)))
    assert close(ours, (embeddings, embeddings, torch.stack(pooled)))


def test_prompts_are_drawn_as_wide_as_the_paper_says_and_dropped_image_by_image():
    backbone = toy()
    adapt("vpt", backbone, prompts=100, dropout=0.5)
    tokens, bound = backbone.vit.prompts.tokens.detach(), (6 / (3 * 16 * 16 + 64)) ** 0.5
    assert 0.98 * bound < float(tokens.abs().max()) <= bound and abs(float(tokens.mean())) < 0.02 * bound
    x = images(backbone, 1).expand(3, -1, -1, -1)
    embeddings = backbone.train()(x)
    assert not torch.allclose(embeddings[0], embeddings[1]) and torch.allclose(*backbone.eval()(x)[:2], atol=1e-6)


@pytest.mark.parametrize("name", ["lora", "dora", "adaptformer"])
def test_dropout_acts_in_training_and_only_there(name):
    backbone = toy()
    adapt(name, backbone, dropout=0.5)
    train(backbone, 3)
    x = images(backbone)
    with torch.no_grad():
        assert torch.equal(backbone(x), backbone(x))
        backbone.train()
        assert not torch.allclose(backbone(x), backbone(x))


SIZE = {"lora": "rank", "dora": "rank", "adaptformer": "bottleneck", "vpt": "prompts"}


@pytest.mark.parametrize("budget", [0.005, 0.01, 0.03])
def test_a_budget_buys_about_the_same_number_of_parameters_everywhere(budget):
    embedded = catalog.door("backbones", "embedded")(init="random")
    wanted = budget * sum(p.numel() for p in embedded.parameters())

    def bought(name: str, **options) -> int:
        backbone = copy.deepcopy(embedded)
        adapt(name, backbone, **options)
        return trainable(backbone)

    for name, setting in SIZE.items():
        one, two, got = (bought(name, **options) for options in ({setting: 1}, {setting: 2}, {"budget": budget}))
        assert abs(got - wanted) <= (two - one) / 2, name
        assert 0.8 < got / wanted < 1.2, name
    if budget < 0.02:  # more than that is past OFT's whole range with queries, keys and values alone
        assert 0.6 < bought("oft", budget=budget) / wanted < 1.4  # sizes that divide a width lie far apart


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lora", {"budget": 1e-4}, r"budget = 0.0001 asks for \d+ of the backbone's [\d,]+ parameters, but rank = 1 to 256 has"),
        ("dora", {"budget": 1e-3}, "rank = 1 to 256 has .* use a budget from 0.00"),
        ("adaptformer", {"budget": 1e-4}, "bottleneck = 1 to 1024 has"),
        ("vpt", {"budget": 0.9, "deep": False}, "prompts = 1 to 200 has 64 to 12,800"),
        ("oft", {"budget": 0.9}, "block_size = 2 to 64 has"),
    ],
)
def test_a_budget_that_nothing_meets_says_what_would(name, options, words):
    with pytest.raises(SettingError, match=words) as caught:
        adapt(name, toy(), **options)
    assert caught.value.code == "setting.range"
    least, most = (float(part) for part in caught.value.sentence.rsplit("from ", 1)[1].rstrip(".").split(" to "))
    for share in (least, most):  # what the sentence offers is taken
        adapt(name, toy(), **{**options, "budget": share})

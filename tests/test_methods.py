"""What every finetuning method keeps to: what changes when, what stays frozen, what it refuses, what removing it gives back."""

from __future__ import annotations

import ast
import copy
import re
from pathlib import Path

import pytest
import timm
import torch

from rift import catalog
from rift.errors import SettingError
from rift.model import Backbone, Classifier, trainable
from tests.methods_toys import ADAPTERS, BUILDS, EVERY_LAYER, NAMES, adapt, images, outputs, same, toy, train

CHANGING = {name for name in NAMES if getattr(catalog.module("methods", name), "CHANGES_BEFORE_TRAINING", False)}
OPTIONS = {name: EVERY_LAYER for name in ("lora", "dora", "oft")}


def test_linear_trains_the_head_and_leaves_activations_bit_identical():
    backbone = toy()
    before = outputs(backbone)
    assert adapt("linear", backbone) is None
    assert trainable(backbone) == 0 and trainable(Classifier(backbone, torch.nn.Linear(64, 3))) == 64 * 3 + 3
    head = train(backbone).head.weight
    assert same(outputs(backbone), before) and not torch.equal(head, train(backbone, 0).head.weight)


def test_full_trains_every_parameter():
    backbone = toy().requires_grad_(False)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    assert adapt("full", backbone) is None
    assert trainable(backbone) == sum(p.numel() for p in backbone.parameters()) > 0
    train(backbone)
    assert [name for name, p in backbone.named_parameters() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_method_changes_before_training_what_it_says_and_then_trains_no_more_than_it_says(name, build):
    backbone = toy(build)
    before = outputs(backbone)
    adapt(name, backbone, **OPTIONS.get(name, {}))
    assert not backbone.training and not any(module.training for module in backbone.modules())
    assert same(outputs(backbone), before) == (name not in CHANGING)
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    wanted = {key for key, p in backbone.named_parameters() if p.requires_grad}
    train(backbone)
    moved = {key for key, value in backbone.state_dict().items() if not torch.equal(value, state[key])}
    assert moved <= wanted and (name == "linear") == (not wanted)
    still = {key for key in wanted - moved if "attn.qkv.bias" not in key}
    assert not still, f"these want a gradient and never move: {still}"
    assert same(outputs(backbone), before) == (name == "linear")


OWN = {
    "lora": r"blocks\.\d\.attn\.qkv\.lora_[AB]\.",
    "dora": r"blocks\.\d\.attn\.qkv\.lora_([AB]|magnitude_vector)\.",
    "oft": r"blocks\.\d\.attn\.qkv\.oft_R\.",
    "adaptformer": r"blocks\.\d\.mlp\.(up|down)\.",
    "vpt": r"vit\.prompts\.tokens",
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_trains_its_own_parameters_and_freezes_every_pretrained_one(name):
    backbone = toy()
    pretrained = sum(p.numel() for p in backbone.parameters())
    adapt(name, backbone.requires_grad_(True))
    own = {key for key, _ in backbone.named_parameters() if re.search(OWN[name], key)}
    assert own == {key for key, p in backbone.named_parameters() if p.requires_grad} and own
    assert sum(p.numel() for p in backbone.parameters()) - trainable(backbone) == pretrained


def test_only_visual_prompts_change_a_backbone_before_training():
    assert sorted(CHANGING) == ["vpt"]


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name not in CHANGING])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_change_nothing_before_training_in_training_mode_either(name, precision):
    backbone = toy()
    x = images(backbone)
    for mode in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            before = backbone.train(mode)(x)
            adapted = copy.deepcopy(backbone)
            adapt(name, adapted, **OPTIONS.get(name, {}))
            assert torch.equal(adapted(x), before), mode


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_removed_gives_the_pretrained_backbone_back_bit_for_bit(name, build):
    backbone = toy(build)
    before, state = outputs(backbone), {key: value.clone() for key, value in backbone.state_dict().items()}
    adapt(name, backbone, **OPTIONS.get(name, {}))
    train(backbone, 2)
    for one in (copy.deepcopy(backbone), backbone):  # a copy is removed without touching what it was copied from
        trained = outputs(backbone)
        assert same(outputs(one), trained) and not same(trained, before)
        catalog.module("methods", name).remove(one)
        assert same(outputs(one), before)
        assert one.state_dict().keys() == state.keys() and all(torch.equal(v, state[k]) for k, v in one.state_dict().items())
        assert not [key for key, module in one.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    adapt(name, backbone)  # and can be adapted anew


@pytest.mark.parametrize("name", NAMES)
def test_attention_stays_where_it_is_found_and_works_unfused(name):
    backbone = toy()
    adapt(name, backbone)
    train(backbone, 2)
    fused = outputs(backbone)
    for block in backbone.vit.blocks:
        block.attn.fused_attn = False
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(outputs(backbone), fused, strict=True))


def test_last_blocks_trains_the_last_blocks_and_the_norm_in_use():
    for build, norm in (("token", "vit.norm."), ("average", "vit.fc_norm.")):
        backbone = toy(build)
        adapt("last_blocks", backbone, blocks=2)
        names = {name for name, p in backbone.named_parameters() if p.requires_grad}
        last = backbone.layers - 1
        assert names == {
            n for n, _ in backbone.named_parameters() if n.startswith((f"vit.blocks.{last}.", f"vit.blocks.{last - 1}.", norm))
        }
    with pytest.raises(SettingError, match=r"blocks = 9, but this backbone has 6") as caught:
        adapt("last_blocks", toy(), blocks=9)
    assert caught.value.code == "setting.range"


def test_bias_trains_every_bias_and_nothing_else():
    backbone = toy()
    adapt("bias", backbone)
    wanted = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert wanted == {name for name, _ in backbone.named_parameters() if name.endswith(".bias")}
    assert {"vit.norm.bias", "vit.blocks.0.norm1.bias", "vit.blocks.3.attn.qkv.bias", "vit.patch_embed.proj.bias"} <= wanted
    assert trainable(backbone) < 0.03 * sum(p.numel() for p in backbone.parameters())


def other_blocks(layer: str) -> Backbone:
    vit = timm.create_model(layer, pretrained=False, img_size=32, num_classes=0, depth=1, embed_dim=32, num_heads=2)
    return Backbone(vit, pixels=32, mean=(0.5,) * 3, std=(0.5,) * 3).eval()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lora", {}, r"blocks \(ParallelThingsBlock\) have no layer qkv; set qkv to false, or choose full"),
        ("dora", {"qkv": False, "fc2": True}, "have no layer fc2"),
        ("oft", {"qkv": False}, "no layer is chosen; set at least one of qkv, proj, fc1, fc2 to true"),
        ("adaptformer", {}, "blocks are ParallelThingsBlock; it needs attention and MLP one after the other"),
    ],
)
def test_a_backbone_that_a_method_cannot_carry_is_refused_in_words(name, options, words):
    backbone = other_blocks("vit_small_patch16_18x2_224")
    with pytest.raises(SettingError, match=words) as caught:
        adapt(name, backbone, **options)
    assert caught.value.code == "setting.range"
    adapt("vpt", backbone)  # prompts ask nothing of a block
    train(backbone, 1)


def test_a_backbone_without_biases_is_refused():
    with pytest.raises(SettingError, match="no biases; choose full") as caught:
        adapt("bias", Backbone(Bare(), pixels=16, mean=(0.5,) * 3, std=(0.5,) * 3))
    assert caught.value.code == "setting.range"


class Bare(torch.nn.Module):
    """As much of a ViT as the wrapper looks at, with one weight and no bias."""

    num_prefix_tokens, embed_dim, blocks = 1, 4, ()

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4, 4))

    def forward_head(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 0] @ self.weight


def test_an_oft_block_must_divide_the_inputs():
    with pytest.raises(SettingError, match=r"block_size = 48 does not divide .* use one of 2, 4, 8, 16, 32, 64\.") as caught:
        adapt("oft", toy(), block_size=48)
    assert caught.value.code == "setting.range"


@pytest.mark.parametrize("name", ["adaptformer", "vpt"])
def test_what_is_added_goes_to_the_backbones_device(name):
    backbone = toy().to("meta")
    adapt(name, backbone)
    assert {p.device.type for p in backbone.parameters()} == {"meta"}


def test_plain_methods_need_no_peft():
    for path in (Path(__file__).parents[1] / "rift" / "methods").glob("*.py"):
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not [node for node in top if "peft" in ast.unparse(node) or "timm" in ast.unparse(node)], path.name

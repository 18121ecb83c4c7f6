"""Every backbone of the menus, as its own library computes it: random weights in a file, by the hub's way and as a local file.

One block has all the wiring and is quick; the whole models are slow: one image, one model at a time, below 8 GB of memory.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip as real_open_clip
import pytest
import timm as real_timm
import torch
from PIL import Image
from safetensors.torch import save_file

from rift import images
from rift.backbones import _clip, _hub, checkpoint, open_clip, timm
from rift.errors import ModelError
from rift.model import Backbone, to_float


def cases(shallow: tuple[str, ...], whole: tuple[str, ...]) -> list[Any]:
    """Models of one block, the larger of them slow, and whole ones."""
    slow = pytest.mark.slow
    one = [pytest.param(name, 1, marks=[slow] * ("large" in name), id=f"{name}-one block") for name in shallow]
    return one + [pytest.param(name, None, marks=slow, id=f"{name}-whole") for name in whole]


# width of the embedding, number of blocks, width of the tokens, whether a classifier is the natural head
EXPECTED = {
    "vit_tiny": (192, 12, 192, True),
    "vit_small": (384, 12, 384, True),
    "vit_base": (768, 12, 768, True),
    "vit_large": (1024, 24, 1024, True),
    "dinov2_small": (384, 12, 384, False),
    "dinov2_base": (768, 12, 768, False),
    "dinov2_large": (1024, 24, 1024, False),
    "clip_base_32": (512, 12, 768, False),
    "clip_base_16": (512, 12, 768, False),
    "clip_large_14": (768, 24, 1024, False),
    "siglip_base": (768, 12, 768, False),
}
PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (37, 37, 3), dtype=np.uint8)).resize((301, 301))


@pytest.fixture
def shallow(monkeypatch):
    """Return a function that makes every model from here on so many blocks deep; None leaves them whole."""

    def cut(depth: int | None) -> None:
        if depth is None:
            return
        configs = {name: real_open_clip.get_model_config(name) for name in _clip.CONFIGS.values()}
        for config in configs.values():
            config["vision_cfg"]["layers"] = depth
            config["text_cfg"] |= {"layers": depth, "width": 64, "heads": 1}
        other = real_open_clip.get_model_config
        monkeypatch.setattr(
            real_open_clip, "get_model_config", lambda name: copy.deepcopy(configs[name]) if name in configs else other(name)
        )
        monkeypatch.setattr(real_timm, "create_model", functools.partial(real_timm.create_model, depth=depth))

    return cut


def ours(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    """Embedding and activations of the picture as a run stores it, cuts it and gives it to a model."""
    pixels = images.fit(np.asarray(PICTURE), backbone.pixels)
    with torch.no_grad():
        return backbone.embed(to_float(torch.from_numpy(pixels[None].copy())))


def hollow(build: Callable[..., torch.nn.Module], *arguments: Any, **options: Any) -> torch.nn.Module:
    """Build a module that takes no memory."""
    with torch.device("meta"):
        return build(*arguments, **options)


def written(module: torch.nn.Module, path: Path) -> str:
    """Write a file of random weights for a module, all of them different from their first values, and return its SHA-256."""
    generator = torch.Generator().manual_seed(2)
    state = {}
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=generator) * (0.02 if value.ndim > 1 else 0.1)
        last = name.rsplit(".", 1)[-1]
        state[name] = noise + 1 if value.ndim == 1 and last in ("weight", "gamma") else noise
    if "logit_scale" in state:
        state["logit_scale"] = torch.tensor(3.2)
    save_file(state, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def served(monkeypatch, path: Path) -> list[tuple[str, str]]:
    """Let the hub have one file; returns what is asked of it."""
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(_hub, "fetch", lambda repository, file: asked.append((repository, file)) or path)
    return asked


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max()) <= 2e-5 * float(b.abs().max()) and float(b.std()) > 0


@pytest.mark.parametrize(("model", "depth"), cases(tuple(timm.MODELS), tuple(timm.MODELS)))
def test_a_timm_model_is_what_timm_makes_of_its_file(model, depth, tmp_path, monkeypatch, shallow):
    shallow(depth)
    name, path = timm.MODELS[model], tmp_path / "model.safetensors"
    digest = written(hollow(real_timm.create_model, name, pretrained=False), path)  # DINOv2's positions are those of 518 px
    try:
        reference = real_timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, img_size=224).eval()
        config = real_timm.data.resolve_model_data_config(reference) | {"input_size": (3, 224, 224), "crop_pct": 1.0}
        image = real_timm.data.create_transform(**config)(PICTURE)[None]
        classifier = reference.head.weight.detach() if reference.num_classes == 1000 else None
        with torch.no_grad():
            theirs = reference.forward_head(reference.forward_features(image), pre_logits=classifier is not None)
        del reference

        asked = served(monkeypatch, path)
        ways = {"hub": lambda: timm.load(model=model)}
        ways |= {"file": lambda: checkpoint.load(path=str(path), architecture=name.split(".")[0])}
        width, blocks, tokens, natural = EXPECTED[model]
        for way, load in ways.items():
            backbone = load().eval()
            embedding, activations = ours(backbone)
            assert close(embedding, theirs), way
            assert embedding.shape == (1, width) == (1, backbone.width) and backbone.weights == digest
            assert activations.shape == (depth or blocks, 1, tokens)
            head = backbone.natural_head(["goldfish"])
            assert (head is not None) == natural
            if natural:
                assert head.kind == "classifier" and head.source.startswith("ImageNet classifier")
                assert torch.allclose(head.rows[0], classifier[1] / classifier[1].norm(), atol=1e-6)
            del backbone
    finally:
        path.unlink()
    assert asked == [(real_timm.get_pretrained_cfg(name).hf_hub_id, "model.safetensors")]


@pytest.mark.parametrize(
    ("model", "depth"),
    cases(tuple(open_clip.MODELS), ("base_32_openai", "base_16_openai", "large_14_openai")),
)
def test_a_clip_model_is_what_open_clip_makes_of_its_file(model, depth, tmp_path, monkeypatch, shallow):
    shallow(depth)
    tower, repository = open_clip.MODELS[model]
    name, path = _clip.CONFIGS[tower.split(".")[0]], tmp_path / "open_clip_model.safetensors"
    original = real_open_clip.CLIP(**real_open_clip.get_model_config(name)).eval()
    digest = written(original, path)
    try:
        real_open_clip.load_checkpoint(original, str(path))
        image = real_open_clip.image_transform(224, is_train=False)(PICTURE)[None]  # its defaults are OpenAI's CLIP
        with torch.no_grad():
            theirs = original.encode_image(image)
            words = real_open_clip.SIMPLE_IMAGENET_TEMPLATES
            rows = real_open_clip.build_zero_shot_classifier(original, real_open_clip.get_tokenizer(name), ["red panda"], words).T
        del original

        asked = served(monkeypatch, path)
        ways = {"hub": lambda: open_clip.load(model=model)}
        ways |= {"file": lambda: checkpoint.load(path=str(path), architecture=tower.split(".")[0])}
        for way, load in ways.items():
            backbone = load().eval()
            embedding, activations = ours(backbone)
            assert close(embedding, theirs), way
            width = 768 if "large" in model else 512
            assert embedding.shape == (1, width) == (1, backbone.width) and backbone.weights == digest
            assert activations.shape[0] == (depth or (24 if "large" in model else 12))
            head = backbone.natural_head(["red_panda"])
            assert head.kind == "text" and head.unknown == () and head.scale == pytest.approx(np.exp(3.2))
            assert close(head.rows, rows), way
            del backbone, head
    finally:
        path.unlink()
    assert asked == [(repository, "open_clip_model.safetensors")]


def test_every_model_stands_in_the_list_of_what_is_expected_and_can_be_had_from_a_file():
    assert set(EXPECTED) == set(timm.MODELS)
    architectures = set(checkpoint.Architecture.__args__)
    assert {name.split(".")[0] for name in timm.MODELS.values()} <= architectures
    assert {tower.split(".")[0] for tower, _ in open_clip.MODELS.values()} == set(_clip.CONFIGS) <= architectures


@pytest.mark.parametrize(("size", "pixels"), [((301, 301), 224), ((224, 224), 224), ((64, 64), 224), ((500, 500), 64)])
def test_pictures_are_resized_as_timm_and_open_clip_do(size, pixels):
    """Antialiased bicubic over the whole centre square; only AugReg's and SigLIP's own evaluation looks at its inner 90 %."""
    picture = PICTURE.resize(size)
    mine = to_float(torch.from_numpy(images.fit(np.asarray(picture), pixels)[None].copy()))[0]
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    theirs = real_timm.data.create_transform((3, pixels, pixels), interpolation="bicubic", crop_pct=1.0, **plain)(picture)
    assert torch.equal(mine, theirs)
    assert torch.equal(mine, real_open_clip.image_transform(pixels, is_train=False, **plain)(picture))


@pytest.mark.parametrize("name", [*timm.MODELS.values(), *(tower for tower, _ in open_clip.MODELS.values())])
def test_every_model_was_made_for_bicubic_pictures_of_its_size(name):
    cfg = real_timm.get_pretrained_cfg(name)
    assert cfg.interpolation == "bicubic" and cfg.crop_mode == "center"
    assert cfg.input_size == ((3, 518, 518) if "dinov2" in name else (3, 224, 224))


def test_a_siglip_file_of_open_clip_gives_its_image_tower(tmp_path, shallow):
    shallow(2)
    config = real_open_clip.get_model_config("ViT-B-16-SigLIP")
    config["text_cfg"] |= {"layers": 1, "vocab_size": 64, "hf_tokenizer_name": ""}
    config.pop("custom_text")
    original = real_open_clip.CustomTextCLIP(**config).eval()
    path = tmp_path / "siglip.safetensors"
    written(original, path)
    real_open_clip.load_checkpoint(original, str(path))
    backbone = checkpoint.load(path=str(path), architecture="vit_base_patch16_siglip_224").eval()
    image = real_open_clip.image_transform(224, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3)(PICTURE)[None]
    with torch.no_grad():
        assert close(ours(backbone)[0], original.encode_image(image))
    assert backbone.natural_head(["goldfish"]) is None


def test_a_clip_file_for_another_architecture_is_refused_in_words(tmp_path, shallow):
    shallow(1)
    path = tmp_path / "open_clip_model.safetensors"
    written(hollow(real_open_clip.CLIP, **real_open_clip.get_model_config("ViT-B-32")), path)
    for architecture, words in (
        ("vit_base_patch16_clip_224", r"conv1\.weight is \(768, 3, 32, 32\), needed \(768, 3, 16, 16\)"),
        ("vit_base_patch16_224", "do not fit the architecture"),
    ):
        with pytest.raises(ModelError, match=words) as caught:
            checkpoint.load(path=str(path), architecture=architecture)
        assert caught.value.code == "model.weights"


def test_a_clip_file_keeps_its_projection_and_loses_a_head_of_another_task(tmp_path, shallow):
    shallow(1)
    for classes, width, natural in ((512, 512, False), (1000, 768, True), (0, 768, False)):
        path = tmp_path / "model.safetensors"
        written(hollow(real_timm.create_model, "vit_base_patch32_clip_224", pretrained=False, num_classes=classes), path)
        backbone = checkpoint.load(path=str(path), architecture="vit_base_patch32_clip_224")
        assert backbone.width == width and (backbone.natural_head(["goldfish"]) is not None) == natural

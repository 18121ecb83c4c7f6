"""What the downloadable backbones share: fetching weights, reading them safely, fitting them strictly, the natural head."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import huggingface_hub as hub
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from rift.errors import ModelError, SettingError
from rift.model import Backbone, NaturalHead
from rift.vocabulary import class_rows

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer  # timm takes seconds, and a menu asks for settings only

PIXELS = 224
# Left out of the stored form at its default, so that the ids of experiments without it stay
Pixels = Annotated[
    int,
    Field(
        ge=32,
        le=518,
        exclude_if=lambda pixels: pixels == PIXELS,
        description="height and width of the images, a multiple of the patch size; 128 px have a third of the patches of 224 px",
    ),
]
SECONDS = 5.0  # how long the hub may take to answer whether it has a file


def fetch(repository: str, file: str) -> Path:
    """Return the local path of a file of the model hub, downloaded on first use with progress on standard error.

    A file that was fetched before is used as it is, without asking the hub. Raises `model.offline` when the file is not here
    and cannot be had.
    """
    cached = hub.try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # hf_hub_download itself retries for minutes when the hub is out of reach, so one quick question goes first.
        size = hub.get_hf_file_metadata(hub.hf_hub_url(repository, file), timeout=SECONDS).size or 0
        # The client's own bar is drawn on a terminal only; a log gets this line.
        print(f"fetching {file} of {repository}, {size / 1e6:.0f} MB", file=sys.stderr, flush=True)
        return Path(hub.hf_hub_download(repository, file))
    except Exception as error:  # the hub's client has changed its transport, and with it the exceptions, several times
        reason = (str(error).strip() or "no answer").splitlines()[0]
        raise ModelError(
            "model.offline",
            f"The file {file} of {repository} is not on this machine and could not be fetched "
            f"({type(error).__name__}: {reason}). Go online once to fetch it; without that, the embedded model needs no download "
            "(--backbone embedded), and a local file can be used (--backbone checkpoint:path=FILE.safetensors).",
        ) from error


def read(path: Path, name: str) -> tuple[dict[str, Tensor], str]:
    """Read a safetensors file as float32 tensors, with the SHA-256 of the file; no code of the file is ever run.

    Raises `model.weights` when the file is not one, is damaged, or holds numbers that are no weights.
    """
    try:
        stored = load_file(path)
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except (SafetensorError, OSError) as error:
        raise ModelError(
            "model.weights", f"{name} cannot be read as safetensors ({error}); give a complete .safetensors file."
        ) from error
    expected = path.resolve().name  # in the hub's cache a large file is named by its SHA-256
    if re.fullmatch("[0-9a-f]{64}", expected) and expected != digest:
        raise ModelError("model.weights", f"{name} is damaged; delete {path.resolve()} to fetch it anew.")
    state = {key: value.float() for key, value in stored.items()}
    wrong = [key for key, value in state.items() if not (stored[key].is_floating_point() and value.isfinite().all())]
    if wrong:
        raise ModelError(
            "model.weights", f"{name} holds integers or values that are not finite, where weights are needed: {_few(wrong)}."
        )
    return state, digest


def create(architecture: str, pixels: int, **options: Any) -> VisionTransformer:
    """Return an untrained timm ViT for images of this size; `setting.range` where its patches do not divide it."""
    import timm

    vit: Any = timm.create_model(architecture, pretrained=False, img_size=pixels, **options)
    patch = vit.patch_embed.patch_size[0]
    if pixels % patch:
        near = pixels // patch * patch
        raise SettingError(
            "setting.range",
            f"pixels = {pixels} is not allowed: patches of {architecture} are {patch} px wide, so give a multiple of {patch}, "
            f"as {near or patch} or {near + patch}.",
        )
    return vit


def fill(vit: VisionTransformer, state: dict[str, Tensor], name: str) -> None:
    """Load weights into a timm ViT, strictly, except that positions of another image size are resampled (bicubic, by timm).

    CLIP's keys are renamed to timm's. Raises `model.weights` as `match` does.
    """
    from timm.models.vision_transformer import checkpoint_filter_fn

    try:
        renamed = checkpoint_filter_fn(state, vit)
    except (RuntimeError, ValueError, AssertionError, AttributeError, IndexError) as error:
        raise ModelError(
            "model.weights", f"The patches or positions in {name} do not fit the architecture ({error}); choose another one."
        ) from error
    if "patch_embed.proj.weight" in state:  # timm would resample patches of another size too: that is another architecture
        renamed["patch_embed.proj.weight"] = state["patch_embed.proj.weight"]
    match(vit, renamed, name)


def match(module: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load a state dict strictly; `model.weights` names the keys that are missing, not expected, or of another size."""
    wanted = module.state_dict()
    sizes = [
        f"{key} is {tuple(state[key].shape)}, needed {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    lists = {"missing": wanted.keys() - state.keys(), "not expected": state.keys() - wanted.keys(), "of another size": sizes}
    problems = [f"{len(keys)} {what}: {_few(sorted(keys))}" for what, keys in lists.items() if keys]
    if problems:
        raise ModelError(
            "model.weights",
            f"The weights in {name} do not fit the architecture: {'; '.join(problems)}. Choose the one they were made for.",
        )
    module.load_state_dict(state)


def classifier_head(vit: VisionTransformer, source: str) -> Callable[[Sequence[str]], NaturalHead | None] | None:
    """Cut the ImageNet-1k classifier off and return what its rows say about labels; None where there is no such classifier.

    A label's row is the L2-normalized mean of the L2-normalized classifier rows that `rift.vocabulary` names for it. The cosine
    with them, in place of logits with a bias, is our choice: every family is then read in the same way, and a rotation or a
    drift of the embeddings shows alike. With ViT-tiny it costs little: 82.0 % top-1 on 300 photos, 82.8 % by logits on 1000.
    """
    weight = vit.head.weight.detach() if isinstance(vit.head, nn.Linear) else torch.empty(0)
    vit.reset_classifier(0)
    if len(weight) != 1000:
        return None
    rows = F.normalize(weight, dim=1)

    def natural(labels: Sequence[str]) -> NaturalHead:
        known, indices, unknown = class_rows(labels)
        means = [rows[list(of_label)].mean(0) for of_label in indices]
        unit = F.normalize(torch.stack(means), dim=1) if means else rows[:0]
        return NaturalHead(tuple(known), unit, tuple(unknown), source=source, kind="classifier")

    return natural


def assemble(
    vit: VisionTransformer, *, natural: Callable[[Sequence[str]], NaturalHead | None] | None = None, weights: str = ""
) -> Backbone:
    """Make the Backbone of a timm ViT, with the image size it was built for and the normalization of its pretrained_cfg."""
    cfg: Any = vit.pretrained_cfg
    pixels = vit.patch_embed.img_size[0]
    return Backbone(vit.eval(), pixels=pixels, mean=cfg["mean"], std=cfg["std"], natural=natural, weights=weights)


def _few(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")

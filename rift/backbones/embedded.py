"""The embedded model: a convolutional stem, four ViT blocks at 64 px and a text tower in one 192-dimensional space."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import safe_open
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rift import vocabulary
from rift.model import Backbone, NaturalHead

PIXELS, WIDTH, DEPTH = 64, 192, 4
CONTEXT = 24  # most tokens of a caption
SCALE = (
    16.0  # cosine times this is the logit; where the pretrained model's probabilities fit its hits best on the validation pack
)
PATH = Path(__file__).parents[2] / "assets" / "embedded.safetensors"


class Convolution(nn.Module):
    """A 3 x 3 convolution and ReLU; with `norm`, batch normalization between them, as long as the model is pretrained."""

    def __init__(self, before: int, after: int, *, stride: int = 1, norm: bool = False):
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1)
        self.norm: nn.Module = nn.BatchNorm2d(after) if norm else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.norm(self.convolution(maps)))


class Residual(nn.Module):
    """Two convolutions and what came in (He 2016, arXiv 1512.03385, without the last ReLU)."""

    def __init__(self, width: int, *, norm: bool = False):
        super().__init__()
        self.first, self.second = (Convolution(width, width, norm=norm) for _ in range(2))

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.second(self.first(maps))


class Stem(PatchEmbed):
    """A small residual network from 64 px to the 8 x 8 tokens, in place of one 8 px patch.

    A ViT learns faster from convolutions (Xiao 2021, arXiv 2106.14881). Batch normalization (`norm=True`) is only there while
    pretraining; `fold` merges it into the convolutions, so that finetuning has no statistics that couple the images of a batch.
    """

    def __init__(self, *, norm: bool = False, **options: Any):
        super().__init__(**options)
        layers: list[nn.Module] = []
        for (before, after), residuals in zip(itertools.pairwise((3, 32, 96, WIDTH)), (0, 1, 2), strict=True):
            layers.append(Convolution(before, after, stride=2, norm=norm))
            layers += [Residual(after, norm=norm) for _ in range(residuals)]
        self.proj = nn.Sequential(*layers)  # type: ignore[assignment]


def image_tower(norm: bool = False) -> VisionTransformer:
    """Build the image tower: `(n, 3, 64, 64)` in [-1, 1] to `(n, 192)`."""
    return VisionTransformer(
        img_size=PIXELS,
        patch_size=8,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=3,
        num_classes=0,
        class_token=False,
        global_pool="avg",
        dynamic_img_size=True,
        embed_layer=lambda **kwargs: Stem(norm=norm, **kwargs),
    )


@torch.no_grad()
def fold(tower: VisionTransformer) -> VisionTransformer:
    """Return the same function without batch normalization: each is merged into the convolution before it."""
    plain = copy.deepcopy(tower).eval()
    for module in plain.modules():
        if isinstance(module, Convolution) and isinstance(module.norm, nn.BatchNorm2d):
            module.convolution = fuse_conv_bn_eval(module.convolution, module.norm)
            module.norm = nn.Identity()
    return plain


class TextTower(nn.Module):
    """Two transformer layers over the few thousand tokens that natural names use; captions to `(n, 192)`."""

    def __init__(self, token_ids: Sequence[int]):
        super().__init__()
        self.row = {int(token): i + 1 for i, token in enumerate(token_ids)}  # row 0 is padding
        self.table = nn.Embedding(len(self.row) + 1, WIDTH, padding_idx=0)
        self.position = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 3, 2 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.weight = nn.Linear(WIDTH, 1)  # which tokens name something; the words of a prompt do not
        self.projection = nn.Linear(WIDTH, WIDTH)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the table rows of each text's tokens, padded with 0: `(n, t)`; a token outside the table is left out."""
        tokens = [[self.row[token] for token in tokenizer().encode(text) if token in self.row][:CONTEXT] or [0] for text in texts]
        longest = max(map(len, tokens), default=1)
        return torch.tensor([row + [0] * (longest - len(row)) for row in tokens])

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the weighted mean of the tokens' states, projected; tokens `(n, t)` as `encode` gives them."""
        padding = tokens == 0
        states = self.blocks(self.table(tokens) + self.position[: tokens.shape[1]], src_key_padding_mask=padding)
        weights = self.weight(states).masked_fill(padding.unsqueeze(-1), -torch.inf).softmax(1)
        return self.projection((states * weights).sum(1))


@functools.cache
def tokenizer() -> Any:
    """Return open_clip's byte-pair tokenizer; imported here, since training needs no text."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def natural_head(tower: TextTower, labels: Sequence[str]) -> NaturalHead:
    """Return the tower's embeddings of the names in the labels; a label that names no known class is in `unknown`.

    Prompt and plural are taken off first, since the tower knows names, not sentences.
    """
    known, _, unknown = vocabulary.class_rows(labels)
    with torch.no_grad():
        rows = (
            F.normalize(tower(tower.encode([vocabulary.fold(label) for label in known])), dim=1)
            if known
            else torch.zeros(0, WIDTH)
        )
    return NaturalHead(tuple(known), rows, tuple(unknown), SCALE, "text embeddings of the names, by the embedded text tower")


def load(
    *,
    init: Annotated[Literal["pretrained", "random"], Field(description="the shipped weights, or none")] = "pretrained",
) -> Backbone:
    """Return the embedded model, about 3.5 million parameters at 64 px; `init="random"` has no natural head."""
    if init == "random":
        return Backbone(image_tower(), pixels=PIXELS, mean=(0.5,) * 3, std=(0.5,) * 3)
    return of_file(PATH)


def of_file(path: Path) -> Backbone:
    """Return the embedded model of a file that `rift pretrain` wrote."""
    vit = image_tower()
    with safe_open(path, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - a safetensors file is no dict
    tower = TextTower(state.pop("text.token_ids").tolist())
    tower.load_state_dict({key.removeprefix("text."): value.float() for key, value in state.items() if key.startswith("text.")})
    vit.load_state_dict({key.removeprefix("image."): value.float() for key, value in state.items() if key.startswith("image.")})
    tower.eval().requires_grad_(False)
    return Backbone(
        vit,
        pixels=PIXELS,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        natural=lambda labels: natural_head(tower, labels),
        weights=hashlib.sha256(path.read_bytes()).hexdigest(),
    )

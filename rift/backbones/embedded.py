"""The embedded model: a convolutional stem, four ViT blocks at 64 px and a text tower in one 192-dimensional space."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from rift import vocabulary
from rift.model import Backbone, NaturalHead

WIDTH = 192  # of the space in which images and names meet
CONTEXT = 24  # most tokens of a caption
SCALE = 22.0  # cosine times this is the logit; where the model's probabilities fit its hits best on the validation pack
PATH = Path(__file__).parents[2] / "assets" / "embedded.safetensors"


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
    return of_file(PATH) if init == "pretrained" else _backbone({})


def of_file(path: Path) -> Backbone:
    """Return the embedded model of a file that `rift pretrain` wrote."""
    with safe_open(path, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - a safetensors file is no dict
    tower = TextTower(state.pop("text.token_ids").tolist())
    tower.load_state_dict({key.removeprefix("text."): value.float() for key, value in state.items() if key.startswith("text.")})
    tower.eval().requires_grad_(False)
    return _backbone(
        {key.removeprefix("image."): value.float() for key, value in state.items() if key.startswith("image.")},
        natural=lambda labels: natural_head(tower, labels),
        weights=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _backbone(state: dict[str, Tensor], **more: Any) -> Backbone:
    """Return the image tower with the weights `state`, random ones where it is empty."""
    from rift.backbones import _image_tower  # timm takes seconds to import, and a menu asks for settings only

    vit = _image_tower.image_tower()
    if state:
        vit.load_state_dict(state)
    return Backbone(vit, pixels=_image_tower.PIXELS, mean=(0.5,) * 3, std=(0.5,) * 3, **more)

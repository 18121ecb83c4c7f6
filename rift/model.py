"""A pretrained ViT without its head, the head that a task adds, and what words mean in its embedding space."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:  # timm takes seconds to import, and who only checks settings needs none of it
    from timm.models.vision_transformer import VisionTransformer


@dataclass(frozen=True)
class NaturalHead:
    """Directions in a backbone's embedding space that natural labels stand for.

    A label that the backbone does not know has no row: it is in `unknown`, marked and never scored.
    """

    classes: tuple[str, ...]  # the known labels, in the order of the rows
    rows: Tensor  # (k, d), L2-normalized
    unknown: tuple[str, ...] = ()
    scale: float = 100.0  # cosine times this is the logit
    source: str = ""  # one phrase: where the rows come from
    kind: Literal["text", "classifier"] = "text"  # whether a text tower made the rows or a classifier of the pretrained model

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return `scale` times the cosine of embeddings `(n, d)` and rows: `(n, k)`."""
        return self.scale * F.normalize(embeddings.float(), dim=1) @ self.rows.to(embeddings.device).T


class Backbone(nn.Module):
    """One timm VisionTransformer with its pixel normalization and, where it has one, its natural head.

    Images are float `(n, 3, pixels, pixels)` in [0, 1]. Embeddings are what zero-shot prediction and RIFT use: the
    pooled tokens after the last norm and, for CLIP, its projection.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vit: VisionTransformer,
        *,
        pixels: int,
        mean: Sequence[float],
        std: Sequence[float],
        natural: Callable[[Sequence[str]], NaturalHead | None] | None = None,
        weights: str = "",
    ):
        super().__init__()
        self.vit = vit
        self.pixels, self.weights = pixels, weights  # weights: SHA-256 of the file they come from, "" when random
        self._natural = natural  # a plain function: a deep copy shares it, so the head stays the pretrained model's
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        with torch.no_grad():
            self.width = int(vit.forward_head(torch.zeros(1, 1 + vit.num_prefix_tokens, vit.embed_dim)).shape[-1])
        self.layers = len(vit.blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings `(n, d)`."""
        return self.vit(self._normalize(images))

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings `(n, d)` and activations `(layers, n, h)` from one forward pass."""
        options: dict[str, Any] = {"output_fmt": "NLC", "return_prefix_tokens": True, "norm": False}
        tokens, blocks = self.vit.forward_intermediates(self._normalize(images), **options)
        pairs: Any = (
            blocks if self.vit.num_prefix_tokens else [(patches, None) for patches in blocks]
        )  # timm: bare where no prefix
        pooled = [prefix[:, 0] if self._pools_class_token else patches.mean(1) for patches, prefix in pairs]
        return self.vit.forward_head(tokens), torch.stack(pooled)  # type: ignore[arg-type]

    def tokens(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return all tokens after each of some blocks, counted from 1, in ascending order: `(n, t, h)`, differentiable.

        Layer `layers + 1` is the embedding, `(n, 1, d)`. No block behind the last asked for runs; prompts of VPT are left out.
        """
        options: dict[str, Any] = {"output_fmt": "NLC", "return_prefix_tokens": True, "norm": False, "stop_early": True}
        wanted = sorted(set(layers))
        deepest = self.layers if wanted[-1] > self.layers else 0  # the embedding needs all blocks
        indices = sorted({layer - 1 for layer in (*wanted, deepest) if 1 <= layer <= self.layers})
        passed: Any = self.vit.forward_intermediates(self._normalize(images), indices=indices, **options)
        last, blocks = passed
        plain = [torch.cat(one[::-1], 1) if isinstance(one, tuple) else one for one in blocks]  # timm: (patches, prefix)
        found = [plain[indices.index(layer - 1)] for layer in wanted if layer <= self.layers]
        return [*found, self.vit.forward_head(last)[:, None]] if deepest else found

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return of tokens `(n, t, h)` the class token, or the mean patch token, as the family pools: `(n, h)`."""
        if tokens.shape[1] == 1:  # the embedding
            return tokens[:, 0]
        return tokens[:, 0] if self._pools_class_token else tokens[:, self.vit.num_prefix_tokens :].mean(1)

    def activations(self, images: Tensor) -> Tensor:
        """Return the class token (or the mean patch token, as the family pools) after each block: `(layers, n, h)`."""
        return self.embed(images)[1]

    def natural_head(self, labels: Sequence[str]) -> NaturalHead | None:
        """Return the rows for natural labels, or None where the family has neither text tower nor classifier."""
        return self._natural(labels) if self._natural else None

    @property
    def _pools_class_token(self) -> bool:
        return self.vit.global_pool == "token" and self.vit.num_prefix_tokens > 0

    def _normalize(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class Classifier(nn.Module):
    """A backbone and the linear head that a task put on it."""

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings `(n, d)` and logits `(n, k)` from one forward pass."""
        embeddings = self.backbone(images)
        return embeddings, self.head(embeddings)


@dataclass(frozen=True)
class Task:
    """What the head predicts and how it is judged."""

    outputs: int  # width of the head
    loss: Callable[[Tensor, Tensor], Tensor]  # logits (n, k), labels (n,), of findings (n, k) -> task loss ()
    probabilities: Callable[[Tensor], Tensor]  # logits (n, k) -> (n, k) float64 in [0, 1]
    score: Callable[[Tensor, Tensor], dict[str, float | None]]  # logits, labels -> numbers shown after each epoch
    accuracy: Callable[[Tensor, Tensor], Tensor]  # logits, labels -> share of right answers (), shown at each step

    def head(self, width: int) -> nn.Linear:
        """Return a linear head that starts at zero, so that no class is favored before the first step."""
        head = nn.Linear(width, self.outputs)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head


@dataclass(frozen=True)
class Stages:
    """What trains when: pairs of (start as a share of all steps, name prefixes in the classifier), the first at 0.

    A stage that comes before any parameter of the backbone trained works on the cached pretrained embeddings, so a method
    whose backbone differs from the pretrained one before the first step must train it from the start.
    """

    stages: tuple[tuple[float, tuple[str, ...]], ...] = ((0.0, ("",)),)

    def at(self, step: int, steps: int) -> tuple[int, int, tuple[str, ...]]:
        """Return the stage that a step belongs to: its first step, the step after its last, and its prefixes."""
        starts = [round(share * steps) for share, _ in self.stages]
        now = max(i for i, start in enumerate(starts) if start <= step)
        return starts[now], [*starts, steps][now + 1], self.stages[now][1]

    def until(self, step: int, steps: int) -> tuple[str, ...]:
        """Return the prefixes of all stages up to that of a step."""
        return tuple(prefix for share, prefixes in self.stages if round(share * steps) <= step for prefix in prefixes)


def to_float(pixels: Tensor) -> Tensor:
    """Turn stored pixels `(n, s, s, 3)`, uint8 or uint16, into float images `(n, 3, s, s)` in [0, 1]."""
    top = 255.0 if pixels.dtype == torch.uint8 else 65535.0
    return pixels.permute(0, 3, 1, 2).float().div_(top)


def trainable(module: nn.Module) -> int:
    """Return the number of parameters that get a gradient."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 of all weights and buffers, so that a cache can never serve another model's numbers."""
    sha = hashlib.sha256()
    for name, value in module.state_dict().items():
        sha.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        sha.update(value.detach().cpu().contiguous().view(torch.uint8).numpy() if value.ndim else str(value.item()).encode())
    return sha.hexdigest()

"""A pretrained ViT without its head, the head that a task adds, and what words mean in its embedding space."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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


class Attention(NamedTuple):
    """Which tokens of an image attend to which, in every block; the patches come last, row by row.

    Prompts that a method added are left out of rows and columns, so that a row sums to 1 less what it gave to them.
    """

    weights: Tensor  # (layers, n, heads, tokens, tokens) in [0, 1]; a row is the token that asks, a column one that it looks at
    reading: Tensor  # (n, tokens): in what shares the embedding is read from the tokens after the last block; sums to 1
    prefix: int  # tokens before the patches: class token and registers
    reader: Literal["class token", "mean of the patches", "pooling head"]  # what `reading` is


_ATTENDING = threading.Lock()  # a cached model may be asked by two threads, and `attention` changes how it computes meanwhile


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

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings `(n, d)` and patch tokens `(n, t, h)`, each after the last norm, from one forward pass."""
        tokens = self.vit.forward_features(self._normalize(images))
        return self.vit.forward_head(tokens), self._patches(tokens)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings `(n, d)` and activations `(layers, n, h)` from one forward pass."""
        embeddings, _, activations = self.everything(images)
        return embeddings, activations

    def everything(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return embeddings, patch tokens and activations, as `read` and `embed` do, from one forward pass."""
        options: dict[str, Any] = {"output_fmt": "NLC", "return_prefix_tokens": True, "norm": False}
        tokens, blocks = self.vit.forward_intermediates(self._normalize(images), **options)
        pairs: Any = (
            blocks if self.vit.num_prefix_tokens else [(patches, None) for patches in blocks]
        )  # timm: bare where no prefix
        pooled = [prefix[:, 0] if self._pools_class_token else patches.mean(1) for patches, prefix in pairs]
        return self.vit.forward_head(tokens), self._patches(tokens), torch.stack(pooled)  # type: ignore[arg-type]

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

    @torch.no_grad()
    def attention(self, images: Tensor) -> Attention:
        """Return the attention of every block, `(layers, n, heads, tokens, tokens)`, and how the embedding is read.

        What the model computes after this call is what it computed before, to the bit: attention is computed step by step
        only meanwhile, since the fused kernel never holds the weights.
        """
        vit: Any = self.vit
        layers, seen, mine = [block.attn for block in vit.blocks], [], threading.get_ident()

        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if threading.get_ident() == mine:  # not of a forward pass that another thread runs
                seen.append(inputs[0])

        with _ATTENDING:
            fused = [layer.fused_attn for layer in layers]
            handles = [layer.attn_drop.register_forward_pre_hook(keep) for layer in layers]
            try:
                for layer in layers:
                    layer.fused_attn = False
                tokens = vit.forward_features(self._normalize(images))
            finally:
                for layer, handle, was in zip(layers, handles, fused, strict=True):
                    layer.fused_attn = was
                    handle.remove()
        prefix, weights = vit.num_prefix_tokens, torch.stack(seen)
        added = weights.shape[-1] - tokens.shape[1]  # prompts stand between the prefix and the patches, inside the blocks only
        own = torch.cat([torch.arange(prefix), torch.arange(prefix + added, weights.shape[-1])]).to(weights.device)
        reading, reader = self._reading(tokens)
        return Attention(weights[..., own, :][..., own], reading, prefix, reader)

    def _reading(self, tokens: Tensor) -> tuple[Tensor, Any]:
        vit: Any = self.vit
        shares = tokens.new_zeros(tokens.shape[:2])
        if self._pools_class_token:
            shares[:, 0] = 1
            return shares, "class token"
        first = 0 if vit.pool_include_prefix else vit.num_prefix_tokens
        if vit.attn_pool is None:
            shares[:, first:] = 1 / (tokens.shape[1] - first)
            return shares, "mean of the patches"
        pool, (heads, size) = vit.attn_pool, (vit.attn_pool.num_heads, vit.attn_pool.head_dim)
        keys = pool.k_norm(pool.kv(tokens[:, first:]).unflatten(2, (2, heads, size))[:, :, 0].transpose(1, 2))
        queries = pool.q_norm(pool.q(pool.latent).unflatten(2, (heads, size)).transpose(1, 2))
        shares[:, first:] = (queries * pool.scale @ keys.transpose(2, 3)).softmax(3).mean((1, 2))
        return shares, "pooling head"

    def natural_head(self, labels: Sequence[str]) -> NaturalHead | None:
        """Return the rows for natural labels, or None where the family has neither text tower nor classifier."""
        return self._natural(labels) if self._natural else None

    def _patches(self, tokens: Any) -> Tensor:
        """Return the tokens of patches alone; a family that pools before its last norm has that norm on each of them here."""
        return self.vit.fc_norm(tokens[:, self.vit.num_prefix_tokens :])

    @property
    def _pools_class_token(self) -> bool:
        return self.vit.global_pool == "token" and self.vit.num_prefix_tokens > 0

    def _normalize(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class Classifier(nn.Module):
    """A backbone and the head that a task put on it: it reads the embeddings or, with `reads = "tokens"`, all patch tokens."""

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.reads_tokens = getattr(head, "reads", "embeddings") == "tokens"

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings `(n, d)` and the head's outputs, logits `(n, k)` or images, from one forward pass."""
        if self.reads_tokens:
            embeddings, tokens = self.backbone.read(images)
            return embeddings, self.head(tokens)
        embeddings = self.backbone(images)
        return embeddings, self.head(embeddings)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return embeddings `(n, d)`, activations `(layers, n, h)` and the head's outputs from one forward pass."""
        embeddings, tokens, activations = self.backbone.everything(images)
        return embeddings, activations, self.head(tokens if self.reads_tokens else embeddings)


@dataclass(frozen=True)
class Task:
    """What a head predicts and how it is judged, by labels or, where it has `errors`, by the images themselves.

    Outputs of the first kind are logits `(n, k)`, and targets labels `(n,)`, of findings `(n, k)`. Outputs of the second kind are
    images `(n, 3, s, s)`, too large to keep: what is kept of them, and scored, is the error of each `(n,)`.
    """

    head: Callable[[Backbone], nn.Module]  # a new head for this backbone, which favors no answer before the first step
    loss: Callable[[Tensor, Tensor], Tensor]  # outputs, targets -> task loss ()
    score: Callable[[Tensor, Tensor], dict[str, Any]]  # what is kept of the outputs, labels -> numbers shown after each epoch
    probabilities: Callable[[Tensor], Tensor] | None = None  # logits (n, k) -> (n, k) float64 in [0, 1]
    accuracy: Callable[[Tensor, Tensor], Tensor] | None = None  # logits, labels -> share of right answers (), shown at each step
    errors: Callable[[Tensor, Tensor], Tensor] | None = None  # outputs, images -> (n,)

    def targets(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return what the outputs are to be."""
        return labels if self.errors is None else images

    def losses(self, kept: Tensor, labels: Tensor) -> Tensor:
        """Return the task loss of each image `(n,)`, from what is kept of the outputs."""
        if self.errors is not None:
            return kept
        return torch.stack([self.loss(kept[i : i + 1], labels[i : i + 1]) for i in range(len(labels))])


def linear(outputs: int) -> Callable[[Backbone], nn.Module]:
    """Return what makes a linear head on the embeddings; it starts at zero, so that no class is favored before the first step."""

    def head(backbone: Backbone) -> nn.Linear:
        made = nn.Linear(backbone.width, outputs)
        nn.init.zeros_(made.weight)
        nn.init.zeros_(made.bias)
        return made

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


def wide(values: Tensor) -> Tensor:
    """Return values in float32 at least: covariances and similarities of half precision would be noise."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


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

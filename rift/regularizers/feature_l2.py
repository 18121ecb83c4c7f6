"""Feature L2: hold each finetuned embedding, and with `layers` activations inside too, near the pretrained one of its image.
The mean over the places held of E‖a_finetuned - a_pretrained‖² / tr Σ_pretrained, Σ the covariance there over all training views.
With `layers` after LDIFS (Mukhoti 2023, arXiv 2308.13320), with the embeddings alone its last-layer case.

What LDIFS states: the squared distance between the features of the two models, taken at several depths, is added to the task
loss. Its published code takes five places (the input of the first block and then each quarter of the blocks), all tokens, each
scaled to length 1, and runs the pretrained model beside the finetuned one in every step.

What is our choice: the embedding is always one of the places; `layers=4` adds the outputs of four evenly spaced blocks, the last
among them; of each only the class token (or the mean patch token, where the family pools so), which is small enough to be
cached for every view, so that no step pays for a second model; and in place of scaling each vector to length 1 the division by
the spread tr Σ of the place: a penalty of 1 is as far as giving every image the average. Where the pretrained model has no
spread at a chosen place, it counts nothing there.

It forgives nothing: rotation, scale, mean and pairing are all seen.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from rift import distributed
from rift.errors import DataError, SettingError
from rift.model import Backbone, wide
from rift.regularizers._pairs import flat, pair, variances


def build(
    pretrained: Backbone,
    finetuned: Backbone,
    images: Any,
    *,
    layers: Annotated[int, Field(ge=0, le=48, description="evenly spaced blocks whose outputs are held too; 4 as in LDIFS")] = 0,
) -> nn.Module:
    """Return the penalty as a module; the spread of each place comes from `images.embeddings` or `images.targets(blocks)`.

    Raises `setting.range` for more layers than the backbone has blocks, `data.too_few` where no image differs.
    """
    if layers and layers > finetuned.layers:
        raise SettingError("setting.range", f"feature_l2: layers = {layers}, but this backbone has {finetuned.layers} blocks.")
    blocks = tuple((i + 1) * finetuned.layers // layers - 1 for i in range(layers))
    held = images.targets(blocks) if blocks else images.embeddings
    penalty = FeatureL2(held, blocks, pretrained.width)
    if blocks:
        penalty.listen(finetuned)
    return penalty


class FeatureL2(nn.Module):
    """The relative squared distance of embeddings, and of what `blocks` of the finetuned backbone put out in the same pass."""

    needs_targets = True
    mean_over_images = True

    def __init__(self, held: Tensor, blocks: tuple[int, ...], width: int):
        super().__init__()
        self.blocks = blocks
        self.widths = [width, *[(held.shape[-1] - width) // len(blocks) for _ in blocks]]
        spreads = []
        for variance, mean in zip(*(moment.split(self.widths) for moment in variances(held)), strict=True):
            spreads.append(torch.inf if flat(variance.sum(), mean) else float(variance.sum()))
        if spreads[0] == torch.inf:
            raise DataError(
                "data.too_few", "The pretrained model embeds all training images alike; feature_l2 needs some that differ."
            )
        self.spreads = nn.Buffer(torch.tensor(spreads))
        self._seen: dict[int, Tensor] = {}  # by block, from the forward pass of this step
        self._trains: Any = lambda: True

    def listen(self, finetuned: Backbone) -> None:
        """Keep from now on what each held block puts out while gradients are on."""
        vit = finetuned.vit
        first, patches = vit.global_pool == "token" and vit.num_prefix_tokens > 0, vit.patch_embed.num_patches

        def keep(block: int, module: nn.Module, arguments: Any, tokens: Tensor) -> None:
            if torch.is_grad_enabled():  # not while the probe is looked at
                self._seen[block] = tokens[:, 0] if first else tokens[:, -patches:].mean(1)  # prompts stand before the patches

        for block in self.blocks:
            vit.blocks[block].register_forward_hook(functools.partial(keep, block))
        self._trains = lambda: any(p.requires_grad for p in finetuned.parameters())

    def forward(self, embeddings: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the penalty `()` of embeddings `(b, d)` and targets `(b, d + len(blocks) h)`, at least 0."""
        embeddings, targets = pair(embeddings, targets)
        with torch.autocast(embeddings.device.type, enabled=False):
            places = targets.split(self.widths, 1)
            distances = [(embeddings - places[0]).square().sum(1).mean()]
            for block, place in zip(self.blocks, places[1:], strict=True):
                distances.append((self._activations(block, place) - place).square().sum(1).mean())
            self._seen.clear()
            return (torch.stack(distances) / self.spreads).mean()

    def _activations(self, block: int, place: Tensor) -> Tensor:
        """Return what the block put out; a frozen backbone is not run in a step and puts out what the pretrained one did."""
        if block in self._seen:
            return wide(distributed.whole(self._seen[block], len(place)))
        if self._trains():
            raise ValueError("the activations of this batch are not here: run the finetuned backbone on it first")
        return place

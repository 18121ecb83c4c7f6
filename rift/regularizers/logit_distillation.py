"""Logit distillation: hold what the frozen natural head calls each image, in natural words, as the pretrained model had it.
E KL(p_pretrained ‖ p_finetuned) / E KL(p_pretrained ‖ p̄), p = softmax(natural logits / T), p̄ the mean of p_pretrained over all
training views, T = 2. After learning without forgetting (Li and Hoiem 2016, arXiv 1606.09282).

What the paper states: while a network learns a new task, the answers of its old heads on the new task's images, softened by a
temperature of 2, are to stay what they were; the loss is the cross-entropy with them.

What is our choice: the old head is the natural one (text embeddings of the names, or the family's own ImageNet classifier, by
cosine), and it does not train, where the paper's old head does; KL in place of the cross-entropy, the same but for a constant, so
that nothing forgotten is 0; the division by the information that the pretrained answers carry about the images, so that a
penalty of 1 is as far as giving every image the average answer; for `labels`, one name for each ImageNet class that has a name
of its own. A text tower needs a while for a thousand names; a short list is quicker and sees less.

A cosine has no scale, so one common factor on all embeddings goes unseen, and so does all that happens off the span of the names'
rows. Rotation, mean and pairing are seen: this is the only penalty that holds the words an image is met with.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rift import vocabulary
from rift.errors import DataError, SettingError
from rift.model import Backbone, NaturalHead
from rift.regularizers._pairs import pair

LEAST = 1e-9  # nats; below it the answers differ by rounding only


def build(
    pretrained: Backbone,
    finetuned: Backbone,
    images: Any,
    *,
    labels: Annotated[
        str,
        Field(max_length=10_000, description="natural names, with + between them, as cat+dog+truck; empty: one per known class"),
    ] = "",
    temperature: Annotated[float, Field(ge=0.1, le=100, description="how much the answers are softened; 2 in the paper")] = 2.0,
) -> nn.Module:
    """Return the penalty as a module; `images.embeddings` `(views, n, d)` are the pretrained embeddings of the training views.

    Raises `setting.range` for a backbone without natural head, a name that it does not know or fewer than two names,
    `data.too_few` where the pretrained model gives all training images the same answer.
    """
    chosen = tuple(dict.fromkeys(filter(None, (name.strip() for name in re.split(r"[+,]", labels))))) or class_names()
    head = pretrained.natural_head(chosen)
    if head is None:
        raise SettingError(
            "setting.range",
            "logit_distillation needs a natural head (a text tower or an ImageNet classifier), and this backbone has none; "
            "choose another backbone, or feature_l2 or rift, which need none.",
        )
    if head.unknown:
        known = "known are the names of ImageNet's classes and everyday words"
        raise SettingError(
            "setting.range", f"logit_distillation: the natural head does not know {', '.join(head.unknown[:5])}; {known}."
        )
    if len(head.classes) < 2:
        raise SettingError("setting.range", f"logit_distillation: labels = {labels!r} is one name; give at least two.")
    return Distillation(head, images.embeddings, temperature)


def class_names() -> tuple[str, ...]:
    """Return one name for each ImageNet class that has a name of its own: its shortest, in the order of the classes."""
    found: dict[int, str] = {}
    for name, rows in sorted(vocabulary.names().items(), key=lambda item: (len(item[0]), item[0])):
        if len(rows) == 1 and name not in vocabulary.nearest():
            found.setdefault(rows[0], name)
    return tuple(found[row] for row in sorted(found))


class Distillation(nn.Module):
    """How much of what the pretrained answers tell about an image the finetuned ones no longer tell."""

    needs_targets = True

    def __init__(self, head: NaturalHead, embeddings: Tensor, temperature: float):
        super().__init__()
        self.rows = nn.Buffer(head.rows.detach().float().clone(), persistent=False)
        self.scale = head.scale / temperature
        self.information = self._information(embeddings)
        if self.information < LEAST:
            names = f"{', '.join(head.classes[:3])}{', …' if len(head.classes) > 3 else ''}"
            raise DataError(
                "data.too_few",
                f"The pretrained model gives all training images the same answer among {names}; choose other labels.",
            )

    def forward(self, embeddings: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the penalty `()` of embeddings and targets `(b, d)`, at least 0."""
        embeddings, targets = pair(embeddings, targets)
        with torch.autocast(embeddings.device.type, enabled=False):
            divergence = F.kl_div(self._answers(embeddings), self._answers(targets), log_target=True, reduction="batchmean")
            return torch.relu(divergence) / self.information  # rounding can put it below 0

    def _answers(self, embeddings: Tensor) -> Tensor:
        """Return log-probabilities `(b, k)`."""
        return F.log_softmax(self.scale * F.normalize(embeddings, dim=1) @ self.rows.T, dim=1)

    def _information(self, embeddings: Tensor) -> float:
        """Return E KL(p ‖ p̄) = H(p̄) - E H(p) in nats over all views `(views, n, d)`, accumulated in float64."""
        rows = embeddings.detach().flatten(0, -2)
        total, entropy = torch.zeros(len(self.rows), dtype=torch.float64), 0.0
        for some in rows.split(4096):
            answers = self._answers(some.float().to(self.rows.device)).double().cpu()
            total += answers.exp().sum(0)
            entropy -= float((answers.exp() * answers).sum())
        mean = total / len(rows)
        return float(-torch.special.xlogy(mean, mean).sum()) - entropy / len(rows)

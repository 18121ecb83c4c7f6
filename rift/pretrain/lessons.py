"""What the image tower learns from: photos, the teacher's view of them, and names to choose from.

The names are asked of the tower as the text tower will ask it: cosines with the directions of names. A photo's target is half
its label and half what a logistic regression on the teacher's embeddings says: the teacher itself names small photos worse
than such a probe of it does. All of it is our choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

COSINE, SOFT, BELIEF = 2.0, 1.0, 0.5  # weights of the embedding and of the softmax; share of the probe in a target


@dataclass(frozen=True)
class Question:
    """One choice among k names, for the photos that it fits."""

    directions: Tensor  # (k, 192), L2-normalized
    targets: Tensor  # (n, k), probabilities; zero in every name where the question does not fit the photo

    def loss(self, ids: Tensor, embeddings: Tensor, scale: Tensor) -> Tensor:
        """Return the cross-entropy `()` of normalized embeddings `(b, 192)` of the photos `ids`, over all b."""
        return -(self.targets[ids] * (scale * embeddings @ self.directions.T).log_softmax(1)).sum(1).mean()


@dataclass(frozen=True)
class Lessons:
    """n photos, what the teacher says of them, and the questions asked of them."""

    pixels: Tensor  # (n, 64, 64, 3) uint8
    targets: Tensor  # (n, 192), the teacher's embeddings
    logits: Tensor  # (n, 1000), the teacher's
    rows: Tensor  # (1000, 192), its normalized classifier rows
    questions: tuple[Question, ...]
    repeats: Tensor  # (n,), how often an epoch shows each photo

    def to(self, device: str) -> Lessons:
        """Return the same lessons on another device."""
        questions = tuple(Question(q.directions.to(device), q.targets.to(device)) for q in self.questions)
        pixels, targets, logits, rows = (part.to(device) for part in (self.pixels, self.targets, self.logits, self.rows))
        return replace(self, pixels=pixels, targets=targets, logits=logits, rows=rows, questions=questions)

    def loss(self, ids: Tensor, embeddings: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return 2 (1 - cosine to the teacher) + cross-entropy to its softmax + the questions' losses, and the cosine."""
        embeddings = F.normalize(embeddings.float(), dim=1)
        scale = scale.clamp(max=math.log(60.0)).exp()
        cosine = (embeddings * F.normalize(self.targets[ids].float(), dim=1)).sum(1).mean()
        soft = F.cross_entropy(scale * embeddings @ self.rows.T, self.logits[ids].float().softmax(1))
        asked = sum((question.loss(ids, embeddings, scale) for question in self.questions), torch.zeros_like(scale))
        return COSINE * (1 - cosine) + SOFT * soft + asked, cosine.detach()


def ask(directions: Tensor, answers: Tensor, targets: Tensor) -> Question:
    """Make the question whose names have the given `directions` `(k, 192)`.

    `answers` `(n,)` are the photos' names, -1 where the question does not fit; `targets` `(n, 192)` the teacher's embeddings.
    """
    fits = answers >= 0
    mixed = torch.zeros(len(answers), len(directions))
    label = F.one_hot(answers[fits], len(directions)).float()
    mixed[fits] = (1 - BELIEF) * label + BELIEF * probe(targets[fits].float(), answers[fits], len(directions))
    return Question(directions, mixed)


def probe(features: Tensor, answers: Tensor, classes: int, *, steps: int = 600, seed: int = 0) -> Tensor:
    """Fit a logistic regression to features `(n, d)` and return its probabilities `(n, classes)` for the same features."""
    generator = torch.Generator().manual_seed(seed)
    features = (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
    linear = nn.Linear(features.shape[1], classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.AdamW(linear.parameters(), weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        ids = torch.randint(len(features), (500,), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(linear(features[ids]), answers[ids]).backward()
        optimizer.step()
    with torch.no_grad():
        return linear(features).softmax(1)

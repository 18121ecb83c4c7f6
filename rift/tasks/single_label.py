"""One label per image: cross-entropy of a linear head on the embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from rift.model import Task, linear


def build(
    classes: Sequence[str],
    *,
    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="share of each target spread over all classes")] = 0.0,
) -> Task:
    """Return the task for these classes."""
    return Task(
        head=linear(len(classes)),
        loss=lambda logits, labels: F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing),
        probabilities=lambda logits: logits.double().softmax(1),
        score=_score,
        accuracy=lambda logits, labels: (logits.argmax(1) == labels).float().mean(),
    )


def _score(logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    hits = (logits.argmax(1) == labels).float()
    recalls = [hits[labels == label].mean() for label in labels.unique()]
    return {"accuracy": float(hits.mean()), "balanced_accuracy": float(torch.stack(recalls).mean())}

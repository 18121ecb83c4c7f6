"""Several findings per image, each there or not: a sigmoid and binary cross-entropy for each finding, on a linear head.

loss = -mean over images and findings of y log p + (1 - y) log(1 - p), with p = sigmoid(logit). So the benchmark MedFM trains
its chest and endoscopy tasks (arXiv 2306.09579), judged by mean average precision (mAP), which is our headline too. A finding
counts as named where p >= 0.5 (our choice): accuracy is then the share of right answers over all images and findings, as in
MedMNIST v2 (arXiv 2110.14795). There is no balanced accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from rift import findings
from rift.model import Task, linear


def build(classes: Sequence[str]) -> Task:
    """Return the task for these findings; labels are `(n, k)`, 1 where the image shows the finding."""
    return Task(
        head=linear(len(classes)),
        loss=lambda logits, labels: F.binary_cross_entropy_with_logits(logits.float(), labels.float()),
        probabilities=lambda logits: logits.double().sigmoid(),
        score=_score,
        accuracy=lambda logits, labels: ((logits >= 0) == (labels > 0)).float().mean(),
    )


def _score(logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Return what can be computed of these images; None where no finding has images with it and without it."""
    truth, scores = labels.cpu().numpy() > 0, logits.float().cpu().numpy()
    judged = findings.both(truth)
    precision = float(findings.average_precision(truth, scores)[judged].mean()) if len(judged) else None
    return {"accuracy": float(((scores >= 0) == truth).mean()), "balanced_accuracy": None, "average_precision": precision}

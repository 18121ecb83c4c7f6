"""RIFT: hold the covariance of the finetuned embeddings near that of the pretrained ones, so that images keep their arrangement.
‖Σ_finetuned - Qᵀ Σ_pretrained Q‖²_F / ‖Σ_pretrained‖²_F, Q orthogonal. After RIFT (arXiv 2503.07399), in our reading.

What the paper states, as far as its abstract and its reviews show (its full text was not at hand): covariances of the last
embeddings only, accumulated over mini-batches as running statistics, compared through an orthogonal Q; the mean dropped from
the main loss; the margin epsilon of its hard constraint dropped too; λ = 1 in a figure. A learned Q is an ablation there.

What is our choice: the identity as the main Q; dividing by ‖Σ_pretrained‖²_F, so that one strength serves every backbone;
1 / (n - 1) covariances in fp32 outside autocast; the momentum; how gradients pass the running average; the hinge; dividing the
squared shift of the mean by tr Σ_pretrained. `statistics="batch"` compares both models on the same mini-batch: it needs the
cached pretrained embeddings of the views (not a second forward pass) and cancels the sampling noise of a small batch, which
`"running"` averages away instead. It is the default because it kept accuracy and representation better on three real sets (the
README has the numbers; there the fitted map and the identity were about equal); `"running"` with the identity is nearest to what
is known of the paper.

Limits (Hoffman and Wielandt 1953): with a Q of its own choice the best that any covariance penalty can see is the spectrum,
and even with Q = I every whitening-rotation-coloring and every exchange of images goes unseen. A low penalty therefore proves
neither a high CKA nor intact zero-shot prediction: it brakes drift from the pretrained model, it does not certify its absence.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from rift.errors import DataError, SettingError
from rift.model import Backbone, wide
from rift.regularizers._pairs import covariance_of, flat, moments, pair, zero

MAPS = {"running": ("identity", "learned", "spectrum"), "batch": ("identity", "learned", "procrustes")}


def build(
    pretrained: Backbone,
    finetuned: Backbone,
    images: Any,
    *,
    statistics: Annotated[
        Literal["running", "batch"],
        Field(description="running: all training images before, an average over steps after; batch: the same mini-batch twice"),
    ] = "batch",
    map: Annotated[
        Literal["identity", "learned", "spectrum", "procrustes"],
        Field(description="the rotation Q that is forgiven: none, a trained one, any (only the spectrum counts), a fitted one"),
    ] = "identity",
    mean: Annotated[bool, Field(description="also hold the mean of the embeddings")] = False,
    epsilon: Annotated[float, Field(ge=0, le=100, description="penalty that is tolerated: max(0, penalty - epsilon)")] = 0.0,
    momentum: Annotated[float, Field(ge=0, lt=1, description="share of its old value that an average keeps per step")] = 0.9,
) -> nn.Module:
    """Return the penalty as a module; `images.embeddings` `(views, n, d)` are the pretrained embeddings of the training views.

    They are read once, and not at all by `statistics="batch"` with a map that needs nothing but the batch. Raises
    `setting.range` for a map that the statistics do not allow or a mean with the spectrum, `data.too_few` where no image differs.
    """
    if map not in MAPS[statistics]:
        pair, allowed = f"map = {map!r} does not go with statistics = {statistics!r}", ", ".join(MAPS[statistics])
        raise SettingError("setting.range", f"rift: {pair}; use one of {allowed}.")
    if map == "spectrum" and mean:
        raise SettingError("setting.range", "rift: map = 'spectrum' has no rotation to turn the mean with; set mean to false.")
    if statistics == "running":
        return Running(images.embeddings, map, mean, epsilon, momentum)
    if map == "procrustes":
        return Fitted(images.embeddings, mean, epsilon, momentum)
    return Batch(pretrained.width, map, mean, epsilon)


class Running(nn.Module):
    """Σ_pretrained of all views, once; Σ_finetuned an exponential average that starts there. Nothing pretrained runs in a step.

    The value is that of the average with the current batch in it. The gradient passes only through the current batch, and the
    factor 1 - momentum that the average puts on it is divided out, so that the momentum does not change the strength.
    """

    needs_targets = False

    def __init__(self, embeddings: Tensor, map: str, mean: bool, epsilon: float, momentum: float):
        super().__init__()
        self.mean, self.epsilon, self.momentum = mean, epsilon, momentum
        before = moments(embeddings)
        if flat(before[0].trace(), before[1]):
            raise DataError("data.too_few", "The pretrained model embeds all training images alike; RIFT needs some that differ.")
        self.before_covariance, self.before_mean = (nn.Buffer(moment.float()) for moment in before)
        self.covariance, self.average = (nn.Buffer(moment.float()) for moment in before)
        self.spectrum = nn.Buffer(torch.linalg.eigvalsh(before[0]).float()) if map == "spectrum" else None
        self.rotation = _Rotation(len(before[1])) if map == "learned" else None

    def forward(self, embeddings: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the penalty `()` of embeddings `(b, d)`, at least 0; 0 for fewer than 2 images. Averages move in train mode."""
        if len(embeddings) < 2:
            return zero(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            covariance, mean = covariance_of(wide(embeddings))
            covariance = self._follow(self.covariance, covariance)
            shift = self._follow(self.average, mean) if self.mean else None
            if self.spectrum is not None:
                return _hinge(_spectrum_distance(covariance, self.spectrum), self.epsilon)
            rotation = self.rotation() if self.rotation is not None else None
            return _hinge(_distance(covariance, shift, self.before_covariance, self.before_mean, rotation), self.epsilon)

    def _follow(self, average: Tensor, current: Tensor) -> Tensor:
        mixed = torch.lerp(current.detach(), average, self.momentum)
        if self.training:
            average.copy_(mixed)
        return mixed + (current - current.detach())


class Batch(nn.Module):
    """Both covariances over the same mini-batch; the pretrained embeddings of its views come from the cache."""

    needs_targets = True

    def __init__(self, width: int, map: str, mean: bool, epsilon: float):
        super().__init__()
        self.mean, self.epsilon = mean, epsilon
        self.rotation = _Rotation(width) if map == "learned" else None

    def forward(self, embeddings: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the penalty `()` of embeddings and targets `(b, d)`, at least 0; 0 where fewer than 2 targets differ."""
        embeddings, targets = pair(embeddings, targets)
        if len(embeddings) < 2:
            return zero(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            covariance, mean = covariance_of(embeddings)
            before_covariance, before_mean = covariance_of(targets)
            if flat(before_covariance.trace(), before_mean):
                return zero(embeddings)
            rotation = self._rotate(embeddings, targets)
            shift = mean if self.mean else None
            return _hinge(_distance(covariance, shift, before_covariance, before_mean, rotation), self.epsilon)

    def _rotate(self, embeddings: Tensor, targets: Tensor) -> Tensor | None:
        return self.rotation() if self.rotation is not None else None


class Fitted(Batch):
    """As Batch, with Q the polar factor of a running average of the centred cross-covariance Z_preᵀ Z_ft, without gradient.

    Q must come from pairs of the same image. The Q that best aligns two covariances matches eigenvectors only up to a sign
    each (2^d of them): on an exactly rotated set its residual is 0 and yet most signs, and all predictions, are wrong.
    Holding Q constant in the gradient is exact where Q is optimal (envelope theorem) and spares the SVD's derivative.
    """

    def __init__(self, embeddings: Tensor, mean: bool, epsilon: float, momentum: float):
        super().__init__(embeddings.shape[-1], "procrustes", mean, epsilon)
        self.momentum = momentum
        self.cross = nn.Buffer(moments(embeddings)[0].float())  # before the first step both models are the same

    @torch.no_grad()
    def _rotate(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        cross = (targets - targets.mean(0)).T @ embeddings / (len(embeddings) - 1)
        mixed = torch.lerp(cross, self.cross, self.momentum)
        if self.training:
            self.cross.copy_(mixed)
        if not mixed.isfinite().all():  # a diverged run: hand on the nan instead of failing in the SVD
            return mixed
        left, _, right = torch.linalg.svd(mixed)
        return left @ right


class _Rotation(nn.Module):
    """A trained rotation, at first exactly the identity; the Cayley map is 24 times faster than torch's default at d = 768."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width))
        orthogonal(self, "weight", orthogonal_map="cayley")

    def forward(self) -> Tensor:
        return self.weight


def _distance(
    covariance: Tensor, mean: Tensor | None, before_covariance: Tensor, before_mean: Tensor, rotation: Tensor | None
) -> Tensor:
    """Return ‖Σ - Qᵀ Σ₀ Q‖² / ‖Σ₀‖², plus ‖μ - Qᵀ μ₀‖² / tr Σ₀ where a mean is given; rows turn as z Q."""
    scale = before_covariance.square().sum()
    spread = before_covariance.trace()
    if rotation is not None:
        before_covariance = rotation.T @ before_covariance @ rotation
        before_mean = before_mean @ rotation
    distance = (covariance - before_covariance).square().sum() / scale
    return distance if mean is None else distance + (mean - before_mean).square().sum() / spread


def _spectrum_distance(covariance: Tensor, spectrum: Tensor) -> Tensor:
    """Return min over Q of ‖Σ - Qᵀ Σ₀ Q‖² / ‖Σ₀‖² = ‖λ(Σ) - λ(Σ₀)‖² / ‖λ(Σ₀)‖² (Hoffman and Wielandt 1953)."""
    if not covariance.isfinite().all():  # a diverged run: hand on the nan instead of failing in the eigenvalues
        return covariance.sum() * torch.nan
    return (torch.linalg.eigvalsh(covariance) - spectrum).square().sum() / spectrum.square().sum()


def _hinge(penalty: Tensor, epsilon: float) -> Tensor:
    return torch.relu(penalty - epsilon)

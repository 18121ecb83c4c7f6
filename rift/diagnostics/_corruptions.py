"""Seventeen ways in which an image gets worse, each in five severities, and how well a classifier still names what it shows.

A corruption is `(images (n, 3, s, s) in [0, 1], severity 1 to 5, generator) -> the same shape, in [0, 1]`. Ideas and many numbers
are those of Hendrycks and Dietterich 2019 (arXiv 1903.12261). Where they give severities, in their ImageNet-64 × 64-C for
64 px and in ImageNet-C for 224 px, we take the first at 64 px, the second at 224 px and a point on the line between for other
sides; in images larger than both, lengths grow with the side. Code and libraries are others than theirs, borders are mirrored,
and images are not saved as JPEG afterwards, so the severities are our own and results cannot be set beside published ones. Motion
blur, gamma, stain, rotation, zoom, elastic and occlusion have our numbers altogether. No saturation: gray images have none.

What is drawn for an image depends on the seed, the corruption and the image's place, on neither severity nor model nor batch
size nor device: all models see the very same pixels, and a higher severity is more of the same.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.color import hed_from_rgb, rgb_from_hed
from skimage.util import random_noise
from torch import Tensor
from torch.nn import functional as F

from rift.captures import Images
from rift.model import to_float

Corruption = Callable[[Tensor, int, np.random.Generator], Tensor]
Table = Sequence[float]  # by severity
SEVERITIES = 5
CHUNK = 32  # images that are corrupted at once; part of what makes the pixels, so not a setting
SMALL, LARGE = 64, 224  # sides in pixels for which Hendrycks and Dietterich give severities


def _at(images: Tensor, severity: int, small: Table, large: Table) -> float:
    """Return the number of a severity for the side of these images."""
    share = (min(max(images.shape[-1], SMALL), LARGE) - SMALL) / (LARGE - SMALL)
    return small[severity - 1] + share * (large[severity - 1] - small[severity - 1])


def _length(images: Tensor, severity: int, small: Table, large: Table) -> float:
    """The same for lengths in pixels, which in larger images stay the same share of the side."""
    return _at(images, severity, small, large) * max(1.0, images.shape[-1] / LARGE)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).clamp_(0, 1)


def _noise(images: Tensor, generator: np.random.Generator, mode: str, **options: float) -> Tensor:
    return _tensor(random_noise(images.numpy(), mode, rng=generator, **options))


def gaussian_noise(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    deviation = _at(images, severity, (0.04, 0.08, 0.12, 0.15, 0.18), (0.08, 0.12, 0.18, 0.26, 0.38))
    return _noise(images, generator, "gaussian", var=deviation**2)


def shot_noise(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    """Counted light: white is so many photons."""
    photons = _at(images, severity, (250, 100, 50, 30, 15), (60, 25, 12, 5, 3))
    return _tensor(generator.poisson(images.numpy().astype(np.float64) * photons) / photons)


def impulse_noise(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    amount = _at(images, severity, (0.01, 0.02, 0.05, 0.08, 0.14), (0.03, 0.06, 0.09, 0.17, 0.27))
    return _noise(images, generator, "s&p", amount=amount)


def speckle_noise(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    """Noise that grows with the light, as in ultrasound."""
    deviation = _at(images, severity, (0.15, 0.2, 0.25, 0.3, 0.35), (0.15, 0.2, 0.35, 0.45, 0.6))
    return _noise(images, generator, "speckle", var=deviation**2)


def gaussian_blur(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    sigma = _length(images, severity, (0.5, 0.75, 1, 1.25, 1.5), (1, 2, 3, 4, 6))
    return _tensor(gaussian_filter(images.numpy(), sigma, axes=(2, 3), mode="mirror"))


def defocus_blur(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    """Every point becomes a disk."""
    radius = _length(images, severity, (0.5, 1, 1.5, 2.5, 3), (3, 4, 6, 8, 10))
    x, y = _grid(radius)
    return _blur(images, (np.hypot(x, y) - radius)[None].repeat(len(images), 0))


def motion_blur(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    """Every point becomes a line, of a direction of its own for each image."""
    half = _length(images, severity, (3, 4.5, 6, 8, 10), (10, 16, 24, 32, 40)) / 2
    x, y = _grid(half)
    angle = generator.uniform(0, np.pi, (len(images), 1, 1))
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return _blur(images, np.hypot(np.maximum(np.abs(along) - half, 0), across))


def _grid(reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the pixels around one that lie within reach, in pixels."""
    pixels = math.ceil(reach)
    y, x = np.mgrid[-pixels : pixels + 1, -pixels : pixels + 1]
    return x, y


def _blur(images: Tensor, distance: np.ndarray) -> Tensor:
    """Replace each point by a shape, given by each pixel's distance `(n, k, k)` to it; at its edge it fades over a pixel."""
    kernel = np.clip(1 - np.maximum(distance, 0), 0, 1)
    weight = torch.from_numpy((kernel / kernel.sum((1, 2), keepdims=True)).astype(np.float32))
    padded = F.pad(images, [weight.shape[-1] // 2] * 4, mode="reflect").flatten(0, 1)[None]
    each = weight.repeat_interleave(images.shape[1], 0)[:, None]
    return F.conv2d(padded, each, groups=len(each)).view_as(images).clamp(0, 1)


def pixelate(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    """Fewer pixels, and back."""
    side = images.shape[-1]
    fewer = max(1, round(side * _at(images, severity, (0.9, 0.8, 0.7, 0.6, 0.5), (0.6, 0.5, 0.4, 0.3, 0.25))))
    return F.interpolate(F.interpolate(images, size=(fewer, fewer), mode="area"), size=(side, side), mode="area").clamp(0, 1)


def jpeg(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    quality = round(_at(images, severity, (65, 58, 50, 40, 25), (25, 18, 15, 10, 7)))
    return _tensor(np.stack([_jpeg(one, quality) for one in _bytes(images)]).transpose(0, 3, 1, 2) / 255)


def _bytes(images: Tensor) -> np.ndarray:
    return images.mul(255).round().byte().permute(0, 2, 3, 1).numpy()


def _jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def brightness(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    """Brighter: the value of HSV plus a number, hue and saturation as they were."""
    value = images.amax(1, keepdim=True)
    lighter = (value + (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]).clamp(max=1)
    return torch.where(value > 0, images / value * lighter, lighter).clamp(0, 1)


def gamma(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    """Darker between black and white."""
    from torchvision.transforms.v2 import functional as vision  # a second of imports, which no page needs before it

    return vision.adjust_gamma(images, (1.2, 1.4, 1.7, 2.1, 2.6)[severity - 1])


def contrast(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    """Nearer to the image's mean color, which stays; torchvision's turns it gray."""
    return torch.lerp(images.mean((2, 3), keepdim=True), images, (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]).clamp(0, 1)


def stain(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    """More and less of three dyes: amounts times 1 + s·a, plus s·b / 2, with a and b from -1 to 1 for each image and dye.

    The dyes are hematoxylin, eosin and DAB, whose absorptions (Ruifrok and Johnston 2001) scikit-image holds; after the HED
    augmentation of Tellez 2018, whose strong form has s = 0.2. Amounts may be negative, so that any image passes unchanged at 0.
    """
    strength = (0.05, 0.1, 0.2, 0.3, 0.4)[severity - 1]
    density = -np.log(np.maximum(images.numpy().transpose(0, 2, 3, 1).astype(np.float64), 1e-6))
    times, plus = strength * generator.uniform(-1, 1, (2, len(images), 1, 1, 3))
    dyes = density @ hed_from_rgb * (1 + times) + plus / 2
    return _tensor(np.exp(-dyes @ rgb_from_hed).transpose(0, 3, 1, 2))


def rotation(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    angle = np.radians((5, 10, 20, 30, 45)[severity - 1]) * generator.choice([-1, 1], len(images))
    return _affine(images, np.cos(angle), np.sin(angle), np.zeros((len(images), 2)))


def zoom(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    """A smaller square, at a place of its own for each image, fills the frame."""
    kept = (0.9, 0.8, 0.7, 0.6, 0.5)[severity - 1]
    n = len(images)
    return _affine(images, np.full(n, kept), np.zeros(n), (1 - kept) * generator.uniform(-1, 1, (n, 2)))


def elastic(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    """Smoothly bent: each point moves by a share of the side, a normal number smoothed over 6 % of the side."""
    field = generator.normal(size=(len(images), 2, SMALL, SMALL)).astype(np.float32)
    coarse = torch.from_numpy(gaussian_filter(field, 0.06 * SMALL, axes=(2, 3), mode="mirror"))
    smooth = F.interpolate(coarse, size=images.shape[-2:], mode="bicubic")
    shift = 2 * (0.01, 0.015, 0.02, 0.03, 0.04)[severity - 1] * smooth / smooth.std((1, 2, 3), keepdim=True)
    still = np.zeros((len(images), 2))
    return _sample(images, _points(images, still[:, 0] + 1, still[:, 0], still) + shift.permute(0, 2, 3, 1))


def _affine(images: Tensor, cosine: np.ndarray, sine: np.ndarray, shift: np.ndarray) -> Tensor:
    return _sample(images, _points(images, cosine, sine, shift))


def _points(images: Tensor, cosine: np.ndarray, sine: np.ndarray, shift: np.ndarray) -> Tensor:
    """Return where in the image each pixel comes from, `(n, s, s, 2)`, the image reaching from -1 to 1."""
    matrix = np.stack([np.stack([cosine, -sine, shift[:, 0]], 1), np.stack([sine, cosine, shift[:, 1]], 1)], 1)
    return F.affine_grid(torch.from_numpy(matrix.astype(np.float32)), list(images.shape), align_corners=False)


def _sample(images: Tensor, points: Tensor) -> Tensor:
    return F.grid_sample(images, points, padding_mode="reflection", align_corners=False).clamp(0, 1)


def occlusion(images: Tensor, severity: int, generator: np.random.Generator) -> Tensor:
    """A square of the image's mean color hides a part of it."""
    side, share = images.shape[-1], (0.2, 0.3, 0.4, 0.5, 0.6)[severity - 1]
    center = torch.from_numpy(generator.uniform(0.3, 0.7, (len(images), 2, 1)))
    near = ((torch.arange(side) + 0.5) / side - center).abs() <= share / 2
    hidden = near[:, :1, :, None] & near[:, 1:, None, :]
    return torch.where(hidden, images.mean((2, 3), keepdim=True), images)


CORRUPTIONS: Mapping[str, Corruption] = {
    function.__name__: function
    for function in (
        *(gaussian_noise, shot_noise, impulse_noise, speckle_noise),
        *(gaussian_blur, defocus_blur, motion_blur, pixelate, jpeg),
        *(brightness, gamma, contrast, stain),
        *(rotation, zoom, elastic, occlusion),
    )
}


def chunks(images: Images) -> Iterator[Tensor]:
    """Yield the images as they are, float `(b, 3, s, s)` in [0, 1], on the CPU."""
    for start in range(0, len(images), CHUNK):
        yield to_float(torch.from_numpy(np.ascontiguousarray(images.pixels[start : start + CHUNK])))


def corrupted(images: Images, name: str, severity: int, seed: int) -> Iterator[Tensor]:
    """Yield the images under one corruption, float `(b, 3, s, s)` in [0, 1], on the CPU; equal arguments give equal pixels."""
    for place, chunk in enumerate(chunks(images)):
        yield CORRUPTIONS[name](chunk, severity, np.random.default_rng([seed, zlib.crc32(name.encode()), place]))


def some(images: Images, count: int, seed: int) -> Images:
    """Return `count` of the images, drawn from the seed, in their old order; all where there are no more."""
    which = np.sort(np.random.default_rng(seed).permutation(len(images))[:count])
    return Images(images.pixels[which], images.ids[which], images.labels[which], images.classes)


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return numbers in [0, 1], each `(m,)`, of logits `(m, n, k)` of the same n images, all of whose labels are known.

    Accuracy and balanced accuracy; of findings, labels `(n, k)`, mean average precision over those that some images show and
    some do not (nan where there is none), and the share of right answers.
    """
    if labels.ndim == 2:
        truth = labels > 0
        judged = np.flatnonzero(truth.any(0) & ~truth.all(0))
        precision = [np.mean([_precision(truth[:, j], one[:, j]) for j in judged]) if len(judged) else np.nan for one in logits]
        return {"average_precision": np.array(precision), "accuracy": ((logits >= 0) == truth).mean((1, 2))}
    right = logits.argmax(2) == labels
    recalls = [right[:, labels == label].mean(1) for label in np.unique(labels)]
    return {"accuracy": right.mean(1), "balanced_accuracy": np.mean(recalls, axis=0)}


def _precision(truth: np.ndarray, values: np.ndarray) -> float:
    """Average precision, as of `findings`, fifty times quicker: mean over the positives of the precision at their score."""
    found = values[truth]
    above = [len(some) - np.searchsorted(np.sort(some), found) for some in (found, values)]
    return float((above[0] / above[1]).mean())

"""Run `python -m tests.benchmarks.stir [--out FILE.json]`: would STIR's inversions gain from a batch of several layers?

Images that are inverted through different layers pass the blocks that these have in common. `together` takes them as one batch
through these blocks, in which each image leaves at its own layer; `apart`, which the product does, takes one layer after the
other. No sum is saved, since the images differ: what could be is time between kernels. Both take the same steps from the same
noise, in turn, with the embedded model and the quick preset's images and layers; processor time on a CPU, the clock on a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rift import catalog
from rift.diagnostics import _inversion, stir
from rift.diagnostics._inversion import Settings
from rift.model import Backbone, to_float


def staggered(backbone: Backbone, images: Tensor, layers: Sequence[int], n: int) -> list[Tensor]:
    """Return all tokens of n images for each of some ascending layers, of `(len(layers) n, 3, s, s)` images in their order."""
    vit: Any = backbone.vit
    x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(backbone._normalize(images)))))
    found = []
    for layer, block in enumerate(vit.blocks, 1):
        x = block(x)
        if layer in layers:
            found.append(x[:n])
            x = x[n:]
    return [*found, vit.forward_head(vit.norm(x))[:, None]] if layers[-1] > backbone.layers else found


def together(backbone: Backbone, layers: Sequence[int], targets: Sequence[Tensor], start: Tensor, how: Settings) -> list[Tensor]:
    """Return what `_inversion.invert` gives for each layer, of one batch of the images of all layers."""
    n, sizes = len(start), torch.cat([target.norm(dim=1) for target in targets])
    length = how.step * start.shape[-1] / _inversion.STUDY_PIXELS
    now = best = start.repeat(len(layers), 1, 1, 1)
    least = torch.full_like(sizes, math.inf)
    for i in range(how.iterations + 1):
        now = now.detach().requires_grad_()
        answers = staggered(backbone, now, layers, n)
        gaps = [(one.flatten(1) - target).norm(dim=1) for one, target in zip(answers, targets, strict=True)]
        loss = torch.cat(gaps) / sizes
        better = loss.detach() < least
        best = torch.where(better[:, None, None, None], now.detach(), best)
        least = torch.where(better, loss.detach(), least)
        if i < how.iterations:
            gradient = torch.autograd.grad(loss.sum(), now)[0]
            norm = gradient.flatten(1).norm(dim=1)[:, None, None, None]
            decay = 0.5 * (1 + math.cos(math.pi * i / how.iterations)) if how.schedule == "decay" else 1.0
            now = (now.detach() - length * decay * gradient / (norm + 1e-10)).clamp(0, 1)
    return list(best.split(n))


def compare(device: torch.device, which: str, count: int, iterations: int, rounds: int) -> dict[str, Any]:
    """Time both in turn and say how far their images are apart."""
    backbone: Backbone = catalog.door("backbones", "embedded")().to(device).eval().requires_grad_(False)
    layers = stir._nodes(backbone.layers, which)
    how = Settings(iterations, stir.PRESETS["quick"]["step"], "decay", False, 0)
    pixels = np.random.default_rng(0).integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
    pixels = pixels.repeat(backbone.pixels // 8, 1).repeat(backbone.pixels // 8, 2)
    given = to_float(torch.from_numpy(pixels).to(device))
    targets = [_inversion.latent(backbone, given, [layer], False)[0] for layer in layers]
    start = _inversion.noise(range(count), backbone.pixels, 0).to(device)
    ways = {
        "apart": lambda: [
            _inversion.invert(backbone, layer, target, start, how)[0] for layer, target in zip(layers, targets, strict=True)
        ],
        "together": lambda: together(backbone, layers, targets, start, how),
    }
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for turn in range(rounds + 1):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            began = clock()
            found[name] = ways[name]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first warms up
                times[name].append(clock() - began)
    ratios = [apart / both for apart, both in zip(*times.values(), strict=True)]
    away = max(float((one - other).abs().max()) for one, other in zip(*found.values(), strict=True))
    return {
        "layers": layers,
        "images": count,
        "iterations": iterations,
        "rounds": rounds,
        "seconds": {name: [round(one, 4) for one in values] for name, values in times.items()},
        "times_faster_together": [round(one, 3) for one in np.percentile(ratios, [25, 50, 75])],
        "largest_difference_of_a_pixel": away,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--layers", nargs="+", default=["three", "all"])
    parser.add_argument("--images", type=int, default=stir.PRESETS["quick"]["count"])
    parser.add_argument("--iterations", type=int, default=5, help="the ratio hardly depends on it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    document = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "inversions": [compare(device, one, chosen.images, chosen.iterations, chosen.rounds) for one in chosen.layers],
    }
    text = json.dumps(document, indent=1)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n")
    return document


if __name__ == "__main__":
    main()

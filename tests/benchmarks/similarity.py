"""Run `python -m tests.benchmarks.similarity [--out FILE.json]`: CKA of 13 with 13 layers, beside the package torch_cka.

Both get the same stored features `(13, n, d)` of single precision and give the debiased form. `torch_cka` wants two models, hooks
and a loader: each model is a stub of 13 modules that hand out the stored features, and the loader is one batch of image numbers,
so that what it takes is arithmetic. The two take turns on one thread, measured in processor time, which is steadier on a busy
machine; ratios are taken within a round. Then the peak memory of our biased form.
Goals, reported and never asserted: 50 times faster at d = 192, 20 times at d = 768; memory that does not grow with n².
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import time
import tracemalloc
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rift.layers import cross_cka

LAYERS = 13
GOALS = {192: 50, 768: 20}


class Stored(torch.nn.Module):
    """One layer that hands out stored features of the images asked for."""

    def __init__(self, features: np.ndarray):
        super().__init__()
        self.features = torch.from_numpy(features)

    def forward(self, which: torch.Tensor) -> torch.Tensor:
        return self.features[which]


class Stub(torch.nn.Module):
    """A model whose layers are stored features; what a hook on its modules sees is all it computes."""

    def __init__(self, layers: Sequence[np.ndarray]):
        super().__init__()
        self.layers = torch.nn.ModuleList([Stored(one) for one in layers])

    def forward(self, which: torch.Tensor) -> None:
        for layer in self.layers:
            layer(which)


def theirs(xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> np.ndarray:
    """Return the debiased CKA `(l, m)` of the package torch_cka, of all images as one batch."""
    os.environ.setdefault("MPLBACKEND", "Agg")  # it imports matplotlib, which we draw nothing with
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        warnings.simplefilter("ignore")
        from torch_cka import CKA

        n = len(xs[0])
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(n)), batch_size=n)
        names = [[f"layers.{place}" for place in range(len(one))] for one in (xs, ys)]
        compared = CKA(Stub(xs), Stub(ys), "first", "second", *names)
        with torch.inference_mode():
            compared.compare(loader, loader)
    return compared.export()["CKA"].numpy()


def features(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two models' layers `(13, n, d)`, centered, related to each other, with a falling spectrum."""
    random = np.random.default_rng(0)
    shared = random.normal(size=(n, d)) * np.linspace(2, 0.1, d)
    found = []
    for _ in range(2):
        layers = np.stack([shared + 0.2 * place * random.normal(size=(n, d)) for place in range(1, LAYERS + 1)])
        found.append((layers - layers.mean(1, keepdims=True)).astype(np.float32))
    return found[0], found[1]


def speed(d: int, rounds: int, n: int = 1000) -> dict[str, Any]:
    """Time both in turn and say how far their numbers are apart, and ours from double precision."""
    xs, ys = features(n, d)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    found = {}
    for turn in range(rounds + 1):
        for name, function in (("ours", lambda: cross_cka(xs, ys, debiased=True)), ("theirs", lambda: theirs(xs, ys))):
            began = time.process_time()
            found[name] = function()
            if turn:  # the first warms up
                times[name].append(time.process_time() - began)
    precise = cross_cka(xs.astype(np.float64), ys.astype(np.float64), debiased=True)
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    return {
        "n": n,
        "d": d,
        "layers": LAYERS,
        "rounds": rounds,
        "seconds": {name: _spread(values) for name, values in times.items()},
        "ratio": _spread(ratios),
        "goal": GOALS[d],
        "goal_met": float(np.median(ratios)) >= GOALS[d],
        "largest_difference_to_theirs": float(np.abs(found["ours"] - found["theirs"]).max()),
        "largest_difference_to_double": float(np.abs(found["ours"] - precise).max()),
    }


def memory(n: int, d: int = 192) -> dict[str, Any]:
    """Measure what arrays our biased form takes above its input at most, in mebibytes."""
    xs, ys = (np.random.default_rng(seed).standard_normal((LAYERS, n, d), np.float32) for seed in (0, 1))
    tracemalloc.start()
    cross_cka(xs, ys)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "n": n,
        "d": d,
        "input_mebibytes": round((xs.nbytes + ys.nbytes) / 2**20, 1),
        "peak_mebibytes": round(peak / 2**20, 1),
    }


def _spread(values: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": round(float(median), 4), "quarter": round(float(low), 4), "three_quarters": round(float(high), 4)}


def table(document: dict[str, Any]) -> str:
    """Return the document's numbers as Markdown."""
    lines = ["| d | ours, s | torch_cka, s | times faster (quartiles) | goal |", "|---|---|---|---|---|"]
    for one in document["speed"]:
        ours, other, ratio = one["seconds"]["ours"]["median"], one["seconds"]["theirs"]["median"], one["ratio"]
        spread = f"{ratio['median']:.0f} ({ratio['quarter']:.0f} to {ratio['three_quarters']:.0f})"
        lines.append(f"| {one['d']} | {ours:.2f} | {other:.2f} | {spread} | {one['goal']} |")
    lines += ["", "| n | input, MiB | above it, MiB | a Gram matrix, MiB |", "|---|---|---|---|"]
    lines += [
        f"| {one['n']} | {one['input_mebibytes']} | {one['peak_mebibytes']} | {one['n'] ** 2 * 8 / 2**20:.0f} |"
        for one in document["memory"]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--widths", type=int, nargs="+", default=[192, 768], choices=list(GOALS))
    parser.add_argument("--images", type=int, nargs="*", default=[1000, 4000, 16000], help="of the memory")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    document = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "speed": [speed(d, chosen.rounds) for d in chosen.widths],
        "memory": [memory(n) for n in chosen.images],
    }
    text = json.dumps(document, indent=1)
    print(table(document), text, sep="\n\n")
    if chosen.out:
        chosen.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

"""Run `python -m tests.benchmarks.similarity [--out FILE.json]`: CKA of 13 with 13 layers, beside the package torch_cka.

All get the same stored features `(13, n, d)` of single precision and give the debiased form: `layers.cross_cka` of all at once,
`streamed.cross_cka` of batches in double precision, and torch_cka. That wants two models, hooks and a loader: each model is a
stub of 13 modules that hand out the stored features, and the loader is one batch of image numbers, so that what it takes is
arithmetic; of several batches it averages, which is another number, and how far from CKA is shown too. They take turns on one
thread, measured in processor time, which is steadier on a busy machine; ratios are taken within a round.
Then accuracy: streamed CKA of many images with a mean of 10⁶ against sums in extended precision of a second pass. And memory
above the input: of `layers.cross_cka`, of the stream (tensors alive at a time), and CKNNA, which takes a Gram matrix in blocks.
Goals, reported and never asserted: 50 times faster at d = 192, 20 times at d = 768; memory that does not grow with n², streamed
not with n. `--small` runs all of it in seconds.
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
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rift import similarity, streamed
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


def theirs(xs: Sequence[np.ndarray], ys: Sequence[np.ndarray], batch: int = 0) -> np.ndarray:
    """Return the debiased CKA `(l, m)` of the package torch_cka, of all images as one batch or a mean over batches."""
    os.environ.setdefault("MPLBACKEND", "Agg")  # it imports matplotlib, which we draw nothing with
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        warnings.simplefilter("ignore")
        from torch_cka import CKA

        n = len(xs[0])
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(n)), batch_size=batch or n)
        names = [[f"layers.{place}" for place in range(len(one))] for one in (xs, ys)]
        compared = CKA(Stub(xs), Stub(ys), "first", "second", *names)
        with torch.inference_mode():
            compared.compare(loader, loader)
    return compared.export()["CKA"].numpy()


def in_batches(xs: np.ndarray, ys: np.ndarray, batch: int) -> Iterator[streamed.Batch]:
    """Yield stored features as a stream does."""
    one, two = torch.from_numpy(xs), torch.from_numpy(ys)
    yield from zip(one.split(batch, 1), two.split(batch, 1), strict=True)


def features(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two models' layers `(13, n, d)`, centered, related to each other, with a falling spectrum."""
    random = np.random.default_rng(0)
    shared = random.normal(size=(n, d)) * np.linspace(2, 0.1, d)
    found = []
    for _ in range(2):
        layers = np.stack([shared + 0.2 * place * random.normal(size=(n, d)) for place in range(1, LAYERS + 1)])
        found.append((layers - layers.mean(1, keepdims=True)).astype(np.float32))
    return found[0], found[1]


def speed(d: int, rounds: int, n: int = 1000, batch: int = 250) -> dict[str, Any]:
    """Time all in turn and say how far their numbers are apart, and from double precision."""
    xs, ys = features(n, d)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: cross_cka(xs, ys, debiased=True),
        "streamed": lambda: streamed.cross_cka(in_batches(xs, ys, batch), debiased=True),
        "theirs": lambda: theirs(xs, ys),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for turn in range(rounds + 1):
        for name, function in ways.items():
            began = time.process_time()
            found[name] = function()
            if turn:  # the first warms up
                times[name].append(time.process_time() - began)
    precise = np.array([[similarity.debiased_cka(x, y) for y in ys] for x in xs])
    found["theirs_in_batches"] = theirs(xs, ys, batch)
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    return {
        "n": n,
        "d": d,
        "layers": LAYERS,
        "rounds": rounds,
        "seconds": {name: _spread(values) for name, values in times.items()},
        "ratio": _spread(ratios),
        "ratio_streamed": _spread([b / a for a, b in zip(times["streamed"], times["theirs"], strict=True)]),
        "goal": GOALS[d],
        "goal_met": float(np.median(ratios)) >= GOALS[d],
        "largest_difference_to_theirs": float(np.abs(found["ours"] - found["theirs"]).max()),
        "largest_difference_to_double": {name: float(np.abs(one - precise).max()) for name, one in found.items()},
    }


def accuracy(n: int, d: int = 12, batch: int = 4096, offset: float = 1e6) -> dict[str, Any]:
    """Say how far streamed CKA of two with two layers `(n, d)` is from sums of extended precision about the final means."""

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, n, batch):
            random = np.random.default_rng([0, start])
            rows = random.normal(size=(4, min(batch, n - start), d)) * np.linspace(2, 0.1, d)
            rows[2:] += rows[:2]
            yield rows[:2] + offset, rows[2:] - offset

    tensors = ((torch.from_numpy(xs), torch.from_numpy(ys)) for xs, ys in batches())
    moments = streamed.Moments()
    for xs, ys in tensors:
        moments.add(xs, ys)
    wide = np.longdouble
    means = sum(np.concatenate(one).astype(wide).sum(1) for one in batches()) / n
    products, rows = np.zeros((4, 4, d, d), wide), np.zeros((4, 4), wide)
    for one in batches():
        each = np.concatenate(one).astype(wide) - means[:, None]
        products += np.einsum("aij,bik->abjk", each, each)
        squares = np.square(each).sum(2)
        rows += squares @ squares.T
    inner, traces = np.square(products).sum((2, 3)), np.einsum("aajj->a", products)
    hsic = inner - rows * n / wide(n - 2) + np.outer(traces, traces) / (wide(n - 1) * (n - 2))
    scatter = products[range(4), range(4)]
    covariances = torch.stack(moments.covariances()).numpy() * (n - 1)
    found = {"n": n, "d": d, "batch": batch, "offset": offset}
    found["covariance"] = float(np.abs(covariances - scatter).max() / np.abs(scatter).max())
    for name, table, debiased in (("cka", inner, False), ("cka_debiased", hsic, True)):
        expected = table[:2, 2:] / np.sqrt(np.outer(table.diagonal()[:2], table.diagonal()[2:]))
        found[name] = float(np.abs(moments.cka(debiased=debiased) - expected).max())
    return found


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that operations within it made and that are alive at a time; the most is `most`."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self.now = 0
        self.holders: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {one.untyped_storage().data_ptr() for one in tree_leaves(args) if isinstance(one, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            where = one.untyped_storage().data_ptr() if isinstance(one, torch.Tensor) else 0
            if where and (where not in given or where in self.holders):
                self._hold(one, where, one.untyped_storage().nbytes())
        self.most = max(self.most, self.now)
        return out

    def _hold(self, tensor: torch.Tensor, where: int, size: int) -> None:
        self.now += size * (where not in self.holders)
        self.holders[where] += 1
        weakref.finalize(tensor, self._drop, where, size)

    def _drop(self, where: int, size: int) -> None:
        self.holders[where] -= 1
        if not self.holders[where]:
            del self.holders[where]
            self.now -= size


def memory(n: int, d: int = 192) -> dict[str, Any]:
    """Measure what our biased form, the stream and CKNNA take above their input at most, in mebibytes."""
    xs, ys = (np.random.default_rng(seed).standard_normal((LAYERS, n, d), np.float32) for seed in (0, 1))
    similarity.cknna(xs[0, :50], ys[0, :50])
    with Peak() as peak:
        streamed.cross_cka(in_batches(xs, ys, 256), debiased=True)
    return {
        "n": n,
        "d": d,
        "input_mebibytes": round((xs.nbytes + ys.nbytes) / 2**20, 1),
        "peak_mebibytes": traced(lambda: cross_cka(xs, ys)),
        "streamed_mebibytes": round(peak.most / 2**20, 1),
        "cknna_mebibytes": traced(lambda: similarity.cknna(xs[0], ys[0])),  # its imports not counted
    }


def traced(function: Callable[[], Any]) -> float:
    """Return what arrays a call takes at most, in mebibytes."""
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(peak / 2**20, 1)


def _spread(values: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": round(float(median), 4), "quarter": round(float(low), 4), "three_quarters": round(float(high), 4)}


def table(document: dict[str, Any]) -> str:
    """Return the document's numbers as Markdown."""
    lines = ["| d | ours, s | streamed, s | torch_cka, s | times faster (quartiles) | streamed | goal |", "|---|" + "---|" * 6]
    for one in document["speed"]:
        seconds = " | ".join(f"{one['seconds'][name]['median']:.2f}" for name in ("ours", "streamed", "theirs"))
        spreads = [
            f"{ratio['median']:.1f} ({ratio['quarter']:.1f} to {ratio['three_quarters']:.1f})"
            for ratio in (one["ratio"], one["ratio_streamed"])
        ]
        lines.append(f"| {one['d']} | {seconds} | {' | '.join(spreads)} | {one['goal']} |")
    lines += [
        "",
        "| largest difference to double | ours | streamed | torch_cka | torch_cka in batches |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| d = {one['d']} | {' | '.join(f'{value:.1e}' for value in one['largest_difference_to_double'].values())} |"
        for one in document["speed"]
    ]
    lines += ["", "| streamed n | of covariance | of CKA | debiased, from extended precision |", "|---|---|---|---|"]
    lines += [f"| {a['n']} | {a['covariance']:.1e} | {a['cka']:.1e} | {a['cka_debiased']:.1e} |" for a in document["accuracy"]]
    lines += ["", "| n | input, MiB | above it, MiB | streamed | CKNNA | a Gram matrix, MiB |", "|---|" + "---|" * 5]
    lines += [
        f"| {one['n']} | {one['input_mebibytes']} | {one['peak_mebibytes']} | {one['streamed_mebibytes']} "
        f"| {one['cknna_mebibytes']} | {one['n'] ** 2 * 8 / 2**20:.0f} |"
        for one in document["memory"]
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--widths", type=int, nargs="+", default=[192, 768], choices=list(GOALS))
    parser.add_argument("--images", type=int, nargs="*", default=[1000, 4000, 16000], help="of the memory")
    parser.add_argument("--streamed", type=int, nargs="*", default=[10**6], help="images of the accuracy")
    parser.add_argument("--small", action="store_true", help="few images, a round, one width")
    chosen = parser.parse_args(arguments)
    if chosen.small:
        chosen.rounds, chosen.widths, chosen.images, chosen.streamed = 1, [192], [600, 1200], [20_000]
    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):  # numpy's, which on a busy machine wait for each other at full load
        document = {
            "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            "speed": [speed(d, chosen.rounds, **({"n": 120, "batch": 60} if chosen.small else {})) for d in chosen.widths],
            "accuracy": [accuracy(n) for n in chosen.streamed],
            "memory": [memory(n) for n in chosen.images],
        }
    torch.set_num_threads(kept)
    text = json.dumps(document, indent=1)
    print(table(document), text, sep="\n\n")
    if chosen.out:
        chosen.out.write_text(text + "\n")
    return document


if __name__ == "__main__":
    main()

"""Run `python -m tests.benchmarks.scale [--quick] [--write]`: what ten thousand runs, a thousand visitors and many images cost.

Lists, polls and the queue are called as the app calls them, over labs that `scale_lab` writes; images are drawn noise, read as an
upload is read, in a process of its own whose peak memory is told. `--write` puts the table into `docs/scale.md`. Goals are
reported, never asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from rift import api, copies, dataset, estimate, history, images, intact, jobs, runs, service, upload, visitors
from tests.benchmarks.scale_lab import Template, grown, visited

ROOT = Path(__file__).parents[2]
PAGE, BEGIN, END = ROOT / "docs" / "scale.md", "<!-- measured -->", "<!-- end -->"
GOAL_SECONDS, MILLION = 0.5, 1_000_000


class Sizes(NamedTuple):
    """How much is made."""

    runs: int = 10_000
    visitors: int = 1000
    images: int = 100_000
    copies: int = 16_000  # pictures whose pairs are looked at, and half and a quarter of them
    rounds: int = 5


QUICK = Sizes(runs=40, visitors=3, images=40, copies=160, rounds=1)


def timed(function: Callable[[], object], rounds: int) -> dict[str, float]:
    """Return the first time, which finds nothing remembered, and the median, lowest and highest of those after it."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    later = times[1:]
    found = {"first": times[0], "median": statistics.median(later), "lowest": min(later), "highest": max(later)}
    return {name: round(seconds, 5) for name, seconds in found.items()}


def many_runs(sizes: Sizes) -> dict[str, Any]:
    """Time what a page and a worker ask of one lab with many runs; the server's own worker is not started."""
    with tempfile.TemporaryDirectory() as folder:
        lab = grown(Path(folder) / "lab", Template(Path(folder) / "example"), sizes.runs)
        found: dict[str, Any] = {"count": len(lab.runs()), "comparisons": len(service.comparisons(lab))}
        with FileLock(lab.root / "worker.lock"):
            waits = service.comparisons(lab)[0]
            for name, function in {
                "directories": lab.runs,
                "listed": lambda: [run.state for run in lab.runs()],
                "history": lambda: history.entries({"lab": lab}),
                "poll": lambda: service.status(lab, waits, device="cpu"),
                "worker": lambda: jobs.next_run(lab),
            }.items():
                history.forget()
                runs._intact.cache_clear()
                estimate._known.clear()
                (lab.root / "noted.json").unlink(missing_ok=True)
                found[name] = timed(function, sizes.rounds)
            history.entries({"lab": lab}), service.status(lab, waits, device="in-event"), api.listing("runs", lab.root)
            found["bytes"] = (lab.root / "noted.json").stat().st_size if (lab.root / "noted.json").exists() else 0
            found["begun"] = {name: begun(name, lab.root, sizes.rounds) for name in BEGUN}
    return found


BEGUN = {
    "listed": "[run.state for run in lab.runs()]",
    "history": "history.entries({'lab': lab})",
    "poll": "service.status(lab, service.comparisons(lab)[0], device='in-event')",
}
TIMES = """
import sys, time
from pathlib import Path
from rift import history, service
from rift.runs import Lab
lab = Lab(Path(sys.argv[1]))
began = time.perf_counter()
{call}
print(time.perf_counter() - began)
"""


def begun(name: str, root: Path, rounds: int) -> dict[str, float]:
    """Return how long the same takes in new processes, which find the notes of an earlier one; imports are not counted."""
    times = []
    for _ in range(rounds):
        command = [sys.executable, "-c", TIMES.format(call=BEGUN[name]), str(root)]
        times.append(float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout))
    found = {"median": statistics.median(times), "lowest": min(times), "highest": max(times)}
    return {name: round(seconds, 5) for name, seconds in found.items()}


def many_visitors(sizes: Sizes) -> dict[str, Any]:
    """Time what a public server does for one page that waits, and once a minute, while every visitor has something waiting."""
    with tempfile.TemporaryDirectory() as folder:
        host, labs = visited(Path(folder) / "server", Template(Path(folder) / "example"), sizes.visitors, 4)
        waits = service.comparisons(labs[0])[0]

        def line() -> None:
            jobs._lines.clear()
            jobs.ahead(labs[0], ())

        with FileLock(host.root / "worker.lock"):
            return {
                "count": sizes.visitors,
                "line": timed(line, sizes.rounds),
                "poll": timed(lambda: service.status(labs[0], waits, device="cpu"), 20 * sizes.rounds),
                "sweep": timed(lambda: visitors.sweep(host.root), sizes.rounds),
                "worker": timed(lambda: jobs._next(host), sizes.rounds),
            }


def draw(folder: Path, count: int) -> None:
    """Write pictures of noise, 64 px, in two class folders."""
    rng = np.random.default_rng(0)
    for number in range(count):
        home = folder / f"class {number % 2}" / f"{number // 2000:04d}"
        if number % 2000 < 2:
            home.mkdir(parents=True)
        (home / f"{number:07d}.png").write_bytes(images.encode(rng.integers(0, 255, (64, 64), dtype=np.uint8)))


def index(source: Path, root: Path) -> dict[str, Any]:
    """Be the process that reads an upload: return its time, and its peak memory before and after, in bytes."""
    before, began = _peak(), time.perf_counter()
    found = upload.read(source, root)
    return {
        "digest": found.digest,
        "images": len(found),
        "seconds": round(time.perf_counter() - began, 3),
        "before": before,
        "peak": _peak(),
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def many_images(sizes: Sizes) -> dict[str, Any]:
    """Index half, then all of the images, each in a new process; then time what every run asks of the larger set.

    By default both are too many to be searched for near copies, so that their memory can be compared.
    """
    found: dict[str, Any] = {"indexed": []}
    with tempfile.TemporaryDirectory() as folder:
        for count in (sizes.images // 2, sizes.images):
            source, root = Path(folder) / f"source-{count}", Path(folder) / f"data-{count}"
            draw(source, count)
            command = [sys.executable, "-m", "tests.benchmarks.scale", "--index", str(source), str(root)]
            said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
            found["indexed"].append(json.loads(said))
        stored = root / found["indexed"][-1]["digest"]
        held = dataset.load(stored)
        found["bytes"] = (stored / "blobs.bin").stat().st_size
        found["manifest_bytes"] = (stored / "manifest.json").stat().st_size
        found["load"] = timed(lambda: dataset.load(stored), 1)
        found["thumbnail"] = timed(lambda: held.picture(0, 64), 1)
        found["intact"] = timed(lambda: intact.refuse_changed(stored), 1)
        found["pixels"] = timed(lambda: held.pixels(64), 1)
        found["split"] = timed(lambda: dataset.split(held, 0), 1)
    return found


def near_copies(sizes: Sizes) -> list[dict[str, Any]]:
    """Time the search for near copies among a quarter, a half and all of some different pictures."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((sizes.copies, copies.KEPT**2), dtype=np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    signatures, found = drawn.astype(np.float16), []
    for count in (sizes.copies // 4, sizes.copies // 2, sizes.copies):
        began = time.perf_counter()
        copies.pairs(signatures[:count])
        found.append({"images": count, "seconds": round(time.perf_counter() - began, 4)})
    return found


def measure(sizes: Sizes) -> dict[str, Any]:
    """Measure all of it; returns the document."""
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    document = {"machine": machine, "python": platform.python_version(), "runs": many_runs(sizes)}
    return document | {
        "visitors": many_visitors(sizes),
        "images": many_images(sizes),
        "near": near_copies(sizes),
    }


def table(document: dict[str, Any]) -> str:
    """Return the document as Markdown; what is computed from a measurement says so."""
    listed, many, found, near = (document[name] for name in ("runs", "visitors", "images", "near"))
    few, all_ = found["indexed"]
    each = (all_["peak"] - few["peak"]) / max(1, all_["images"] - few["images"])
    scaled = MILLION / all_["images"]
    growth = np.log2(max(near[-1]["seconds"], 1e-9) / max(near[-2]["seconds"], 1e-9))
    rows = [
        (f"{listed['count']:,} runs listed with their states", _both(listed["listed"], GOAL_SECONDS)),
        ("the same after a start, with the notes of an earlier process", _begun(listed["begun"]["listed"], GOAL_SECONDS)),
        (f"{listed['comparisons']:,} comparisons of them as the history's table", _both(listed["history"], GOAL_SECONDS)),
        ("the same after a start", _begun(listed["begun"]["history"], GOAL_SECONDS)),
        ("one poll of a page that waits in that lab", _both(listed["poll"])),
        ("the same after a start", _begun(listed["begun"]["poll"])),
        ("size of the notes", f"{listed['bytes'] / 1e6:.1f} MB"),
        ("the worker's look for the next of them", _both(listed["worker"])),
        (f"one look at the line of {many['count']:,} visitors, each waiting", _both(many["line"])),
        ("one poll of one of their pages, the look shared", _both(many["poll"])),
        ("the sweep, once a minute", _both(many["sweep"])),
        ("the worker's choice among them, once a run", _both(many["worker"])),
        (f"{all_['images']:,} images indexed", f"{all_['seconds']:.1f} s, {1000 * all_['seconds'] / all_['images']:.2f} ms each"),
        ("peak memory of it", f"{all_['peak'] / 1e6:.0f} MB; {each / 1e3:.1f} kB for each image more"),
        ("the same for a million, computed", f"{(all_['peak'] + each * (MILLION - all_['images'])) / 1e9:.1f} GB"),
        ("that set opened", _both(found["load"])),
        ("one of its pictures shown", _both(found["thumbnail"])),
        (f"its pictures ({found['bytes'] / 1e6:.0f} MB) and labels held to their sums, before every run", _both(found["intact"])),
        ("the same for a million, computed", f"{found['intact']['median'] * scaled:.1f} s"),
        ("its pixels at 64 px: decoded once, then looked up", _both(found["pixels"])),
        ("its split", _both(found["split"])),
        (
            f"near copies among {near[-1]['images']:,} pictures",
            f"{near[-1]['seconds']:.2f} s, growing as the {growth:.1f}th power",
        ),
        (
            f"the same at the limit of {copies.MOST:,}, computed",
            f"{near[-1]['seconds'] * (copies.MOST / near[-1]['images']) ** 2:.0f} s",
        ),
        ("polls a second at which one processor is full, computed", f"{1 / many['poll']['median']:,.0f}, of a thousand pages"),
    ]
    machine = document["machine"]
    about = f"Python {document['python']}, {machine['cores']} cores, {machine['processor']}, load before {machine['load']}"
    lines = [f"{about}.", "", "| what | time: first, then median (lowest to highest) |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {what} | {value} |" for what, value in rows)]) + "\n"


def _both(times: dict[str, float], goal: float | None = None) -> str:
    spread = f"{times['first']:.3g} s, then {times['median']:.3g} ({times['lowest']:.3g} to {times['highest']:.3g}) s"
    return spread + _reached(times, goal)


def _begun(times: dict[str, float], goal: float | None = None) -> str:
    return f"{times['median']:.3g} ({times['lowest']:.3g} to {times['highest']:.3g}) s" + _reached(times, goal)


def _reached(times: dict[str, float], goal: float | None) -> str:
    return "" if goal is None else f"; goal {goal:g}: {'met' if times['median'] < goal else 'missed'}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="small numbers: whether it works, not how fast")
    parser.add_argument("--write", action="store_true", help="put the table into docs/scale.md")
    parser.add_argument("--out", type=Path, help="the document as JSON")
    parser.add_argument("--index", nargs=2, type=Path, help=argparse.SUPPRESS)
    for name, value in Sizes()._asdict().items():
        parser.add_argument(f"--{name}", type=int, help=f"default {value:,}")
    chosen = parser.parse_args()
    if chosen.index:
        print(json.dumps(index(*chosen.index)))
        return
    asked = {name: value for name in Sizes._fields if (value := getattr(chosen, name)) is not None}
    document = measure((QUICK if chosen.quick else Sizes())._replace(**asked))
    print(table(document))
    if chosen.out:
        chosen.out.write_text(json.dumps(document, indent=1) + "\n")
    if chosen.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table(document)}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()

"""Kill a run with -9 again and again, at random steps and in the middle of writing files; it must end as if nothing had been.

    python -m tests.reliability.kills --count 200 --out kills.json

Each run is killed one to four times and then goes on to its end. Its weights, the loss of every step, all numbers, predictions,
measurements and the report's page are compared with those of a run that nobody disturbed: to the last bit, times apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rift import comparison, dataset, report
from rift.runs import Lab, Run
from tests.reliability import faults

KINDS = ("at a step", "at a file operation", "with a file half written")
MOST = 4  # kills of one run


def carry_out(count: int, seed: int = 0, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Kill so many times and return what came of it; `unequal` is empty where every run ended like the undisturbed one."""
    torch.set_num_threads(1)
    began, draw = time.monotonic(), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="rift-kills-") as folder:
        lab, experiment = faults.tiny(Path(folder) / "images")
        twin_lab = faults.beside(lab, Path(folder) / "twin")
        twin, told = twin_lab.submit(experiment), Path(folder) / "points.json"
        assert faults.ended(faults.worker(twin_lab, twin, told=told)) == 0 and twin.state == "done", twin.end()
        points, wanted, page = json.loads(told.read_text()), faults.outcome(twin_lab, twin), _page(twin_lab, twin)
        steps = len(wanted["steps"])
        kills: Counter[str] = Counter()
        deck: list[int] = []  # every file operation has its turn before one comes again
        unequal: list[dict[str, Any]] = []
        resumed = runs = 0
        while kills.total() < count:
            here = faults.beside(lab, Path(folder) / "killed")
            run, done = here.submit(experiment), []
            for _ in range(min(draw.randint(1, MOST), count - kills.total())):
                kind = draw.choice(KINDS)
                if not deck:
                    deck = draw.sample(range(1, len(points) + 1), len(points))
                what = _kill(here, run, kind, steps, deck, draw)
                if what:
                    kills[kind] += 1
                    done.append(what)
                here.requeue(run)
            assert faults.ended(faults.worker(here, run)) == 0, run.end()
            runs, resumed = runs + 1, resumed + sum(event["event"] == "resume" for event in run.events())
            differ = faults.unlike(wanted, faults.outcome(here, run)) if run.state == "done" else [run.state]
            differ += [] if differ or _page(here, run) == page else ["report"]
            if differ:
                unequal.append({"kills": done, "differ": differ, "end": run.end()})
            say(f"{kills.total()} kills, {runs} runs, {len(unequal)} unequal, {time.monotonic() - began:.0f} s")
            shutil.rmtree(here.root)
    return {
        "kills": kills.total(),
        "by kind": dict(kills),
        "runs": runs,
        "resumed from a checkpoint": resumed,
        "steps of a run": steps,
        "file operations of a run": len(points),
        "unequal": unequal,
        "seconds": round(time.monotonic() - began, 1),
        "seed": seed,
        "torch": torch.__version__,
    }


def _kill(lab: Lab, run: Run, kind: str, steps: int, deck: list[int], draw: random.Random) -> str:
    """Start a worker and kill it; returns when, empty where it was done before."""
    if kind != KINDS[0]:
        at = deck.pop()
        return f"{kind} {at}" if faults.ended(faults.worker(lab, run, at, kind == KINDS[2])) == -signal.SIGKILL else ""
    began, step, later = len(run.events()), draw.randint(0, steps), draw.uniform(0, 0.05)
    pid = faults.worker(lab, run)
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if any(event["event"] == "step" and event["step"] >= step for event in run.events()[began:]) or not step:
            time.sleep(later)
            os.kill(pid, signal.SIGKILL)
            return f"{kind} {step}" if faults.ended(pid) == -signal.SIGKILL else ""
        time.sleep(0.002)
    return ""


def _page(lab: Lab, run: Run) -> str:
    """Return the report of a run without what tells the time."""
    images, natural = (dataset.load(lab.data / one) for one in (run.experiment.data, run.experiment.natural))
    parts = dataset.parts(images, run.experiment.training, run.experiment.seed)
    arms = comparison.of_runs([run])
    document = comparison.document(lab, arms, images, natural, parts)
    document["created"] = ""
    for arm in document["arms"]:
        for numbers in (arm["mean"], arm["standard_error"], *arm["runs"]):
            numbers |= dict.fromkeys(faults.TIMES)
    path = lab.root / "report.html"
    report.write(document, comparison.measures(arms), path)
    text = path.read_text()
    path.unlink()
    return text


def main() -> None:
    """Read the command, carry it out and say what came of it; exit code 1 where a run ended otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.kills", description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = carry_out(asked.count, asked.seed, lambda text: print(text, file=sys.stderr, flush=True))
    text = json.dumps(found, indent=1)
    if asked.out:
        asked.out.write_text(text + "\n")
    print(text)
    sys.exit(bool(found["unequal"]))


if __name__ == "__main__":
    main()

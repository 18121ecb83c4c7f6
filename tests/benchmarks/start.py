"""Where the time from Start to the first step goes.

Every round, in a new lab, is a comparison of `none` and `rift` with the embedded model on the drawn phantoms, by a worker of its
own as the page starts it, then a second comparison on the same images, which finds the caches full, and a third one by a worker
that stood by (`rift.standby`). The second arm of each is what a worker does whose libraries are imported. Goals, reported and
never asserted: such a worker takes the first step within 1 s, whether it was at work before or stood by.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rift import catalog, jobs, service, standby
from rift.config import Choice, Training
from rift.orders import Order
from rift.runs import ENDED, Lab, Run

GOALS = {"its second arm, caches full": 1.0, "third comparison, a worker stood by": 1.0}
IMPORTS = ("torch", "timm", "rift.recipe", "rift.jobs")  # each in a process of its own, what it imports itself included
ARMS = (
    "first comparison, new process",
    "its second arm",
    "second comparison, new process",
    "its second arm, caches full",
    "third comparison, a worker stood by",
    "its second arm",
)


def parts(run: Run, started: float) -> dict[str, float]:
    """Return the seconds until a worker has the run, from there to its training, to its first step, and all of it."""
    first: dict[str, float] = {}
    for event in run.events():
        first.setdefault(str(event.get("stage") or event["event"]), event["clock"])
    marks = [started, first["start"], first["training"], first["step"]]
    spans = {"process": marks[1] - marks[0], "preparing": marks[2] - marks[1], "step": marks[3] - marks[2]}
    return {name: round(seconds, 3) for name, seconds in {**spans, "whole": marks[3] - marks[0]}.items()}


def order(lab: Lab, learning_rate: float) -> Order:
    """Return the default comparison of the drawn phantoms; another rate is another comparison of the same images and views."""
    data = catalog.door("samples", "phantoms")(lab.data)
    natural = catalog.door("natural", "bundled")(lab.data)
    training = Training(epochs=1, learning_rate=learning_rate)
    return Order(data=data.digest, natural=natural.digest, regularizers=(Choice(name="rift"),), training=training)


def trained(lab: Lab, rate: float) -> list[dict[str, float]]:
    """Start one comparison and return the parts of each of its runs, in the order in which they are trained."""
    asked = order(lab, rate)
    (lab.root / "starting").unlink(missing_ok=True)
    began = time.monotonic()
    name = service.start(lab, asked, device="cpu")
    found = []
    for run in service.runs(service.arms(lab, name)):
        while run.state not in ENDED:
            time.sleep(0.05)
        if run.state != "done":
            raise RuntimeError(f"run {run.id} ended: {run.end()}")
        found.append(parts(run, began))
        began = run.events()[-1]["clock"]
    for process in jobs._started:
        process.wait()
    return found


def ready(lab: Lab) -> None:
    """Have a worker stand by, and return when it has nothing more to do: its processor time stands still."""
    standby.keep(lab.root.resolve(), "cpu")
    worker = standby._ready[lab.root.resolve(), "cpu"]
    if worker is None:
        raise RuntimeError("no worker can stand by here")
    used, before = 0.0, -1.0
    while used != before:
        time.sleep(1)
        before, used = used, sum(map(int, Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def rested() -> None:
    """End the one that stands by, so that the next round begins as the first."""
    while None in standby._ready.values():  # it follows the worker that has ended
        time.sleep(0.05)
    for worker in filter(None, standby._ready.values()):
        worker.kill()
        worker.wait()
    standby._ready.clear()


def imports() -> dict[str, float]:
    """Return the processor seconds of importing each library in a new process."""
    code = "import sys, time, importlib; importlib.import_module(sys.argv[1]); print(time.process_time())"
    said = {
        name: subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True) for name in IMPORTS
    }
    return {name: round(float(one.stdout), 2) for name, one in said.items()}


def measure(rounds: int) -> dict[str, Any]:
    """Measure some rounds; returns the document, of each part the median."""
    times: list[list[dict[str, float]]] = [[] for _ in ARMS]
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            lab = Lab(Path(folder) / "lab")
            try:
                found = [*trained(lab, 3e-4), *trained(lab, 2e-4)]
                ready(lab)
                for several, one in zip(times, [*found, *trained(lab, 1e-4)], strict=True):
                    several.append(one)
            finally:
                rested()
                for process in jobs._started:  # where a round is cut off, its worker goes with it
                    process.terminate()
                    process.wait()
    medians = [
        (name, {part: round(statistics.median(one[part] for one in several), 3) for part in several[0]})
        for name, several in zip(ARMS, times, strict=True)
    ]
    return {"imports_processor_seconds": imports(), "rounds": times, "medians": medians}


def table(numbers: dict[str, Any]) -> str:
    """Return the numbers as Markdown."""
    lines = ["| run | its process, s | preparing | first step | whole | goal |", "|" + " --- |" * 6]
    for name, one in numbers["medians"]:
        took = " | ".join(f"{one[part]:.2f}" for part in ("process", "preparing", "step", "whole"))
        goal = next((f"≤ {most:g}" for what, most in GOALS.items() if what == name), "")
        lines.append(f"| {name} | {took} | {goal} |")
    return "\n".join(lines)

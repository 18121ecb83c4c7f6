"""Work on a GPU that is lent for the length of one call, as ZeroGPU lends it: no worker process, the page's event does it.

Each run, and each measurement, is one call. Its process is a fork of the page's, which itself must never touch CUDA; what goes in
and comes out is pickled, and everything else is in the lab's files, so that a page that was closed finds its run as far as it is.
How long a call may take is asked before it begins. Hugging Face's documentation and the package `spaces` say so; untried there.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rift import estimate, measurement, service
from rift.config import Choice
from rift.measurement import Measurement
from rift.runs import Lab, Run

MOST_SECONDS = 120  # of one call: ours, since what a visitor may ask for is not documented
LEAST_SECONDS = 20
START_SECONDS = 10.0  # of a fork with CUDA, a guess
MARGIN = 1.5  # an estimate that is too short costs a call
GPU_SPEED = 10.0  # times this machine's CPU: a guess until a run of the lab was timed on a GPU
MEASURE_SECONDS = 60
Call = Callable[[str, str, str, int], object]
MEND = "Take fewer epochs (Quick), or choose CPU beside the status bar and press Go on: slower, and without a limit."


def active() -> bool:
    """Whether this process runs where GPUs are lent by the call, and the package that lends them is there."""
    wanted = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
    return wanted and importlib.util.find_spec("spaces") is not None


def carry_out(root: str, name: str, job: str, seconds: int) -> str:
    """Be the call: execute one queued run (`job` is its id) or measurement (`measure DIAGNOSTIC`) and return its state.

    `seconds` is what was asked for. Text in and text out, since both are pickled.
    """
    import torch

    from rift import recipe

    torch.set_num_threads(1)  # more of them hang in a fork of a process that has used them
    lab = Lab(root)
    one = _job(lab, name, job)
    with suppress(Timeout):  # another call was faster
        if isinstance(one, Measurement):
            measurement.carry_out(one, recipe.pick_device("auto"))
        else:
            recipe.execute(one, lab, recipe.pick_device("auto"))
    return one.state


def work(lab: Lab, name: str, call: Call) -> None:
    """Carry out what is queued of one comparison, a call for each job, until nothing is left or a call is refused.

    `call` takes what `carry_out` does. A job that is refused ends with the reason and what to do in words, code `run.quota`; one
    whose call was cut off is taken up again from its checkpoint at the next look. Two pages at once do no work twice.
    """
    with suppress(Timeout), FileLock(lab.comparisons / name / "lent.lock").acquire(timeout=0):
        while job := next_job(lab, name):
            one, need = _job(lab, name, job), seconds(lab, name, job)
            if need > MOST_SECONDS:
                _refuse(one, f"This needs about {need} s on the GPU, and one call gets {MOST_SECONDS} s at most. {MEND}")
                continue
            try:
                call(str(lab.root), name, job, need)
            except Exception as error:
                if not (why := refusal(error)):
                    raise
                _refuse(one, why)
                return
            if one.state == "queued":  # nothing came of it, and asking again at once would not help
                return


def next_job(lab: Lab, name: str) -> str:
    """Return the next job of a comparison, as `carry_out` takes it: a measurement first; empty where nothing is queued."""
    for one in measurement.queue(lab):
        if one.lab.root == lab.root and one.id == f"{name}-{one.diagnostic}" and one.state == "queued":
            return f"measure {one.diagnostic}"
    return next((run.id for run in service.runs(service.arms(lab, name)) if run.state == "queued"), "")


def seconds(lab: Lab, name: str, job: str) -> int:
    """Return how long a call to ask for: the estimate with a margin."""
    one = _job(lab, name, job)
    if isinstance(one, Measurement):
        known = measurement.seconds(lab, Choice(name=one.diagnostic, options=(one.asked or {"settings": {}})["settings"]))
        return math.ceil(
            max(LEAST_SECONDS, MARGIN * known * len((one.asked or {"runs": []})["runs"]) if known else MEASURE_SECONDS)
        )
    found = estimate.seconds(lab, [one.experiment], service.sizes(lab.root, name))
    if found is None:
        return MOST_SECONDS
    speed = 1.0 if any(_on_gpu(run) for run in lab.runs()) else GPU_SPEED
    return math.ceil(max(LEAST_SECONDS, START_SECONDS + MARGIN * found / speed))


def refusal(error: Exception) -> str:
    """Return in words why no GPU was lent and what to do, empty where an error is something else."""
    said = f"{getattr(error, 'title', '')} {getattr(error, 'message', error)}".lower()
    if "illegal duration" in said or "larger than the maximum" in said:
        return f"This run asks for more time on the GPU than one call may take. {MEND}"
    if "quota" in said:
        return f"Your share of GPU time is used up for now; it comes back within a day. {MEND}"
    if "no gpu" in said or "queue timeout" in said:
        return f"No GPU was free. Press Go on to ask again. {MEND}"
    return ""


def _job(lab: Lab, name: str, job: str) -> Run | Measurement:
    kind, _, diagnostic = job.partition(" ")
    return Measurement(lab, name, diagnostic) if kind == "measure" else lab.run(Path(kind).name)


def _refuse(one: Run | Measurement, why: str) -> None:
    errors = {"errors": [{"arm": "all arms", "code": "run.quota", "message": why}]} if isinstance(one, Measurement) else {}
    one.append("end", state="failed", code="run.quota", message=why, **errors)


def _on_gpu(run: Run) -> bool:
    return (run.result() or {}).get("environment", {}).get("device", "cpu") != "cpu"

"""The queue: worker processes at low priority that take up a lab's queued runs, one at a time, oldest first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from filelock import Timeout

from rift.runs import ENDED, Lab, Run

NICE = 10  # a page with 50 visitors stayed responsive beside training at this priority, and did not at normal priority
STOP_SECONDS = 0.8  # a step may take longer than a person waits; then the process is ended and the checkpoint stands


def start_worker(lab: Lab, device: str = "auto", runs: list[Run] | None = None) -> subprocess.Popen:
    """Start a process, in its own group, that works on the given runs (or on all queued ones) and then ends."""
    root = lab.root.resolve()
    command = [sys.executable, "-m", "rift", "work", str(root), "--device", device]
    command += [argument for run in runs or [] for argument in ("--run", run.id)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    with (root / "worker.log").open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment, cwd=root
        )


def work(lab: Lab, device: str = "auto", ids: list[str] | None = None) -> None:
    """Be the worker: execute queued runs until none is left; only this process ever touches CUDA."""
    with suppress(OSError, AttributeError):  # not allowed, or not on this system: then at the usual priority
        os.nice(NICE)
    from rift import recipe

    chosen = recipe.pick_device(device)
    while (run := next_run(lab, ids)) is not None:
        with suppress(Timeout):  # another worker was faster
            recipe.execute(run, lab, chosen)


def next_run(lab: Lab, ids: list[str] | None = None) -> Run | None:
    """Return the oldest queued run, among `ids` where given and then in their order."""
    runs = [lab.run(name) for name in ids] if ids is not None else lab.runs()
    return next((run for run in runs if run.state == "queued"), None)


def stop(run: Run) -> None:
    """Stop a run within a second and keep what is done: ask first, end the process when it is in the middle of a long step."""
    run.request_stop()
    patience = time.monotonic() + STOP_SECONDS
    while time.monotonic() < patience:
        if run.state in ENDED:
            return
        time.sleep(0.02)
    pid = next((event["pid"] for event in reversed(run.events()) if event["event"] == "start"), None)
    if pid is not None and run.is_alive:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

"""Workers for queued runs, and what they are doing in words, until each run has ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rift import jobs
from rift.errors import RunError
from rift.runs import ENDED, Lab, Run

POLL_SECONDS = 0.1
SAY_SECONDS = 5.0
MOST_AGAIN = 3  # workers that take the place of one that was killed
ENDED_FROM_OUTSIDE = {0, -signal.SIGTERM, -signal.SIGKILL}  # 0: it was asked to end, saved and left its runs in the queue
Say = Callable[[str], None]


def finish(lab: Lab, runs: Sequence[Run], names: Mapping[str, str], device: str, workers: int, say: Say) -> None:
    """Start workers and follow the runs until each has ended; Ctrl-C stops them within a second."""
    waiting = [run for run in runs if run.state not in ENDED]
    processes = [jobs.start_worker(lab, device, waiting) for _ in range(min(workers, len(waiting)))]
    again = MOST_AGAIN
    told = {run.id: (0, time.monotonic()) for run in runs}
    try:
        while waiting:
            alive = any(process.poll() is None for process in processes)
            states = {run.id: run.state for run in waiting}  # looked at first, so that the last word of each run is told
            for run in waiting:
                told[run.id] = _tell(run, names[run.id], told[run.id], say)
            waiting = [run for run in waiting if states[run.id] not in ENDED or (again and states[run.id] == "lost")]
            codes = {process.returncode for process in processes}
            if waiting and not alive and again and codes <= ENDED_FROM_OUTSIDE:
                again -= 1
                say("The worker was ended from outside; another one goes on from what it saved.")
                for run in waiting:
                    lab.requeue(run)
                processes = [jobs.start_worker(lab, device, waiting)]
            elif waiting and not alive:
                raise RuntimeError(f"the worker ended with {processes[0].returncode}:\n{_tail(lab.root / 'worker.log')}")
            time.sleep(POLL_SECONDS)
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for run in runs:
            if run.state not in ENDED:
                run.request_stop()
        for run in runs:
            if run.state not in ENDED:
                jobs.stop(run)
        message = f"Stopped; what was done is kept in {lab.root}. The same command goes on from there."
        raise RunError("run.stopped", message) from None


def _tell(run: Run, name: str, told: tuple[int, float], say: Say) -> tuple[int, float]:
    """Say a run's newest epochs and now and then its step; `told`: how far its events were read, when it was last heard of."""
    events, position = run.events_from(told[0])
    when, step = told[1], None
    for event in events:
        if event["event"] == "epoch":
            cka = "" if event.get("cka") is None else f", CKA {event['cka']:.3f}"
            say(f"{name}: epoch {event['epoch']}/{event['epochs']}, validation {_score(event)}{cka}")
            when, step = time.monotonic(), None
        elif event["event"] == "end":
            say(f"{name}: {event['state']}" + (f" ({event['message']})" if event.get("message") else ""))
        elif event["event"] == "step":
            step = event
    if step is not None and time.monotonic() - when > SAY_SECONDS:
        left = step["milliseconds"] * (step["steps"] - step["step"]) / 1000
        say(f"{name}: step {step['step']}/{step['steps']}, about {left:.0f} s left")
        when = time.monotonic()
    return position, when


def _score(event: Mapping[str, Any]) -> str:
    """Return the headline of an epoch in words: what the task is judged by."""
    for key, what in (("average_precision", "mAP"), ("reconstruction_error", "reconstruction error")):
        if event.get(f"validation_{key}") is not None:
            return f"{what} {event[f'validation_{key}']:.3f}"
    return f"accuracy {event['validation_accuracy']:.3f}"


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-15:])

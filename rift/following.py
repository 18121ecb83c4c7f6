"""Workers for queued runs, and what they are doing in words, until each run has ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rift import jobs
from rift.errors import RunError
from rift.runs import ENDED, Lab, Run

POLL_SECONDS = 0.1
SAY_SECONDS = 5.0
Say = Callable[[str], None]


class Crew(Protocol):
    """A way to have runs carried out: processes of this machine (`jobs.Workers`) or tasks of a cluster (`cluster.Tasks`)."""

    again: int

    def start(self, lab: Lab, runs: Sequence[Run]) -> None:
        """Have runs carried out."""

    def at_work(self) -> bool:
        """Whether somebody still works on them."""

    def failure(self, lab: Lab) -> str:
        """Say why nobody works any more, empty where they were ended from outside."""

    def close(self) -> None:
        """Let go of all, when every run has ended."""


def finish(lab: Lab, runs: Sequence[Run], names: Mapping[str, str], crew: Crew, say: Say) -> None:
    """Have runs carried out and follow them until each has ended; Ctrl-C stops them within a second."""
    waiting = [run for run in runs if run.state not in ENDED]
    again = crew.again
    if waiting:
        crew.start(lab, waiting)
    told = {run.id: (0, time.monotonic()) for run in runs}
    try:
        with _noted() as pressed:
            while waiting and not pressed:
                alive = crew.at_work()
                states = {run.id: run.state for run in waiting}  # looked at first, so that the last word of each run is told
                for run in waiting:
                    told[run.id] = _tell(run, names[run.id], told[run.id], say)
                waiting = [
                    run for run in waiting if states[run.id] not in ENDED or ((again or alive) and states[run.id] == "lost")
                ]
                failure = crew.failure(lab) if waiting and not alive else ""
                if failure or (waiting and not alive and not again):
                    raise RuntimeError(failure or "no worker is left, and some runs wait")
                if waiting and not alive:
                    again -= 1
                    say("The worker was ended from outside; another one goes on from what it saved.")
                    for run in waiting:
                        lab.requeue(run)
                    crew.start(lab, waiting)
                time.sleep(POLL_SECONDS)
        crew.close()
    except KeyboardInterrupt:
        for run in runs:
            if run.state not in ENDED:
                run.request_stop()
        for run in runs:
            if run.state not in ENDED:
                jobs.stop(run)
        message = f"Stopped; what was done is kept in {lab.root}. The same command goes on from there."
        raise RunError("run.stopped", message) from None


@contextmanager
def _noted() -> Iterator[list[int]]:
    """Give a list that is no longer empty when Ctrl-C was pressed, which is raised at the end; a second one is raised at once.

    A KeyboardInterrupt that falls into a destructor, as those of locks, is lost, and the command would go on as if nothing was.
    """
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # in another thread than the main one, which no Ctrl-C reaches
        yield pressed
        return
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


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

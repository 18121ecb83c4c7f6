"""A measurement that was asked for on the page: a folder in the lab's queue, and how the lab's worker carries it out.

`LAB/measuring/COMPARISON-DIAGNOSTIC/` holds `ask.json` (the newest wish), `events.jsonl`, `stop`, `lock` and `log.txt`; the state
follows from these files, as that of a run does. Numbers and arrays go where the command line puts them too: into the runs.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from filelock import FileLock

from rift import measures, process
from rift.config import Choice, digest
from rift.errors import RunError, UserError
from rift.runs import SCHEMA, Job, Lab, write_json

TELL_SECONDS = 0.5


class Measurement(Job):
    """One diagnostic of one comparison's arms; equal wishes are the same folder."""

    def __init__(self, lab: Lab, comparison: str, diagnostic: str):
        super().__init__(lab.measuring / f"{comparison}-{diagnostic}")
        self.lab, self.diagnostic = lab, diagnostic

    @property
    def asked(self) -> dict[str, Any] | None:
        """Return the newest wish: the checked `settings` and the `runs` by arm; None where there never was one."""
        try:
            return json.loads((self.path / "ask.json").read_bytes())
        except FileNotFoundError:
            return None

    @property
    def state(self) -> str:
        """Return queued, evaluating, done, stopped, failed or lost, derived from the files; empty while it was not asked for."""
        match self.last_event():
            case {"event": "end", "state": state}:
                return str(state)
            case {"event": "queued"}:
                return "stopped" if self.stop_requested else "queued"
            case {"event": _}:
                return "evaluating" if self.is_alive else "stopped" if self.stop_requested else "lost"
        return ""

    @property
    def active(self) -> bool:
        """Whether it waits or is at work."""
        return self.state in ("queued", "evaluating")

    def place(self, settings: Mapping[str, Any], runs: Mapping[str, str]) -> None:
        """Queue it with checked settings for these runs by arm; one that waits or is at work stays as it is."""
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path / "ask.lock"):
            if self.active:
                return
            write_json(self.path / "ask.json", {"schema": SCHEMA, "settings": dict(settings), "runs": dict(runs)})
            self._queue()

    def requeue(self) -> None:
        """Let a stopped, failed or lost one be taken up again, from what it kept."""
        with FileLock(self.path / "ask.lock"):
            if self.state in ("stopped", "failed", "lost"):
                self._queue()

    def _queue(self) -> None:
        (self.path / "stop").unlink(missing_ok=True)
        self.append("queued")


def queue(lab: Lab) -> list[Measurement]:
    """Return the measurements that wait or are at work in a lab and in the example beside it, oldest wish first."""
    labs = [lab, *([Lab(lab.root / "example")] if (lab.root / "example" / "runs").is_dir() else [])]
    found = []
    for one in labs:
        for path in one.measuring.glob("*/ask.json"):
            comparison, _, diagnostic = path.parent.name.partition("-")
            with suppress(OSError):  # another version of the example took its place meanwhile
                found.append((path.stat().st_mtime_ns, Measurement(one, comparison, diagnostic)))
    return [one for _, one in sorted(found, key=lambda pair: pair[0]) if one.active]


def carry_out(asked: Measurement, device: torch.device) -> None:
    """Measure arm after arm; what one arm refuses is noted and the others go on. Never raises for what a diagnostic raises."""
    with asked.alive():
        wish = asked.asked
        if asked.state != "queued" or wish is None:  # another worker took it between our look and our lock
            return
        asked.append("start", pid=os.getpid(), birth=process.birth(os.getpid()))
        choice, errors = Choice(name=asked.diagnostic, options=wish["settings"]), list[dict[str, str]]()
        for place, (arm, run) in enumerate(wish["runs"].items()):
            try:
                _measure(asked, choice, run, arm, place, len(wish["runs"]), device)
            except UserError as error:
                if error.code == "run.stopped":
                    if asked.stop_requested:
                        asked.append("end", state="stopped", errors=errors)
                    else:  # the system ends the process: the next one goes on
                        asked.append("queued")
                    return
                errors.append({"arm": arm, "code": error.code, "message": error.sentence})
            except Exception as error:
                with (asked.path / "log.txt").open("a") as log:
                    traceback.print_exc(file=log)
                errors.append({"arm": arm, "code": "", "message": f"This is our fault: {type(error).__name__}: {error}"})
        asked.append("end", state="failed" if len(errors) == len(wish["runs"]) else "done", errors=errors)


def _measure(asked: Measurement, choice: Choice, name: str, arm: str, place: int, of: int, device: torch.device) -> None:
    """Measure one run and tell how far it is; raises `run.stopped` when asked to stop."""
    began, where = time.monotonic(), {"arm": arm, "place": place, "of": of}
    told = [0.0]

    def tell(done: int, total: int, what: str, each: float | None) -> None:
        if asked.stop_requested or process.asked():
            raise RunError("run.stopped", "Stopped; what was done is kept.")
        now = time.monotonic()
        if now - told[0] < TELL_SECONDS and told[0]:
            return
        told[0] = now
        left = None if each is None else round(each * (total - done + total * (of - place - 1)), 1)
        asked.append("progress", **where, done=done, total=total, what=what, left=left)

    tell(0, 0, "", None)  # before the models are loaded
    measures.measure_again(asked.lab, asked.lab.run(name), choice, device=device, tell=tell)
    _remember(asked.lab, choice, time.monotonic() - began)


def seconds(lab: Lab, choice: Choice) -> float | None:
    """Return how long one run took with these checked settings in this lab; None where none was measured here."""
    return _seconds(lab).get(_key(choice))


def _remember(lab: Lab, choice: Choice, took: float) -> None:
    """Keep the longest time: a repetition finds its arrays and takes none."""
    known = _seconds(lab)
    write_json(lab.measuring / "seconds.json", known | {_key(choice): round(max(took, known.get(_key(choice), 0.0)), 1)})


def _seconds(lab: Lab) -> dict[str, float]:
    try:
        return json.loads((lab.measuring / "seconds.json").read_bytes())
    except FileNotFoundError:
        return {}


def _key(choice: Choice) -> str:
    return f"{choice.name}-{digest(choice.options)[:16]}"

"""The queue: worker processes at low priority that take up a lab's measurements and queued runs, one at a time, oldest first.

The visitors of a public server share one worker, which serves next whom it has served longest ago.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from rift import disk, measurement, process, quota, standby
from rift.runs import ENDED, Lab, Run, is_held

NICE = 10  # a page with 50 visitors stayed responsive beside training at this priority, and did not at normal priority
START_SECONDS = 15.0  # a worker that died while it was starting is not replaced before
SERVED = "served"  # a file of a lab whose age is the time since the worker took up something of it
IN_EVENT = "in-event"  # the device of a page that does the work itself, as `lending` has it
ENDED_FROM_OUTSIDE = {0, -signal.SIGTERM, -signal.SIGKILL}  # 0: it was asked to end, saved and left its runs in the queue
LINE_TIMES = 9.0  # so that looking takes a tenth of the server's time at most, however many visitors there are
STOP_SECONDS = 0.8  # a step may take longer than a person waits; then the process is ended and the checkpoint stands


def start_worker(lab: Lab, device: str = "auto", runs: Sequence[Run] = (), devices: int = 1) -> subprocess.Popen:
    """Start a process, in its own group, that works on the given runs (or on all queued ones) and then ends."""
    root = lab.root.resolve()
    asked = ["work", str(root), "--device", device, "--devices", str(devices)]
    asked += [argument for run in runs for argument in ("--run", run.id)]
    with (root / "worker.log").open("ab") as log:
        return process.start("rift", asked, stdout=log, stderr=log, start_new_session=True, cwd=root)


@dataclass
class Workers:
    """The way to carry out runs on this machine: so many worker processes at once, each run over so many devices.

    `cluster.Tasks` is the other way.
    """

    device: str = "auto"
    workers: int = 1
    devices: int = 1
    again: int = 3  # times that workers are started anew where they were ended from outside
    processes: list[subprocess.Popen] = field(default_factory=list)

    def start(self, lab: Lab, runs: Sequence[Run]) -> None:
        """Have runs carried out."""
        more = [self.devices] if self.devices > 1 else []
        self.processes = [start_worker(lab, self.device, runs, *more) for _ in range(min(self.workers, len(runs)))]

    def at_work(self) -> bool:
        """Whether somebody still works on them."""
        return any(process.poll() is None for process in self.processes)

    def failure(self, lab: Lab) -> str:
        """Say why nobody works any more, empty where they were ended from outside."""
        codes = [process.returncode for process in self.processes]
        if set(codes) <= ENDED_FROM_OUTSIDE:
            return ""
        return f"the worker ended with {codes[0]}:\n" + "\n".join(
            (lab.root / "worker.log").read_text(errors="replace").splitlines()[-15:]
        )

    def close(self) -> None:
        """Wait until they are gone, when all is done."""
        for one in self.processes:
            one.wait()


def work(lab: Lab, device: str = "auto", ids: list[str] | None = None, devices: int = 1, stand_by: bool = False) -> None:
    """Be the worker: execute what is queued until nothing is left; only this process ever touches CUDA.

    Without `ids` it is the lab's one worker: a second one ends at once. A measurement, which somebody waits for, comes before
    the next run. When the system asks the process to end, what is done is saved and the run waits for the next worker.
    With `stand_by` it makes ready and begins when it is told to.
    """
    with suppress(OSError, AttributeError):  # not allowed, or not on this system: then at the usual priority
        os.nice(NICE)
    with suppress(OSError):  # Linux shares the processor among sessions first, and this is one of its own
        Path("/proc/self/autogroup").write_text(str(NICE))
    with process.starting():
        from rift import recipe

        if stand_by:
            recipe.make_ready()
    if stand_by and not standby.told(lab.root / "worker.log"):
        return
    process.listen()
    alone = FileLock(lab.host / "worker.lock")  # a page that asks whether it is held holds it for a moment: hence the second
    with suppress(Timeout), nullcontext() if ids is not None else alone.acquire(timeout=1):
        (lab.host / "starting").unlink(missing_ok=True)
        chosen = recipe.pick_device(device)
        while not process.asked() and (found := _next(lab) if ids is None else _chosen(lab, ids)) is not None:
            home, job = found
            with suppress(Timeout):  # another worker was faster
                (home.root / SERVED).touch()
                if isinstance(job, measurement.Measurement):
                    measurement.carry_out(job, chosen)
                else:
                    with quota.capped(home, job):
                        recipe.execute(job, home, chosen, devices)


def _next(lab: Lab) -> tuple[Lab, Run | measurement.Measurement] | None:
    """Return what comes next and whose it is: a measurement before any run, and of whom was served longest ago."""
    homes = sorted(lab.neighbors(), key=served)
    for home in homes:
        if (asked := next((one for one in measurement.queue(home) if one.state == "queued"), None)) is not None:
            return home, asked
    return next(((home, run) for home in homes if (run := next_run(home)) is not None), None)


def _chosen(lab: Lab, ids: list[str]) -> tuple[Lab, Run] | None:
    run = next_run(lab, ids)
    return None if run is None else (lab, run)


def served(lab: Lab) -> float:
    """Return when the worker last took up something of a lab; 0 where it never did."""
    try:
        return (lab.root / SERVED).stat().st_mtime
    except OSError:
        return 0.0


def ensure_worker(lab: Lab, device: str = "auto") -> None:
    """Start the lab's worker where something is queued and none is at work; ask as often as you like, it starts one at a time.

    None is started where the device is IN_EVENT. Raises `run.disk` where the lab's folder cannot be written to.
    """
    _started[:] = [process for process in _started if process.poll() is None]  # the ended ones are reaped here
    if device == IN_EVENT:
        return
    waits = any(run.state == "queued" for run in reversed(lab.runs()))  # what waits is mostly new
    if not waits and not any(one.state == "queued" for one in measurement.queue(lab)):
        return
    mark = lab.host / "starting"
    try:
        with suppress(Timeout), FileLock(lab.host / "queue.lock").acquire(timeout=0):
            age = time.time() - mark.stat().st_mtime if mark.exists() else START_SECONDS
            starting = 0 <= age < START_SECONDS  # a mark of the future is from before the clock was set back
            if not starting and not is_held(lab.host / "worker.lock"):
                mark.touch()
                host = Lab(lab.host)
                _started.append(standby.take(host.root.resolve(), device, lambda: start_worker(host, device)))
    except OSError as error:
        raise disk.refused(error, "in the folder of the lab") from error


_started: list[subprocess.Popen] = []


def next_run(lab: Lab, ids: list[str] | None = None) -> Run | None:
    """Return the oldest queued run, among `ids` where given and then in their order."""
    runs = [lab.run(name) for name in ids] if ids is not None else lab.runs()
    return next((run for run in runs if run.state == "queued"), None)


def ahead(lab: Lab, mine: Collection[str]) -> set[str]:
    """Return the runs of others that the queue takes up before the first of mine."""
    before = itertools.takewhile(lambda run: run.id not in mine, lab.runs())
    own, since = lab.root.name, served(lab)
    others = (one for one in _line(lab) if one.owner != own and (one.at_work or one.served <= since))
    return {run.id for run in before if run.state not in ENDED} | {f"{one.owner}/{one.run}" for one in others}


class _Waiting(NamedTuple):
    """The first run of a visitor that is at work or waits."""

    owner: str  # name of the lab's folder
    run: str
    at_work: bool
    served: float


_lines: dict[Path, tuple[float, list[_Waiting]]] = {}  # by the server's folder: until when it holds, and the line
_looking = threading.Lock()


def _line(lab: Lab) -> list[_Waiting]:
    """Return who has something to do on a public server. A thousand pages ask every second, and one look serves all of them:

    it is remembered for LINE_TIMES as long as it took, which on a server with few visitors is no time at all.
    """
    with _looking:
        until, line = _lines.get(lab.host, (0.0, []))
        if (began := time.monotonic()) >= until:
            labs = lab.neighbors()
            labs = labs if len(labs) > 1 else []  # in one's own lab nobody else waits
            firsts = ((one, next((run for run in one.runs() if run.state not in ENDED), None)) for one in labs)
            line = [_Waiting(one.root.name, run.id, run.state != "queued", served(one)) for one, run in firsts if run]
            now = time.monotonic()
            _lines[lab.host] = now + LINE_TIMES * (now - began), line
        return line


def stop(job: Run | measurement.Measurement) -> None:
    """Stop a job within a second and keep what is done: ask first, end the process when it is in the middle of a long step."""
    job.request_stop()
    patience = time.monotonic() + STOP_SECONDS
    while time.monotonic() < patience:
        if job.state in ENDED:
            return
        time.sleep(0.02)
    start: dict[str, Any] = next((event for event in reversed(job.events()) if event["event"] == "start"), {})
    if "pid" in start and job.is_alive and is_the_same(start):
        with suppress(ProcessLookupError):
            os.kill(start["pid"], signal.SIGKILL)


def is_the_same(start: Mapping[str, Any]) -> bool:
    """Whether the process that a start tells of is still that one, and not another that got its number since."""
    return start.get("birth", "") == process.birth(start["pid"])

"""The verbs of the app and of its public endpoints: start a comparison, look at it, stop it, go on, read its result.

A comparison is a folder of the lab, `comparisons/<id>/`: `order.json` says what was asked, and so which runs belong to it.
All else follows from the runs' own files, so a reloaded page, a second tab and a restarted server see the same.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from rift import catalog, checkpoint, comparison, disk, estimate, jobs, measurement, process, quota, report, space
from rift.comparison import Arm
from rift.config import Experiment, digest
from rift.dataset import ImageSet, Split, load, parts, refuse_misfit
from rift.errors import DataError, RunError
from rift.orders import Order, experiments
from rift.runs import ENDED, SCHEMA, Lab, Run, write_json

MOST_STARTS = 3  # a run whose process vanished this often, without getting further, waits for a person
STALLED_SECONDS, STALLED_STEPS = 60.0, 20  # silence that is worth a word: the time of so many steps, and a minute at least


@dataclass(frozen=True)
class Status:
    """How far a comparison is: `progress` in [0, 1], seconds None where nobody can know; `version` changes when anything does."""

    state: str
    progress: float
    seconds_left: float | None
    message: str
    version: str
    done: int = 0  # runs that have a result

    @property
    def active(self) -> bool:
        """Whether something is still to come without anybody's doing."""
        return self.state in ("queued", "preparing", "training", "evaluating")


def start(lab: Lab, order: Order, source: str = "", *, device: str = "auto") -> str:
    """Place an order, see to a worker and return the comparison's id; raises a SettingError for a wrong choice.

    On a public server it also raises `run.quota` where its visitor has as much under way, or stored, as one may have.
    """
    with FileLock(lab.root / "place.lock"):  # of pages that press at once each counts what the one before has begun
        others = [runs(arms(lab, other)) for other in comparisons(lab) if other != order.id]
        quota.refuse_start(lab, sum(any(run.state not in ENDED for run in theirs) for theirs in others))
        name = place(lab, order, source=source)
    jobs.ensure_worker(lab, device)
    return name


def place(lab: Lab, order: Order, *, source: str = "") -> str:
    """Queue a comparison and return its id; what ended unfinished before is taken up again from its last checkpoint.

    `source` is how the data were given, for the equivalent command. A wrong choice raises a SettingError and leaves no trace.
    """
    catalog.check("backbones", order.backbone)  # what is not here any more is told before anything is queued
    asked = experiments(order)
    refuse_misfit(load(lab.data / order.data), order.task, order.training)
    with suppress(DataError):  # told where it is in the way
        space.refuse_full(lab.root, estimate.disk(lab, _todo(lab, asked), estimate.sizes(*_sets(lab, order))))
    home = lab.comparisons / order.id
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk.refused(error, "in the folder of the lab") from error
    if not (home / "order.json").exists():
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        document = {"schema": SCHEMA, "created": created, "source": source, "order": order.model_dump(mode="json")}
        write_json(home / "order.json", document)
    for seed in range(order.seeds):  # the queue is by age: all arms of a seed before the next seed
        for _, by_seed in asked:
            run = lab.submit(by_seed[seed])
            if run.state in ("stopped", "failed", "lost"):
                lab.requeue(run)
    return order.id


def _todo(lab: Lab, asked: Sequence[tuple[Arm, Sequence[Experiment]]]) -> list[Experiment]:
    """Return the experiments whose runs this lab has not finished."""
    there = {run.id for run in lab.runs() if run.state == "done"}
    return [one for _, by_seed in asked for one in by_seed if one.id not in there]


def order_of(lab: Lab, name: str) -> tuple[Order, str]:
    """Return what was asked, and how the data were given; `run.missing` when the lab has no such comparison."""
    stored = _stored(lab, name)
    return Order.model_validate(stored["order"]), str(stored["source"])


def created(lab: Lab, name: str) -> str:
    """Return when a comparison was asked for, as an ISO date and time in UTC."""
    return str(_stored(lab, name)["created"])


def _stored(lab: Lab, name: str) -> dict[str, Any]:
    try:
        return json.loads((_home(lab, name) / "order.json").read_bytes())
    except (OSError, ValueError):
        raise RunError("run.missing", f"There is no comparison {name[:80]!r} here; it may have been deleted.") from None


def _home(lab: Lab, name: str) -> Path:
    return lab.comparisons / (name if name.isalnum() else "-")  # a name from outside never leaves the folder


def arms(lab: Lab, name: str) -> list[Arm]:
    """Return the arms of a comparison with their runs; `run.missing` where it or one of its runs is not there."""
    return [replace(arm, runs=tuple(lab.run(id) for id in ids)) for arm, ids in _run_ids(lab.root, name)]


@lru_cache(maxsize=8192)
def _run_ids(root: Path, name: str) -> list[tuple[Arm, list[str]]]:
    """Return the ids of each arm's runs; an order never changes, so its hashes are computed once."""
    return [(arm, [one.id for one in by_seed]) for arm, by_seed in experiments(order_of(Lab(root), name)[0])]


def runs(arms: Sequence[Arm]) -> list[Run]:
    """Return all runs as they are queued, each once: all arms of a seed before the next seed."""
    return [arm.runs[seed] for seed in range(max(len(arm.runs) for arm in arms)) for arm in comparison.trained(arms)]


def status(lab: Lab, name: str, *, device: str = "auto") -> Status:
    """Return how far a comparison is, from its runs' last events; a queue or a run that lost its worker gets a new one."""
    chosen = arms(lab, name)
    queue = runs(chosen)
    names = {run.id: arm.name for arm in comparison.trained(chosen) for run in arm.runs}
    states = [_taken_up(lab, run) for run in queue]
    events = [run.last_event() for run in queue]
    stalled = [_stalled(run, state, event) for run, state, event in zip(queue, states, events, strict=True)]
    version = digest([states, stalled, [(event.get("event"), event.get("time")) for event in events]])[:16]
    waiting = [i for i, state in enumerate(states) if state not in ENDED]
    if not waiting:
        state, message = _ended(queue, states, names)
        return Status(state, 1.0, None, message, version, states.count("done"))
    jobs.ensure_worker(lab, device)
    many, asked = sizes(lab.root, name), name
    reached = [estimate.reached(run, event, many) for run, event in zip(queue, events, strict=True)]
    progress = sum(map(estimate.share, states, reached)) / len(queue)
    left = estimate.seconds_left(lab, queue, states, reached, many)
    now = next((i for i in waiting if states[i] != "queued"), waiting[0])
    name, event, place = names[queue[now].id], events[now], f"run {now + 1} of {len(queue)}"
    if states[now] != "queued":
        what = {"preparing": "Preparing", "training": "Training", "evaluating": "Measuring"}[states[now]]
        kind = event.get("event", "")
        step = f", {kind} {event[kind]} of {event[kind + 's']}" if kind in ("step", "epoch", "trial") else ""
        return Status(states[now], progress, left, f"{what} {name}, {place}{step}.{stalled[now]}", version)
    ahead = jobs.ahead(lab, names)
    if ahead and not any(state in ENDED for state in states):
        before = "another run" if len(ahead) == 1 else f"{len(ahead)} other runs"
        message = f"{_ordinal(_place(lab, asked, ahead))} in line. Waiting for {before}; yours come next."
        return Status("queued", progress, None, message, f"{version}-{len(ahead)}")
    if any(one.state == "evaluating" for one in measurement.queue(lab)):
        return Status("queued", progress, None, "Waiting for a measurement; yours come next.", f"{version}-measuring")
    return Status("preparing", progress, left, f"Starting {name}, {place}.", version)


def _taken_up(lab: Lab, run: Run) -> str:
    """Return a run's state; one whose process vanished is queued again first, MOST_STARTS times at most."""
    state = run.state
    if state != "lost" or _starts_in_vain(run) >= MOST_STARTS:
        return state
    lab.requeue(run)
    return run.state


def _starts_in_vain(run: Run) -> int:
    """Return how often a run was begun since it last got further: a computer that is switched off every day loses none."""
    count, furthest = 0, -1
    for event in run.events():
        if event["event"] == "start":
            count += 1
        elif event["event"] == "resume" and event["step"] > furthest:
            count, furthest = 1, event["step"]
    return count


def _stalled(run: Run, state: str, event: dict[str, Any]) -> str:
    """Say that a training has been silent for longer than its steps take: its process is there, so that it is not lost.

    By a clock that does not jump when the time of day is set; older runs have none.
    """
    if state != "training" or event.get("event") != "step" or "clock" not in event:
        return ""
    silent = time.monotonic() - event["clock"]
    if silent < max(STALLED_SECONDS, STALLED_STEPS * event["milliseconds"] / 1000):
        return ""
    start: dict[str, Any] = next((one for one in reversed(run.events()) if one["event"] == "start"), {})
    why = "it was paused by the system" if process.is_paused(start.get("pid", 0)) else "the computer may be busy or asleep"
    return f" Nothing was heard of it for {estimate.duration(silent // 30 * 30)}: {why}. Nothing is lost; it goes on when it can."


def _place(lab: Lab, mine: str, ahead: set[str]) -> int:
    """Return the place in line of a comparison, the one at work counted, where these runs come first."""
    others = [other for other in comparisons(lab) if other != mine]
    ours = sum(not ahead.isdisjoint(one for _, ids in _run_ids(lab.root, other) for one in ids) for other in others)
    return 1 + max(1, ours + sum("/" in one for one in ahead))  # a run of another visitor is named with its lab


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _ended(runs: Sequence[Run], states: Sequence[str], names: dict[str, str]) -> tuple[str, str]:
    """Return state and message of a comparison whose runs have all ended."""
    if all(state == "done" for state in states):
        return "done", f"All {len(runs)} runs are finished." if len(runs) > 1 else "The run is finished."
    done = sum(state == "done" for state in states)
    kept = f"{done} of {len(runs)} runs are finished and kept" if done else "no run was finished"
    if "failed" in states:
        run = runs[states.index("failed")]
        return "failed", f"{names[run.id]}: {run.end().get('message') or 'it failed'} ({kept}.)"
    if "lost" in states:
        return "lost", f"The process that trained {names[runs[states.index('lost')].id]} is gone; {kept}. Go on from there."
    why = "when its time on this server was up" if any(map(quota.was_capped, runs)) else ""
    saved = done or any(any((run.path / "checkpoint").glob(f"step-*{checkpoint.ENDING}")) for run in runs)
    further = "takes it up from where it was." if saved else "begins anew: no step was saved yet."
    return "stopped", f"Stopped{' ' + why if why else ''}; {kept}. Go on {further}"


def stop(lab: Lab, name: str) -> None:
    """Stop a comparison within a second and keep what is done: its queued runs first, so that none is begun meanwhile."""
    # a run whose worker has just vanished too: the next look would take it up again
    waiting = [run for run in runs(arms(lab, name)) if _taken_up(lab, run) not in ENDED]
    for run in reversed(waiting):
        run.request_stop()
    for run in waiting:
        if run.is_alive:
            jobs.stop(run)


def result(lab: Lab, name: str) -> dict[str, Any]:
    """Return the comparison document of `contract.md`, computed once for a finished one; `run.missing` while no run is done."""
    chosen, path = arms(lab, name), (home := _home(lab, name)) / "comparison.json"
    if not any(run.state == "done" for run in runs(chosen)):
        raise RunError("run.missing", "No run of this comparison is finished yet; its numbers come with the first one.")
    with FileLock(home / "lock"):  # two pages that look at once compute it once
        with suppress(FileNotFoundError, ValueError):  # a damaged one is computed again
            return disk.unsealed(path.read_bytes())
        document = comparison.document(lab, chosen, *_sets(lab, order_of(lab, name)[0]))
        if all(run.state == "done" for run in runs(chosen)):
            write_json(path, disk.sealed(document))
    return document


def measures(lab: Lab, name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what each diagnostic measured, by arm and diagnostic; of several seeds the first one that is done."""
    return comparison.measures(arms(lab, name))


def write_report(lab: Lab, name: str) -> Path:
    """Write the comparison's page, anew once more was measured, and return its path."""
    path = _home(lab, name) / "report.html"
    document = result(lab, name)
    measured = (file.stat().st_mtime for run in runs(arms(lab, name)) for file in run.path.glob("measures/*.json"))
    if not path.exists() or document["created"] > _written(path) or max(measured, default=0.0) > path.stat().st_mtime:
        natural = load(lab.data / order_of(lab, name)[0].natural)
        photos = natural.pixels(report.PHOTO_PIXELS) if natural.has_pictures else None
        report.write(document, measures(lab, name), path, natural=photos)
    return path


def _written(path: Path) -> str:
    return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).isoformat(timespec="seconds")


def _sets(lab: Lab, order: Order) -> tuple[ImageSet, ImageSet, Split]:
    medical, natural = load(lab.data / order.data), load(lab.data / order.natural)
    return medical, natural, parts(medical, order.training, 0)


@lru_cache(maxsize=8192)
def sizes(root: Path, name: str) -> estimate.Sizes:
    """Return how many images a comparison of the lab at `root` has, as an estimate needs it."""
    lab = Lab(root)
    return estimate.sizes(*_sets(lab, order_of(lab, name)[0]))


def comparisons(lab: Lab) -> list[str]:
    """Return the ids of a lab's comparisons, newest first."""
    found = lab.comparisons.glob("*/order.json")
    return [path.parent.name for path in sorted(found, key=lambda path: -path.stat().st_mtime_ns)]


def forget() -> None:
    """Drop what this process remembers of comparisons, as when some were deleted."""
    for remembered in (_run_ids, sizes):
        remembered.cache_clear()

"""What can be told of a comparison while it runs: its events in words, newest first, and its images' places epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rift import comparison, disk, places, service
from rift.estimate import duration
from rift.places import Places
from rift.runs import Lab, Run

# by task: title, meaning and the event's value that it is judged by while it is trained
HEADLINES = {
    "single_label": (
        "Accuracy",
        "Of the answers on validation images, after each epoch; higher is better.",
        "validation_accuracy",
    ),
    "multi_label": (
        "Mean average precision",
        "mAP, the mean over findings, on validation images after each epoch; higher is better.",
        "validation_average_precision",
    ),
    "reconstruction": (
        "Reconstruction error",
        "Mean absolute error of a pixel between 0 and 1 on validation images, after each epoch; lower is better.",
        "validation_reconstruction_error",
    ),
}


@dataclass(frozen=True)
class Line:
    """Something that happened: Unix time, a sentence, and whether it is a problem."""

    time: float
    text: str
    problem: bool = False


def headline(lab: Lab, name: str) -> tuple[str, str, str]:
    """Return title, meaning and the epochs' value that a comparison's task is judged by."""
    return HEADLINES[service.order_of(lab, name)[0].task.name]


def log(lab: Lab, name: str) -> list[Line]:
    """Return what happened to all runs of a comparison, newest first; steps are left out, there are too many."""
    arms, key = service.arms(lab, name), headline(lab, name)[2]
    several = len(arms[0].runs) > 1
    found: list[Line] = []
    for arm in comparison.trained(arms):
        for run in arm.runs:
            called = comparison.name_of_run(arm, run) if several else arm.name
            found += _told(run.path, _size(run), called, key)
            if run.state == "lost":
                gone = f"{called}: its process is gone, perhaps with the computer. What it saved is kept."
                found.append(Line(run.last_event()["time"], gone, True))
    return sorted(reversed(found), key=lambda line: -line.time)  # of what is of one moment, too, the last comes first


def maps(lab: Lab, name: str) -> dict[str, Places]:
    """Return the map of each arm's first run; runs that are older than maps, or have not begun, are left out."""
    found = {arm.name: places.read(arm.runs[0]) for arm in comparison.trained(service.arms(lab, name))}
    return {arm: one for arm, one in found.items() if one is not None}


def moved(maps: Mapping[str, Places], epoch: int) -> str:
    """Say how far the images of each arm have moved by an epoch, and how much of the truth the two axes show."""
    if not maps:
        return ""
    if not epoch:
        return "Epoch 0 is the pretrained model: every arm begins here."
    parts = [f"{arm} {far:.2f}" for arm, one in maps.items() if (far := one.moved(epoch)) is not None]
    first = next(iter(maps.values()))
    return (
        f"After epoch {epoch} an image has moved, in units of the pretrained spread: {', '.join(parts)} "
        f"(n = {len(first.start)} validation images, first seed). The two axes show {first.share.sum():.0%} of the pretrained "
        "variance; what happens along all others is hidden, and a turn of all images looks like movement too."
    )


def _size(run: Run) -> int:
    path = run.path / "events.jsonl"
    return path.stat().st_size if path.exists() else 0


@lru_cache(maxsize=1024)
def _told(path: Path, size: int, called: str, key: str) -> tuple[Line, ...]:
    """Return one run's lines, oldest first; `size` of its file says whether it has to be read again."""
    return tuple(_lines(_events(path / "events.jsonl"), called, key))


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield all events but steps; a damaged line, of a step or not, as an event of that name."""
    if path.exists():
        for line in path.read_bytes().rpartition(b"\n")[0].splitlines():
            if not (line.startswith(b'{"event": "step"') and disk.whole(line)):
                yield disk.values(line) or {"event": "damaged", "time": 0.0}


def _lines(events: Iterator[dict[str, Any]], called: str, key: str) -> Iterator[Line]:
    began, last, worked = None, 0.0, 0.0
    damaged = 0
    for event in events:
        if event["event"] == "damaged":
            damaged += 1
            continue
        now = event["time"]
        match event:
            case {"event": "start"}:
                if began is None:
                    yield Line(now, f"{called} started on the {'GPU' if event.get('device') == 'cuda' else 'CPU'}.")
                else:
                    worked += last - began
                    yield Line(now, f"{called} goes on after a break of {duration(now - last)}.")
                began = now
            case {"event": "resume", "step": step}:
                yield Line(now, f"{called} took up its work at step {step}, where its last checkpoint is.")
            case {"event": "trial"}:
                what = (
                    f"a strength of {event['value']:g}" if event["what"] == "strength" else f"learning rate × {event['value']:g}"
                )
                yield Line(now, f"{called} tries {what}, trial {event['trial']} of {event['trials']}.")
            case {"event": "epoch"}:
                yield Line(now, f"{called}, epoch {event['epoch']} of {event['epochs']}: {_numbers(event, key)}.")
            case {"event": "stage", "stage": "evaluating"}:
                yield Line(now, f"{called} is trained; measuring what it learned and what it forgot.")
            case {"event": "memory", "parts": parts}:
                exact = "" if event["exact"] else ", and the penalty is the mean over the parts"
                yield Line(now, f"{called}: memory ran out; batches are worked through in {parts} parts from here{exact}.", True)
            case {"event": "refused", "message": message}:
                yield Line(now, f"{called}: {message}", True)
            case {"event": "queued", "ended": _}:
                yield Line(now, f"{called}: the computer asked the work to end. It is saved and goes on by itself.")
            case {"event": "end", "state": "done"}:
                yield Line(now, f"{called} finished in {duration(worked + now - (began or now))}.")
            case {"event": "end", "state": "stopped"}:
                yield Line(now, f"{called} was stopped. What is done is kept.")
            case {"event": "end", "state": "failed"}:
                yield Line(now, f"{called} failed: {event.get('message') or 'no reason was noted.'}", True)
        if event["event"] != "queued":  # to be asked to go on is no work
            last = now
    if damaged:
        lines = "1 line of its log is" if damaged == 1 else f"{damaged} lines of its log are"
        yield Line(last, f"{called}: {lines} damaged and left out; its curves have gaps there.", True)


def _numbers(event: Mapping[str, Any], key: str) -> str:
    value, kept = event.get(key), event.get("cka_debiased")
    names = {what: title.lower() for title, _, what in HEADLINES.values()}
    said = [] if value is None else [f"{names[key]} {value:.3f}"]
    said += [] if kept is None else [f"similarity to the pretrained model {kept:.2f}"]
    return ", ".join(said) or "nothing could be measured"


def curves(lab: Lab, name: str) -> dict[str, list[dict[str, Any]]]:
    """Return the step and epoch events of each arm's first seed; a resumed run's repeated steps count once, the last time."""
    return {arm.name: _once(arm.runs[0].events()) for arm in comparison.trained(service.arms(lab, name))}


def _once(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    newest = {(event["event"], event[event["event"]]): event for event in events if event["event"] in ("step", "epoch")}
    return list(newest.values())

"""One attempt at a run: its steps told and saved as they come, and where the attempt before it was cut off, taken up there."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save as to_safetensors

from rift import checkpoint, disk, process, train, trained
from rift.errors import RunError
from rift.runs import Lab, Run, write_bytes

CHECKPOINT_SECONDS, RARE_SECONDS = 10.0, 60.0  # how much work a killed process may lose: of a small model, of the largest
SAVING_SECONDS = 0.3  # one that takes longer to write is written more rarely, so that about 3 % of the time goes there
RESERVE_BYTES = 16384  # kept free for the last word of a run whose disk is full
End = Literal["done", "stopped", "queued"]


def follow(run: Run, lab: Lab, state: train.State, events: Iterable[train.Event], **more: Any) -> End:
    """Write events with `more`, and checkpoints; returns how it went: "stopped" when asked to, "queued" when the system ends it.

    What is done so far is saved in both cases. A run that diverges keeps the weights before the step that did it.
    """
    saved, pause, keeps_epochs = time.perf_counter(), CHECKPOINT_SECONDS, run.experiment.training.keep == "epochs"
    try:
        for event in events:
            if event.kind == "epoch" and keeps_epochs:
                write_weights(trained.epoch_path(run, event.values["epoch"]), run, state)
            run.append(event.kind, **event.values, **more)
            cut, now = halted(run), time.perf_counter()
            if cut or now - saved > pause:
                _save(run, lab, state)
                saved = time.perf_counter()
                pause = min(max(1.0, (saved - now) / SAVING_SECONDS) * CHECKPOINT_SECONDS, RARE_SECONDS)
            if cut:
                return cut
        train.refuse_diverged(state)
    except RunError as error:
        if error.code == "run.diverged":
            write_weights(run.path / "diverged.safetensors", run, state)
        raise
    return "done"


def halted(run: Run) -> Literal["", "stopped", "queued"]:
    """Return how an attempt ends that is to end now: "stopped" by a person, "queued" by the system; else empty."""
    return "stopped" if run.stop_requested else "queued" if process.asked() else ""


def _save(run: Run, lab: Lab, state: train.State) -> None:
    folder = run.path / "checkpoint"
    folder.mkdir(exist_ok=True)
    state.save(checkpoint.path(folder, state.step), lab.key, run.id)
    for old in sorted(folder.glob(f"step-*{checkpoint.ENDING}"))[:-2]:
        old.unlink()


def resume(run: Run, lab: Lab, state: train.State) -> None:
    """Continue from the newest checkpoint that is whole and this run's own; one that is passed over is told."""
    for path in sorted((run.path / "checkpoint").glob(f"step-*{checkpoint.ENDING}"), reverse=True):
        try:
            state.load(path, lab.key, run.id)
        except (ValueError, KeyError, RuntimeError) as error:  # torn, damaged or foreign: the one before it still stands
            run.append("refused", stage="preparing", file=path.name, message=checkpoint.told(path, error).sentence)
            path.unlink()
            continue
        run.append("resume", step=state.step)
        return


def end(run: Run, **values: Any) -> None:
    """Write the last word of an attempt; where the disk is full, into what was kept free for it."""
    reserve = run.path / "reserve"
    try:
        run.append("end", **values)
    except RunError:
        reserve.unlink(missing_ok=True)
        run.append("end", **values)
    reserve.unlink(missing_ok=True)


def begin(run: Run, lab: Lab) -> None:
    """Clear away what killed processes left, and keep a little room for the last word."""
    disk.sweep(run.path, 0.0)
    disk.sweep(lab.cache)
    write_bytes(run.path / "reserve", b"\1" * RESERVE_BYTES)


def write_weights(path: Path, run: Run, state: train.State) -> None:
    """Write what the method trains, in whatever stage; the rest is the pretrained model's."""
    chosen = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    tensors = {name: p.detach().cpu().contiguous() for name, p in state.classifier.named_parameters() if id(p) in chosen}
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, to_safetensors(tensors, metadata={"run": run.id, "format": "pt"}))


def seconds_before(run: Run) -> float:
    """Return the working time of earlier attempts at this run, so that a resumed run's seconds are not understated.

    By a clock that does not jump, where the events have it.
    """
    total, start, last = 0.0, None, 0.0
    for event in run.events():
        now = event.get("clock", event["time"])
        if event["event"] == "start":
            total += max(0.0, last - start) if start is not None else 0.0
            start = now
        if event["event"] != "queued":
            last = now
    return total

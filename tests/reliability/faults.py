"""Faults on purpose, for tests only: a process that dies at a chosen file operation, and the smallest run that is whole."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from rift import attempt, catalog, recipe
from rift.config import Choice, Experiment, Training
from rift.runs import Lab, Run
from rift.snapshot import Snapshot
from tests.methods_toys import toy_lab

CPU = torch.device("cpu")
TIMES = ("seconds", "step_milliseconds")
TINY = {"epochs": 3, "batch_size": 4, "views": 2, "keep": "epochs"}


def tiny(root: Path, regularizer: str = "rift", strength: float = 1.0, seed: int = 0, **training: Any) -> tuple[Lab, Experiment]:
    """A lab of twenty drawn images and timm's toy ViT, and an experiment of nine steps in it."""
    lab = toy_lab(root)
    toy = Choice(name="checkpoint", options={"path": str(lab.weights), "architecture": "test_vit"})
    return lab, Experiment(
        data=lab.medical.digest,
        natural=lab.natural.digest,
        backbone=catalog.check("backbones", toy),
        regularizer=catalog.check("regularizers", Choice(name=regularizer)),
        strength=strength,
        seed=seed,
        training=Training(**{**TINY, **training}),
    )


def beside(lab: Lab, root: Path) -> Lab:
    """Another lab with the same images and nothing else."""
    other = Lab(root)
    other.data.rmdir()
    other.data.symlink_to(lab.data)
    return other


def execute(lab: Lab, run: Run) -> Run:
    """Carry a run out in this process, with a checkpoint after every step."""
    kept, attempt.CHECKPOINT_SECONDS = attempt.CHECKPOINT_SECONDS, -1.0
    try:
        recipe.execute(run, lab, CPU)
    finally:
        attempt.CHECKPOINT_SECONDS = kept
    return run


class Points:
    """Counts what a process does to files below a folder and, at one of these points, lets it die as by `kill -9`.

    With `torn`, what is being written is left half done: a log with half a line, any other file cut in the middle.
    """

    def __init__(self, root: Path, at: int = 0, torn: bool = False):
        self.root, self.at, self.torn = str(root.resolve()), at, torn
        self.seen: list[str] = []
        self.busy = False
        fsync = os.fsync

        def synced(handle: int) -> None:
            self.hit("fsync", os.readlink(f"/proc/self/fd/{handle}"))
            fsync(handle)

        os.fsync = synced
        sys.addaudithook(self.heard)

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take note of what Python is about to do."""
        if event == "open":
            path, mode, flags = arguments
            writes = set(mode or "") & set("wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
            if writes and isinstance(path, (str, bytes, os.PathLike)):
                self.hit("open", os.fsdecode(path))
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate") and not isinstance(arguments[0], int):
            self.hit(event, os.fsdecode(arguments[1 if event == "os.rename" else 0]))

    def hit(self, what: str, path: str) -> None:
        path = os.path.join(os.getcwd(), path)
        if self.busy or not path.startswith(self.root) or path.endswith("lock"):
            return
        self.seen.append(f"{what} {os.path.relpath(path, self.root)}")
        if len(self.seen) == self.at:
            self.busy = True
            if self.torn and what == "fsync" and os.path.isfile(path):
                os.truncate(path, os.path.getsize(path) // 2)
            elif self.torn and path.endswith(".jsonl"):
                with open(path, "ab", buffering=0) as file:
                    file.write(b'{"event": "step", "st')
            os.kill(os.getpid(), signal.SIGKILL)


def forked(work: Callable[[], None]) -> int:
    """Do something in a fork of this process, which has torch loaded already, and return its number."""
    pid = os.fork()
    if pid == 0:
        os.setsid()  # as a worker has: it lowers the priority of its whole session
        code = 0
        try:
            work()
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """Wait for a fork; returns its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def worker(lab: Lab, run: Run, at: int = 0, torn: bool = False, told: Path | None = None) -> int:
    """Start a fork that executes a run, and dies at a file operation where one is given; `told` gets a list of all of them."""

    def work() -> None:
        points = Points(lab.root / "runs", at, torn) if at or told else None
        execute(lab, run)
        if told and points:
            points.busy = True
            told.write_text(json.dumps(points.seen))

    return forked(work)


def outcome(lab: Lab, run: Run) -> dict[str, Any]:
    """All that a finished run says, times left out: two that are equal here are equal to the last bit."""
    result = run.result() or {}
    steps, epochs = {}, {}
    for event in run.events():
        if event["event"] in ("step", "epoch"):
            kept = {key: value for key, value in event.items() if key not in ("time", "clock", "milliseconds")}
            (steps if event["event"] == "step" else epochs)[event[event["event"]]] = kept
    snapshot = Snapshot.load(run.path / "snapshot.npz")
    arrays = {f"{name}.{key}": value for name, one in snapshot.sets.items() for key, value in vars(one).items()}
    return {
        "numbers": {key: value for key, value in result["numbers"].items() if key not in TIMES},
        "pretrained": result["pretrained"],
        "weights": _tensors(run.path / "weights.safetensors"),
        "epochs kept": [_tensors(path) for path in sorted((run.path / "epochs").glob("*.safetensors"))],
        "steps": steps,
        "epochs": epochs,
        "predictions": (run.path / "predictions.csv").read_text(),
        "snapshot": {key: value.tobytes().hex() for key, value in arrays.items() if isinstance(value, np.ndarray)},
        "measures": run.measures(),
        "left over": sorted(path.name for path in run.path.rglob(".*")) + sorted(p.name for p in run.path.glob("checkpoint*")),
    }


def _tensors(path: Path) -> dict[str, str]:
    """The tensors of a file; its header may name them in any order."""
    return {name: tensor.numpy().tobytes().hex() for name, tensor in load_file(path).items()}


def unlike(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Return the parts in which two outcomes differ."""
    return [key for key in first if first[key] != second[key]]

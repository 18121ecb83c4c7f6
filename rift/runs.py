"""Lab and Run: directories on disk through which every process talks to every other one; state is derived, never stored."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rift.config import Experiment
from rift.errors import RunError

SCHEMA = 1
VISITORS = "visitors"  # the folder of a public server that holds a lab for each visitor
ENDED = ("done", "stopped", "failed", "lost")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the whole new one, also after a power cut."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: temporary file, fsync, rename; `run.disk` when the disk refuses."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise RunError(
            "run.disk", f"Could not write {path.name}: {error.strerror or error}. Free some space and run again."
        ) from error


def is_held(path: Path) -> bool:
    """Whether some process holds the lock file at `path`."""
    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True


class Job:
    """A directory that a worker acts on: `events.jsonl` (append-only, one writer), `stop`, `lock` (held while alive)."""

    def __init__(self, path: Path):
        self.path, self.id = path, path.name

    def events(self) -> list[dict[str, Any]]:
        """Return all events so far; a torn last line is ignored."""
        return self.events_from(0)[0]

    def events_from(self, position: int) -> tuple[list[dict[str, Any]], int]:
        """Return the events after a position in bytes, and the position to go on from: a watcher reads each line once."""
        try:
            with (self.path / "events.jsonl").open("rb") as file:
                file.seek(position)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return [], 0
        return [json.loads(line) for line in whole.splitlines()], position + len(whole) + len(newline)

    def last_event(self) -> dict[str, Any]:
        """Return the newest event, read from the end of the file; empty while there is none."""
        lines = self._tail()
        return json.loads(lines[-1]) if lines else {}

    def last_events(self, kind: str, most: int) -> list[dict[str, Any]]:
        """Return the newest events of one kind, oldest first, as far as the end of the file holds them."""
        lines = [line for line in self._tail() if line.startswith(f'{{"event": "{kind}",'.encode())]
        return [json.loads(line) for line in lines[-most:]]

    def _tail(self) -> list[bytes]:
        """Return the last lines, of which the first may lack its beginning; a torn last line is left out."""
        try:
            with (self.path / "events.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
                return file.read().rpartition(b"\n")[0].splitlines()
        except FileNotFoundError:
            return []

    def append(self, kind: str, **values: Any) -> None:
        """Append one event in a single write; a torn line left by a killed writer is closed first."""
        line = json.dumps({"event": kind, "time": round(time.time(), 3), **values}, allow_nan=False) + "\n"
        with (self.path / "events.jsonl").open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    torn = self._length_without_torn_line()
                    file.truncate(torn)
            file.write(line.encode())

    def _length_without_torn_line(self) -> int:
        data = (self.path / "events.jsonl").read_bytes()
        return data.rfind(b"\n") + 1

    def request_stop(self) -> None:
        """Ask the worker to stop at the next step; what is done is kept."""
        (self.path / "stop").touch()

    @property
    def stop_requested(self) -> bool:
        return (self.path / "stop").exists()

    @contextmanager
    def alive(self, timeout_seconds: float = 2.0) -> Iterator[None]:
        """Hold the lock; raises filelock.Timeout when another worker has it."""
        with FileLock(self.path / "lock").acquire(timeout=timeout_seconds):
            yield

    @property
    def is_alive(self) -> bool:
        """Whether a worker holds the lock; the kernel frees it when the worker dies, however it dies."""
        return is_held(self.path / "lock")


class Run(Job):
    """One run's directory.

    `experiment.json` (once), `events.jsonl` (append-only, one writer), `stop`, `lock` (held while alive), `log.txt`, `*.npz`,
    `places.jsonl`, `weights.safetensors`, `predictions.csv`, `checkpoint/`, `measures/`, `result.json`.
    """

    @property
    def experiment(self) -> Experiment:
        """Return what the run was asked to do; `run.missing` when there is no such run."""
        try:
            return Experiment.model_validate_json((self.path / "experiment.json").read_bytes())
        except FileNotFoundError:
            raise RunError("run.missing", f"There is no run {self.id!r} in {self.path.parent}.") from None

    @property
    def state(self) -> str:
        """Return queued, preparing, training, evaluating, done, stopped, failed or lost, derived from the files."""
        if (self.path / "result.json").exists():
            return "done"
        match self.last_event():
            case {"event": "end", "state": state}:
                return str(state)
            case {"event": "start" | "stage" | "resume" | "step" | "epoch"} as event if self.is_alive:
                return str(event.get("stage", "preparing" if event["event"] in ("start", "resume") else "training"))
            case {"event": "start" | "stage" | "resume" | "step" | "epoch"}:
                return "stopped" if self.stop_requested else "lost"
        return "stopped" if self.stop_requested else "queued"

    def result(self) -> dict[str, Any] | None:
        """Return the finished run's numbers, or None while there are none."""
        try:
            return json.loads((self.path / "result.json").read_bytes())
        except FileNotFoundError:
            return None

    def end(self) -> dict[str, Any]:
        """Return how the run ended, empty while it has not."""
        event = self.last_event()
        return event if event.get("event") == "end" else {}

    def measures(self) -> dict[str, dict[str, Any]]:
        """Return what each diagnostic measured on this run, by name."""
        files = sorted((self.path / "measures").glob("*.json"))
        return {file.stem: json.loads(file.read_bytes())["runs"][self.id] for file in files}

    def measured(self, diagnostic: str) -> dict[str, Any] | None:
        """Return the document of one diagnostic, with the settings that it was measured with; None where it was not."""
        try:
            return json.loads((self.path / "measures" / f"{diagnostic}.json").read_bytes())
        except FileNotFoundError:
            return None


class Lab:
    """A folder of image sets (`data/`), caches (`cache/`), runs (`runs/`) and comparisons of runs (`comparisons/`)."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        self.data, self.cache, self._runs = self.root / "data", self.root / "cache", self.root / "runs"
        self.comparisons, self.photos = self.root / "comparisons", self.root / "photos"
        self.measuring = self.root / "measuring"
        try:
            for folder in (self.data, self.cache, self._runs, self.comparisons):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError("run.disk", f"The lab folder {self.root} cannot be made: {error.strerror or error}.") from error

    @property
    def visiting(self) -> bool:
        """Whether it belongs to a visitor of a public server."""
        return self.root.parent.name == VISITORS

    @property
    def host(self) -> Path:
        """The folder whose one worker serves this lab: its own, or that of the server where its owner is a visitor."""
        return self.root.parent.parent if self.visiting else self.root

    def neighbors(self) -> list[Lab]:
        """Return all labs that the same worker serves, this one among them."""
        if not self.visiting and not (self.root / VISITORS).exists():
            return [self]
        return [Lab(self.host), *(Lab(folder) for folder in sorted((self.host / VISITORS).glob("[0-9a-f]*")))]

    @property
    def read_only(self) -> bool:
        """Whether it was opened from a bundle: it is looked at, and nothing is trained or measured in it."""
        return (self.root / "opened.json").exists()

    def submit(self, experiment: Experiment) -> Run:
        """Create the run's directory, which queues it; an equal experiment gives the same run, never a second one."""
        path = self._runs / experiment.id
        if not path.exists():
            draft = Path(tempfile.mkdtemp(dir=self._runs, prefix=".draft-"))
            write_json(draft / "experiment.json", experiment.model_dump(mode="json"))
            try:
                draft.rename(path)
            except OSError:  # another process was faster: the directory is the idempotency key
                shutil.rmtree(draft, ignore_errors=True)
        return Run(path)

    def adopt(self, other: Lab, data: str) -> None:
        """Take an image set of another lab into this one; nothing happens where it already is."""
        if not (self.data / data).exists():
            shutil.copytree(other.data / data, self.data / data)

    def requeue(self, run: Run) -> None:
        """Let a stopped, failed or lost run be taken up again from its last checkpoint."""
        (run.path / "stop").unlink(missing_ok=True)
        if run.state in ("stopped", "failed", "lost"):
            run.append("queued")

    def run(self, name: str | Path) -> Run:
        """Return a run by id or directory; `run.missing` when there is none."""
        path = Path(name) if (Path(name) / "experiment.json").exists() else self._runs / str(name)
        if not (path / "experiment.json").exists():
            raise RunError(
                "run.missing", f"There is no run {str(name)!r}; `python -m rift list runs --lab {self.root}` shows them."
            )
        return Run(path)

    def runs(self) -> list[Run]:
        """Return all runs, oldest first."""
        found = [path for path in self._runs.iterdir() if not path.name.startswith(".") and (path / "experiment.json").exists()]
        return [Run(path) for path in sorted(found, key=lambda p: ((p / "experiment.json").stat().st_mtime_ns, p.name))]

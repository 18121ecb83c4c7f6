"""A directory that a worker acts on: what a run and a measurement have in common."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rift import disk


def is_held(path: Path) -> bool:
    """Whether some process holds the lock file at `path`."""
    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # nothing can be written here, and so nobody works here
        return False


class Job:
    """A directory that a worker acts on: `events.jsonl` (append-only, one writer), `stop`, `lock` (held while alive)."""

    def __init__(self, path: Path | str):
        self._path = os.fspath(path)
        self.id = os.path.basename(self._path)

    @cached_property
    def path(self) -> Path:
        """The directory, made when it is asked for: a list of ten thousand runs asks for few."""
        return Path(self._path)

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
        found = map(disk.values, whole.splitlines())
        return [event for event in found if event is not None], position + len(whole) + len(newline)

    def last_event(self) -> dict[str, Any]:
        """Return the newest event, read from the end of the file; empty while there is none. Damaged lines are passed over."""
        return next(filter(None, map(disk.values, reversed(self._tail()))), {})

    def last_events(self, kind: str, most: int) -> list[dict[str, Any]]:
        """Return the newest events of one kind, oldest first, as far as the end of the file holds them."""
        lines = [line for line in self._tail() if line.startswith(f'{{"event": "{kind}",'.encode())]
        return [event for event in map(disk.values, lines[-most:]) if event is not None]

    def _tail(self) -> list[bytes]:
        """Return the last lines, of which the first may lack its beginning; a torn last line is left out."""
        try:
            with (self.path / "events.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
                return file.read().rpartition(b"\n")[0].splitlines()
        except FileNotFoundError:
            return []

    def append(self, kind: str, **values: Any) -> None:
        """Append one event in a single write; a torn line left by a killed writer is closed first. `run.disk` when it cannot.

        `time` is the day's, which may jump; `clock` counts seconds since the computer started and does not.
        """
        head = {"event": kind, "time": round(time.time(), 3), "clock": round(time.monotonic(), 3)}
        line = disk.line({**head, **values})
        try:
            with (self.path / "events.jsonl").open("ab+", buffering=0) as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        torn = self._length_without_torn_line()
                        file.truncate(torn)
                size = file.seek(0, os.SEEK_END)
                if file.write(line) != len(line):
                    file.truncate(size)
                    raise OSError(28, "No space left on device")
        except OSError as error:
            raise disk.refused(error, "the log of the run") from error

    def _length_without_torn_line(self) -> int:
        data = (self.path / "events.jsonl").read_bytes()
        return data.rfind(b"\n") + 1

    def request_stop(self) -> None:
        """Ask the worker to stop at the next step; what is done is kept."""
        try:
            (self.path / "stop").touch()
        except OSError as error:
            raise disk.refused(error, "the wish to stop") from error

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

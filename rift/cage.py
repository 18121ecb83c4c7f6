"""Reading a stranger's files in a cage: a child process with a limit on memory and processor time, so that the app survives it.

One small process is started when the first file comes (`python -m rift.caged`); it imports what reads files and forks for each
request, which costs milliseconds where a new interpreter would cost a second. Requests and answers are JSON lines, and bytes
behind them: nothing that a child says is unpickled. What ends its child (a decoder that crashes, runs for ever or takes all
memory) is left out by name, and the rest is read again. The cage bounds harm by accident and by greed; it is no jail: the child
runs as the same user. Where there is no fork (Windows) files are read in the app's own process.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rift import caged, dataset
from rift.archive import GB, LOCAL, MB, Limits, plain
from rift.errors import DataError, of_code
from rift.review import WORKSHOP, Progress

MEMORY = 3 * GB  # that one request may have written to, beside what was there when it began
SECONDS = 10  # of processor time for one picture
SILENCE = 120.0  # seconds without a word after which a child is ended; many, since the machine may be busy
CRASHES = 5  # files that are left out before an upload is refused as a whole
_ANSWER = 100 * MB  # the most that is taken from a child
_CAGED = hasattr(os, "fork")
_COMMAND = ["-m", "rift.caged"]


class Ended(Exception):
    """A child ended without an answer, while it read `file` ("" where it had not begun one)."""

    def __init__(self, file: str, why: str):
        super().__init__(file, why)
        self.file, self.why = file, why


def read(
    source: Path,
    root: Path,
    *,
    limits: Limits = LOCAL,
    progress: Progress | None = None,
    **how: Any,
) -> dataset.ImageSet:
    """Do what `upload.read` does, in the cage; a file that ends its reader is skipped as `data.image`, and told.

    Raises what `upload.read` raises, and `data.archive` where the upload as a whole cannot be read in the cage.
    """
    without: dict[str, str] = {}
    while True:
        request = {"source": str(source.resolve()), "root": str(root), "limits": asdict(limits), "how": how, "without": without}
        try:
            found, _ = ask("upload", request, progress=progress)
            return dataset.load(root / _digest(found))
        except Ended as end:
            if not end.file or end.file in without or len(without) >= CRASHES:
                names = ", ".join(plain(name) for name in [*without, end.file] if name)
                sentence = f"Reading this upload ended its reader ({end.why}){': ' + names if names else ''}; nothing was kept."
                raise DataError("data.archive", sentence) from None
            without[end.file] = f"It ended the program that read it ({end.why}) and was left out; export or copy it again."


def check(data: bytes) -> bytes:
    """Return the bytes to keep of a picture (see `images.kept`); raises `data.image` for what is no sound one."""
    return _one("check", data) or data


def square(data: bytes, size: int) -> bytes:
    """Return a picture cut to `(size, size, 3)` as PNG of 8 bits, without its metadata; raises `data.image`."""
    return _one("square", data, size=size)


def _one(job: str, data: bytes, **request: Any) -> bytes:
    try:
        return ask(job, request, data)[1]
    except Ended as end:
        raise DataError("data.image", f"The picture ended the program that read it ({end.why}); export it again.") from None


def ask(
    job: str, request: Mapping[str, Any], data: bytes = b"", progress: Progress | None = None
) -> tuple[dict[str, Any], bytes]:
    """Have a child do a job of `caged.JOBS` and return its answer, as JSON and as bytes; raises its `UserError`, or `Ended`."""
    if not _CAGED:
        return caged.JOBS[job](request, data, progress or (lambda done, total, file: None))
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            _keeper().take(theirs)
        ours.settimeout(SILENCE)
        limits = {"memory": MEMORY, "seconds": SECONDS}
        return _conversation(ours, {**request, **limits, "job": job, "bytes": len(data)}, data, progress)


def _conversation(
    ours: socket.socket, request: dict[str, Any], data: bytes, progress: Progress | None
) -> tuple[dict[str, Any], bytes]:
    pid, file, why = 0, "", "it crashed"
    try:
        with ours.makefile("rwb") as channel:
            with suppress(BrokenPipeError):  # it ended before it had read all; what it said is still there
                channel.write(json.dumps(request).encode() + b"\n" + data)
                channel.flush()
            while line := channel.readline(caged.LINE):
                said = json.loads(line)
                if "pid" in said:
                    pid = int(said["pid"])
                elif "file" in said:
                    file = str(said["file"])
                    if progress is not None:
                        progress(int(said["done"]), int(said["total"]), file)
                elif "ended" in said:
                    why = str(said["ended"])
                elif "error" in said:
                    raise of_code(str(said["error"][0]), plain(str(said["error"][1]), 1000))
                else:
                    return said["answer"], channel.read(min(int(said["bytes"]), _ANSWER))
    except TimeoutError:
        why = f"it said nothing for {SILENCE:.0f} s"
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        why = "it answered nonsense"
    finally:
        if pid:
            _end(pid, request.get("root"))
    raise Ended(file, why)


def _end(pid: int, root: str | None) -> None:
    """Make sure that a child is gone, and what it left half written."""
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    for left in Path(root).glob(f"{WORKSHOP}{pid}-*") if root else ():
        shutil.rmtree(left, ignore_errors=True)


def _digest(answer: Mapping[str, Any]) -> str:
    digest = str(answer.get("digest"))
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise DataError("data.archive", "The reader's answer made no sense; nothing was kept.")
    return digest


class _Keeper:
    """The process that forks: it is given one end of a socket for each request, and forgets it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        here = str(Path(__file__).parents[1])
        one = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}  # each thread reserves memory of its own
        self.process = subprocess.Popen(
            [sys.executable, *_COMMAND, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            env={**os.environ, **one, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])},
        )
        theirs.close()
        self.door = ours

    def take(self, end: socket.socket) -> None:
        socket.send_fds(self.door, [b"."], [end.fileno()])

    def close(self) -> None:
        self.door.close()  # which ends it
        self.process.wait()


_current: list[_Keeper] = []
_lock = threading.Lock()


def _keeper() -> _Keeper:
    with _lock:
        if _current and _current[0].process.poll() is not None:
            _current.pop().close()
        if not _current:
            _current.append(_Keeper())
        return _current[0]


def warm() -> None:
    """Start the process that forks, so that the first upload does not wait for it."""
    if _CAGED:
        _keeper()


@atexit.register
def close() -> None:
    """End the process that forks; the next request starts another."""
    with _lock:
        while _current:
            _current.pop().close()

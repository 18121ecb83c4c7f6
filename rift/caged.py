"""The inside of the cage (`rift/cage.py`): the process that forks, and the jobs that its children do."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BufferedRWPair
from pathlib import Path
from typing import Any, NoReturn

from rift import images, upload
from rift.archive import GB, Limits
from rift.errors import UserError
from rift.review import Progress

LINE = 64_000  # bytes of one line of an answer


def _upload(request: Mapping[str, Any], data: bytes, tell: Progress) -> tuple[dict[str, Any], bytes]:
    limits, without = Limits(**request["limits"]), request["without"]
    found = upload.read(
        Path(request["source"]), Path(request["root"]), limits=limits, without=without, progress=tell, **request["how"]
    )
    return {"digest": found.digest}, b""


def _check(request: Mapping[str, Any], data: bytes, tell: Progress) -> tuple[dict[str, Any], bytes]:
    kept = images.kept(images.read(data), data)
    return {}, b"" if kept is data else kept


def _square(request: Mapping[str, Any], data: bytes, tell: Progress) -> tuple[dict[str, Any], bytes]:
    pixels = images.fit(images.read(data).pixels, int(request["size"]))
    return {}, images.encode(pixels if pixels.dtype == "uint8" else (pixels >> 8).astype("uint8"))


JOBS: dict[str, Callable[[Mapping[str, Any], bytes, Progress], tuple[dict[str, Any], bytes]]] = {
    "upload": _upload,
    "check": _check,
    "square": _square,
}


def _serve(door: socket.socket) -> None:
    """Fork for every socket that comes through the door, until whoever holds its other end is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the app, which then closes the door
    while True:
        message, ends, _, _ = socket.recv_fds(door, 1, 1)
        if not message:
            return
        for end in ends:
            if os.fork() == 0:
                door.close()
                _child(socket.socket(fileno=end))
            os.close(end)


def _child(theirs: socket.socket) -> NoReturn:
    """Do one job and end, whatever happens."""
    status = 1
    try:
        with theirs, theirs.makefile("rwb") as channel:
            try:
                _work(channel)
                status = 0
            except BaseException as error:  # our own fault: where it was, but not what was read, which may be a patient's
                sys.stderr.write(f"{type(error).__name__} while reading:\n{''.join(traceback.format_tb(error.__traceback__))}")
                sys.stderr.flush()  # before the channel is closed, since the parent ends this process then
    finally:
        os._exit(status)


def _work(channel: BufferedRWPair) -> None:
    """Read a request from the channel and write its answer there."""

    def say(**words: Any) -> None:
        channel.write(json.dumps(words).encode()[: LINE - 1] + b"\n")
        channel.flush()

    def tell(done: int, total: int, file: str) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, request["seconds"])  # its signal ends this process
        say(file=file, done=done, total=total)

    say(pid=os.getpid())
    request = json.loads(channel.readline())
    _limit(request["memory"])
    data = channel.read(request["bytes"])
    signal.setitimer(signal.ITIMER_VIRTUAL, request["seconds"])
    try:
        answer, more = JOBS[request["job"]](request, data, tell)
    except UserError as error:
        say(error=(error.code, error.sentence))
    except MemoryError:
        say(ended="it took more memory than is allowed")
    else:
        say(answer=answer, bytes=len(more))
        channel.write(more)


def _limit(memory: int) -> None:
    """Allow this process so much memory beyond what it has: private pages, so that libraries mapped later count little."""
    import resource  # not on Windows, where nothing of this runs

    used = 0
    with suppress(OSError):
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        used = int(fields["VmData"].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * GB, 20 * GB))


def main(door: str) -> None:
    """Serve on the socket of this number until its other end is closed."""
    _serve(socket.socket(fileno=int(door)))


if __name__ == "__main__":
    main(sys.argv[1])

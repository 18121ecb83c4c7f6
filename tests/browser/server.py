"""The app as a process over a lab of its own, which a test may kill and start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from rift.runs import ENDED, Lab

APP = Path(__file__).parents[2] / "app.py"


class Server:
    """The app as a process of its own; `close` ends it and the workers of its lab, and nothing else."""

    def __init__(self, folder: Path, *options: str, **environment: str):
        self.options, self.environment = options, environment
        self.root, self.uploads, self.log = folder / "lab", folder / "uploads", folder / "app.log"
        self.uploads.mkdir(parents=True)
        self.url = self.start(0)

    def start(self, port: int) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(self.uploads), **self.environment}
        command = [sys.executable, str(APP), "--lab", str(self.root), "--port", str(port), "--device", "cpu"]
        command += ["--no-stand-by", *self.options]  # of many servers each would import torch once more
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
        address = self.process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), f"the app did not start:\n{self.log.read_text()}"
        return address.rstrip("/")

    @property
    def lab(self) -> Lab:
        return Lab(self.root)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """End the app as a crash would; its worker is in a group of its own and goes on."""
        self.process.kill()
        self.process.communicate()

    def workers(self, standing_by: bool = False) -> list[int]:
        """Return the processes that work on this lab, known by the lab's folder in their command; or those that stand by."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"work" in words and str(self.root.resolve()).encode() in words:
                    waits = b"--stand-by" in words and os.readlink(entry / "fd" / "0").startswith("pipe:")
                    found += [int(entry.name)] if waits == standing_by else []
        return found

    def rest(self) -> None:
        """Stop what a test has left running, so that the next one does not queue behind it."""
        for run in self.lab.runs():
            if run.state not in ENDED:
                run.request_stop()

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate()
        for pid in self.workers():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

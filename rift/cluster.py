"""Runs over the machines of a Ray cluster: one task for each, which does in its process what a worker does here.

Only names of run directories go to Ray, and nothing comes back: the directory is the truth, there as here. A task takes the run's
lock and goes on from its checkpoint; Ray starts it again where its process was killed. A driver that was killed is replaced by
the same command: what is finished stands, and what was cut off is taken up. The machines must share the lab's folder, with locks
that hold between them, which each is asked to show before the first run is handed out.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from rift import jobs, process
from rift.errors import RunError, SettingError, UserError
from rift.runs import ENDED, Lab, Run, is_held

CLIENT_PORT = 10001  # Ray's own default for ray://HOST
REACH_SECONDS = 5.0
SHOW_SECONDS = 120.0  # how long a machine may take to start a process and look at the lab
POLL_SECONDS = 1.0
TRIES = 3  # starts of a run anew whose process was killed
STORE_BYTES = 80_000_000  # of a Ray that is started here: nothing is stored in it


def connect(cluster: str) -> None:
    """Connect to a cluster, once in a process; nothing happens for "local".

    "ray" is the one at RAY_ADDRESS or, without that, one that is started here and ends with this process; `ray://HOST:PORT` names
    another. Raises `setting.range` for anything else, `run.cluster` where Ray is not installed or does not answer.
    """
    if cluster == "local":
        return
    if cluster != "ray" and not cluster.startswith("ray://"):
        raise SettingError("setting.range", f"--cluster {cluster!r} is not known; use local, ray or ray://HOST:PORT.")
    address = os.environ.get("RAY_ADDRESS", "") if cluster == "ray" else cluster
    if not address:
        _keep_to_this_machine()
    ray = _ray()
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address:
            _refuse_silent(address)
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, object_store_memory=STORE_BYTES, **quiet)
    except RunError:
        raise
    except Exception as error:  # whatever its parts say: a version that differs, no room, a port in use
        where = address or "on this machine"
        raise RunError("run.cluster", f"The Ray cluster {where} cannot be used: {_first_line(error)}.") from error


def _keep_to_this_machine() -> None:
    """Let a Ray that is started here tell its makers nothing, listen on 127.0.0.1 only and refuse who does not know its token."""
    chosen = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # no cluster beyond this machine: how Ray comes to listen on 127.0.0.1
        "RAY_AUTH_MODE": "token",  # there are other people's processes on this machine too
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    for name, value in chosen.items():  # read when Ray is imported and by its processes
        os.environ.setdefault(name, value)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        message = "--cluster ray needs Ray, which is not installed; `pip install 'rift-lab[cluster]'` brings it."
        raise RunError("run.cluster", message) from None
    return ray


def _refuse_silent(address: str) -> None:
    """Raise `run.cluster` where nobody listens at an address; Ray itself would try for minutes."""
    if address in ("auto", "local"):
        return
    try:
        parts = urlsplit(address if "://" in address else f"gcs://{address}")
        host, port = parts.hostname or "", parts.port or CLIENT_PORT
        with socket.create_connection((host, port), timeout=REACH_SECONDS):
            pass
    except (OSError, ValueError) as error:
        message = f"There is no Ray cluster at {address} ({_first_line(error)}); give ray://HOST:PORT or set RAY_ADDRESS."
        raise RunError("run.cluster", message) from None


def crew(cluster: str, device: str, workers: int | None, devices: int) -> jobs.Workers | Tasks:
    """Return who carries out runs: so many worker processes here, or tasks of a cluster, as many as it has room for or `workers`.

    Each run is shared out over so many devices of one machine. Raises what `connect` does, and `setting.range` for a device
    that there is not or several workers here that would each want several devices.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise SettingError("setting.range", f"--device {device!r} is not allowed; use auto, cpu or cuda.")
    connect(cluster)
    if cluster != "local":
        return Tasks(device, workers, devices)
    if devices > 1 and (workers or 1) > 1:
        message = f"--workers {workers} would each want the same {devices} devices; use --workers or --devices."
        raise SettingError("setting.range", message)
    return jobs.Workers(device, workers or 1, devices)


@dataclass
class Tasks:
    """The way to carry out runs on a cluster; `jobs.Workers` is the other one."""

    device: str
    workers: int | None
    devices: int
    again: int = 0  # Ray itself starts a task anew
    queue: list[str] = field(default_factory=list)
    running: list[Any] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    alone: FileLock | None = None  # of the lab's queue

    def start(self, lab: Lab, runs: Sequence[Run]) -> None:
        """Have runs carried out; `run.cluster` where a machine does not share the lab, `run.missing` where GPUs are missing.

        A page that is open over the lab meanwhile shows them, and starts no worker of its own.
        """
        ray = _ray()
        needs = resources(ray.nodes(), self.device, self.devices)
        _refuse_unshared(ray, lab)
        self.alone = FileLock(lab.host / "worker.lock")
        with suppress(Timeout):  # a worker here is at it already: then both share the queue
            self.alone.acquire(timeout=0)
        task = ray.remote(max_retries=TRIES, max_calls=1, **needs)(carry_out)  # a process for each: GPU memory is freed with it
        self._submit: Callable[[str], Any] = lambda name: task.remote(str(lab.root.resolve()), name, self.device, self.devices)
        self.queue, self.errors = [run.id for run in runs], []
        self.running = []

    def at_work(self) -> bool:
        """Whether a task runs or waits for its turn; `run.cluster` when the cluster is gone."""
        ray = _ray()
        try:
            while self.queue and (self.workers is None or len(self.running) < self.workers):
                self.running.append(self._submit(self.queue.pop(0)))
            done, self.running = ray.wait(self.running, num_returns=len(self.running), timeout=0) if self.running else ([], [])
        except Exception as error:
            message = f"The cluster can no longer be reached ({_first_line(error)}); the same command goes on from what is done."
            raise RunError("run.cluster", message) from error
        for one in done:
            try:
                ray.get(one)
            except Exception as error:
                self.errors.append(error)
        return bool(self.running or self.queue)

    def failure(self, lab: Lab) -> str:
        """Raise `run.cluster`, or what the user can mend, that kept a task from its run."""
        for error in self.errors:
            cause = getattr(error, "cause", error)
            if isinstance(cause, UserError):
                raise cause
        why = f": {_first_line(self.errors[0])}" if self.errors else ""
        raise RunError("run.cluster", f"The cluster left runs undone{why}; the same command goes on from what is done.")

    def close(self) -> None:
        """Leave the lab's queue to others again."""
        if self.alone is not None:
            self.alone.release()


def resources(nodes: Sequence[dict[str, Any]], device: str, devices: int) -> dict[str, float]:
    """Return what a task reserves: GPUs where there are any and the CPU is not asked for, else a CPU for each device.

    Ray sets CUDA_VISIBLE_DEVICES to what it reserved. Raises `run.missing` where no machine has as many.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    kind = "GPU" if device == "cuda" or (device == "auto" and any(one.get("GPU") for one in alive)) else "CPU"
    most = int(max((one.get(kind, 0) for one in alive), default=0))
    if devices > most:
        message = f"A run is to have {devices} {kind}s of one machine, and none of the cluster has more than {most}."
        raise RunError("run.missing", message)
    return {"num_gpus": devices, "num_cpus": 1} if kind == "GPU" else {"num_cpus": devices}


def carry_out(root: str, name: str, device: str, devices: int) -> None:
    """Be a task: carry out one run from where it is, or wait until it has ended where another process is at it."""
    lab = Lab(root)
    run = lab.run(name)
    while ((state := run.state) not in ENDED or state == "lost") and not process.asked():
        if state == "lost":
            lab.requeue(run)
        jobs.work(lab, device, [name], devices)
        if run.state not in ENDED:
            time.sleep(POLL_SECONDS)


def _refuse_unshared(ray: Any, lab: Lab) -> None:
    """Raise `run.cluster` where a machine of the cluster does not see the lab, or not its locks: two could work at one run."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    name = f".shown-{secrets.token_hex(4)}"
    path = lab.root.resolve() / name
    look = ray.remote(num_cpus=0, max_retries=1)(sees)
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    try:
        with FileLock(path):
            answers = [look.options(scheduling_strategy=On(one, soft=False)).remote(str(path)) for one in nodes]
            for host, wrong in zip(nodes.values(), ray.get(answers, timeout=SHOW_SECONDS), strict=True):
                if wrong:
                    where = f"The machine {host} of the cluster {wrong}"
                    raise RunError("run.cluster", f"{where}. All must share {path.parent}; see `rift sweep --help`.")
    except RunError:
        raise
    except Exception as error:
        message = f"A machine of the cluster cannot work for RIFT Lab: {_first_line(error)}. It must be installed on each."
        raise RunError("run.cluster", message) from error
    finally:
        path.unlink(missing_ok=True)


def sees(path: str) -> str:
    """Say what a machine lacks to work in the lab where another one holds this lock; empty where all is well."""
    if not Path(path).exists():
        return "does not see the lab's folder, or not what was just written there"
    return "" if is_held(Path(path)) else "does not see the locks of others in the lab's folder"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:300]

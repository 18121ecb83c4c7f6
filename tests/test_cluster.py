"""Runs handed to a cluster: the sentences, what a task reserves and does; and a real Ray whose worker and driver are killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest
import typer
from filelock import FileLock

from rift import cluster, following, jobs, sweeping
from rift.errors import DataError, RunError
from rift.runs import Lab
from tests.test_cli import here  # noqa: F401 - a fixture
from tests.test_jobs import PATIENCE_SECONDS, own_lab, wait
from tests.test_train import experiment, lab  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[1]
EPOCHS = "30"  # long enough for a run to be cut off in its midst
ASKED = ["sample:phantoms", "--out", "out", "--strengths", "1"]


class FakeRay(types.ModuleType):
    """What `cluster.Tasks` asks of Ray: a task is a name, and is done when a test says so."""

    def __init__(self):
        super().__init__("ray")
        self.open, self.done, self.gone, self.asked = [], {}, False, {}

    def is_initialized(self):
        return True

    def nodes(self):
        return []

    def remote(self, **asked):
        self.asked = asked
        return lambda function: types.SimpleNamespace(remote=lambda *about: self.open.append(about[1]) or about[1])

    def wait(self, tasks, num_returns, timeout):
        if self.gone:
            raise ConnectionError("it is gone\nand more")
        return [one for one in tasks if one in self.done], [one for one in tasks if one not in self.done]

    def get(self, task):
        if isinstance(self.done[task], Exception):
            raise self.done[task]


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(cluster, "_refuse_unshared", lambda *about: None)
    monkeypatch.setattr(cluster, "resources", lambda *about: {"num_cpus": 1})
    return fake


def test_without_ray_the_sentence_says_what_to_install(here, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "ray", None)
    done = here("sweep", *ASKED, "--cluster", "ray")
    assert done.returncode == 2 and done.stderr.splitlines() == [
        "error[run.cluster]: --cluster ray needs Ray, which is not installed; `pip install 'rift-lab[cluster]'` brings it."
    ]


def test_a_cluster_that_does_not_answer_is_told_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=lambda: False))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, address in (
        ("ray://127.0.0.1", ""),
        (f"ray://127.0.0.1:{port}", ""),
        ("ray", f"127.0.0.1:{port}"),
        ("ray://:x", ""),
    ):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(RunError, match="There is no Ray cluster at") as caught:
            cluster.connect(name)
        assert caught.value.code == "run.cluster" and (address or name) in caught.value.sentence


def test_what_ray_itself_says_is_passed_on_in_a_line(monkeypatch):
    def init(**asked):
        raise RuntimeError("\nVersion mismatch: 2.9 here.\nTraceback …")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=lambda: False, init=init))
    with pytest.raises(RunError, match=r"^The Ray cluster on this machine cannot be used: Version mismatch: 2.9 here.$"):
        cluster.connect("ray")


@pytest.mark.parametrize(
    ("more", "terminal", "answer", "local"),
    [(["--or-local"], False, None, True), ([], False, None, False), ([], True, True, True), ([], True, False, False)],
)
def test_this_machine_takes_over_only_where_somebody_agrees(here, monkeypatch, more, terminal, answer, local):  # noqa: F811
    asked: list[str] = []
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(sweeping, "sweep", lambda *_, cluster, **__: asked.append(cluster) or {})
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: terminal))
    monkeypatch.setattr(typer, "confirm", lambda text, err: answer)
    done = here("sweep", *ASKED, "--cluster", "ray", *more)
    assert asked == (["local"] if local else []) and done.returncode == (0 if local else 2)
    assert ("Working on this machine instead" in done.stderr) == local


def test_a_task_reserves_gpus_where_there_are_any():
    one = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}
    two = {"Alive": True, "Resources": {"CPU": 16.0}}
    dead = {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 8.0}}
    assert cluster.resources([one, two], "auto", 1) == {"num_gpus": 1, "num_cpus": 1}
    assert cluster.resources([one, two], "auto", 2) == {"num_gpus": 2, "num_cpus": 1}
    assert cluster.resources([one, two], "cpu", 9) == {"num_cpus": 9}
    assert cluster.resources([two, dead], "auto", 1) == {"num_cpus": 1}
    for nodes, device, devices, kind in (([one, dead], "auto", 3, "GPU"), ([two], "cuda", 1, "GPU"), ([two], "cpu", 17, "CPU")):
        with pytest.raises(RunError, match=f"{devices} {kind}s of one machine") as caught:
            cluster.resources(nodes, device, devices)
        assert caught.value.code == "run.missing"


def test_a_machine_that_does_not_see_the_lock_would_train_a_run_twice(tmp_path):
    path = str(tmp_path / "shown")
    assert "does not see the lab's folder" in cluster.sees(path)
    Path(path).touch()
    assert "locks" in cluster.sees(path)
    with FileLock(path):
        assert cluster.sees(path) == ""


def test_so_many_tasks_at_once_as_asked_and_each_run_once(ray, lab, tmp_path):  # noqa: F811
    home = own_lab(lab, tmp_path / "lab")
    runs = [home.submit(experiment(home, seed=seed)) for seed in range(3)]
    tasks = cluster.crew("ray", "cpu", 2, 1)
    tasks.start(home, runs)
    assert tasks.at_work() and ray.open == [run.id for run in runs[:2]], "two at once"
    assert ray.asked == {"max_retries": cluster.TRIES, "max_calls": 1, "num_cpus": 1}
    assert jobs.is_held(home.root / "worker.lock"), "a page over this lab starts no worker of its own"
    ray.done[runs[0].id] = None
    assert tasks.at_work() and tasks.at_work() and ray.open == [run.id for run in runs]
    ray.done |= {run.id: None for run in runs}
    tasks.at_work()
    assert not tasks.at_work() and len(ray.open) == 3
    tasks.close()
    assert not jobs.is_held(home.root / "worker.lock")


def test_what_keeps_a_task_from_its_run_is_told(ray, lab, tmp_path):  # noqa: F811
    home = own_lab(lab, tmp_path / "lab")
    run = home.submit(experiment(home))
    for error, what in (
        (DataError("data.changed", "A picture changed."), "A picture changed"),
        (OSError("it died\n…"), "it died"),
    ):
        ray.done[run.id] = error
        with pytest.raises((RunError, DataError), match=what):
            following.finish(home, [run], {run.id: "rift"}, cluster.crew("ray", "cpu", None, 1), print)
    ray.gone = True
    with pytest.raises(RunError, match=r"can no longer be reached \(it is gone\)") as caught:
        following.finish(home, [run], {run.id: "rift"}, cluster.crew("ray", "cpu", None, 1), print)
    assert caught.value.code == "run.cluster" and run.state == "queued"


def test_a_task_takes_up_a_lost_run_and_waits_for_one_that_another_is_at(lab, tmp_path, monkeypatch):  # noqa: F811
    home = own_lab(lab, tmp_path / "lab")
    run = home.submit(experiment(home))
    run.append("start", pid=0)
    assert run.state == "lost"
    seen: list[str] = []

    def work(lab: Lab, device: str, ids: list[str], devices: int) -> None:
        seen.append(run.state)
        if len(seen) == 2:  # the other one has gone on to its end
            run.append("end", state="done")

    monkeypatch.setattr(jobs, "work", work)
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.01)
    cluster.carry_out(str(home.root), run.id, "cpu", 1)
    assert seen == ["queued", "queued"] and run.state == "done"
    cluster.carry_out(str(home.root), run.id, "cpu", 1)
    assert len(seen) == 2, "what is finished is not touched"


@pytest.mark.slow
def test_a_real_ray_survives_a_killed_worker_and_a_killed_driver_and_repeats_nothing(tmp_path):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; requirements-test.txt has it")
    told = (tmp_path / "told").open("wb")
    asked = ["sample:phantoms:images_per_class=6", "--out", str(tmp_path), "--strengths", "1", "--device", "cpu"]
    asked += ["--epochs", EPOCHS, "--set", "batch_size=8", "--cluster", "ray", "--workers", "1"]
    command = [sys.executable, "-m", "rift", "sweep", *asked]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}
    home = Lab(tmp_path / "lab")

    def start() -> subprocess.Popen:
        return subprocess.Popen(command, cwd=ROOT, stdout=told, stderr=told, env=environment)

    def heard(run, kind: str) -> list[dict]:
        return [event for event in run.events() if event["event"] == kind]

    driver = start()
    try:
        wait(lambda: len(home.runs()) == 2 and len(heard(home.runs()[0], "step")) >= 2, "two steps on the cluster")
        first, second = home.runs()
        os.kill(heard(first, "start")[0]["pid"], signal.SIGKILL)
        wait(lambda: len(heard(first, "start")) == 2, "another task for the run whose worker was killed")
        wait(lambda: first.state == "done" and len(heard(second, "step")) >= 2, "the second run")
        finished = (first.path / "events.jsonl").read_bytes()
        driver.kill()
        driver.wait()
        wait(lambda: not second.is_alive, "the end of the cluster that the driver had started")
        assert second.state == "lost" and first.state == "done"
        driver = start()
        assert driver.wait(2 * PATIENCE_SECONDS) == 0, (tmp_path / "told").read_text()
    finally:
        driver.kill()
        driver.wait()
        told.close()
    assert {run.state for run in home.runs()} == {"done"} and len(home.runs()) == 2
    assert (first.path / "events.jsonl").read_bytes() == finished, "what is finished is not repeated"
    assert len(heard(second, "start")) == 2 and (tmp_path / "sweep.json").exists()
    assert heard(second, "start")[0]["pid"] not in (driver.pid, os.getpid())

"""Real worker processes: they finish, are stopped, are killed with -9, and what they leave behind is enough to go on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rift import jobs
from rift.runs import ENDED, Lab, Run
from tests.test_train import experiment, lab  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow
PATIENCE_SECONDS = 600


def own_lab(source: Lab, folder: Path) -> Lab:
    other = Lab(folder)
    other.data.rmdir()
    other.data.symlink_to(source.data)
    other.medical, other.natural = source.medical, source.natural
    return other


def wait(condition: Callable[[], bool], what: str) -> None:
    patience = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < patience, f"still waiting for: {what}"
        time.sleep(0.02)


def steps(run: Run) -> int:
    return sum(event["event"] == "step" for event in run.events())


@pytest.fixture(autouse=True)
def one_thread_in_the_worker(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_worker_takes_the_queue_in_order_at_low_priority(lab, tmp_path):  # noqa: F811
    here = own_lab(lab, tmp_path / "lab")
    runs = [here.submit(experiment(here, seed=seed, epochs=1)) for seed in (1, 0)]
    process = jobs.start_worker(here, "cpu")
    wait(lambda: runs[0].state == "training", "the first run")
    assert os.getpriority(os.PRIO_PROCESS, process.pid) >= jobs.NICE and os.getpgid(process.pid) == process.pid
    assert process.wait(PATIENCE_SECONDS) == 0
    assert [run.state for run in runs] == ["done", "done"]
    assert runs[0].events()[-1]["time"] <= runs[1].events()[0]["time"]


def test_kill_9_then_resume_gives_the_undisturbed_bits(lab, tmp_path, monkeypatch):  # noqa: F811
    one = {"regularizer": "rift", "strength": 1.0, "epochs": 6}
    twin = own_lab(lab, tmp_path / "twin").submit(experiment(lab, **one))
    assert jobs.start_worker(Lab(tmp_path / "twin"), "cpu").wait(PATIENCE_SECONDS) == 0 and twin.state == "done"
    here = own_lab(lab, tmp_path / "lab")
    run = here.submit(experiment(here, **one))
    process = jobs.start_worker(here, "cpu")
    wait(lambda: steps(run) >= 4, "four steps")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert run.state == "lost"
    here.requeue(run)
    assert jobs.start_worker(here, "cpu").wait(PATIENCE_SECONDS) == 0 and run.state == "done"
    first, second = (load_file(one.path / "weights.safetensors") for one in (run, twin))
    assert all(torch.equal(first[key], second[key]) for key in second)
    timing = {"seconds", "step_milliseconds"}
    numbers = [{k: v for k, v in one.result()["numbers"].items() if k not in timing} for one in (run, twin)]
    assert numbers[0] == numbers[1]


def test_stop_ends_a_long_step_and_keeps_the_run(lab, tmp_path):  # noqa: F811
    here = own_lab(lab, tmp_path / "lab")
    run = here.submit(experiment(here, epochs=500))
    process = jobs.start_worker(here, "cpu")
    wait(lambda: steps(run) >= 2, "two steps")
    jobs.stop(run)
    wait(lambda: run.state in ENDED, "the end")
    assert run.state == "stopped" and steps(run) >= 2
    process.wait(PATIENCE_SECONDS)
    assert not run.is_alive


def test_a_worker_that_hangs_in_a_step_is_ended(lab, tmp_path):  # noqa: F811
    here = own_lab(lab, tmp_path / "lab")
    run = here.submit(experiment(here, epochs=500))
    process = jobs.start_worker(here, "cpu")
    wait(lambda: steps(run) >= 1, "a step")
    os.kill(process.pid, signal.SIGSTOP)  # as a step of many seconds looks from outside
    jobs.stop(run)
    process.wait(PATIENCE_SECONDS)
    assert run.state == "stopped"

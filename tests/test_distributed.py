"""Several ranks compute what one does with the whole batch; a real worker over two processes, killed and taken up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rift import cluster, distributed, jobs, process, recipe
from rift.errors import RunError, SettingError
from tests.ranks import CASES
from tests.test_jobs import own_lab, steps, wait
from tests.test_train import experiment, lab  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks") / "found.pt"
    command = [sys.executable, "-m", "tests.ranks", str(out)]
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert told.returncode == 0, told.stderr
    return torch.load(out)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(CASES)), ids=[f"{name}-{options}-{more}" for name, options, more in CASES])
def test_two_ranks_compute_what_one_does_with_the_whole_batch(found, place):
    (alone, losses), (together, others) = (one[place] for one in found)
    assert len(losses) == len(others) == 5 and all(one.dtype == torch.float64 for one in alone)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-9)
    for step, other in zip(losses, others, strict=True):
        assert other == pytest.approx(step, rel=1e-9, abs=1e-9)


@pytest.mark.slow
def test_the_cases_train_and_their_penalties_matter(found):
    """Else they could agree for nothing."""
    none = found[0][0]
    for (name, _, more), (tensors, losses) in zip(CASES[1:], found[0][1:], strict=True):
        assert losses[-1]["penalty"] or more.get("frozen"), name
        if not more and len(tensors) >= len(none[0]):
            apart = max(float((one - other).detach().abs().max()) for one, other in zip(tensors, none[0], strict=False))
            assert apart > 1e-5, name


def test_one_rank_shares_nothing_out():
    ids, values = np.arange(5), torch.ones(5, 2, requires_grad=True)
    assert distributed.size() == 1 and distributed.mine(ids) is ids and distributed.whole(values, 5) is values
    with distributed.over(1, CPU, "no.such.module", {}):
        assert not torch.distributed.is_initialized()


def test_more_devices_than_there_are_are_refused(monkeypatch, tmp_path, lab):  # noqa: F811
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RunError, match="--devices 3, but there are 2 CUDA devices here") as caught:
        distributed.refuse_too_many(3, torch.device("cuda"))
    assert caught.value.code == "run.missing"
    with pytest.raises(SettingError, match="only 2 images to share out"):
        distributed.refuse_too_many(3, CPU, 2)
    with pytest.raises(SettingError, match="--workers 2 would each want the same 2 devices"):
        cluster.crew("local", "cpu", 2, 2)
    here = own_lab(lab, tmp_path / "lab")
    run = here.submit(experiment(here, batch_size=2))
    recipe.execute(run, here, CPU, devices=8)
    assert run.end()["code"] == "setting.range", "told before anything is trained"


def numbers(run) -> dict[str, float]:
    return {key: value for key, value in run.result()["numbers"].items() if key in ("accuracy", "cka", "penalty", "task_loss")}


@pytest.mark.slow
def test_a_run_over_two_processes_is_the_run_of_one_and_survives_kills(lab, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = experiment(lab, "rift", 1.0, epochs=3)
    alone, here = own_lab(lab, tmp_path / "alone"), own_lab(lab, tmp_path / "lab")
    one, run = alone.submit(asked), here.submit(asked)
    recipe.execute(one, alone, CPU)
    worker = jobs.start_worker(here, "cpu", [run], 2)
    wait(lambda: steps(run) >= 2, "two steps")
    (other,) = children(worker.pid)
    os.kill(other, signal.SIGKILL)
    worker.wait(60)
    assert run.state == "lost", "a rank that is killed takes the worker with it, and nothing waits for ever"
    here.requeue(run)
    worker = jobs.start_worker(here, "cpu", [run], 2)
    wait(lambda: steps(run) >= 5, "more steps")
    (other,) = children(worker.pid)
    birth = process.birth(other)
    worker.kill()
    worker.wait()
    wait(lambda: process.birth(other) != birth, "the end of the other rank, whose worker is gone")
    here.requeue(run)
    assert jobs.start_worker(here, "cpu", [run], 2).wait(240) == 0 and run.state == "done"
    assert numbers(run) == pytest.approx(numbers(one), rel=2e-3, abs=2e-3)
    assert run.result()["environment"]["devices"] == 2 and "devices" not in one.result()["environment"]
    told = [event["step"] for event in run.events() if event["event"] == "step"]
    assert told[-1] == [event["step"] for event in one.events() if event["event"] == "step"][-1] == max(told)
    losses = {event["step"]: event["task_loss"] for event in one.events() if event["event"] == "step"}
    for event in run.events():
        if event["event"] == "step":
            assert event["task_loss"] == pytest.approx(losses[event["step"]], rel=1e-3)


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_rank_is_told_all_in_one_argument(monkeypatch):
    told: list[list[str]] = []

    def start(module: str, arguments: list[str]) -> subprocess.Popen:
        told.append([module, *arguments])
        return subprocess.Popen(["true"])

    monkeypatch.setattr(process, "start", start)
    monkeypatch.setattr(distributed, "join", lambda *about: None)
    with distributed.over(3, CPU, "rift.assisting", {"step": 4}):
        pass
    assert [(one[0], json.loads(one[1])["rank"], json.loads(one[1])["ranks"]) for one in told] == [
        ("rift.assisting", 1, 3),
        ("rift.assisting", 2, 3),
    ]

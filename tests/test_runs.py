"""A run's state follows from its files alone, whatever died and wherever it tore."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rift.config import Experiment
from rift.errors import RunError
from rift.runs import Lab, write_json

ROOT = Path(__file__).parents[1]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "lab")


def experiment(seed: int = 0) -> Experiment:
    return Experiment(data="d" * 64, natural="n" * 64, seed=seed)


def test_an_equal_experiment_is_the_same_run(lab):
    first, again, other = lab.submit(experiment()), lab.submit(experiment()), lab.submit(experiment(1))
    assert first.id == again.id != other.id
    assert [run.id for run in lab.runs()] == [first.id, other.id]
    assert first.experiment == experiment() and first.state == "queued"


def test_state_follows_the_events(lab):
    run = lab.submit(experiment())
    run.append("start", pid=1)
    assert run.state == "lost"  # no one holds the lock
    with run.alive():
        assert run.state == "preparing"
        run.append("stage", stage="training")
        assert run.state == "training"
        run.append("stage", stage="evaluating")
        assert run.state == "evaluating"
    run.append("end", state="failed", code="run.memory", message="too little")
    assert run.state == "failed" and run.end()["code"] == "run.memory"
    lab.requeue(run)
    assert run.state == "queued"
    write_json(run.path / "result.json", {"numbers": {}})
    assert run.state == "done" and run.result() == {"numbers": {}}


def test_a_stop_before_the_start_is_kept_and_can_be_taken_back(lab):
    run = lab.submit(experiment())
    run.request_stop()
    assert run.state == "stopped"
    lab.requeue(run)
    assert run.state == "queued" and not run.stop_requested


def test_a_torn_last_line_is_ignored_and_then_closed(lab):
    run = lab.submit(experiment())
    run.append("start", pid=1)
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "step", "st')
    assert [event["event"] for event in run.events()] == ["start"]
    run.append("resume", step=3)
    assert [event["event"] for event in run.events()] == ["start", "resume"]
    assert all(json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines())


def test_a_killed_writer_leaves_a_lost_run(lab):
    run = lab.submit(experiment())
    code = (
        "import sys, time; from rift.runs import Run; from pathlib import Path\n"
        "run = Run(Path(sys.argv[1]))\n"
        "with run.alive():\n run.append('start', pid=0); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    assert run.is_alive and run.state == "preparing"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not run.is_alive and run.state == "lost"


def test_a_missing_run_and_a_full_disk_say_so(lab, monkeypatch):
    with pytest.raises(RunError, match="There is no run 'nothing'") as caught:
        lab.run("nothing")
    assert caught.value.code == "run.missing"

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left") as caught:
        write_json(lab.root / "x.json", {})
    assert caught.value.code == "run.disk" and not (lab.root / "x.json").exists()


def test_a_file_where_the_lab_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        Lab(tmp_path / "file" / "lab")

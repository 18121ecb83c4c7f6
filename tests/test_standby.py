"""A worker that stands by: sent to work it is one like any other; it ends with whoever started it, and another follows it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rift import jobs, process, standby
from tests.test_jobs import PATIENCE_SECONDS, one_thread_in_the_worker, own_lab, wait  # noqa: F401 - a fixture
from tests.test_train import experiment, lab  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[1]
WAITS = [sys.executable, "-c", "import sys; sys.exit(not sys.stdin.readline())"]


@pytest.fixture(autouse=True)
def ready(monkeypatch):
    """What stands by, by lab and device; ended after the test."""
    found: dict = {}
    monkeypatch.setattr(standby, "_ready", found)
    yield found
    for one in filter(None, found.values()):
        one.kill()
        one.communicate()


@pytest.fixture
def begun(monkeypatch):
    """The commands that were begun, each as a process that waits for a word and ends well when it has come."""
    asked: list[list[str]] = []

    def start(module, arguments, **more):
        asked.append(list(arguments))
        return subprocess.Popen(WAITS, **{**more, "cwd": None})

    monkeypatch.setattr(process, "start", start)
    return asked


def test_nobody_stands_by_where_nobody_asked_for_it(begun, tmp_path):
    one = subprocess.Popen(["true"])
    assert standby.take(tmp_path, "cpu", lambda: one) is one and one.wait() == 0 and not begun
    standby.keep(tmp_path, "cpu")
    other = subprocess.Popen(["true"])
    assert standby.take(tmp_path, "cuda", lambda: other) is other, "one for the CPU is none for a GPU"
    assert other.wait() == 0


def test_one_is_sent_to_work_and_another_stands_by_when_it_has_ended(begun, ready, tmp_path):
    standby.keep(tmp_path, "cpu")
    standby.keep(tmp_path, "cpu")
    assert begun == [["work", str(tmp_path), "--device", "cpu", "--stand-by"]], "one at a time"
    first = ready[tmp_path, "cpu"]
    assert standby.take(tmp_path, "cpu", lambda: pytest.fail("there is one")) is first
    assert first.wait(PATIENCE_SECONDS) == 0, "it was told"
    wait(lambda: ready[tmp_path, "cpu"] is not None, "the next one")
    assert len(begun) == 2 and ready[tmp_path, "cpu"].pid != first.pid


def test_while_one_is_at_work_and_where_it_was_ended_from_outside_a_worker_is_begun(begun, ready, tmp_path):
    standby.keep(tmp_path, "cpu")
    gone = ready[tmp_path, "cpu"]
    gone.kill()
    gone.wait()
    mine = [subprocess.Popen(WAITS, stdin=subprocess.PIPE) for _ in range(2)]
    for one in mine:
        assert standby.take(tmp_path, "cpu", lambda one=one: one) is one
    assert ready == {(tmp_path, "cpu"): None} and len(begun) == 1
    for one in mine:
        one.communicate(b"\n")
    wait(lambda: ready[tmp_path, "cpu"] is not None, "one that stands by again")
    time.sleep(0.1)  # the other worker's end begins no second one
    assert len(begun) == 2


def test_where_none_can_be_started_there_is_none(monkeypatch, ready, tmp_path):
    standby.keep(tmp_path / "nowhere", "cpu")
    assert ready == {(tmp_path / "nowhere", "cpu"): None}


@pytest.mark.slow
def test_sent_to_work_it_does_what_any_worker_does(lab, tmp_path, ready):  # noqa: F811
    here = own_lab(lab, tmp_path / "lab")
    standby.keep(here.root.resolve(), "cpu")
    (one,) = ready.values()
    run = here.submit(experiment(here, epochs=1))
    assert run.state == "queued"
    jobs.ensure_worker(here, "cpu")
    assert one.wait(PATIENCE_SECONDS) == 0 and run.state == "done"
    (start,) = [event for event in run.events() if event["event"] == "start"]
    assert start["pid"] == one.pid
    jobs._started.clear()
    wait(lambda: ready[here.root.resolve(), "cpu"] is not None, "the next one")


@pytest.mark.slow
def test_it_ends_with_whoever_started_it_and_its_work_does_not(lab, tmp_path):  # noqa: F811
    here = own_lab(lab, tmp_path / "lab")
    run = here.submit(experiment(here, epochs=1))
    code = (
        "import sys, time; from pathlib import Path; from rift import standby\n"
        "standby.keep(Path(sys.argv[1]), 'cpu'); (one,) = standby._ready.values(); print(one.pid, flush=True)\n"
        "if sys.argv[2]: standby.take(Path(sys.argv[1]), 'cpu', None); print('sent', flush=True)\n"
        "time.sleep(600)"
    )
    for sent in ("", "sent"):
        command = [sys.executable, "-c", code, str(here.root.resolve()), sent]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as app:
            assert app.stdout is not None
            birth = process.birth(pid := int(app.stdout.readline()))
            assert birth
            if sent:
                assert app.stdout.readline() == "sent\n"
            os.kill(app.pid, signal.SIGKILL)
        wait(lambda birth=birth, pid=pid: process.birth(pid) != birth, "its end")
        assert run.state == ("done" if sent else "queued")

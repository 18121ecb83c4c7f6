"""Killed with -9 at any moment, a run goes on to the bits of one that nobody disturbed."""

from __future__ import annotations

import copy
import itertools
import json
import os
import signal

import pytest
import torch

from rift import attempt, checkpoint, disk, train
from rift.config import Experiment
from rift.runs import Lab
from tests.reliability import faults, kills


def state_of(step: int = 0) -> train.State:
    classifier, regularizer = torch.nn.Linear(3, 2), torch.nn.Identity()
    with torch.no_grad():
        classifier.bias.fill_(step)
    return train.State(classifier, regularizer, torch.optim.AdamW(classifier.parameters()), step=step)


@pytest.mark.slow
def test_a_kill_at_every_point_of_writing_a_checkpoint_leaves_the_one_before_or_the_new_one(tmp_path):
    """Between the file, fsync, the rename and removing the oldest; each also with the file cut in the middle."""
    lab = Lab(tmp_path / "lab")
    run = lab.submit(Experiment(data="d" * 64, natural="n" * 64))
    told = tmp_path / "points.json"

    def save(step: int, at: int = 0, torn: bool = False) -> int:
        def work() -> None:
            points = faults.Points(run.path, at, torn)
            attempt._save(run, lab, state_of(step))
            points.busy = True
            told.write_text(json.dumps(points.seen))

        return faults.ended(faults.forked(work))

    assert [save(step) for step in (1, 2, 3)] == [0, 0, 0]
    points = json.loads(told.read_text())
    assert any("fsync" in point for point in points) and any("rename" in point for point in points) and len(points) >= 4
    found = set()
    for at in range(1, len(points) + 1):
        for torn in (False, True):
            assert save(4, at, torn) == -signal.SIGKILL
            attempt.begin(run, lab)
            resumed = state_of()
            attempt.resume(run, lab, resumed)
            assert resumed.step in (3, 4) and float(resumed.classifier.bias[0].detach()) == resumed.step
            assert not list(run.path.rglob(".*.part")), "what was left half written is cleared away"
            found.add(resumed.step)
            checkpoint.path(run.path / "checkpoint", 4).unlink(missing_ok=True)
            assert [save(step) for step in (2, 3)] == [0, 0]
    assert found == {3, 4}


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_after(tmp_path, monkeypatch):
    """What is in a disk's memory is lost with the power, and a kill does not show that: so the order is looked at."""
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        seen.append(f"synced {os.path.relpath(os.readlink(f'/proc/self/fd/{handle}'), tmp_path)}")
        fsync(handle)

    def renamed(source: str, target: str) -> None:
        seen.append(f"renamed {os.path.relpath(source, tmp_path)}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    disk.write_json(tmp_path / "x.json", {})
    aside = seen[0].removeprefix("synced ")
    assert seen == [f"synced {aside}", f"renamed {aside}", "synced ."] and aside != "x.json"


@pytest.mark.slow
def test_five_kills_leave_no_trace_in_any_number():
    """As `python -m tests.reliability.kills --count 200` does with more of them."""
    found = kills.carry_out(5, seed=0)
    assert found["kills"] == 5 and found["unequal"] == [] and found["resumed from a checkpoint"] > 0


def test_the_comparison_of_outcomes_sees_a_bit():
    one = {"weights": {"a": "00"}, "steps": {1: {"task_loss": 0.5}}}
    assert faults.unlike(one, copy.deepcopy(one)) == []
    assert faults.unlike(one, {**one, "steps": {1: {"task_loss": 0.5 + 2**-53}}}) == ["steps"]


@pytest.mark.parametrize(("takes", "most"), [(0.1, 12.0), (0.6, 22.0), (6.0, 67.0)])
def test_a_checkpoint_that_takes_long_is_written_more_rarely_but_every_minute(takes, most, tmp_path, monkeypatch):
    """By a clock of our own: 400 steps of a second each, what each checkpoint takes, and the longest time between two."""
    lab = Lab(tmp_path / "lab")
    run = lab.submit(Experiment(data="d" * 64, natural="n" * 64))
    clock, saved = [0.0], []

    def save(*_: object) -> None:
        clock[0] += takes
        saved.append(clock[0])

    def events():
        for step in range(400):
            clock[0] += 1.0
            yield train.Event("step", {"step": step})

    monkeypatch.setattr(attempt, "_save", save)
    monkeypatch.setattr(attempt.time, "perf_counter", lambda: clock[0])
    assert attempt.follow(run, lab, state_of(), events()) == "done"
    between = [later - before for before, later in itertools.pairwise([0.0, *saved])][1:]
    assert between and most - 2 <= max(between) <= most
    run.request_stop()
    assert attempt.follow(run, lab, state_of(), events()) == "stopped" and len(saved) > 0

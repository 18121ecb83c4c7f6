"""What a computer can do to a run: every fault ends in words, nothing is corrupt, and what was done before is kept."""

from __future__ import annotations

import copy
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rift import (
    attempt,
    checkpoint,
    disk,
    estimate,
    jobs,
    outlook,
    process,
    reference,
    service,
    space,
    train,
    trained,
    watching,
)
from rift.config import Choice, Experiment, Training
from rift.errors import RunError
from rift.orders import Order
from rift.runs import Lab, Run, write_json
from tests.reliability import faults

ROOT = Path(__file__).parents[2]
KEY = b"the key of a lab"
PATIENCE_SECONDS = 180.0


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Lab, Experiment]:
    torch.set_num_threads(1)
    return faults.tiny(tmp_path_factory.mktemp("lab"), epochs=1, keep="last")


@pytest.fixture(scope="module")
def done(made, tmp_path_factory) -> tuple[Lab, Run]:
    """A finished run that nobody disturbed."""
    lab = faults.beside(made[0], tmp_path_factory.mktemp("done"))
    run = faults.execute(lab, lab.submit(made[1]))
    assert run.state == "done", run.end()
    return lab, run


@pytest.fixture
def copied(done, tmp_path) -> tuple[Lab, Run]:
    """The same in files of its own, to be damaged."""
    import shutil

    lab, run = done
    shutil.copytree(lab.root, tmp_path / "lab", symlinks=True)
    other = Lab(tmp_path / "lab")
    return other, other.run(run.id)


@pytest.fixture
def here(made, tmp_path) -> tuple[Lab, Run]:
    """A queued run in a lab of its own."""
    lab = faults.beside(made[0], tmp_path / "here")
    return lab, lab.submit(made[1])


def order_of(experiment: Experiment, **more: Any) -> Order:
    fields = {"data": experiment.data, "natural": experiment.natural, "backbone": experiment.backbone}
    return Order(**fields, training=experiment.training, **more)


def wait(condition, what: str) -> None:
    patience = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < patience, f"still waiting for {what}"
        time.sleep(0.01)


def flip(path: Path, place: float | int) -> None:
    """Flip one bit of a file, at a share of its length or at a byte."""
    data = bytearray(path.read_bytes())
    at = int(place * len(data)) if isinstance(place, float) else place
    data[at] ^= 1 << (at % 7)
    path.write_bytes(data)
    os.utime(path, ns=(time.time_ns() + 1, time.time_ns() + 1))


def small_state(step: int = 0) -> train.State:
    torch.manual_seed(step)
    classifier = torch.nn.Linear(6, 3)
    optimizer = torch.optim.AdamW(classifier.parameters())
    classifier(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    return train.State(classifier, torch.nn.Identity(), optimizer, step=step, milliseconds=[1.5], history=[{"epoch": 1}])


# --- the system: SIGTERM, kill, pids, clocks, stop ---------------------------------------------------------------------------


def steps(run: Run) -> int:
    return sum(event["event"] == "step" for event in run.events())


def work_forked(lab: Lab) -> int:
    return faults.forked(lambda: jobs.work(lab, "cpu"))


def at_work(made, root: Path) -> tuple[Lab, Run, int]:
    """Return a lab, its run, and the process that has taken two of its many steps."""
    lab = faults.beside(made[0], root)
    run = lab.submit(made[1].model_copy(update={"training": Training(epochs=200, batch_size=4, views=1)}))
    pid = work_forked(lab)
    wait(lambda: steps(run) >= 2, "two steps")
    return lab, run, pid


def test_sigterm_saves_at_the_next_step_exits_0_and_the_run_waits_for_the_next_worker(made, tmp_path):
    lab, run, pid = at_work(made, tmp_path / "lab")
    began = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert faults.ended(pid) == 0 and time.monotonic() - began < 10
    assert run.state == "queued", "it is taken up by itself, nobody has to press anything"
    (saved,) = (run.path / "checkpoint").glob("step-*.safetensors")
    _, facts = checkpoint.read(saved, lab.key, run.id)
    assert facts["step"] == steps(run) >= 2 and run.last_event()["ended"] == "the system"


@pytest.mark.slow
def test_after_sigterm_the_run_ends_as_the_undisturbed_one(done, here):
    lab, run = here
    pid = work_forked(lab)
    wait(lambda: steps(run) >= 1, "a step")
    os.kill(pid, signal.SIGTERM)
    assert faults.ended(pid) == 0
    assert faults.ended(work_forked(lab)) == 0 and run.state == "done"
    assert faults.unlike(faults.outcome(*done), faults.outcome(lab, run)) == []


@pytest.mark.slow
@pytest.mark.parametrize("worker_too", [False, True], ids=["server", "both"])
def test_a_killed_server_leaves_the_work_and_a_new_one_finds_it(made, done, tmp_path, worker_too):
    lab = faults.beside(made[0], tmp_path / "lab")
    order = order_of(made[1], baseline=False)
    code = (
        "import sys, time; from pathlib import Path; from rift import jobs, service; from rift.runs import Lab\n"
        "from rift.orders import Order\n"
        "print(service.start(Lab(sys.argv[1]), Order.model_validate_json(sys.argv[2]), device='cpu'), flush=True)\n"
        "print(jobs._started[0].pid, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(lab.root), order.model_dump_json()]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    assert server.stdout is not None
    name, worker = server.stdout.readline().strip(), int(server.stdout.readline())
    (run,) = lab.runs()
    wait(lambda: steps(run) >= 1 or run.state == "done", "a step")
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    server.stdout.close()
    if worker_too:
        os.kill(worker, signal.SIGKILL)
    wait(lambda: service.status(lab, name, device="cpu").state == "done", "the end")
    for child in jobs._started:
        child.wait()
    assert faults.unlike(faults.outcome(*done), faults.outcome(lab, run)) == []
    assert sum(event["event"] == "start" for event in run.events()) <= (2 if worker_too else 1)


def test_a_process_that_got_the_number_of_a_dead_worker_is_left_alone(here, monkeypatch):
    _, run = here
    innocent = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(jobs, "STOP_SECONDS", 0.05)
    try:
        run.append("start", pid=innocent.pid, birth="of the worker that had this number before")
        with run.alive():
            jobs.stop(run)
            time.sleep(0.05)
            assert innocent.poll() is None
            run.append("start", pid=innocent.pid, birth=process.birth(innocent.pid))
            jobs.stop(run)  # and one that is the worker is ended
            assert innocent.wait(5) == -signal.SIGKILL
    finally:
        innocent.kill()
        innocent.wait()
    assert process.birth(os.getpid()) and process.birth(os.getpid()) != process.birth(1) and not process.birth(2**22 + 1)


def test_a_clock_that_was_set_back_does_not_keep_the_queue_waiting(here, monkeypatch):
    lab, _ = here
    begun: list[Path] = []
    monkeypatch.setattr(jobs, "start_worker", lambda lab, device: begun.append(lab.root) or subprocess.Popen(["true"]))
    (lab.root / "starting").touch()
    jobs.ensure_worker(lab)
    assert begun == [], "a worker is starting just now"
    os.utime(lab.root / "starting", (time.time() + 3600, time.time() + 3600))
    jobs.ensure_worker(lab)
    assert begun == [lab.root]
    for child in jobs._started:
        child.wait()


def test_the_time_that_a_run_took_is_not_that_of_a_clock_that_jumps(here, monkeypatch):
    _, run = here
    for jump in (0.0, 86400.0, -7200.0):
        monkeypatch.setattr(time, "time", lambda jump=jump: 1e9 + jump)
        monkeypatch.setattr(time, "monotonic", lambda: 100.0)
        run.append("start", pid=0)
        monkeypatch.setattr(time, "time", lambda jump=jump: 1e9 - 2 * jump)
        monkeypatch.setattr(time, "monotonic", lambda: 105.0)
        run.append("step", step=1)
        monkeypatch.setattr(time, "monotonic", lambda: 9999.0)
        run.append("queued")  # a person came back hours later
    run.append("start", pid=0)
    assert attempt.seconds_before(run) == pytest.approx(15.0)


def test_a_paused_worker_is_said_to_be_stalled_and_not_dead(made, tmp_path, monkeypatch):
    lab = faults.beside(made[0], tmp_path / "lab")
    monkeypatch.setattr(jobs, "ensure_worker", lambda lab, device="auto": None)
    name = service.place(lab, order_of(made[1], baseline=False))
    (run,) = lab.runs()
    sleeper = subprocess.Popen(["sleep", "60"])
    now, day = time.monotonic, time.time
    try:
        with run.alive():
            run.append("start", pid=sleeper.pid)
            run.append("step", step=1, steps=6, milliseconds=100.0)
            fresh = service.status(lab, name)
            monkeypatch.setattr(time, "time", lambda: day() + 86400)  # the day's clock alone jumps: nothing is wrong
            assert service.status(lab, name) == fresh and "Nothing was heard" not in fresh.message
            monkeypatch.setattr(time, "monotonic", lambda: now() + 150)
            late = service.status(lab, name)
            assert late.state == "training" and "Nothing was heard of it for 2 min: the computer may be busy" in late.message
            assert late.version != fresh.version and "Nothing is lost" in late.message
            os.kill(sleeper.pid, signal.SIGSTOP)
            wait(lambda: process.is_paused(sleeper.pid), "the pause")
            assert "it was paused by the system" in service.status(lab, name).message
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_run_that_gets_further_each_time_is_taken_up_for_ever_and_one_that_does_not_is_not(here):
    lab, run = here
    for step in range(1, 10):
        run.append("start", pid=0)
        run.append("resume", step=step)
        assert service._taken_up(lab, run) == "queued"
    for _ in range(service.MOST_STARTS - 1):
        run.append("start", pid=0)
        run.append("resume", step=9)
        run.append("step", step=10)
    assert service._taken_up(lab, run) == "lost"


def test_the_command_line_starts_another_worker_where_one_was_killed_but_not_for_ever(here, monkeypatch):
    from rift import following

    lab, run = here
    begun, said = [], []

    def dying(lab, device, runs):
        begun.append(device)
        run.append("start", pid=0)  # and then it is gone
        return faults_process(-signal.SIGKILL)

    monkeypatch.setattr(jobs, "start_worker", dying)
    (lab.root / "worker.log").write_text("")
    following.finish(lab, [run], {run.id: "rift"}, jobs.Workers("cpu"), said.append)
    assert len(begun) == 1 + jobs.Workers.again and any("another one goes on" in one for one in said)
    assert run.state == "lost", "and then a person has to look"
    lab.requeue(run)
    begun.clear()
    monkeypatch.setattr(jobs, "start_worker", lambda *more: begun.append(1) or faults_process(1))
    with pytest.raises(RuntimeError, match="the worker ended with 1"):
        following.finish(lab, [run], {run.id: "rift"}, jobs.Workers("cpu"), said.append)
    assert len(begun) == 1, "a worker that fails by itself would fail again"


def faults_process(code: int):
    """What a process looks like that has ended."""
    import types

    return types.SimpleNamespace(poll=lambda: code, returncode=code, wait=lambda: code)


@pytest.mark.slow
def test_killed_between_two_arms_the_first_is_not_trained_again(made, tmp_path):
    lab = faults.beside(made[0], tmp_path / "lab")
    first, second = lab.submit(made[1]), lab.submit(made[1].model_copy(update={"seed": 1}))
    pid = work_forked(lab)
    wait(lambda: second.events(), "the second run")
    os.kill(pid, signal.SIGKILL)
    faults.ended(pid)
    before = (first.path / "result.json").read_bytes()
    assert first.state == "done" and second.state == "lost"
    lab.requeue(second)
    assert faults.ended(work_forked(lab)) == 0 and second.state == "done"
    assert (first.path / "result.json").read_bytes() == before
    assert sum(event["event"] == "start" for event in first.events()) == 1


def test_stop_frees_the_slot_within_three_seconds_and_says_stopped(made, tmp_path):
    _, run, pid = at_work(made, tmp_path / "lab")
    began = time.monotonic()
    jobs.stop(run)
    wait(lambda: not run.is_alive, "the lock")
    assert time.monotonic() - began < 3 and run.state == "stopped" and run.result() is None
    faults.ended(pid)


# --- the disk: flipped bits, full, read-only ---------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_refused_and_the_one_before_it_taken(tmp_path):
    lab = Lab(tmp_path / "lab")
    run = lab.submit(Experiment(data="d" * 64, natural="n" * 64))
    folder = run.path / "checkpoint"
    folder.mkdir()
    for step in (1, 2):
        small_state(step).save(checkpoint.path(folder, step), lab.key, run.id)
    path = checkpoint.path(folder, 2)
    whole, draw = path.read_bytes(), random.Random(0)
    for at in [*range(9), *draw.sample(range(len(whole)), 60)]:
        flip(path, at)
        with pytest.raises(ValueError):
            small_state().load(path, lab.key, run.id)
        path.write_bytes(whole)
    for cut in (0, 7, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError):
            small_state().load(path, lab.key, run.id)
    state = small_state()
    attempt.resume(run, lab, state)
    assert state.step == 1 and not path.exists()
    refused = next(event for event in run.events() if event["event"] == "refused")
    assert "step-0000002" in refused["message"] and "The one before it counts" in refused["message"]
    assert run.last_event()["step"] == 1


def test_a_refused_checkpoint_changes_nothing(tmp_path):
    path, state = tmp_path / "x.safetensors", small_state(1)
    small_state(2).save(path, KEY, "run")
    flip(path, 0.9)
    before, noise = copy.deepcopy(state.classifier.state_dict()), torch.get_rng_state()
    with pytest.raises(ValueError):
        state.load(path, KEY, "run")
    assert state.step == 1 and torch.equal(torch.get_rng_state(), noise)
    assert all(torch.equal(value, before[key]) for key, value in state.classifier.state_dict().items())


def test_a_checkpoint_holds_all_generators_and_the_optimizer_to_the_bit(tmp_path):
    path = tmp_path / "x.safetensors"
    for kind in ("adamw", "sgd"):
        state = small_state(3)
        if kind == "sgd":
            state.optimizer = torch.optim.SGD(state.classifier.parameters(), lr=0.1, momentum=0.9)
            state.optimizer.step()
        state.save(path, KEY, "run")
        wanted = torch.rand(3), np.random.rand(3), random.random()
        other = small_state(4)
        if kind == "sgd":
            other.optimizer = torch.optim.SGD(other.classifier.parameters(), lr=0.5, momentum=0.9)
        other.load(path, KEY, "run")
        found = torch.rand(3), np.random.rand(3), random.random()
        assert torch.equal(found[0], wanted[0]) and np.array_equal(found[1], wanted[1]) and found[2] == wanted[2]
        assert (other.step, other.milliseconds, other.history) == (3, [1.5], [{"epoch": 1}])
        first, second = (one.optimizer.state_dict() for one in (state, other))
        assert json.dumps(first["param_groups"]) == json.dumps(second["param_groups"])
        pairs = [(first["state"][i][key], second["state"][i][key]) for i in first["state"] for key in first["state"][i]]
        assert pairs and all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("name", ["weights.safetensors", "snapshot.npz", "predictions.csv"])
def test_a_flipped_bit_in_what_a_finished_run_wrote_is_refused_in_words(copied, name):
    from rift import differences, export

    lab, run = copied
    use = {
        "weights.safetensors": lambda: trained.build(lab, run),
        "snapshot.npz": lambda: differences.embeddings(lab, run, "test"),
        "predictions.csv": lambda: run.whole("predictions.csv").read_text() and export._predicted(run),
    }[name]
    use()
    flip(run.path / name, 0.6)
    with pytest.raises(RunError, match="damaged") as caught:
        use()
    assert caught.value.code == "run.damaged" and name in caught.value.sentence and "start it again" in caught.value.sentence
    assert run.state == "done" and run.result() is not None, "its numbers are intact"


def test_a_flipped_bit_in_a_result_is_no_number_and_going_on_makes_it_again(copied, monkeypatch):
    lab, run = copied
    text = (run.path / "result.json").read_text()
    number = f'"task_loss": {run.result()["numbers"]["task_loss"]}'
    assert number in text
    digit = str((int(number[-1]) + 1) % 10)
    (run.path / "result.json").write_text(text.replace(number, number[:-1] + digit))
    assert run.state == "failed" and "damaged" in run.end()["message"] and run.end()["code"] == "run.damaged"
    with pytest.raises(RunError, match="is damaged"):
        run.result()
    lab.requeue(run)
    assert run.state == "queued" and run.result() is None and (run.path / "result.damaged").exists()
    (run.path / "result.json").write_text(text[: len(text) // 2])
    assert run.state == "failed"
    (run.path / "result.json").write_text(json.dumps({"numbers": {}}))
    assert run.state == "done", "a result of an older version has no seal"


def test_a_flipped_bit_in_a_log_leaves_a_gap_that_is_told_and_nothing_wrong(here):
    _, run = here
    run.append("start", pid=0)
    for step in range(1, 4):
        run.append("step", step=step, steps=3, task_loss=step / 8)
    path = run.path / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    wanted = {event["step"]: event["task_loss"] for event in run.events() if event["event"] == "step"}
    for at in range(len(lines[2]) - 1):
        for bit in (at % 8,):
            damaged = bytearray(lines[2])
            damaged[at] ^= 1 << bit
            path.write_bytes(b"".join([*lines[:2], bytes(damaged), *lines[3:]]))
            found = {event["step"]: event["task_loss"] for event in run.events() if event.get("event") == "step"}
            assert found.items() <= wanted.items() and {1, 3} <= set(found), (at, bit)
    damaged = bytearray(lines[2])
    damaged[20] ^= 1
    path.write_bytes(b"".join([*lines[:2], bytes(damaged), *lines[3:]]))
    told = list(watching._lines(watching._events(path), "rift", "validation_accuracy"))
    assert told[-1].problem and "1 line of its log is damaged and left out" in told[-1].text
    path.write_bytes(b"".join([*lines[:3], bytes(damaged)]))
    assert run.last_event()["step"] == 2, "the last line that can be read counts"


def test_damaged_measurements_settings_and_caches_are_not_believed(copied, made):
    lab, run = copied
    assert "accuracy" in run.measures()
    path = run.path / "measures" / "accuracy.json"
    text = path.read_text()
    assert '"n": ' in text
    path.write_text(text.replace('"n": ', '"n": 9', 1))
    assert "accuracy" not in run.measures() and run.measured("accuracy") is None
    flip(run.path / "experiment.json", 1)
    with pytest.raises(RunError, match=r"settings of run .* are damaged") as caught:
        _ = run.experiment
    assert caught.value.code == "run.damaged"
    for path in lab.cache.glob("*.npz"):
        flip(path, 0.5)
    run_again = lab.submit(made[1].model_copy(update={"seed": 0, "strength": 2.0}))
    faults.execute(lab, run_again)
    assert run_again.state == "done", run_again.end()
    for path in lab.cache.glob("*.npz"):
        assert reference._kept(path) is not None or "views" in path.name


class Refusing:
    """A disk that takes nothing from a chosen moment on."""

    def __init__(self, monkeypatch, number: int):
        self.number, self.on = number, False
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self._or(getattr(os, name)))
        monkeypatch.setattr(Path, "open", self._opening(Path.open))
        monkeypatch.setattr(Path, "touch", self._or(Path.touch))

    def error(self) -> OSError:
        return OSError(self.number, os.strerror(self.number))

    def _or(self, function):
        def call(*arguments: Any, **more: Any) -> Any:
            if self.on:
                raise self.error()
            return function(*arguments, **more)

        return call

    def _opening(self, function):
        def call(path: Path, mode: str = "r", *arguments: Any, **more: Any) -> Any:
            if self.on and set(mode) & set("wax+"):
                raise self.error()
            return function(path, mode, *arguments, **more)

        return call


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_is_said_in_words_everywhere(made, tmp_path, monkeypatch, number):
    lab = faults.beside(made[0], tmp_path / "lab")
    run = lab.submit(made[1])
    run.append("start", pid=0)
    bad = Refusing(monkeypatch, number)
    bad.on = True
    folder = tmp_path / "elsewhere"
    acts = {
        "a checkpoint": lambda: small_state().save(tmp_path / "x.safetensors", KEY, "run"),
        "an event": lambda: run.append("step", step=1),
        "json": lambda: write_json(tmp_path / "x.json", {}),
        "stop": run.request_stop,
        "a worker": lambda: (run.append("queued"), jobs.ensure_worker(lab)),
        "a worker's mark": lambda: jobs.ensure_worker(lab),
        "a snapshot": lambda: reference.Snapshot({}, (), (), None).save(tmp_path / "x.npz"),
    }
    for what, act in acts.items():
        if what == "a worker's mark":
            bad.on = False
            run.append("queued")
            bad.on = True
        with pytest.raises(RunError, match=os.strerror(number)) as caught:
            act()
        assert caught.value.code == "run.disk" and "kept" in caught.value.sentence, what
    assert run.state == "queued" and not folder.exists(), "it can still be looked at"
    bad.on = False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lab"], "nothing half written stays"


def test_a_run_whose_disk_fills_up_fails_in_words_and_goes_on_when_there_is_room(made, done, tmp_path, monkeypatch):
    lab = faults.beside(made[0], tmp_path / "lab")
    run = lab.submit(made[1])
    fsync, full = os.fsync, [2]

    def filling(handle: int) -> None:
        if "step-" in os.readlink(f"/proc/self/fd/{handle}"):
            full[0] -= 1
            if full[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", filling)
    faults.execute(lab, run)
    assert run.state == "failed" and run.end()["code"] == "run.disk" and "No space left" in run.end()["message"]
    assert "go on" in run.end()["message"] and not list(run.path.rglob(".*.part"))
    full[0] = 10**6
    lab.requeue(run)
    faults.execute(lab, run)
    assert run.state == "done" and faults.unlike(faults.outcome(*done), faults.outcome(lab, run)) == []
    assert any(event["event"] == "resume" for event in run.events()), "from the checkpoint before the disk was full"


def mounted(folder: Path, options: str) -> bool:
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_real_small_disk_that_is_full_or_read_only(made, done, tmp_path, monkeypatch):
    """On a tmpfs of a few megabytes where this may be mounted; elsewhere the tests with a wrapper above stand for it."""
    root = tmp_path / "small"
    root.mkdir()
    if sys.platform != "linux" or not mounted(root, "size=7m"):
        return
    monkeypatch.setattr(space, "TIMES", 0)
    try:
        lab = faults.beside(made[0], root / "lab")
        run = lab.submit(made[1])
        faults.execute(lab, run)
        assert run.state == "failed" and run.end()["code"] == "run.disk", run.end()
        assert "No space left" in run.end()["message"]
        subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
        assert run.state == "failed" and not run.is_alive
        with pytest.raises(RunError, match="Read-only file system"):
            lab.requeue(run)
        subprocess.run(["mount", "-o", "remount,rw,size=64m", str(root)], check=True)
        lab.requeue(run)
        faults.execute(lab, run)
        assert run.state == "done" and faults.unlike(faults.outcome(*done), faults.outcome(lab, run)) == []
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


def test_too_little_room_is_said_before_start_and_by_the_worker(made, tmp_path, monkeypatch):
    lab = faults.beside(made[0], tmp_path / "lab")
    order = order_of(made[1]).model_copy(update={"backbone": Choice(name="embedded")})
    monkeypatch.setattr(outlook, "free", lambda path: 10**10)  # what is free in truth changes between two looks
    need = outlook.of(lab, lab, order).disk
    assert 50e6 < need < 1e9 and outlook.of(lab, lab, order).free == 10**10
    monkeypatch.setattr(disk, "free", lambda path: 3 * need - 1)
    for act in (lambda: service.place(lab, order), lambda: outlook.of(lab, lab, order)):
        with pytest.raises(RunError, match="3 times that must be free") as caught:
            act()
        assert caught.value.code == "run.disk" and space.said(need) in caught.value.sentence
    assert lab.runs() == [] and service.comparisons(lab) == [], "no trace is left"
    monkeypatch.setattr(disk, "free", lambda path: 3 * need)
    assert service.place(lab, order)
    monkeypatch.setattr(disk, "free", lambda path: 1000)
    run = lab.submit(made[1])
    faults.execute(lab, run)
    assert run.state == "failed" and run.end()["code"] == "run.disk" and "must be free" in run.end()["message"]
    assert estimate.disk(lab, [made[1]], estimate.Sizes(12, 4, 20, 6)) is None, "nothing is known of this backbone before a run"

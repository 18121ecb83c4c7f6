"""The life of a comparison as a state machine: started, killed, stopped, taken up again, deleted, in any order.

Whatever comes, each run has one state that its files tell, a number that was shown is never another one, what the log said it
still says, and who is done has the bits of a run that nobody disturbed.
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import Timeout
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as some
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from rift import attempt, history, jobs, service
from rift.orders import Order
from rift.runs import Lab, Run
from tests.reliability import faults

pytestmark = pytest.mark.slow
STATES = ("queued", "stopped", "failed", "lost", "done")  # while nobody works
POINTS = 200  # file operations of a run, about


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Lab, list[Order], dict[str, dict[str, Any]]]:
    """The images, two orders of two runs each, and what comes of every run by its id."""
    torch.set_num_threads(1)
    lab, one = faults.tiny(tmp_path_factory.mktemp("images"), epochs=2)
    orders = [
        Order(
            data=one.data,
            natural=one.natural,
            backbone=one.backbone,
            regularizers=(one.regularizer,),
            training=one.training.model_copy(update={"learning_rate": rate}),
        )
        for rate in (1e-3, 2e-3)
    ]
    twin = faults.beside(lab, tmp_path_factory.mktemp("twin"))
    outcomes = {}
    for order in orders:
        for run in service.runs(service.arms(twin, service.place(twin, order))):
            faults.execute(twin, run)
            outcomes[run.id] = faults.outcome(twin, run)
    assert len(outcomes) == 4
    return lab, orders, outcomes


class Life(RuleBasedStateMachine):
    """One lab; `images`, `orders` and `outcomes` are set by the test."""

    images: Lab
    orders: list[Order]
    outcomes: dict[str, dict[str, Any]]
    going = Bundle("going")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rift-life-"))
        self.lab = faults.beside(self.images, self.folder / "lab")
        self.told: dict[str, list[str]] = {}  # the log of each run as it was last seen
        self.done: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder, ignore_errors=True)

    def next(self, name: str) -> Run | None:
        """Return the run that a worker would take."""
        return next((run for run in service.runs(service.arms(self.lab, name)) if run.state == "queued"), None)

    @rule(target=going, which=some.integers(0, 1))
    def start(self, which: int) -> Any:
        """Started for the first time, twice, or to go on: always the same comparison and the same runs."""
        known = service.comparisons(self.lab)
        name = service.place(self.lab, self.orders[which])
        assert name == self.orders[which].id
        assert not any(run.state in ("stopped", "failed", "lost") for run in service.runs(service.arms(self.lab, name)))
        return multiple() if name in known else name

    @rule(name=going, at=some.integers(1, POINTS), torn=some.booleans())
    def die(self, name: str, at: int, torn: bool) -> None:
        """A worker dies at a file operation, or is done before it comes."""
        if (run := self.next(name)) is not None:
            ended = ("done", "stopped") if run.stop_requested else ("done",)
            code = faults.ended(faults.worker(self.lab, run, at, torn))
            assert code in (0, -signal.SIGKILL), run.end()
            assert run.state in (ended if code == 0 else (*ended, "lost", "queued")), (code, run.state)

    @rule(name=going)
    def work(self, name: str) -> None:
        """A worker that nobody disturbs."""
        if (run := self.next(name)) is not None:
            asked_to_stop = run.stop_requested
            assert faults.ended(faults.worker(self.lab, run)) == 0, run.end()
            assert run.state == "done" or (asked_to_stop and run.state == "stopped")

    @rule(name=going)
    def stop(self, name: str) -> None:
        service.stop(self.lab, name)
        assert service.status(self.lab, name).state in ("stopped", "failed", "lost", "done")

    @rule(name=going)
    def another_worker(self, name: str) -> None:
        """While one has a run, another one gets nothing of it."""
        for run in service.runs(service.arms(self.lab, name)):
            if run.state == "queued":
                with run.alive():
                    before = len(run.events())
                    with pytest.raises(Timeout), run.alive(timeout_seconds=0):
                        pass
                    assert run.is_alive and len(run.events()) == before
                return

    @rule(name=consumes(going))
    def delete(self, name: str) -> None:
        theirs = {run.id for run in service.runs(service.arms(self.lab, name))}
        history.delete(self.lab, name)
        assert name not in service.comparisons(self.lab) and not theirs & {run.id for run in self.lab.runs()}
        for id in theirs:
            self.told.pop(id, None)
            self.done.discard(id)

    @invariant()
    def every_run_is_what_its_files_say(self) -> None:
        for run in self.lab.runs() if hasattr(self, "lab") else []:
            assert run.state in STATES and not run.is_alive
            log = [json.dumps(event) for event in run.events()]
            assert log[: len(before := self.told.get(run.id, []))] == before, "what was told once is still told"
            self.told[run.id] = log
            kinds = [json.loads(line)["event"] for line in log]
            assert all(kinds[place + 1] == "queued" for place, kind in enumerate(kinds[:-1]) if kind == "end")
            if run.id in self.done or run.state == "done":
                assert run.state == "done" and not faults.unlike(self.outcomes[run.id], faults.outcome(self.lab, run))
                self.done.add(run.id)


def test_whatever_comes_nothing_is_lost_doubled_or_different(undisturbed, monkeypatch):
    monkeypatch.setattr(jobs, "ensure_worker", lambda *args, **more: None)  # workers are the rules' own
    monkeypatch.setattr(attempt, "CHECKPOINT_SECONDS", -1.0)
    Life.images, Life.orders, Life.outcomes = undisturbed
    slow = {"deadline": None, "suppress_health_check": list(HealthCheck), "phases": [Phase.generate]}  # a fork for each step
    run_state_machine_as_test(Life, settings=settings(max_examples=12, stateful_step_count=10, derandomize=True, **slow))

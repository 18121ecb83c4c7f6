"""Runs followed to their end: Ctrl-C is heard wherever it falls."""

from __future__ import annotations

import signal
import threading

import pytest

from rift import following
from rift.errors import RunError
from tests.test_jobs import own_lab
from tests.test_train import experiment, lab  # noqa: F401 - a fixture


class Pressing:
    """A crew that works for ever, while somebody presses Ctrl-C just when something is thrown away."""

    again, looks = 0, 0

    class Thrown:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def start(self, home, runs):
        pass

    def at_work(self):
        self.looks += 1
        assert self.looks < 20, "Ctrl-C was lost"
        self.Thrown()
        return True

    def failure(self, home):
        return ""

    def close(self):
        pytest.fail("it was stopped")


def test_ctrl_c_that_falls_into_a_destructor_is_not_lost(lab, tmp_path):  # noqa: F811
    home = own_lab(lab, tmp_path / "lab")
    run, before = home.submit(experiment(home)), signal.getsignal(signal.SIGINT)
    with pytest.raises(RunError) as caught:
        following.finish(home, [run], {run.id: "rift"}, Pressing(), print)
    assert caught.value.code == "run.stopped" and run.state == "stopped"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_one_is_raised_at_once_and_one_at_the_end_is_raised_then():
    with pytest.raises(KeyboardInterrupt), following._noted() as pressed:
        signal.raise_signal(signal.SIGINT)
        assert pressed, "noted, and not raised"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        reached = True
    assert reached


def test_another_thread_follows_without_it():
    seen: list[list[int]] = []

    def follow() -> None:
        with following._noted() as pressed:
            seen.append(pressed)

    one = threading.Thread(target=follow)
    one.start()
    one.join()
    assert seen == [[]]

"""Runs tests with a defence switched off, each in a fork of one process that has imported everything, which costs seconds once.

A line of its input is a switch and a test, its answer a line of JSON. A switch is `module:attribute=expression`, in which `was`
is the defence itself; several stand with ` ; ` between them. It is off before anything of the test is made.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
from typing import Any, NoReturn
from unittest import mock  # noqa: F401 - for the expressions

import pytest

SECONDS = 120  # after which a test is ended: a defence that is off may also mean that something never ends
QUIET = ("-q", "-x", "-o", "addopts=", "-p", "no:cacheprovider", "--tb=short")


class Off:
    """The plugin: it pulls the switch and keeps how the test ended."""

    def __init__(self, switch: str):
        self.switch, self.outcome, self.why = switch, "not run", ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        pull(self.switch)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.outcome in ("not run", "passed") and (report.when == "call" or not report.passed):
            self.outcome = report.outcome if report.when == "call" else f"{report.outcome} in its {report.when}"
            self.why = getattr(getattr(report.longrepr, "reprcrash", None), "message", str(report.longrepr or ""))


def pull(switch: str) -> None:
    """Put other values in the place of a defence, for as long as this process lives."""
    for one in switch.split(" ; "):
        place, _, expression = one.partition("=")
        module, _, path = place.partition(":")
        owner: Any = importlib.import_module(module)
        *outer, name = path.split(".")
        for step in outer:
            owner = getattr(owner, step)
        if not hasattr(owner, name):
            pytest.exit(f"{place} is no longer there")
        setattr(owner, name, eval(expression, {**globals(), "was": getattr(owner, name)}))


def _run(switch: str, test: str, folder: str, answer: int) -> NoReturn:
    """Run one test in this fork, and end it."""
    signal.alarm(SECONDS)
    try:
        plugin = Off(switch)
        with contextlib.suppress(Warning):  # of what the failing test left open
            pytest.main([*QUIET, f"--basetemp={folder}", test], plugins=[plugin])
        os.write(answer, json.dumps([plugin.outcome, plugin.why[:600]]).encode())
    finally:
        os._exit(0)


def main(files: list[str]) -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the tests print is not an answer
    pytest.main([*QUIET, "--collect-only", *files])
    with tempfile.TemporaryDirectory() as home:
        while line := sys.stdin.readline():
            ours, theirs = os.pipe()
            if (child := os.fork()) == 0:
                _run(*json.loads(line), f"{home}/tests", theirs)
            os.close(theirs)
            with os.fdopen(ours) as said:
                answer = said.read() or '["ended without a word", ""]'
            os.waitpid(child, 0)
            answers.write(answer + "\n")
            answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1:])

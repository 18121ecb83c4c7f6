"""Every row of the table of bad inputs has its outcome: within five seconds, in little memory, with nothing left or echoed."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from rift.errors import DataError
from rift.upload import read
from tests.reliability.cases import CASES, Case

SECONDS, MEGABYTES = 5, 300
QUIET = {"data.few"}  # said of every small set


def peak() -> int:
    """The most memory that this process has held since it was asked to forget, in kB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@contextmanager
def bounded() -> Iterator[None]:
    Path("/proc/self/clear_refs").write_text("5")
    before, began = peak(), time.process_time()
    yield
    assert time.process_time() - began < SECONDS
    assert peak() - before < MEGABYTES * 1024


def test_the_table_has_every_row():
    rows = {case.row.split()[0] for case in CASES}
    wanted = {
        f"{kind}{number}" for kind, last in {"C": 16, "N": 10, "L": 14, "Z": 30, "I": 30}.items() for number in range(1, last + 1)
    }
    assert rows == wanted
    assert len({case.row for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.row)
def test_row(case: Case, tmp_path):
    upload, root = tmp_path / "up.zip", tmp_path / "root"
    upload.write_bytes(case.make(np.random.default_rng(zlib.crc32(case.row.encode()))))
    with bounded():
        try:
            stored = read(upload, root, **case.options)
        except DataError as error:
            assert (case.outcome, case.code) == ("R", error.code), error.sentence
            assert case.says in error.sentence
            told = [error.sentence]
            assert not root.exists() or not list(root.iterdir())
        else:
            report = stored.report
            items = {"S": report.skipped, "N": report.changed, "W": report.warnings, "OK": (), "R": ()}[case.outcome]
            found = [item for item in items if item.code == case.code]
            assert case.outcome != "R", report
            assert not case.code or any(case.says in item.message for item in found), report
            assert [item for item in report.skipped if case.outcome != "S" or not re.search(r"(/|^)xx?\.", item.file)] == []
            if case.outcome == "OK":
                assert {item.code for item in (*report.changed, *report.warnings)} <= QUIET
            assert case.check is None or case.check(stored)
            assert report.kept == len(stored) and [path.name for path in root.iterdir()] == [stored.digest]
            told = [item.message for kind in (report.changed, report.skipped, report.warnings) for item in kind]
    for text in told:
        assert text.isprintable() and len(text) < 700 and str(tmp_path) not in text
    assert sorted(path.name for path in tmp_path.iterdir()) in (["up.zip"], ["root", "up.zip"])

"""The README stays true: its paths exist, its commands and options are real, its test command is the one that CI runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rift import catalog

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BODY = TEXT.split("---\n", 2)[2]


def test_every_named_path_exists():
    paths = set(re.findall(r"(?<![\w/.])((?:rift|assets|tests)/[\w./]*)", BODY))
    missing = [path for path in paths if not (ROOT / path.rstrip(".")).exists() and path != "rift/regularizers/my_idea.py"]
    assert not missing, missing
    assert all((ROOT / name).exists() for name in ("LICENSE", "requirements.txt", "requirements-test.txt", "pyproject.toml"))


def test_the_map_names_every_file_of_the_first_level():
    files = {path.name for path in (ROOT / "rift").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert not [name for name in files if f"rift/{name}" not in BODY]
    assert not [name for name in catalog.DOORS if f"rift/{name}/" not in BODY]


def test_every_command_is_one():
    told = subprocess.run([sys.executable, "-m", "rift", "--help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    for command in re.findall(r"python -m rift ([a-z]+)", BODY):
        assert re.search(rf"^  {command} ", told, re.M), command


@pytest.mark.parametrize("command", ["compare", "sweep", "measure"])
def test_every_option_in_the_readme_is_one(command):
    told = subprocess.run(
        [sys.executable, "-m", "rift", command, "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    for line in BODY.splitlines():
        if f"python -m rift {command} " in line:
            for option in re.findall(r"--[a-z-]+", line):
                assert option in told, (command, option)


def test_ci_runs_the_very_test_command_of_the_readme():
    assert "pip install -r requirements.txt -r requirements-test.txt && python -m pytest\n" in TEXT
    assert "s/^\\(pip install .* && python -m pytest\\)$/\\1/p" in (ROOT / ".ci" / "run").read_text()

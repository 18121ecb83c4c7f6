"""What other machines read: the front matter of Spaces, requirements, the Dockerfile and the notebook say what is true here."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import rift

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
FRONT = yaml.safe_load(TEXT.split("---\n")[1])
NEEDED = {one.name: one for one in map(Requirement, (ROOT / "requirements.txt").read_text().split("\n")[:-1])}
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def test_the_front_matter_is_what_spaces_reads():
    assert FRONT["sdk"] == "gradio" and FRONT["license"] == "apache-2.0" and FRONT["pinned"] is False
    assert (ROOT / FRONT["app_file"]).is_file() and len(FRONT["short_description"]) <= 60
    assert {FRONT["colorFrom"], FRONT["colorTo"]} <= COLORS and FRONT["title"] and FRONT["emoji"]
    assert all(re.fullmatch(r"[a-z0-9-]+", tag) for tag in FRONT["tags"])
    assert re.fullmatch(r"\d+[smh]", FRONT["startup_duration_timeout"])
    known = {"title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "pinned", "license"}
    known |= {"short_description", "tags", "suggested_hardware", "startup_duration_timeout", "disable_embedding"}
    assert set(FRONT) == known, "suggested_storage is gone, and nothing is preloaded: the model is in the repository"


def test_its_versions_are_those_that_the_requirements_allow():
    gradio = NEEDED["gradio"].specifier
    assert isinstance(FRONT["sdk_version"], str) and Version(FRONT["sdk_version"]) in gradio
    (floor,) = gradio
    assert Version(floor.version) == Version(FRONT["sdk_version"]), "the oldest one that is allowed, and so tested"
    assert isinstance(FRONT["python_version"], str), "in quotes: YAML would read 3.10 as 3.1"
    assert Version(FRONT["python_version"]) == Version("3.12.12"), "the newest one that ZeroGPU offers"
    assert re.search(r"^FROM python:3\.12-", (ROOT / "Dockerfile").read_text(), re.M)


def test_no_requirement_has_an_upper_bound():
    assert str(NEEDED["torch"].specifier) == ">=2.8"
    for one in NEEDED.values():
        assert {clause.operator for clause in one.specifier} <= {">="}, one


def test_the_locked_versions_are_allowed_and_each_has_its_hashes():
    locked = {}
    for entry in re.split(r"\n(?=[a-z])", (ROOT / "requirements.lock").read_text()):
        one = Requirement(entry.partition("\\")[0])
        (pin,) = one.specifier
        assert pin.operator == "==" and re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
        locked.setdefault(canonicalize_name(one.name), set()).add(Version(pin.version))
    for one in NEEDED.values():
        assert locked[canonicalize_name(one.name)] <= set(one.specifier.filter(locked[canonicalize_name(one.name)])), one
    assert not re.search(r"https?://|^-", (ROOT / "requirements.lock").read_text(), re.M), "no place to fetch them from"


def test_the_image_is_not_root_and_copies_what_the_app_needs_and_no_more():
    text = (ROOT / "Dockerfile").read_text()
    steps = re.findall(r"^(FROM|RUN|WORKDIR|COPY|USER|ENV|VOLUME|EXPOSE|HEALTHCHECK|CMD) ", text, re.M)
    assert steps[-1] == "CMD" and "USER" in steps and "HEALTHCHECK" in steps and "Untried" in text
    assert re.search(r"^USER (\w+)$", text, re.M)[1] != "root"
    assert "GRADIO_SERVER_NAME=0.0.0.0" in text and "RIFT_LAB=/data" in text and re.search(r"^VOLUME /data$", text, re.M)
    copied = {name for line in re.findall(r"^COPY (?:--\S+ )?(.+) \S+$", text, re.M) for name in line.split()}
    assert all((ROOT / name).exists() for name in copied) and {"app.py", "rift", "assets", "requirements.lock"} <= copied
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert copied == allowed, "what is copied is let through, and nothing else"


def test_only_the_image_listens_everywhere():
    for path in [ROOT / "app.py", *(ROOT / "rift").rglob("*.py")]:
        assert "0.0.0.0" not in path.read_text(), path


def test_the_notebook_is_one_and_its_code_is_python_that_this_version_knows():
    book = json.loads((ROOT / "notebooks" / "colab.ipynb").read_text())
    assert book["nbformat"] == 4 and not any(cell.get("outputs") for cell in book["cells"])
    assert "Untried" in "".join(book["cells"][0]["source"])
    called = set()
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            lines = [line for line in "".join(cell["source"]).splitlines() if not line.startswith(("!", "%"))]
            for node in ast.walk(ast.parse("\n".join(lines))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "rift":
                    function = getattr(rift, node.func.attr)
                    keywords = {keyword.arg: None for keyword in node.keywords}
                    inspect.signature(function).bind(*node.args, **keywords)
                    called.add(node.func.attr)
    assert called == {"compare", "open"}


def test_what_was_not_tried_is_said_to_be():
    table = TEXT.partition("## Where it runs")[2].partition("\n## ")[0]
    for where in ("Docker", "Spaces, CPU", "Spaces, ZeroGPU", "Colab"):
        row = next(line for line in table.splitlines() if line.startswith(f"| {where}"))
        assert "untried" in row.rpartition("|")[0].rpartition("|")[2]


@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore", "notebooks/colab.ipynb"])
def test_no_machine_is_named(name):
    assert "/wo" + "rk/" not in (ROOT / name).read_text()

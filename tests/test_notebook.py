"""A comparison in a notebook: still the document, with figures, verdicts and a table; every name in it is escaped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from markupsafe import escape

import rift
from rift import catalog, example, overview, service
from rift.errors import RunError
from rift.notebook import Comparison

ROOT = Path(__file__).parents[1]
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Comparison:
    lab = example.place(tmp_path_factory.mktemp("lab") / "example")
    (name,) = service.comparisons(lab)
    return rift.open(lab.comparisons / name, lab=lab.root)


def test_it_is_the_document_with_more(found):
    (path,) = example.PATH.glob("comparisons/*/comparison.json")
    assert found == json.loads(path.read_bytes()) and isinstance(found, dict)
    assert json.loads(json.dumps(found)) == found and [arm["name"] for arm in found["arms"]] == ["none", "rift"]
    assert found.verdicts == [one["sentence"] for one in overview.verdicts(found)] and len(found.verdicts) == 5
    row = next(row for row in found.table if row["metric"] == "Accuracy")
    assert row == {"metric": "Accuracy", "n": 40, "pretrained": None} | {
        arm["name"]: arm["mean"]["accuracy"] for arm in found["arms"]
    }


def test_its_figures_are_those_of_the_diagnostics(found):
    assert set(found.figures) == set(catalog.names("diagnostics"))
    assert {figure._repr_mimebundle_ is not None for figure in found.figures.values()} == {True}
    assert len(found.figures["drift"].data) > 1


def test_it_shows_itself_and_every_name_is_text(found):
    shown = found._repr_html_()
    assert all(str(escape(one)) in shown for one in found.verdicts)
    assert "<th" in shown and "pretrained" in shown and ".figures[name]" in shown and "not for diagnosis" in shown
    hostile = json.loads(json.dumps(found).replace('"rift"', json.dumps(HOSTILE)))
    hostile["data"]["name"] = HOSTILE
    assert "<img" not in Comparison(hostile)._repr_html_() and "&lt;img" in Comparison(hostile)._repr_html_()


def test_without_its_runs_it_has_its_numbers_and_says_so(found, tmp_path):
    (tmp_path / "comparison.json").write_text(json.dumps(found))
    alone = rift.open(tmp_path)
    assert alone == found and alone.report is None and alone.figures == {} and alone.verdicts == found.verdicts
    assert "not at hand" in alone._repr_html_()
    (tmp_path / "report.html").touch()
    assert rift.open(tmp_path / "comparison.json").report == tmp_path / "report.html"


@pytest.mark.parametrize("content", [None, "no json", "[]", "{}", '{"arms": []}'])
def test_what_is_no_comparison_says_so(tmp_path, content):
    if content is not None:
        (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(RunError, match="is no comparison; give the folder") as caught:
        rift.open(tmp_path)
    assert caught.value.code == "run.missing"


@pytest.mark.slow
def test_a_notebook_needs_no_gradio():
    code = "import sys, rift; rift.open, rift.compare; print([m for m in ('gradio',) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"

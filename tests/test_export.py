"""What is taken away as tables holds every number and every prediction, and each address gives its own file."""

from __future__ import annotations

import csv
import io
import json

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from rift import example, export, service, table, visitors
from rift.runs import Lab
from rift.ui.files import Files


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> tuple[Lab, str]:
    lab = example.place(tmp_path_factory.mktemp("export") / "example")
    return lab, service.comparisons(lab)[0]


def test_every_number_of_every_run_is_a_row_with_its_n_and_interval(shipped):
    lab, name = shipped
    rows = list(csv.DictReader(io.StringIO(export.numbers(lab, name))))
    assert tuple(rows[0]) == export.COLUMNS
    assert len({(row["arm"], row["source"], row["metric"]) for row in rows}) == len(rows), "one row each"
    by = {(row["arm"], row["metric"]): row for row in rows if row["source"] in ("run", "accuracy", "drift", "zero_shot")}
    for arm in service.result(lab, name)["arms"]:
        (run,) = arm["runs"]
        for metric in ("accuracy", "cka_debiased", "natural_accuracy", "task_loss", "seconds"):
            row = by[arm["name"], metric]
            assert float(row["value"]) == run[metric] and row["run"] == run["run"]
        for place, value in enumerate(run["cka_layers"], 1):
            assert float(by[arm["name"], f"cka_layers[{place}]"]["value"]) == value
        accuracy = by[arm["name"], "accuracy"]
        assert accuracy["n"] == "40" and float(accuracy["low"]) <= float(accuracy["value"]) <= float(accuracy["high"])
        nothing = by[arm["name"], "reconstruction_error"]
        assert nothing["value"] == "" and "reconstructs no image" in nothing["reason"]


def test_predictions_are_those_of_the_runs_with_their_arm(shipped):
    lab, name = shipped
    rows = list(csv.DictReader(io.StringIO(export.predictions(lab, name))))
    for arm in service.arms(lab, name):
        own = [row for row in rows if row["arm"] == arm.name]
        with (arm.runs[0].path / "predictions.csv").open(newline="") as file:
            assert [{key: row[key] for key in row if key not in ("arm", "run", "seed")} for row in own] == list(
                csv.DictReader(file)
            )


def test_no_text_is_a_formula_in_a_spreadsheet():
    assert [table.cell(text) for text in ("=cmd()", "+1+2", "@x", "-x")] == ["'=cmd()", "'+1+2", "'@x", "'-x"]
    assert [table.cell(text) for text in ("-0.5", "1e-9", "a=b", "")] == ["-0.5", "1e-9", "a=b", ""]


def test_a_run_without_a_number_says_why():
    assert list(export._metric({"auroc": None, "auroc_reason": "one class", "n": 3}, "auroc")) == [
        ("auroc", None, None, None, 3, "one class")
    ]
    assert not list(export._metric({"ids": ["a", "b"]}, "ids")) and not list(export._metric({"far": [0.0] * 99}, "far"))
    assert not list(export._metric({"each": [1.0, 2.0], "n": 2}, "each")), "of each image, not of the run"


def test_each_address_gives_its_own_file_and_nothing_else(shipped):
    lab, name = shipped
    files = Files(visitors.Labs(lab), lab)
    run = service.runs(service.arms(lab, name))[0].id
    with TestClient(Starlette(routes=files.routes())) as client:
        got = {one: client.get(files.document("lab", name, one)) for one in ("numbers.csv", "predictions.csv", "comparison.json")}
        assert all(answer.status_code == 200 for answer in got.values())
        assert got["numbers.csv"].text == export.numbers(lab, name) and json.loads(got["comparison.json"].text)["arms"]
        lines, model = (client.get(files.weights("lab", run, one)) for one in ("load.py", "finetuned.safetensors"))
        assert "load_file(" in lines.text and lines.headers["content-disposition"].startswith("attachment")
        assert len(model.content) > 10_000_000
        zipped = client.get(files.bundled("lab", name, False, False))
        assert zipped.content[:2] == b"PK" and f"{name}.rift.zip" in zipped.headers["content-disposition"]
        assert not list(lab.root.glob(".bundle-*")), "the zip is deleted once it is sent"
        for wrong in (
            files.document("lab", name, "secret"),
            files.weights("lab", "0" * 16, "load.py"),
            files.document("x", name, "numbers.csv"),
        ):
            assert client.get(wrong).status_code == 410
        token = files.document("lab", name, "numbers.csv").split("/")[2]
        assert client.get(f"rift/bundle/{token}/x.zip").status_code == 404, "a token of another kind"

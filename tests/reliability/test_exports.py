"""E1: no text in a table that is taken away is a formula of a spreadsheet, and every number stays a number."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rift import dataset, disk, export, recipe, service, sweeping, table
from rift.config import Choice, Training
from rift.orders import Order
from rift.review import Entry
from rift.runs import Lab

PAYLOAD = "cmd|' /C calc'!A0"
BEGINNINGS = [
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "\r=",
    "\n=",
    " =",
    "\t=",
    "＝",
    "＋",
    "－",
    "＠",
    "\u200b=",
    "\u202e=",
    "\xa0=",
    "\ufeff=",
]
NUMBERS = ["-0.5", "1e-09", "+1", "0", "-1", "0.25", "-1e-300", "1234567890.123"]
TEXTS = ["a=b", "", "plain", "5-HT", "1+1", "a@b", "'quoted", "nevus", "x\ty"]


@pytest.mark.parametrize("beginning", BEGINNINGS, ids=lambda one: "U+" + " ".join(f"{ord(c):04X}" for c in one))
def test_a_text_that_would_be_a_formula_begins_with_an_apostrophe(beginning):
    text = beginning + PAYLOAD
    assert table.cell(text) == f"'{text}", "and keeps every sign that it had"
    assert table.cell(table.cell(text)) == table.cell(text)


@pytest.mark.parametrize("text", [*NUMBERS, *TEXTS])
def test_numbers_and_other_texts_are_as_they_were(text):
    assert table.cell(text) == text
    if text in NUMBERS:
        assert float(next(csv.reader(io.StringIO(table.written([text], []))))[0]) == float(text)


@pytest.mark.parametrize("value", [0.1, -0.5, 1e-9, 3, None, True, math.pi])
def test_what_is_no_text_is_left_alone(value):
    assert table.cell(value) is value


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_comes_back_but_for_the_apostrophe(text):
    (found,) = list(csv.reader(io.StringIO(table.written([text, "end"], []), newline="")))
    assert found[0].removeprefix("'") == text.removeprefix("'") and found[1] == "end"
    seen = found[0].lstrip()
    assert not seen.startswith(("=", "@", "＝", "＠")) and not found[0].startswith(("\t", "\r", "\n"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[Lab, str]:
    """A finished comparison whose set, classes and files are called like formulas."""
    lab = Lab(tmp_path_factory.mktemp("exports") / "lab")
    draw = np.random.default_rng(0)
    names = (f"={PAYLOAD}", "-2+3")
    entries = [
        Entry(f"@SUM(1)/{kind}-{i}.png", kind, draw.integers(0, 255, (16, 16, 3), np.uint8)) for kind in names for i in range(6)
    ]
    images = dataset.store(entries, lab.data, name="=HYPERLINK(1)")
    order = Order(
        data=images.digest,
        natural=images.digest,
        methods=(Choice(name="linear"),),
        regularizers=(),
        training=Training(epochs=1, batch_size=6, views=1),
    )
    name = service.place(lab, order)
    for run in lab.runs():
        recipe.execute(run, lab, torch.device("cpu"))
    return lab, name


def unsafe(text: str) -> list[str]:
    """Cells that a spreadsheet would compute, by a rule of its own: the first sign that is seen."""

    def number(one: str) -> bool:
        try:
            return not math.isnan(float(one))
        except ValueError:
            return False

    rows = csv.reader(io.StringIO(text, newline=""))
    return [one for row in rows for one in row if one.strip()[:1] in ("=", "+", "-", "@", "＝") and not number(one)]


def test_no_table_of_a_comparison_holds_a_formula(hostile, tmp_path):
    lab, name = hostile
    run = service.runs(service.arms(lab, name))[0]
    document = json.loads((run.path / "measures" / "accuracy.json").read_text())
    document["runs"][run.id] |= {"=evil()": 1.0, "wrong": None, "wrong_reason": "=1+1"}  # a bundle may be of anybody
    (run.path / "measures" / "accuracy.json").write_text(json.dumps(disk.sealed(document)))
    numbers, predictions = export.numbers(lab, name), export.predictions(lab, name)
    sweeping._write_table(tmp_path / "table.csv", {"=HYPERLINK(1)": service.result(lab, name)})
    swept = (tmp_path / "table.csv").read_text()
    for text, holds in ((numbers, "'=evil()"), (predictions, "'@SUM(1)"), (swept, "'=HYPERLINK(1)")):
        assert not unsafe(text) and holds in text
    head, *rows = csv.reader(io.StringIO(predictions, newline=""))
    first = head.index("split") + 1
    shares = np.array([[float(one) for one in row[first : first + 2]] for row in rows])
    assert np.allclose(shares.sum(1), 1, atol=1e-3), "probabilities are numbers"
    for row in csv.DictReader(io.StringIO(numbers, newline="")):
        assert row["value"] == "" or math.isfinite(float(row["value"]))

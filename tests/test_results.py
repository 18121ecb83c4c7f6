"""RESULTS.md is what its numbers say, and the studies behind it can be asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from rift.orders import experiments
from tests.benchmarks import microscope_page, results, results_page

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vit_tiny.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), path)
    return path


@pytest.mark.parametrize("name", results.cases(Path("a file")))
def test_every_case_is_an_order_that_the_app_takes(name, weights):
    case = results.cases(weights)[name]
    asked = list(results.orders(case, "d" * 64, "n" * 64))
    arms = {(one.method.name, one.regularizer.name) for order in asked for _, by_seed in experiments(order) for one in by_seed}
    assert {method for method, _ in arms} == {"linear", "last_blocks", "lora", "adaptformer", "full"} or "tiny" in name
    assert {("full", "none"), ("full", "rift"), ("full", "feature_l2")} <= arms


def test_the_page_is_made_of_the_stored_numbers():
    stored = json.loads((ROOT / "tests" / "benchmarks" / "results.json").read_text())
    inside = ROOT / "tests" / "benchmarks" / "microscope.json"
    page = results_page.render(stored) + microscope_page.render(json.loads(inside.read_text()) if inside.exists() else {})
    assert (ROOT / "RESULTS.md").read_text() == page and "Not for clinical use" in page

"""Every diagnostic on a finished run of every method, as its quick preset has it: a finite number, or None and why."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from rift import api, catalog, disk, recipe
from rift.config import Choice
from rift.errors import UserError
from rift.runs import Lab, Run
from tests.methods_toys import stripes
from tests.test_train import experiment, lab  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow
assert stripes  # the fixture's images


@pytest.fixture(scope="module")
def runs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:  # noqa: F811
    """A finished run of every method, and one that reconstructs."""
    home = Lab(tmp_path_factory.mktemp("runs"))
    home.data.rmdir()
    home.data.symlink_to(lab.data)
    found = {name: home.submit(experiment(lab, method=name, epochs=1)) for name in catalog.names("methods")}
    rebuilt = experiment(lab, epochs=1).model_copy(update={"task": Choice(name="reconstruction")})
    found["reconstruction"] = home.submit(rebuilt)
    for run in found.values():
        recipe.execute(run, home, torch.device("cpu"))
        assert run.state == "done", run.end()
    return found


def wrong(values: dict) -> list[str]:
    """Numbers that are not finite, and empty places without a reason."""
    found = [key for key, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
    return found + [key for key, value in values.items() if value is None and not values.get(f"{key}_reason")]


@pytest.mark.parametrize("diagnostic", catalog.names("diagnostics"))
def test_its_quick_preset_measures_a_run_of_every_method(diagnostic, runs):
    for method, run in runs.items():
        try:
            document = api.measure(str(run.path), diagnostic, {"preset": "quick"}, device="cpu")
        except UserError as error:  # a method that a diagnostic cannot be asked of is refused in words
            assert diagnostic == "interpolation" and error.code == "setting.range" and "other" in error.sentence, (method, error)
            continue
        stored = disk.unsealed((Path(run.path) / "measures" / f"{diagnostic}.json").read_bytes())
        assert stored == json.loads(json.dumps(document)) and "nan" not in json.dumps(document).lower().split('"')
        assert not wrong(document["runs"][run.id]), (method, wrong(document["runs"][run.id]))
        module = catalog.module("diagnostics", diagnostic)
        results = {"none": document["runs"][run.id]}
        assert module.sentence(results) and module.figure(results).to_json()

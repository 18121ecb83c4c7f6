"""The spread of forgetting beside robustness: closed forms, kept epochs, shared inversions, and statements only where allowed."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from rift import catalog, measures, recipe
from rift.config import Choice
from rift.diagnostics import spread
from rift.runs import Lab
from tests.test_train import experiment, lab, run_fresh  # noqa: F401 - a fixture

SMALL = {"count": 6, "iterations": 2, "robust_images": 6, "layers": "every second"}


def arrays(stir: np.ndarray, right: np.ndarray, n: int = 60, epochs: list[int] | None = None) -> dict[str, np.ndarray]:
    """Arrays as `capture` returns them, `stir` `(e, l)`, `right` `(e, c, m)`."""
    loo = stir[:, :, None] + 1e-3 * np.random.default_rng(0).normal(size=(*stir.shape, n))
    known = np.array(epochs if epochs is not None else range(1, len(stir) + 1))
    return {
        "stir": stir,
        "stir_loo": loo,
        "right": right,
        "clean": right.max(1),
        "epochs": known,
        "n": np.array(n),
        "names_classes": np.array(True),
    }


def run_of(seed: int, epochs: int = 5, sign: float = -1.0, n: int = 60) -> dict:
    rng = np.random.default_rng(seed)
    wide = rng.uniform(0.05, 0.3, epochs)
    stir = 0.7 + wide[:, None] * np.array([1.0, -1.0])  # a standard deviation over two blocks of `wide`
    chance = 0.5 + sign * (wide - 0.175) + 0.02 * rng.normal(size=epochs)
    right = (np.arange(200) < 200 * chance[:, None, None]).astype(float)
    return measures.plain(spread.measure(arrays(stir, right, n)))


def test_the_spread_is_the_standard_deviation_of_forgetting_over_blocks():
    found = spread.measure(arrays(np.array([[0.9, 0.7, 0.5], [0.8, 0.8, 0.8]]), np.ones((2, 3, 4))))
    assert found["spread"] == pytest.approx([np.std([0.1, 0.3, 0.5]), 0]) and found["forgetting"] == pytest.approx([0.3, 0.2])
    assert found["spread_last"] == pytest.approx(0) and found["robust_accuracy_last"] == 1
    assert found["spread_low"][0] < found["spread"][0] < found["spread_high"][0]
    assert found["correlation"] is None and "2 epochs are too few" in found["correlation_reason"]


def test_the_correlation_is_that_of_a_textbook():
    x, y = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 4, 3, 5])
    found = spread.correlated("r", x, y, 4, "points")
    assert found["r"] == pytest.approx(0.8) and found["r_ranks"] == pytest.approx(0.8)
    reach = 1.959964 / np.sqrt(2)
    assert found["r_low"] == pytest.approx(np.tanh(np.arctanh(0.8) - reach), abs=1e-6)
    assert "the same at all 5" in spread.correlated("r", np.ones(5), y, 4, "points")["r_reason"]


@pytest.mark.parametrize(("sign", "said"), [(-1.0, "are less robust here"), (1.0, "are more robust here")])
def test_ten_runs_get_a_statement_and_nine_do_not(sign, said):
    runs = {f"arm {seed % 2}, seed {seed}": run_of(seed, sign=sign) for seed in range(10)}
    assert said in spread.sentence(runs) and "10 runs" in spread.sentence(runs)
    fewer = dict(list(runs.items())[:9])
    assert spread.sentence(fewer).startswith("No statement: 9 runs are too few") and "arm 0, seed 0: r = " in spread.sentence(
        fewer
    )
    few = {run: one | {"n": 20} for run, one in runs.items()}
    assert "20 inverted images are too few" in spread.sentence(few)
    drawn = spread.figure(runs)
    assert len(drawn.data) == 10 and sum(trace.showlegend for trace in drawn.data) == 2


def test_unrelated_numbers_get_no_statement():
    rng = np.random.default_rng(1)
    runs = {f"arm, seed {seed}": run_of(seed) | {"robust_accuracy_last": float(rng.uniform())} for seed in range(12)}
    assert "no relation can be told here" in spread.sentence(runs)


def test_what_is_undefined_has_its_reason():
    found = spread.measure(arrays(np.full((1, 3), np.nan), np.ones((1, 2, 0)), epochs=[0]))
    assert found["spread"] is None and "undefined" in found["spread_reason"]
    assert found["robust_accuracy"] is None and "no test image" in found["robust_accuracy_reason"]
    assert spread.sentence({"a": found}).startswith("Nothing can be compared") and not spread.figure({"a": found}).data
    assert list(found["entries"]) == ["the end"]


def test_chosen_epochs_are_evenly_spaced_and_hold_the_last():
    assert spread._chosen((), 5) == [0] and spread._chosen((1, 2, 3), 5) == [1, 2, 3]
    assert spread._chosen(tuple(range(1, 11)), 4) == [1, 4, 7, 10] and spread._chosen((1, 2, 3), 1) == [3]


@pytest.mark.slow
def test_a_run_that_kept_its_epochs_is_measured_at_each_and_inversions_are_shared(lab, tmp_path, monkeypatch):  # noqa: F811
    from rift.diagnostics import _inversion

    kept = run_fresh(lab, tmp_path, experiment(lab, keep="epochs"))
    home = Lab(tmp_path / "lab")
    other = home.submit(experiment(lab, "rift", 1.0))
    recipe.execute(other, home, torch.device("cpu"))
    asked = catalog.check("diagnostics", Choice(name="spread", options=SMALL))
    calls, invert = [], _inversion.invert
    monkeypatch.setattr(_inversion, "invert", lambda *values, **more: calls.append(1) or invert(*values, **more))
    found = measures.measure_again(home, kept, asked)["runs"][kept.id]
    assert found["epochs"] == [1, 2] and len(set(found["spread"])) == 2 and calls
    calls.clear()
    last = measures.measure_again(home, other, asked)["runs"][other.id]
    assert last["epochs"] == [0] and not calls, "the pretrained model's inversions were there"
    json.dumps(found)


def test_the_untouched_model_forgets_as_much_as_its_inversions_are_imperfect(toy_backbone, tmp_path):
    from rift.captures import Data, Images
    from rift.model import Classifier

    rng = np.random.default_rng(0)
    side = toy_backbone.pixels
    images = Images(
        rng.integers(0, 255, (8, side, side, 3), dtype=np.uint8), np.arange(8).astype(str), np.arange(8) % 2, ("a", "b")
    )
    model = Classifier(copy.deepcopy(toy_backbone), torch.nn.Linear(toy_backbone.width, 2)).eval()
    data = Data(images, images, images, None, tmp_path, seed=0, device=torch.device("cpu"))
    found = spread.capture(
        copy.deepcopy(toy_backbone), model, data, count=8, iterations=6, robust_images=8, layers="every second"
    )
    again = spread.capture(
        copy.deepcopy(toy_backbone), model, data, count=8, iterations=6, robust_images=8, layers="every second"
    )
    assert np.array_equal(found["stir"], again["stir"]) and found["stir"].shape == (1, toy_backbone.layers // 2)
    assert found["stir"].min() > 0.2 and found["right"].shape == (1, 5, 8)


def test_where_every_run_counts_all_seeds_are_on_show(lab, tmp_path):  # noqa: F811
    from rift import comparison

    home = Lab(tmp_path)
    home.data.rmdir()
    home.data.symlink_to(lab.data)
    runs = [home.submit(experiment(lab, seed=seed)) for seed in (0, 1)]
    for run in runs:
        (run.path / "measures").mkdir()
        run.append("end", state="done")
        for name in ("spread", "drift"):
            values = {"diagnostic": name, "runs": {run.id: {"n": run.experiment.seed}}}
            (run.path / "measures" / f"{name}.json").write_text(json.dumps(values))
    found = comparison.measures(comparison.of_runs(runs))
    assert found == {"none": {"drift": {"n": 0}}, "none, seed 0": {"spread": {"n": 0}}, "none, seed 1": {"spread": {"n": 1}}}


def test_what_stir_inverted_with_the_same_settings_is_not_inverted_again(toy_backbone, tmp_path, monkeypatch):
    from rift.captures import Data, Images
    from rift.diagnostics import _inversion, stir
    from rift.model import Classifier

    side, rng = toy_backbone.pixels, np.random.default_rng(0)
    images = Images(
        rng.integers(0, 255, (6, side, side, 3), dtype=np.uint8), np.arange(6).astype(str), np.arange(6) % 2, ("a", "b")
    )
    model = Classifier(copy.deepcopy(toy_backbone), torch.nn.Linear(toy_backbone.width, 2)).eval()
    data = Data(images, images, images, None, tmp_path, seed=0, device=torch.device("cpu"), cache=tmp_path)
    stir.capture(copy.deepcopy(toy_backbone), model, data, layers="every second", iterations=1)
    monkeypatch.setattr(_inversion, "invert", None)
    spread.capture(copy.deepcopy(toy_backbone), model, data, layers="every second", iterations=1, robust_images=6)

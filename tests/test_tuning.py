"""The choice of a strength: its rule on numbers made by hand, its budget, and its folds."""

import numpy as np
import pytest

from rift import tuning
from rift.errors import SettingError


def losses(*means, n=100, noise=0.0, seed=0):
    draw = np.random.default_rng(seed)
    return np.stack([np.full(n, mean) + noise * draw.standard_normal(n) for mean in means])


def test_the_largest_strength_within_one_standard_error_is_chosen():
    shared = np.random.default_rng(1).standard_normal(400)  # hard and easy images: paired, so that they do not hide a gap
    noise = 0.2 * np.random.default_rng(2).standard_normal((4, 400))
    noise -= noise.mean(1, keepdims=True)
    means = np.array([0.500, 0.505, 0.508, 0.600])[:, None]
    found = tuning.strongest((0.1, 1, 3, 10), means + noise + shared, [0.8] * 4)
    assert found["chosen"] == 3
    assert [row["allowed"] for row in found["path"]] == [True, True, True, False]
    gap = noise[3] - noise[0] + 0.1
    assert found["path"][3]["excess"] == pytest.approx(0.1)
    assert found["path"][3]["standard_error"] == pytest.approx(gap.std(ddof=1) / 20)
    unpaired = np.hypot(*(one.std(ddof=1) / 20 for one in (means + noise + shared)[[0, 3]]))
    assert found["path"][3]["standard_error"] < 0.3 * unpaired


def test_balanced_accuracy_may_fall_by_one_point_and_no_more():
    flat = losses(0.5, 0.5, 0.5)
    assert tuning.strongest((0.1, 1, 10), flat, [0.80, 0.791, 0.789])["chosen"] == 1
    assert tuning.strongest((0.1, 1, 10), flat, [0.80, 0.70, 0.81])["chosen"] == 10


def test_the_best_itself_is_always_allowed():
    found = tuning.strongest((0.1, 1, 10), losses(0.9, 0.2, 0.9, noise=0.01), [0.9, 0.1, 0.9])
    assert found["chosen"] == 1


def test_without_a_penalty_the_lowest_loss_wins():
    found = tuning.lowest((0.25, 1.0, 4.0), losses(0.51, 0.50, 0.52), [0.1, 0.1, 0.9])
    assert found["chosen"] == 1.0
    assert [row["allowed"] for row in found["path"]] == [False, True, False]


@pytest.mark.parametrize("validation", [20, 49, 50, 500])
@pytest.mark.parametrize("epochs", [3, 5, 8, 10, 30, 100])
@pytest.mark.parametrize("train", [60, 200, 2000])
def test_a_path_costs_less_than_two_runs(epochs, train, validation):
    try:
        path = tuning.plan("strength", epochs, train, validation)
    except SettingError as error:
        assert "at least" in str(error) and validation < 50 and epochs <= 10
        return
    images = train if path.folds == 1 else (train + validation) * (path.folds - 1) / path.folds
    assert path.trials * path.epochs * images <= tuning.COST * epochs * train < 2 * epochs * train
    assert path.folds == (1 if validation >= 50 else 5)
    assert set(path.values) <= set(tuning.STRENGTHS) and len(path.values) in (3, 5)


def test_too_few_epochs_are_told_with_the_number_that_is_enough():
    with pytest.raises(SettingError, match=r"at least \d+ epochs") as caught:
        tuning.plan("strength", 2, 100, 30)
    enough = int(str(caught.value).split("at least ")[1].split()[0])
    assert tuning.plan("strength", enough, 100, 30).epochs == 1
    with pytest.raises(SettingError):
        tuning.plan("strength", enough - 1, 100, 30)


def test_as_many_trials_without_a_penalty():
    assert len(tuning.RATES) == len(tuning.STRENGTHS)


def test_folds_hold_every_image_once_and_keep_patients_together():
    labels = np.repeat([0, 1, 2], 20)
    found = tuning.folds(labels, None, seed=0)
    assert sorted(np.concatenate(found)) == list(range(60))
    assert all(np.bincount(labels[one], minlength=3).tolist() == [4, 4, 4] for one in found)
    patients = np.arange(60) // 3
    for one in tuning.folds(labels, patients, seed=0):
        assert not set(patients[one]) & set(np.delete(patients, one))

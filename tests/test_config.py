"""Settings are checked at the door, and their identity is their content."""

from __future__ import annotations

import pytest

from rift import api, catalog
from rift.config import Choice, Experiment, Training, digest
from rift.errors import DataError, ModelError, SettingError
from rift.orders import Order

BASE = Experiment(data="d", natural="n")


def test_ids_are_stable_and_follow_every_setting():
    assert digest({"b": 1, "a": [1.5, None]}) == digest({"a": [1.5, None], "b": 1})
    changed = [
        BASE.model_copy(update={"seed": 1}),
        BASE.model_copy(update={"strength": 2.0}),
        BASE.model_copy(update={"regularizer": Choice(name="rift")}),
        BASE.model_copy(update={"training": Training(weight_decay=0.5)}),
    ]
    assert len({BASE.id, *(one.id for one in changed)}) == 5


def test_pairs_share_images_and_order_but_not_the_method():
    free = {"regularizer": Choice(name="rift"), "strength": 3.0, "method": Choice(name="linear")}
    assert BASE.model_copy(update=free).pair_id == BASE.pair_id
    assert BASE.model_copy(update={"training": Training(learning_rate=0.5, weight_decay=0)}).pair_id == BASE.pair_id
    for training in (
        Training(epochs=11),
        Training(batch_size=8),
        Training(augment="none"),
        Training(views=1),
        Training(split_seed=1),
    ):
        assert BASE.model_copy(update={"training": training}).pair_id != BASE.pair_id
    assert BASE.model_copy(update={"seed": 1}).pair_id != BASE.pair_id


def test_settings_that_came_later_leave_the_ids_of_experiments_without_them_alone():
    """The ids are those of the first version: runs and comparisons that exist must be found again."""
    assert (BASE.id, BASE.pair_id, Order(data="d", natural="n").id) == (
        "7f1e77ecac74a136",
        "4780b9e02cfe26b1",
        "bb3c7547f9abcb69",
    )
    assert {"shots", "balanced"} & set(BASE.model_dump()["training"]) == set()
    for training in (Training(shots=5), Training(balanced=True)):
        other = BASE.model_copy(update={"training": training})
        assert Experiment.model_validate_json(other.model_dump_json()) == other
        assert other.id != BASE.id and other.pair_id != BASE.pair_id
    order = Order(data="d", natural="n", task=Choice(name="multi_label"))
    assert Order.model_validate_json(order.model_dump_json()) == order and order.id != Order(data="d", natural="n").id


def test_options_are_filled_in_so_that_equal_settings_hash_alike():
    written = catalog.check("regularizers", catalog.parse("rift:momentum=0.9"))
    assert written == catalog.check("regularizers", Choice(name="rift"))
    assert catalog.changed("regularizers", written) == {}
    other = catalog.check("regularizers", catalog.parse("rift:momentum=0.5, epsilon=0.1"))
    assert catalog.changed("regularizers", other) == {"momentum": 0.5, "epsilon": 0.1}


@pytest.mark.parametrize(
    ("menu", "text", "code", "words"),
    [
        ("regularizers", "rifft", "setting.unknown", "there is feature_l2, l2_sp,"),
        ("backbones", "resnet", "model.unknown", "embedded"),
        ("regularizers", "rift:lambda=1", "setting.unknown", "its settings are"),
        ("regularizers", "rift:momentum=2", "setting.range", "momentum = '2' is not allowed"),
        ("regularizers", "rift:momentum=nan", "setting.range", "not allowed"),
        ("regularizers", "rift:statistics=weekly", "setting.range", "'running' or 'batch'"),
        ("methods", "full:rank=8", "setting.unknown", "it has no settings"),
        ("methods", "full:rank", "setting.unknown", "not key=value"),
    ],
)
def test_a_wrong_choice_says_what_is_allowed(menu, text, code, words):
    with pytest.raises((SettingError, ModelError), match=words.replace("(", r"\(")) as caught:
        catalog.check(menu, catalog.parse(text))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"epochs": "0"}, "setting.range"),
        ({"epochs": "many"}, "setting.range"),
        ({"learning_rate": "inf"}, "setting.range"),
        ({"learning_rate": "-1"}, "setting.range"),
        ({"epoch": "3"}, "setting.unknown"),
        ({"shots": "-1"}, "setting.range"),
        ({"balanced": "sometimes"}, "setting.range"),
        ({"preset": "magic"}, "setting.range"),
    ],
)
def test_training_settings_out_of_range(values, code):
    with pytest.raises(SettingError) as caught:
        api.settings_of(values)
    assert (caught.value.code == code and next(iter(values.values())) in caught.value.sentence) or code == "setting.unknown"


def test_presets_are_valid_and_can_be_overridden():
    from rift.config import PRESETS

    for name in PRESETS:
        assert isinstance(api.settings_of({"preset": name}), Training)
    assert api.settings_of({"preset": "sgd_2307_06006", "epochs": "2"}).epochs == 2


def test_an_error_accepts_only_codes_of_its_kind():
    with pytest.raises(ValueError, match="not a code of DataError"):
        DataError("run.disk", "…")
    assert str(DataError("data.image", "A sentence.")) == "A sentence."


def test_a_diagnostics_preset_stands_for_settings_and_options_beside_it_win(monkeypatch):
    from rift.diagnostics import interpolation

    monkeypatch.setattr(interpolation, "PRESETS", {"quick": {"points": 3}}, raising=False)

    def points(**options):
        return catalog.check("diagnostics", Choice(name="interpolation", options=options)).options

    assert points(preset="quick") == points(points=3) == {"points": 3} != points() == points(preset="default")
    assert points(preset="quick", points="5") == {"points": 5}
    with pytest.raises(SettingError, match="no preset 'slow'; there is quick, default"):
        points(preset="slow")
    quick, default = (catalog.check("diagnostics", Choice(name="pca", options=one)).options for one in ({"preset": "quick"}, {}))
    assert quick == default, "one without presets is as quick as it gets"

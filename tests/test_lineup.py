"""Arms at will: how they are written, which are refused, and that equal arms are one comparison however they are said."""

from __future__ import annotations

import pytest

from rift import catalog, lineup
from rift.config import ArmOrder, Choice
from rift.errors import SettingError
from rift.orders import Order, experiments


def fields(*texts: str) -> dict:
    return lineup.fields([lineup.parse(text) for text in texts])


def names(found: dict) -> list[str]:
    return [arm.name for arm, _ in experiments(Order(data="d", natural="n", **found))]


@pytest.mark.parametrize(
    "text",
    ["full+none", "full+rift@1", "lora:rank=4+rift:map=learned@auto", "full+feature_l2@1e-05", "last_blocks:blocks=3+rsc@0.3"],
)
def test_an_arm_is_read_as_it_is_written(text):
    (arm,) = lineup.checked([lineup.parse(text)])
    assert lineup.written(arm) == text and lineup.checked([lineup.parse(lineup.written(arm))]) == (arm,)


def test_a_strength_is_written_with_all_its_digits():
    (arm,) = lineup.checked([ArmOrder(strength=0.1 + 0.2)])
    assert lineup.parse(lineup.written(arm)).strength == 0.1 + 0.2
    assert lineup.parse("full+rift") == lineup.parse("full+rift@1.0")


def test_the_pair_and_every_product_are_the_orders_they_always_were():
    checked = {"methods": (catalog.check("methods", Choice(name="full")),), "strengths": (1.0,)}
    checked["regularizers"] = (catalog.check("regularizers", Choice(name="rift")),)
    assert Order(data="d", natural="n", **fields(*lineup.PAIR)) == Order(data="d", natural="n", **checked)
    assert "arms" not in Order(data="d", natural="n", **checked).model_dump(mode="json")
    assert fields("full+rift@1", "full+none") == fields("full+none", "full+rift@1"), "whatever comes first"
    assert fields("full+none", "full+rift@1", "full+rift@10")["strengths"] == (1.0, 10.0)
    assert fields("full+rift@2") == lineup.asked(["full"], ["rift"], [2.0], []) | {"baseline": False}
    assert fields("full+none", "full+rift@auto")["strengths"] == ("auto",)


def test_arms_that_are_no_product_stay_a_list_with_ids_of_their_own():
    found = fields("full+none", "full+rift@1", "full+rsc@10", "lora+rift@1")
    assert list(found) == ["arms"]
    assert names(found) == ["full none", "full rift[strength=1]", "full rsc[strength=10]", "lora rift[strength=1]"]
    order = Order(data="d", natural="n", **found)
    assert Order.model_validate_json(order.model_dump_json()) == order and order.id != Order(data="d", natural="n").id
    runs = {one.id for _, by_seed in experiments(order) for one in by_seed}
    pair = {one.id for _, by_seed in experiments(Order(data="d", natural="n", **fields(*lineup.PAIR))) for one in by_seed}
    assert pair < runs, "the pair's runs are two of them, and are not trained again"


def test_where_a_strength_is_chosen_the_plain_arms_choose_their_learning_rate():
    found = fields("full+none", "lora+none", "full+rift@auto")
    assert [arm.strength for arm in found["arms"]] == ["auto"] * 3
    assert [arm.strength for arm in fields("full+none", "lora+none", "full+rift@1")["arms"]] == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "has 1 to 6 arms; this has 0"),
        ([f"full+rift@{i}" for i in range(1, 8)], "this has 7"),
        (["full+none", "full+rift@1", "full+rift:momentum=0.9@1.0"], "Two arms are the same: rift, strength 1 (full)"),
        (["full+none", "full+none@3"], "Two arms are the same: no regularizer (full)"),
        (["full+none", "full+rift@0"], "changes nothing: strength 0 is no regularizer"),
        (["linear+none", "linear+rift@1"], "linear never trains the backbone"),
    ],
)
def test_an_arm_too_many_a_twin_and_one_that_changes_nothing_are_told(texts, words):
    with pytest.raises(SettingError) as caught:
        fields(*texts)
    assert words in caught.value.sentence and caught.value.code == "setting.range"


@pytest.mark.parametrize("text", ["", "full", "full+", "+rift", "full+rift@", "full+rift@-1", "full+rift@much", "full+rift@1,2"])
def test_what_is_no_arm_is_told(text):
    with pytest.raises(SettingError) as caught:
        lineup.checked([lineup.parse(text)])
    assert caught.value.code in ("setting.range", "setting.unknown")


def test_both_ways_at_once_are_refused():
    for more in ((["lora"], ["rift"], [1.0]), (["full"], ["rsc"], [1.0]), (["full"], ["rift"], [2.0])):
        with pytest.raises(SettingError, match="not both"):
            lineup.asked(*more, ["full+none"])
    with pytest.raises(ValueError, match="listed one by one"):
        Order(data="d", natural="n", arms=(ArmOrder(),), baseline=False)

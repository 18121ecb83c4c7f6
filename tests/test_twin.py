"""The same as a command, as Python and as a file of settings: each gives the very order that the page asks for."""

from __future__ import annotations

import json
import shlex

import pytest

import rift
from rift import api, catalog, cli, dataset, lineup, patients, service, twin, upload
from rift.config import Choice, Training
from rift.errors import SettingError
from rift.orders import Order
from rift.runs import Lab
from tests.uploads import picture, unpacked

SAMPLE = "sample:phantoms:kind=fundus,images_per_class=8"


class Caught(Exception):
    """The order that was about to be placed."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("twin") / "lab")


@pytest.fixture(scope="module")
def sets(lab):
    return api.open_data(SAMPLE, lab.data), api.open_natural("bundled", lab.data)


@pytest.fixture
def placed(monkeypatch, tmp_path):
    """Run a command line or a program as far as the order that it places, and return that order's id."""

    def place(lab, order, **more):
        raise Caught(order.id)

    monkeypatch.setattr(service, "place", place)
    monkeypatch.chdir(tmp_path)

    def run(act) -> str:
        with pytest.raises(Caught) as caught:
            act()
        return str(caught.value)

    return run


def orders() -> list[dict]:
    arms = [lineup.parse(text) for text in ("full+none", "full+rift:map=learned@1e-05", "lora:rank=4+rsc@auto")]
    return [
        lineup.fields([lineup.parse(text) for text in lineup.PAIR]),
        lineup.fields([lineup.parse("full+rift@0.25")]) | {"training": Training(epochs=3, learning_rate=1e-5, augment="none")},
        lineup.fields(arms) | {"seeds": 3, "training": Training(epochs=30, shots=4, split_seed=7)},
        lineup.fields([lineup.parse(f"full+rift@{s}") for s in (0.1, 10)]) | {"task": Choice(name="reconstruction")},
        lineup.fields([lineup.parse("linear+none")]) | {"backbone": Choice(name="embedded", options={"init": "random"})},
    ]


@pytest.mark.parametrize("number", range(5))
def test_command_and_program_ask_for_the_very_same_order(lab, sets, placed, number, monkeypatch):
    given = orders()[number]
    images, natural = sets
    given = {"task": Choice(name=images.task), "backbone": Choice(name="embedded")} | given
    given |= {"backbone": catalog.check("backbones", given["backbone"])}
    order = Order(data=images.digest, natural=natural.digest, **given)

    def read(data, asked, lab_, out, *more):
        assert (data, asked, more[:3]) == (SAMPLE, "bundled", (False, "auto", more[2]))
        return lab, images, natural, dataset.parts(images, order.training, 0)

    monkeypatch.setattr(api, "_read", read)
    words = shlex.split(twin.command(order, images, SAMPLE))
    assert words[:4] == ["python", "-m", "rift", "compare"]
    assert placed(lambda: cli.app(words[3:], standalone_mode=False)) == order.id
    assert rift.compare is api.compare
    assert placed(lambda: exec(twin.python(order, images, SAMPLE), {})) == order.id


@pytest.mark.slow
def test_a_chosen_patient_and_small_classes_are_in_both(lab, placed, tmp_path):
    files = {
        f"{kind}/p{p}_{i}.png": picture(100 * k + 10 * p + i) for k, kind in enumerate("ab") for p in range(9) for i in range(2)
    }
    unpacked(tmp_path / "my set", files | {"c/one.png": picture(999)})
    images = patients.choose(upload.read(tmp_path / "my set", lab.data, leave_out_small=True), "prefix:_")
    natural = api.open_natural("bundled", lab.data)
    backbone = catalog.check("backbones", Choice(name="embedded"))
    order = Order(data=images.digest, natural=natural.digest, backbone=backbone, **orders()[0])
    command, program = twin.command(order, images, "my set"), twin.python(order, images, "my set")
    assert "--leave-out-small" in command and "--patients prefix:_" in command
    assert placed(lambda: cli.app(shlex.split(command)[3:], standalone_mode=False)) == order.id
    assert placed(lambda: exec(program, {})) == order.id


def test_settings_are_saved_without_a_word_of_the_images_and_loaded_as_they_were(lab):
    images = api.open_data(SAMPLE, lab.data)
    for given in orders():
        order = Order(data=images.digest, natural="n" * 64, **given)
        text = twin.save(order, images)
        assert images.digest not in text and "nnnn" not in text and images.name not in text
        found = twin.load(text.encode())
        again = {"training": found.training, "seeds": found.seeds, "backbone": found.backbone, **lineup.fields(found.arms)}
        again |= {"task": found.task} if found.task else {"task": order.task}
        checked = order.model_copy(update={"backbone": catalog.check("backbones", order.backbone)})
        assert Order(data=images.digest, natural="n" * 64, **again) == checked


GOOD = {"rift": "settings", "version": 1, "arms": [{"regularizer": {"name": "none"}}]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"x" * 70_000, "over 64 kB"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 20_000, "no JSON"),
        (b"[1]", "no settings of RIFT Lab"),
        (b'{"experiment": 1}', "no settings of RIFT Lab"),
        (json.dumps(GOOD | {"digest": "d"}).encode(), "no setting 'digest'"),
        (json.dumps(GOOD | {"training": {"epochs": 0}}).encode(), "training.epochs = 0 is not allowed"),
        (json.dumps(GOOD | {"training": {"epoch": 5}}).encode(), "training.epoch = 5 is not allowed"),
        (json.dumps(GOOD | {"arms": [{}] * 7}).encode(), "arms"),
        (json.dumps(GOOD | {"arms": [{"method": {"name": "magic"}}]}).encode(), "no method named 'magic'"),
        (json.dumps(GOOD | {"arms": [{}, {}]}).encode(), "Two arms are the same"),
        (json.dumps(GOOD | {"seeds": 21}).encode(), "seeds = 21 is not allowed"),
        (json.dumps(GOOD | {"version": "<img src=x>" * 500}).encode(), "version"),
        (json.dumps(GOOD | {"training": {"learning_rate": float("nan")}}).encode(), "learning_rate"),
    ],
)
def test_a_wrong_file_of_settings_is_one_sentence(data, words):
    with pytest.raises(SettingError) as caught:
        twin.load(data)
    assert words in caught.value.sentence and len(caught.value.sentence) <= 400
    assert twin.load(json.dumps(GOOD)).seeds == 1, "and the good one is read"


def test_the_example_is_found_in_its_own_words(lab):
    """Reading a split or the images changes nothing about how an order is said."""
    images = api.open_data(SAMPLE, lab.data)
    order = Order(data=images.digest, natural="n", **orders()[0])
    assert "shots" not in twin.command(order, images) and dataset.split(images, 0)
    assert shlex.split(twin.command(order, images))[4] == "DATA"

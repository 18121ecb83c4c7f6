"""No text from outside names a file of the server or a repository of the hub, and no bundle tells where a file lay."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from rift import bundle, catalog, dataset, export, places, recipe, remote, service, sharing, twin, visitors
from rift.config import Choice, Training
from rift.errors import DataError, ModelError, UserError
from rift.orders import Order
from rift.review import Entry
from rift.runs import Lab
from rift.ui import widgets
from tests.test_ui import event_loops  # noqa: F401 - gr.Blocks leaves two open

CANARY = "TOP-SECRET-CANARY"


@pytest.fixture(scope="module")
def secret(tmp_path_factory) -> Path:
    """A file of weights of somebody else, somewhere on this machine."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(CANARY) / "toy.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("weights") / "lab")


@pytest.fixture(scope="module")
def images(lab) -> dataset.ImageSet:
    draw = np.random.default_rng(0)
    entries = [Entry(f"{kind}/{i}.png", kind, draw.integers(0, 255, (16, 16, 3), np.uint8)) for kind in "ab" for i in range(12)]
    return dataset.store(entries, lab.data, name="two kinds")


NAMES = [  # what a visitor asks for as a backbone, and the code of the answer
    ("W5 local-dir", "local-dir:/etc", "model.unknown"),
    ("W5 as an option", "timm:model=local-dir:/etc", "setting.range"),
    ("W6 hub", "hf-hub:someone/weights", "model.unknown"),
    ("W6 hub as an option", "timm:model=hf-hub:someone/weights", "setting.range"),
    ("W6 hub of open_clip", "open_clip:model=hf-hub:someone/weights", "setting.range"),
    ("W6 hub by another key", "timm:repository=someone/weights", "setting.unknown"),
    ("W7 metadata", "http://169.254.169.254/latest", "model.unknown"),
    ("W7 as an option", "open_clip:model=http://169.254.169.254", "setting.range"),
    ("a path", "/etc/passwd", "model.unknown"),
    ("a file that is no weights", "checkpoint:path=/etc/passwd", "model.unknown"),
    ("a file that is not there", "checkpoint:path=/nowhere/x.safetensors", "model.unknown"),
    ("a file that is there", "checkpoint:path=SECRET,architecture=test_vit", "model.unknown"),
    ("a pipe", "checkpoint:path=/dev/stdin", "model.unknown"),
    ("with a space", " checkpoint :path=SECRET", "model.unknown"),
    ("a module", "../methods/full", "model.unknown"),
    ("a private file", "_hub", "model.unknown"),
    ("nothing", "", "model.unknown"),
    ("10 MB", "x" * 10_000_000, "model.unknown"),
]


@pytest.mark.parametrize(("what", "name", "code"), NAMES, ids=[one[0] for one in NAMES])
def test_a_visitor_names_a_model_of_the_list_or_none(lab, images, secret, what, name, code, monkeypatch):
    opened: list[Any] = []
    monkeypatch.setattr("rift.backbones._hub.read", lambda *values: opened.append(values))
    monkeypatch.setattr("rift.backbones._hub.fetch", lambda *values: opened.append(values))
    monkeypatch.setattr("rift.backbones.checkpoint._found", lambda path: opened.append(path) or path)
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        remote.start(lab, images.digest, {"backbone": name.replace("SECRET", str(secret)), "natural": images.digest})
    assert caught.value.code == code and time.monotonic() - began < 5
    assert not opened and not lab.runs() and CANARY not in caught.value.sentence and len(caught.value.sentence) < 700
    assert "embedded" in caught.value.sentence or code != "model.unknown", "it says what there is"


DATA = ["/etc", "sample:/etc", "sample:phantoms:path=/etc", "file:///etc", "https://example.org/x.zip", "../../etc", "~"]


@pytest.mark.parametrize("text", DATA)
@pytest.mark.parametrize("key", ["data", "natural", "method", "regularizer", "task", "arm"])
def test_nor_does_any_other_text(lab, images, text, key):
    asked = {"natural": images.digest} | ({} if key == "data" else {key: text})
    with pytest.raises(UserError) as caught:
        remote.start(lab, text if key == "data" else images.digest, asked)
    assert caught.value.code in ("data.missing", "setting.unknown", "setting.range") and not lab.runs()


def test_what_an_error_repeats_is_short(lab, images):
    long = "y" * 1_000_000
    for asked in ({long: 1}, {"epochs": long}, {"patients": long}, {"arm": [long]}, {"set": {long: 1}}, {"strength": long}):
        with pytest.raises(UserError) as caught:
            remote.start(lab, images.digest, {"natural": images.digest} | asked)
        assert len(caught.value.sentence) < 3000, asked
    with pytest.raises(UserError) as caught:
        remote.status(lab, long)
    assert len(caught.value.sentence) < 300


def test_where_the_page_is_public_it_offers_and_loads_no_file(secret, images):
    here, there = (widgets_menu(files) for files in (True, False))
    assert "checkpoint" in here and "checkpoint" not in there and set(here) - set(there) == {"checkpoint"}
    toy = catalog.check("backbones", Choice(name="checkpoint", options={"path": str(secret), "architecture": "test_vit"}))
    text = twin.save(Order(data=images.digest, natural=images.digest, backbone=toy), images)
    assert twin.load(text).backbone == toy
    with pytest.raises(ModelError, match="can be chosen there only") as caught:
        twin.load(text, files=False)
    assert CANARY not in caught.value.sentence


def widgets_menu(files: bool) -> list[str]:
    import gradio as gr

    with gr.Blocks():
        return [name for name, _ in widgets.Menu("backbones", "embedded", "Backbone", files=files).pick.choices]


@pytest.fixture(scope="module")
def finished(lab, images, secret) -> str:
    """A comparison of one arm with itself that was made from a file, as on the command line."""
    toy = catalog.check("backbones", Choice(name="checkpoint", options={"path": str(secret), "architecture": "test_vit"}))
    order = Order(
        data=images.digest,
        natural=images.digest,
        backbone=toy,
        methods=(Choice(name="full"),),
        regularizers=(),
        training=Training(epochs=1, batch_size=6, views=1),
    )
    name = service.place(lab, order, source=str(secret.parent / "images"))
    for run in lab.runs():
        recipe.execute(run, lab, torch.device("cpu"))
    return name


def test_a_bundle_names_the_file_and_not_its_place_and_can_be_opened(lab, finished, secret, tmp_path):
    for run in service.runs(service.arms(lab, finished)):
        run.append("note", place=str(secret))
    made = bundle.write(lab, finished, tmp_path / "b.zip", pictures=True, weights=True)
    with zipfile.ZipFile(made) as archive:
        texts = {one: archive.read(one) for one in archive.namelist()}
    assert not [one for one, data in texts.items() if CANARY.encode() in data or str(secret.parent).encode() in data]
    assert CANARY not in "".join(texts)
    home, name = bundle.open_(Lab(tmp_path / "other"), made)
    there = visitors.Labs(Lab(tmp_path / "other"))[home]
    order, _ = service.order_of(there, name)
    assert order.backbone.options == {"path": "toy.safetensors", "architecture": "test_vit"} and name == order.id != finished
    theirs, ours = service.result(there, name), service.result(lab, finished)
    assert [arm["mean"] for arm in theirs["arms"]] == [arm["mean"] for arm in ours["arms"]]
    assert theirs["backbone"] == ours["backbone"]
    for before, after in zip(service.runs(service.arms(lab, finished)), service.runs(service.arms(there, name)), strict=True):
        assert before.id != after.id and before.measures() == after.measures()
        assert after.last_event()["place"] == secret.name and len(after.events()) == len(before.events())
        assert (places.read(after).start == places.read(before).start).all()
    assert export.numbers(there, name).replace(after.id, before.id) == export.numbers(lab, finished)
    again = bundle.write(there, name, tmp_path / "again.zip", pictures=True, weights=True)
    assert bundle.open_(Lab(tmp_path / "third"), again)[1] == name, "and goes on from there"
    with pytest.raises(ModelError, match="on the machine where this was trained"):
        catalog.door("backbones", "checkpoint")(**order.backbone.options)


def test_a_bundle_that_names_a_place_is_refused(lab, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("rift.portable.swaps", lambda lab, name: {})
    made = bundle.write(lab, finished, tmp_path / "b.zip")
    with pytest.raises(DataError, match="it names a place on a machine") as caught:
        bundle.open_(Lab(tmp_path / "other"), made)
    assert CANARY not in caught.value.sentence


def test_document_share_and_report_name_the_file_and_not_its_place(lab, finished, secret):
    document = service.result(lab, finished)
    assert document["backbone"]["options"]["path"] == "toy.safetensors" and CANARY not in json.dumps(document)
    token = sharing.create(lab, "lab", finished, pictures=False)
    page = sharing.page(lab, {"lab": lab}, sharing.find(lab, token)).read_text()
    report = service.write_report(lab, finished).read_text()
    assert "toy.safetensors" in page and CANARY not in page and CANARY not in report


def test_a_comparison_outlives_the_file_that_it_was_made_from(lab, finished, secret):
    kept = secret.read_bytes()
    service.forget()
    secret.unlink()
    try:
        assert service.status(lab, finished).state == "done" and service.result(lab, finished)["arms"]
        with pytest.raises(ModelError, match="There is no file"):
            service.place(lab, service.order_of(lab, finished)[0])
    finally:
        secret.write_bytes(kept)

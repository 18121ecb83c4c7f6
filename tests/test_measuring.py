"""Measuring from the page: what the files say at every stage, stop and go on, a dead worker, refusals, pictures and photos."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from starlette.applications import Starlette
from starlette.testclient import TestClient

from rift import ask, catalog, dataset, images, jobs, measurement, measures, measuring, recipe, service, visitors
from rift.config import Choice, Training
from rift.diagnostics import interpolation
from rift.errors import RunError, SettingError
from rift.measurement import Measurement
from rift.orders import Order, experiments
from rift.runs import Lab
from rift.ui.files import Files
from rift.ui.tabs import compare
from tests.methods_toys import toy_lab

CPU = torch.device("cpu")
NAME = "interpolation"
ARMS = ["full none", "bias none", "lora none"]  # the last has no line between its models: it refuses


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, str]:
    """A lab with one comparison of three arms, each trained for an epoch."""
    lab = toy_lab(tmp_path_factory.mktemp("lab"), each=12, natural=4)
    toy = Choice(name="checkpoint", options={"path": str(lab.weights), "architecture": "test_vit"})
    methods = tuple(catalog.check("methods", Choice(name=name)) for name in ("full", "bias", "lora"))
    training = Training(epochs=1, batch_size=16, views=1)
    order = Order(
        data=lab.medical.digest,
        natural=lab.natural.digest,
        backbone=catalog.check("backbones", toy),
        methods=methods,
        regularizers=(Choice(name="none"),),
        training=training,
    )
    name = service.place(lab, order)
    for run in service.runs(service.arms(lab, name)):
        recipe.execute(run, lab, CPU)
        assert run.state == "done", run.end()
    return lab, name


@pytest.fixture
def here(finished, monkeypatch) -> tuple[Lab, str]:
    """The same with nothing measured from the page, and no worker that would begin by itself."""
    lab, name = finished
    shutil.rmtree(lab.measuring, ignore_errors=True)
    for run in lab.runs():
        shutil.rmtree(run.path / "captures", ignore_errors=True)
        (run.path / "measures" / f"{NAME}.json").unlink(missing_ok=True)
    monkeypatch.setattr(jobs, "ensure_worker", lambda *given: None)
    monkeypatch.setattr(measurement, "TELL_SECONDS", 0.0)
    return lab, name


def status(here: tuple[Lab, str]) -> measuring.Status:
    return measuring.status(here[0], *here, NAME)


def start(here: tuple[Lab, str], **settings) -> Measurement:
    measuring.start(here[0], *here, Choice(name=NAME, options=settings))
    return Measurement(*here, NAME)


def test_every_stage_is_told_and_the_numbers_come_without_another_page(here, monkeypatch):
    lab, _ = here
    assert status(here) == measuring.Status() and measuring.results(*here, NAME) == {}
    before = measuring.version(*here, NAME)
    assert "for 3 arms: full none, bias none, lora none." in measuring.plan(*here, NAME) and "Last" not in measuring.plan(
        *here, NAME
    )
    asked = start(here, points=4)
    assert status(here).state == "queued" and status(here).message == "Starting." and measuring.active(*here) == [NAME]

    embed, seen = interpolation._embed, []
    monkeypatch.setattr(interpolation, "_embed", lambda *given: seen.append(status(here)) or embed(*given))
    measurement.carry_out(asked, CPU)
    assert {one.state for one in seen} == {"evaluating"}
    assert seen[0].message == "full none, arm 1 of 3: loading the models." and seen[0].seconds_left is None
    assert seen[2].message == "full none, arm 1 of 3: 0 of 4 points on the line."
    assert seen[6].message == "full none, arm 1 of 3: 2 of 4 points on the line." and seen[6].seconds_left > 0
    assert seen[6].progress == pytest.approx(2 / 4 / 3) and seen[16].progress == pytest.approx((1 + 2 / 4) / 3)
    assert [one.progress for one in seen] == sorted(one.progress for one in seen)

    end = status(here)
    assert end.state == "done" and end.message == "Finished; not every arm could be measured." and not end.active
    ((arm, sentence, code),) = end.problems
    assert arm == "lora none" and code == "setting.range" and "no line leads from one to the other" in sentence
    found = measuring.results(*here, NAME)
    assert list(found) == ARMS[:2] and len(found["bias none"]["accuracy"]) == 4
    assert measuring.version(*here, NAME) != before and measuring.active(*here) == []
    assert measuring.about(*here, NAME) == "Measured with points = 4. Not measured yet: lora none."
    assert measurement.seconds(lab, Choice(name=NAME, options={"points": 4})) > 0
    start(here, points=11)
    measurement.carry_out(asked, CPU)
    assert "Last time it took: quick " in measuring.plan(*here, NAME), "the default of 11 points is the one preset"


def test_a_stop_keeps_what_is_done_and_go_on_takes_it_up(here, monkeypatch):
    asked, embed, seen = start(here, points=5), interpolation._embed, []

    def once(*given):
        seen.append(1)
        if len(seen) == 2 + 2 * 2 + 1:  # both models' images, two points, and in the midst of the third
            asked.request_stop()
        return embed(*given)

    monkeypatch.setattr(interpolation, "_embed", once)
    measurement.carry_out(asked, CPU)
    assert status(here).state == "stopped" and "Go on takes it up" in status(here).message and not status(here).problems
    run = measuring.runs(*here, NAME)["full none"]
    assert len(list((run.path / "captures").glob("*/point-*.npz"))) == 3 and measuring.results(*here, NAME) == {}
    measurement.carry_out(asked, CPU)
    assert status(here).state == "stopped", "nobody said go on"
    seen.clear()
    monkeypatch.setattr(interpolation, "_embed", lambda *given: seen.append(1) or embed(*given))
    measuring.go_on(here[0], *here, NAME)
    assert status(here).state == "queued"
    measurement.carry_out(asked, CPU)
    assert len(seen) == 2 + 2 * 2 + 2 + 2 * 5, "two of five points were left of the first arm, all of the second"
    assert status(here).state == "done" and list(measuring.results(*here, NAME)) == ARMS[:2]


def test_one_that_waits_is_stopped_at_once_and_may_be_asked_for_again(here):
    asked = start(here, points=3)
    measuring.stop(*here, NAME)
    assert status(here).state == "stopped" and measurement.queue(here[0]) == []
    start(here, points=2)
    assert status(here).state == "queued" and asked.asked["settings"] == {"points": 2}
    measuring.stop(*here, "drift")  # nothing to stop


def test_a_worker_that_died_is_known_by_its_free_lock(here):
    asked = start(here, points=2)
    asked.append("start", pid=1)
    asked.append("progress", arm="full none", place=0, of=3, done=1, total=2, what="points", left=1.0)
    with asked.alive():
        assert status(here).state == "evaluating" and status(here).seconds_left == 1.0
    lost = status(here)
    assert lost.state == "lost" and "is gone; what was done is kept" in lost.message and not lost.active
    measuring.go_on(here[0], *here, NAME)
    measurement.carry_out(asked, CPU)
    assert status(here).state == "done"


def test_of_two_wishes_at_once_the_first_stands(here):
    asked = start(here, points=3)
    start(here, points=9)
    assert asked.asked["settings"] == {"points": 3} and len(measurement.queue(here[0])) == 1
    with asked.alive():
        asked.append("start", pid=1)
        start(here, points=9)
    assert asked.asked["settings"] == {"points": 3}


def test_when_no_arm_can_be_measured_it_failed_and_each_says_why(here, monkeypatch):
    asked = start(here, points=2)
    monkeypatch.setattr(interpolation, "measure", lambda arrays: 1 / 0)
    measurement.carry_out(asked, CPU)
    failed = status(here)
    assert failed.state == "failed" and [code for _, _, code in failed.problems] == ["", "", "setting.range"]
    assert failed.problems[0][1] == "This is our fault: ZeroDivisionError: division by zero"
    assert "1 / 0" in (asked.path / "log.txt").read_text()


def test_wrong_wishes_leave_no_trace(here, tmp_path):
    for options, code in (
        ({"points": 99}, "setting.range"),
        ({"steps": 1}, "setting.unknown"),
        ({"preset": "?"}, "setting.range"),
    ):
        with pytest.raises(SettingError) as caught:
            start(here, **options)
        assert caught.value.code == code
    assert status(here).state == ""
    other = Lab(tmp_path / "lab")
    order = service.order_of(*here)[0]
    for digest in (order.data, order.natural):
        other.adopt(here[0], digest)
    name = service.place(other, order)
    with pytest.raises(RunError, match="No arm of this comparison is finished yet"):
        measuring.start(other, other, name, Choice(name=NAME))
    assert measuring.plan(other, name, NAME) == "No arm of this comparison is finished yet."


def test_saved_arrays_come_through_the_same_door(here):
    lab, _ = here
    run = measuring.runs(*here, NAME)["full none"]
    (run.path / "measures" / "drift.json").unlink()
    assert list(measuring.results(*here, "drift")) == ARMS[1:]
    assert "Not measured yet: full none." in measuring.about(*here, "drift")
    measuring.start(lab, *here, Choice(name="drift"))
    measurement.carry_out(Measurement(*here, "drift"), CPU)
    assert measuring.status(lab, *here, "drift").state == "done" and list(measuring.results(*here, "drift")) == ARMS


def test_the_worker_takes_measurements_first_and_the_examples_too(here, monkeypatch):
    lab, name = here
    example = Lab(lab.root / "example")
    for asked in (Measurement(example, "e" * 16, NAME), Measurement(lab, name, NAME)):
        asked.place({"points": 2}, {"arm": "none"})
    order = service.order_of(*here)[0]
    other = lab.submit(experiments(order.model_copy(update={"seeds": 2}))[0][1][1])
    done = []

    def carry_out(asked, device):
        done.append(asked.id)
        asked.append("end", state="done", errors=[])

    def execute(run, lab, device, devices):
        done.append(run.id)
        shutil.rmtree(run.path)

    monkeypatch.setattr(measurement, "carry_out", carry_out)
    monkeypatch.setattr(recipe, "execute", execute)
    monkeypatch.setattr(os, "nice", lambda by: by)
    jobs.work(lab, "cpu")
    assert done == [f"{'e' * 16}-{NAME}", f"{name}-{NAME}", other.id]
    shutil.rmtree(example.root)


def test_the_same_from_the_command_line_names_no_folder_of_this_machine(here):
    lines = measuring.commands(*here, NAME)
    assert len(lines) == 3 and lines[0].endswith(f"--lab LAB --diagnostic {NAME}") and str(here[0].root) not in "".join(lines)


def test_a_gallery_becomes_pictures_that_come_by_token_only(here, monkeypatch):
    lab, _ = here
    asked = start(here, points=2)
    measurement.carry_out(asked, CPU)
    run, medical = measuring.runs(*here, NAME)["full none"], dataset.load(lab.data / service.order_of(*here)[0].data)
    path = measures.captures_path(run, Choice(name=NAME, options={"points": 2}))
    shown = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8)
    with np.load(path) as arrays:
        np.savez(path, **{**arrays, "shown": shown})
    cells = [
        {"caption": "medical", "id": str(medical.ids[5])},
        {"caption": "natural", "natural": 2},
        {"caption": "captured", "arm": "full none", "array": "shown", "index": 1},
        {"caption": "of no arm", "arm": "?", "array": "shown", "index": 1},
        {"caption": "deleted", "id": "no such image"},
    ]
    rows = [{"caption": "row", "pictures": cells}, {"caption": "empty", "pictures": cells[3:]}]
    assert list(measuring.pictures(*here, NAME, measuring.results(*here, NAME))) == [], "a module without gallery"
    monkeypatch.setattr(interpolation, "gallery", lambda results: rows, raising=False)
    (row,) = measuring.pictures(*here, NAME, measuring.results(*here, NAME))
    places = [cell["place"] for cell in row["pictures"]]
    assert places == [
        ("set", medical.digest, 5),
        ("set", service.order_of(*here)[0].natural, 2),
        ("captured", run.id, path.stem, "shown", 1),
    ]

    files = Files(visitors.Labs(lab), lab)
    with TestClient(Starlette(routes=files.routes())) as client:
        answer = client.get(files.captured("lab", *places[2][1:]))
        assert answer.headers["content-type"] == "image/png" and np.array_equal(images.read(answer.content).pixels, shown[1])
        assert client.get(files.captured("lab", *places[2][1:])[:-1]).status_code == 404
        wrong = [(run.id, path.stem, "shown", 3), (run.id, path.stem, "shown", -1), (run.id, path.stem, "logits", 0)]
        wrong += [(run.id, path.stem, "nothing", 0), (run.id, "nothing", "shown", 0), (str(run.path), path.stem, "shown", 1)]
        wrong += [(run.id, f"../captures/{path.stem}", "shown", 1)]
        for place in wrong:
            assert client.get(files.captured("lab", *place)).status_code == 410, place


def test_a_photo_may_be_natural_or_a_test_image_as_the_models_saw_it(here):
    lab, _ = here
    order = service.order_of(*here)[0]
    medical = dataset.load(lab.data / order.data)
    test = dataset.parts(medical, order.training, 0).test
    assert np.array_equal(ask.shelf(*here, "test")[1], test) and len(ask.shelf(*here, "natural")[1]) == len(
        dataset.load(lab.data / order.natural)
    )
    digest, index, said = ask.picked(*here, "test", 2)
    assert (digest, index) == (order.data, test[1]) and said == f"2 of {len(test)}: {medical.classes[medical.labels[index]]}"
    assert np.array_equal(ask.of_set(*here, "test", 2)(32), medical.pixels(32)[index])
    for number in (0, len(test) + 1):
        with pytest.raises(SettingError, match=f"There are {len(test)} images to choose from"):
            ask.picked(*here, "test", number)


def test_settings_of_a_look_are_checked_and_passed_on(here, monkeypatch):
    from typing import Annotated

    from pydantic import Field

    from rift.diagnostics import zero_shot

    assert not catalog.look_settings("zero_shot").model_fields

    def look(backbones, image, labels, *, layer: Annotated[int, Field(ge=0, le=3)] = 1):
        return {"models": list(backbones), "shape": tuple(image.shape), "layer": layer}

    look.__annotations__["layer"] = Annotated[int, Field(ge=0, le=3)]
    monkeypatch.setattr(zero_shot, "look", look)
    catalog.look_settings.cache_clear()
    try:
        found = ask.look(*here, "zero_shot", ask.of_set(*here, "natural", 1), settings={"layer": 2})
        assert found["models"] == ["pretrained", *ARMS] and found["layer"] == 2 and found["shape"][0] == 3
        with pytest.raises(SettingError, match="layer = 9 is not allowed"):
            ask.look(*here, "zero_shot", ask.of_set(*here, "natural", 1), settings={"layer": 9})
    finally:
        catalog.look_settings.cache_clear()


def test_every_diagnostic_has_one_family():
    found = compare.families()
    names = [name for group in found.values() for name in group]
    assert sorted(names) == sorted(catalog.names("diagnostics")) and "" not in found
    assert found["What it can do"][0] == "accuracy" and all(found.values())


@pytest.mark.slow
def test_a_real_worker_measures_is_stopped_in_a_long_step_and_goes_on(finished, monkeypatch):
    lab, name = finished
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    measuring.start(lab, lab, name, Choice(name=NAME, options={"points": 31}), device="cpu")
    asked = Measurement(lab, name, NAME)

    def wait(condition, what: str) -> None:
        patience = time.monotonic() + 240
        while not condition():
            assert time.monotonic() < patience, f"still waiting for: {what}"
            time.sleep(0.02)

    wait(lambda: asked.last_event().get("done", 0) >= 1, "a point")
    pid = next(event["pid"] for event in asked.events() if event["event"] == "start")
    assert os.getpriority(os.PRIO_PROCESS, pid) >= jobs.NICE and os.getpgid(pid) == pid
    os.kill(pid, signal.SIGSTOP)  # as a step of many seconds looks from outside
    measuring.stop(lab, name, NAME)
    wait(lambda: not asked.is_alive, "the worker's end")
    assert measuring.status(lab, lab, name, NAME).state == "stopped"
    measuring.go_on(lab, lab, name, NAME, device="cpu")
    wait(lambda: measuring.status(lab, lab, name, NAME, device="cpu").state == "done", "the end")
    assert json.loads((Path(measuring.runs(lab, name, NAME)["full none"].path) / "measures" / f"{NAME}.json").read_text())[
        "settings"
    ] == {"points": 31}

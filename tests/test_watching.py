"""What is told of a comparison while it runs: a map that costs no number, events in words, the time that is left."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rift import captures, catalog, estimate, figures, jobs, measures, places, recipe, service, similarity, watching
from rift.config import Choice, Training
from rift.orders import Order
from rift.runs import Lab, Run
from rift.ui import moving
from rift.ui.shared import Made
from rift.ui.state import Shown
from rift.ui.tabs import watch
from tests import methods_toys

CPU = torch.device("cpu")
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def nobody_works(monkeypatch):
    monkeypatch.setattr(jobs, "ensure_worker", lambda *given: None)


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return methods_toys.toy_lab(tmp_path_factory.mktemp("lab"))


def order(lab: Lab, **more) -> Order:
    toy = Choice(name="checkpoint", options={"path": str(lab.weights), "architecture": "test_vit"})
    training = Training(**{"epochs": 3, "batch_size": 8, "views": 1, **more})
    backbone = catalog.check("backbones", toy)
    return Order(data=lab.medical.digest, natural=lab.natural.digest, backbone=backbone, training=training)


@pytest.fixture(scope="module")
def done(lab) -> str:
    """A finished comparison of both arms."""
    name = service.place(lab, order(lab))
    for run in service.runs(service.arms(lab, name)):
        recipe.execute(run, lab, CPU)
    return name


@pytest.fixture
def fresh(lab, tmp_path) -> Lab:
    other = Lab(tmp_path / "fresh")
    for data in lab.data.iterdir():
        other.adopt(lab, data.name)
    other.weights, other.medical, other.natural = lab.weights, lab.medical, lab.natural
    return other


def test_the_map_is_the_projection_of_the_embeddings_that_cka_is_computed_from(lab, done):
    from rift.snapshot import Snapshot

    for run in service.runs(service.arms(lab, done)):
        found = places.read(run)
        before = Snapshot.load(lab.cache / run.result()["before"]).sets["validation"]
        after = Snapshot.load(run.path / "snapshot.npz").sets["validation"]
        axes = similarity.pca(before.embeddings, 2)
        assert list(found.epochs) == [1, 2, 3] and found.newest == 3 and len(found.start) == len(before.ids)
        assert found.start == pytest.approx((before.embeddings - axes.mean) @ axes.basis, rel=1e-3, abs=1e-5)
        assert found.at(3) == pytest.approx((after.embeddings - axes.mean) @ axes.basis, rel=1e-3, abs=1e-4), "the last weights"
        assert (found.labels == before.labels).all() and found.classes == lab.medical.classes
        assert np.array_equal(found.at(0), found.start) and np.array_equal(found.at(99), found.at(3))
        assert found.moved(0) == 0 and found.moved(3) > 0
        assert (run.path / "places.jsonl").stat().st_size < 400 * len(found.start)


@pytest.mark.slow
def test_the_map_changes_no_weight_by_a_bit(lab, done, fresh, monkeypatch):
    monkeypatch.setattr(places, "recorder", lambda *given: lambda epoch, embeddings: None)
    for run in service.runs(service.arms(lab, done)):
        again = fresh.submit(run.experiment)
        recipe.execute(again, fresh, CPU)
        assert again.id == run.id and not (again.path / "places.jsonl").exists()
        a, b = (load_file(one.path / "weights.safetensors") for one in (run, again))
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert [e["task_loss"] for e in again.events() if e["event"] == "step"] == [
            e["task_loss"] for e in run.events() if e["event"] == "step"
        ]
    assert watching.maps(fresh, service.place(fresh, order(lab))) == {}, "an older run has none"


def test_at_most_so_many_images_and_a_torn_line_is_left_out(tmp_path):
    run, draw = Run(tmp_path), np.random.default_rng(0)
    before, labels = draw.normal(size=(300, 6)).astype(np.float32), draw.integers(-1, 2, 300)
    note = places.recorder(run, before, labels, ("a", "b"))
    note(1, before)
    with (tmp_path / "places.jsonl").open("ab") as file:
        file.write(b'{"epoch": 2, "pla')
    places.recorder(run, before, labels, ("a", "b"))(1, 2 * before)  # taken up again: the last one counts
    note(2, np.full_like(before, np.nan))
    found = places.read(run)
    assert len(found.start) == places.MOST == len(found.labels) and list(found.epochs) == [1]
    assert not np.allclose(found.at(1), found.start)
    places.recorder(Run(tmp_path / "none"), before[:1], labels[:1], ("a", "b"))(1, before[:1])
    assert places.read(Run(tmp_path / "none")) is None, "one image spans no axes"


def test_the_map_is_drawn_on_axes_that_hold_still(lab, done):
    maps = watching.maps(lab, done)
    assert list(maps) == ["none", "rift"]
    first, last = (moving.figure(maps, epoch) for epoch in (1, 3))
    assert first.layout.xaxis.range == last.layout.xaxis.range and first.layout.yaxis2.range == last.layout.yaxis2.range
    assert [note.text for note in last.layout.annotations] == ["none, epoch 3", "rift, epoch 3"]
    symbols = {trace.marker.symbol for trace in last.data if trace.mode == "markers"}
    assert len(symbols) == 2 and len([trace for trace in last.data if trace.showlegend]) == 2
    assert len(last.to_json()) < 20_000
    said = watching.moved(maps, 3)
    assert "After epoch 3" in said and f"n = {len(maps['none'].start)} validation images" in said
    assert f"none {maps['none'].moved(3):.2f}" in said and "pretrained model" in watching.moved(maps, 0)
    assert watching.moved({}, 1) == ""


def test_the_slider_follows_the_newest_epoch_unless_one_steps_back(lab, done, monkeypatch):
    of = {"of": lambda reached: Shown("lab", lab, done) if reached else None}
    app = SimpleNamespace(**of, made=Made())
    one = object.__new__(moving.Map)  # without a page around it
    one.app = app
    slider, _, play, plot, said = one._follow("lab/x 3 6", 0, True)
    assert (slider.value, slider.maximum, slider.visible, play.visible) == (3, 3, True, True)
    assert one._follow("lab/x 3 6", 1, False)[0].value == 1
    assert one._step("lab/x 3 6", 2)[0] is False and one._step("lab/x 3 6", 3)[0] is True
    monkeypatch.setattr(moving, "FRAME_SECONDS", 0)
    assert [frame[0] for frame in one._play("lab/x 3 6")] == [0, 1, 2, 3]
    slider, _, _, plot, said = one._follow("", 0, True)
    assert not slider.visible and said == "" and "older" in plot.layout.annotations[0].text.replace("<br>", " ")


def test_what_happened_is_told_in_words_newest_first(fresh):
    name = service.place(fresh, order(fresh))
    none, rift = service.runs(service.arms(fresh, name))
    lines = [
        {"event": "start", "time": 1000.0, "device": "cpu"},
        {"event": "stage", "time": 1001.0, "stage": "training"},
        {"event": "step", "time": 1002.0, "step": 1, "steps": 9, "milliseconds": 5.0},
        {"event": "epoch", "time": 1010.0, "epoch": 1, "epochs": 3, "validation_accuracy": 0.75, "cka_debiased": 0.5},
        {"event": "queued", "time": 1100.0},
        {"event": "start", "time": 1130.0, "device": "cuda"},
        {"event": "resume", "time": 1131.0, "step": 3},
        {"event": "trial", "time": 1132.0, "trial": 2, "trials": 5, "what": "strength", "value": 0.3},
        {"event": "epoch", "time": 1140.0, "epoch": 2, "epochs": 3, "validation_accuracy": None, "cka_debiased": None},
        {"event": "stage", "time": 1141.0, "stage": "evaluating"},
        {"event": "end", "time": 1150.0, "state": "done"},
    ]
    (none.path / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines) + '{"event": "ep')
    rift.append("start", device="cuda")
    rift.append("end", state="failed", code="run.diverged", message=f"Training diverged: {HOSTILE}.")
    found = watching.log(fresh, name)
    assert [line.text for line in found[2:]] == [
        "none finished in 30 s.",
        "none is trained; measuring what it learned and what it forgot.",
        "none, epoch 2 of 3: nothing could be measured.",
        "none tries a strength of 0.3, trial 2 of 5.",
        "none took up its work at step 3, where its last checkpoint is.",
        "none goes on after a break of 2 min.",
        "none, epoch 1 of 3: accuracy 0.750, similarity to the pretrained model 0.50.",
        "none started on the CPU.",
    ]
    assert found[0].text == f"rift failed: Training diverged: {HOSTILE}." and found[0].problem and not found[1].problem
    page = watch._log(Shown("lab", fresh, name))
    assert "<img" not in page and "Problem: " in page and '<time datetime="1970-01-01T00:19:10+00:00">' in page


def test_a_divergence_suggests_a_tenth_of_the_rate(fresh, monkeypatch):
    name = service.place(fresh, order(fresh, learning_rate=3e-4))
    run = service.runs(service.arms(fresh, name))[0]
    monkeypatch.setattr(recipe.train.nn.utils, "clip_grad_norm_", lambda *a, **b: recipe.torch.tensor(float("nan")))
    recipe.execute(run, fresh, CPU)
    assert run.end()["code"] == "run.diverged" and "Try a tenth of the learning rate: 3e-05." in run.end()["message"]
    assert watching.log(fresh, name)[0].problem


def test_headings_fit_the_task(fresh, monkeypatch):
    name = service.place(fresh, order(fresh))
    assert watching.headline(fresh, name)[0] == "Accuracy"
    _, headline, *plots, reached, log, _ = watch.render(Shown("lab", fresh, name))
    assert "Accuracy" in headline and len(plots) == 4 and "Nothing yet" in log and reached.endswith(" 0 0")
    again = order(fresh).model_copy(update={"task": Choice(name="reconstruction")})
    name = service.place(fresh, again)
    assert watching.headline(fresh, name)[0] == "Reconstruction error"
    assert "Reconstruction error" in watch.render(Shown("lab", fresh, name))[1]
    assert set(watching.HEADLINES) == set(catalog.names("tasks"))


def test_time_left_after_a_resume_counts_what_is_to_do_again(fresh):
    name = service.place(fresh, order(fresh, epochs=10, learning_rate=2e-4))
    run = service.runs(service.arms(fresh, name))[0]
    sizes = service.sizes(fresh.root, name)
    steps = estimate.steps(run.experiment, sizes.train)

    def told() -> tuple[float, float]:
        status = service.status(fresh, name)
        return status.seconds_left, status.progress

    with run.alive():
        run.append("start", pid=0)
        for step in range(1, 8):
            run.append("step", step=step, steps=steps, milliseconds=1000.0)
        whole = told()
        run.append("epoch", epoch=4, epochs=10)
        assert told()[0] == pytest.approx(whole[0] + (7 - 4 * steps / 10)), "an epoch's end is where it is"
        (run.path / "checkpoint").mkdir()
        (run.path / "checkpoint" / "step-0000003.safetensors").touch()
        run.append("start", pid=0)
        run.append("stage", stage="preparing")
        again = told()
        assert again[0] == pytest.approx(whole[0] + 4.0), "four steps are done again, as fast as they were"
        assert 0 < again[1] < whole[1]
        run.append("resume", step=3)
        run.append("stage", stage="training")
        assert told() == pytest.approx(again)


def test_a_measurement_that_goes_on_is_not_timed_by_what_it_kept(tmp_path, monkeypatch):
    clock, told = [0.0], []
    monkeypatch.setattr(measures.time, "monotonic", lambda: clock[0])
    pace = measures._Pace("toy", lambda text: None, lambda done, total, what, each: told.append(each))
    data = captures.Data(
        *[None] * 3, natural_head=None, folder=tmp_path, seed=0, device=CPU, progress=pace.progress, spared=pace.spared
    )

    def part() -> dict[str, np.ndarray]:
        clock[0] += 8.0
        return {"x": np.zeros(1)}

    for stop in (3, 6):
        for place in range(stop):
            data.progress(place, 6, "parts")
            data.part(f"part-{place}", part)
    assert told[:3] == [None, 8.0, 8.0]
    assert told[3:] == [None, None, None, None, 8.0, 8.0], "three kept parts say nothing; those after them take as long as ever"


def test_the_place_in_line_is_told(fresh):
    names = [service.place(fresh, order(fresh, epochs=epochs)) for epochs in (1, 2, 4)]
    said = [service.status(fresh, name).message for name in names]
    assert said[0].startswith("Starting none")
    assert said[1:] == [f"{place} in line. Waiting for {n} other runs; yours come next." for place, n in (("2nd", 2), ("3rd", 4))]
    assert " ".join(map(service._ordinal, (1, 2, 3, 4, 11, 12, 13, 21, 102))) == "1st 2nd 3rd 4th 11th 12th 13th 21st 102nd"


def test_curves_are_of_what_the_task_is_judged_by(fresh):
    name = service.place(fresh, order(fresh))
    run = service.runs(service.arms(fresh, name))[0]
    run.append("epoch", epoch=1, epochs=2, validation_accuracy=0.5, cka_debiased=0.25)
    plots = watch.render(Shown("lab", fresh, name))[2:6]
    assert list(plots[2].data[0].y) == [0.5] and list(plots[3].data[0].y) == [0.25]
    assert plots[2].layout.yaxis.title.text == "accuracy" and figures.MOST_POINTS and Path(run.path).exists()

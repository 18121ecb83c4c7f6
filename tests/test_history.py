"""The history of a lab: rows that follow the files, names and pins, what differs, and what goes when one is deleted."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest

from rift import example, history, naming, service, sharing, storage
from rift.config import Choice, Training
from rift.errors import RunError
from rift.measurement import Measurement
from rift.orders import Order, experiments
from rift.runs import Lab, write_json


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Lab:
    return example.place(tmp_path_factory.mktemp("history") / "example")


@pytest.fixture
def lab(shipped, tmp_path) -> tuple[Lab, str]:
    """A lab of one's own with one finished comparison."""
    shutil.copytree(shipped.root, tmp_path / "lab")
    (tmp_path / "lab" / "placed").unlink()
    lab = Lab(tmp_path / "lab")
    return lab, service.comparisons(lab)[0]


def another(lab: Lab, name: str, **changed: object) -> str:
    """Ask for one more comparison on the same images, without training it."""
    order = service.order_of(lab, name)[0].model_copy(update=changed)
    return service.place(lab, order, source="sample:phantoms")


def test_a_row_holds_what_the_runs_measured(lab):
    lab, name = lab
    (row,) = history.entries({"lab": lab})
    assert (row.key, row.state, row.seeds, row.pinned) == (f"lab/{name}", "done", 1, False)
    document = service.result(lab, name)
    for (arm, numbers), whole in zip(row.arms, document["arms"], strict=True):
        assert arm == whole["name"]
        assert numbers == {key: whole["mean"][key] for key in ("balanced_accuracy", "cka_debiased", "natural_accuracy")}
    assert row.created == service.created(lab, name) and "phantoms" in row.text and row.text == row.text.casefold()


def test_names_and_pins_are_kept_in_the_comparison_and_come_first(lab):
    lab, name = lab
    other = another(lab, name, seeds=2)
    assert [row.id for row in history.entries({"lab": lab})] == [other, name]
    naming.pin(lab, name, True)
    naming.rename(lab, name, "  Our\nbest <b>one</b> ‮" + "x" * 200)
    rows = history.entries({"lab": lab})
    assert [row.id for row in rows] == [name, other] and rows[0].pinned
    assert rows[0].title.startswith("Our best <b>one</b> x") and len(rows[0].title) <= naming.LONGEST_NAME
    assert naming.title(lab, name) == rows[0].title and naming.about(lab, name).startswith(naming.made(lab, name))
    naming.rename(lab, name, "")
    assert naming.title(lab, name) == naming.made(lab, name) and naming.label_of(lab, name).pinned
    with pytest.raises(RunError, match="no longer there"):
        naming.pin(lab, "0" * 16, True)
    (lab.comparisons / name / "label.json").write_text('{"name": 3}')
    assert naming.label_of(lab, name) == naming.Label()


def test_the_state_is_that_of_the_runs(lab):
    lab, name = lab
    other = another(lab, name, seeds=2)
    run = lab.run(history.runs(lab, other)["none, seed 1"])

    def state() -> str:
        return next(row.state for row in history.entries({"lab": lab}) if row.id == other)

    assert state() == "queued"
    run.append("start", pid=1)
    with run.alive():
        run.append("stage", stage="training")
        assert state() == "training"
    assert state() == "queued", "the other arm still waits"
    lab.run(history.runs(lab, other)["rift, seed 1"]).request_stop()
    assert state() == "lost"
    assert history.state_of(["done", "done"]) == "done" and history.state_of(["done", "failed", "lost"]) == "failed"


def test_what_cannot_be_read_is_left_out(lab):
    lab, name = lab
    other = another(lab, name, seeds=2)
    (lab.comparisons / other / "order.json").write_text("{")
    assert [row.id for row in history.entries({"lab": lab})] == [name]


def test_deleted_images_leave_the_row(lab):
    lab, name = lab
    shutil.rmtree(lab.data / service.order_of(lab, name)[0].data)
    history.forget()
    (row,) = history.entries({"lab": lab})
    assert row.images == history.GONE and row.arms[0][1]["cka_debiased"] is not None


def test_a_hundred_comparisons_are_listed_without_delay(lab):
    lab, name = lab
    stored = json.loads((lab.comparisons / name / "order.json").read_bytes())
    order = service.order_of(lab, name)[0]
    for number in range(99):
        one = order.model_copy(update={"strengths": (float(number + 2),)})
        home = lab.comparisons / one.id
        home.mkdir()
        write_json(home / "order.json", {**stored, "order": one.model_dump(mode="json")})
        for run in (run for _, by_seed in experiments(one) for run in by_seed):
            if not (target := lab.root / "runs" / run.id).exists():
                shutil.copytree(
                    lab.root / "runs" / os.listdir(lab.root / "runs")[0],
                    target,
                    ignore=lambda *_: ["captures", "weights.safetensors"],
                )
                write_json(target / "experiment.json", run.model_dump(mode="json"))
    began = time.perf_counter()
    assert len(history.entries({"lab": lab})) == 100
    first = time.perf_counter() - began
    began = time.perf_counter()
    history.entries({"lab": lab})
    again = time.perf_counter() - began
    print(f"100 comparisons: {first:.3f} s, then {again:.3f} s")
    assert again < 0.5 and first < 5, "generous, since the machine may be busy"


def test_only_what_differs_is_listed(lab):
    lab, name = lab
    other = another(lab, name, training=Training(epochs=3), strengths=(0.5, 2.0))
    found = dict((key, values) for key, *values in history.differ(history.settings(lab, name), history.settings(lab, other)))
    assert found == {
        "training.epochs": ["30", "3"],
        "strengths": ["1.0", "–"],
        "strengths.1": ["–", "0.5"],
        "strengths.2": ["–", "2.0"],
    }
    runs = history.runs(lab, name)
    between = history.differ(*(history.settings(lab, name, run) for run in runs.values()))
    assert ("regularizer.name", "none", "rift") in between and ("strength", "0.0", "1.0") in between
    assert not [row for row in between if row[0].startswith("training")]
    assert history.differ({"a": {}}, {}) == [] and history.differ({"a": 1}, {"a": 1}) == []
    assert "phantoms" in history.settings(lab, name)["data"]


def test_deleting_keeps_runs_that_another_comparison_has(lab):
    lab, name = lab
    other = another(lab, name, regularizers=(Choice(name="feature_l2"),))
    shared, own = (run for run in service.runs(service.arms(lab, name)))
    assert shared.experiment.regularizer.name == "none"
    cache = lab.cache / (shared.result() or {})["before"]
    for path in (cache, lab.cache / "views-1.npz", lab.cache / "views-2.npz"):
        path.write_bytes(b"x")
    middle = (own.events()[0]["time"] + own.events()[-1]["time"]) / 2
    os.utime(lab.cache / "views-1.npz", (middle, middle))
    Measurement(lab, name, "stir").place({}, {})
    said = history.deletion(lab, name)
    assert [run.id for run in said.going] == [own.id] and [run.id for run in said.staying] == [shared.id]
    assert "1 run with" in said.sentence and "1 more stay" in said.sentence
    sharing.create(lab, "lab", name, pictures=False)
    history.delete(lab, name)
    assert service.comparisons(lab) == [other] and not own.path.exists() and shared.state == "done"
    assert not list(lab.measuring.glob(f"{name}-*")), "what was measured for it is gone"
    assert cache.exists() and not (lab.cache / "views-1.npz").exists() and (lab.cache / "views-2.npz").exists()
    with pytest.raises(RunError, match="no longer there"):
        history.delete(lab, name)
    history.delete(lab, other)
    assert not lab.runs() and not list(lab.cache.iterdir()), "no cache is left without a run"
    assert list(lab.data.iterdir()), "image sets stay"


def test_all_data_can_be_deleted_and_the_lab_is_as_new(lab):
    lab, name = lab
    example.place(lab.root / "example")
    (lab.root / "example" / "measuring").mkdir(exist_ok=True)
    lab.photos.mkdir()
    (lab.photos / "a.png").write_bytes(b"x" * 1000)
    (lab.root / "drafts" / "d").mkdir(parents=True)
    (lab.root / "drafts" / "d" / "draft.json").write_text("{}")
    (lab.root / "worker.log").write_text("l")
    (lab.root / "secret").write_text("s")
    (lab.cache / "stir-1.npz").write_bytes(b"z")
    another(lab, name, seeds=2)
    token = sharing.create(lab, "lab", name, pictures=False)
    rows = {row.what.partition(":")[0].partition(",")[0]: row for row in storage.stored(lab)}
    assert rows["Runs"].number == 4 and rows["Photos of your own that the models were asked about"].bytes == 1000
    one_each = ("Shared links", "Logs and locks", "Classes filled picture by picture")
    assert {rows[kind].number for kind in one_each} == {1} and rows["Image sets"].bytes > 6_000_000
    storage.erase(lab)
    assert sorted(path.name for path in lab.root.iterdir()) == ["cache", "comparisons", "data", "example", "runs", "secret"]
    assert [row.number for row in storage.stored(lab)] == [0, 0, 0][: len(storage.stored(lab))]
    assert all(not list((lab.root / folder).iterdir()) for folder in ("cache", "comparisons", "data", "runs"))
    assert not (lab.root / "example" / "measuring").exists() and service.comparisons(Lab(lab.root / "example")) == [name]
    with pytest.raises(RunError):
        sharing.find(lab, token)
    storage.erase(lab)  # nothing is no problem


def test_an_order_of_another_process_is_seen(lab):
    lab, name = lab
    history.entries({"lab": lab})
    other = Order.model_validate(service.order_of(lab, name)[0].model_dump() | {"seeds": 3})
    service.place(lab, other)
    assert len(history.entries({"lab": lab})) == 2

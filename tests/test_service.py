"""The verbs of the app: what is asked twice is the same comparison, states follow the files, and a missing one says so."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rift import ask, estimate, jobs, service, watching
from rift.config import Choice, Training
from rift.dataset import store
from rift.errors import DataError, RunError, SettingError
from rift.orders import Order
from rift.review import Entry
from rift.runs import Lab


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    """A lab with one small set; no worker is started, so that states stay where a test puts them."""
    monkeypatch.setattr(jobs, "ensure_worker", lambda lab, device="auto": None)
    return Lab(tmp_path / "lab")


@pytest.fixture
def order(lab) -> Order:
    draw = np.random.default_rng(0)
    entries = [
        Entry(f"{name}/{i}.png", name, draw.integers(0, 255, (16, 16, 3), np.uint8)) for name in ("a", "b") for i in range(20)
    ]
    images = store(entries, lab.data, name="two kinds")
    return Order(data=images.digest, natural=images.digest, training=Training(epochs=2, batch_size=8))


def test_equal_orders_are_one_comparison_with_its_runs_queued_seed_by_seed(lab, order):
    order = order.model_copy(update={"seeds": 2})
    name = service.start(lab, order, "two.zip")
    assert service.start(lab, order) == name and service.comparisons(lab) == [name]
    assert [(run.experiment.regularizer.name, run.experiment.seed) for run in lab.runs()] == [
        ("none", 0),
        ("rift", 0),
        ("none", 1),
        ("rift", 1),
    ]
    assert service.order_of(lab, name) == (order, "two.zip")
    assert [arm.name for arm in service.arms(lab, name)] == ["none", "rift"]


def test_without_the_baseline_only_the_asked_arm_runs(lab, order):
    name = service.start(lab, order.model_copy(update={"baseline": False}))
    assert [arm.name for arm in service.arms(lab, name)] == ["rift"]


def test_a_wrong_choice_leaves_no_trace(lab, order):
    with pytest.raises(SettingError, match="no regularizer named 'nonsense'"):
        service.start(lab, order.model_copy(update={"regularizers": (Choice(name="nonsense"),)}))
    assert service.comparisons(lab) == [] and lab.runs() == []


def test_the_state_follows_the_runs_files(lab, order):
    name = service.start(lab, order)
    none, rift = service.runs(service.arms(lab, name))
    first = service.status(lab, name)
    assert (first.state, first.progress) == ("preparing", 0.0) and "Starting none, run 1 of 2" in first.message

    with none.alive():
        none.append("start", pid=0)
        none.append("step", step=3, steps=6, milliseconds=100.0)
        second = service.status(lab, name)
    assert second.state == "training" and second.message == "Training none, run 1 of 2, step 3 of 6."
    assert second.progress == pytest.approx((0.05 + 0.45) / 2) and second.version != first.version
    # six steps of each arm at 100 ms for 8 images, three of them done, and forward passes at a third of a step's cost:
    # 40 images twice (they are the natural ones too), 8 validation images after each of 2 epochs, 4 views of 24 images for rift
    passes = [40 + 40 + 2 * 8, 40 + 40 + 2 * 8 + 4 * 24]
    assert second.seconds_left == pytest.approx((2 * 6 - 3) * 0.1 + sum(passes) * 0.1 / 8 / 3)
    assert none.state == "lost", "no lock and no end: its process is gone"
    assert service.status(lab, name).state == "preparing" and none.state == "queued", "it is taken up again by itself"
    for _ in range(service.MOST_STARTS):
        none.append("start", pid=0)
    rift.request_stop()
    assert service.status(lab, name).state == "lost", "but not for ever"

    none.append("end", state="failed", code="run.memory", message="The device has too little memory.")
    ended = service.status(lab, name)
    assert ended.state == "failed" and not ended.active and "too little memory" in ended.message
    service.start(lab, order)
    assert {run.state for run in lab.runs()} == {"queued"}, "starting again takes up what ended unfinished"


def test_a_queue_without_a_worker_gets_one_of_the_asked_device(lab, order, monkeypatch):
    asked = []
    monkeypatch.setattr(jobs, "ensure_worker", lambda lab, device="auto": asked.append(device))
    name = service.start(lab, order, device="cpu")
    service.status(lab, name, device="cpu")
    assert asked == ["cpu", "cpu"]


def test_a_stop_keeps_the_queue_from_going_on(lab, order):
    name = service.start(lab, order)
    service.stop(lab, name)
    assert service.status(lab, name).state == "stopped" and jobs.next_run(lab) is None


def test_others_before_mine_are_told(lab, order):
    service.start(lab, order)
    mine = service.start(lab, order.model_copy(update={"training": Training(epochs=3)}))
    status = service.status(lab, mine)
    assert status.state == "queued" and status.message == "2nd in line. Waiting for 2 other runs; yours come next."


def test_what_is_missing_says_so(lab, order):
    for name in ("nothing", "../../etc", ""):
        with pytest.raises(RunError, match="no comparison") as caught:
            service.status(lab, name)
        assert caught.value.code == "run.missing"
    name = service.start(lab, order)
    with pytest.raises(RunError, match="No run of this comparison is finished yet"):
        service.result(lab, name)
    with pytest.raises(RunError, match="No arm of this comparison is finished yet"):
        ask.look(lab, name, "zero_shot", np.zeros((8, 8, 3), np.uint8), ["cat", "dog"])


def test_curves_count_a_resumed_step_once(lab, order):
    name = service.start(lab, order)
    run = service.runs(service.arms(lab, name))[0]
    for step, loss in ((1, 1.0), (2, 0.9), (2, 0.8), (3, 0.7)):
        run.append("step", step=step, steps=6, task_loss=loss)
    assert [event["task_loss"] for event in watching.curves(lab, name)["none"]] == [1.0, 0.8, 0.7]


def test_a_photo_is_kept_without_its_metadata_and_found_by_its_key(lab):
    from PIL import Image

    path = lab.root / "photo.jpg"
    exif = Image.Exif()
    exif[0x010E] = "PATIENT NAME"
    Image.new("RGB", (700, 500), (200, 30, 30)).save(path, exif=exif)
    key = ask.keep_photo(lab, path.read_bytes())
    assert ask.photo(lab, key).shape == (512, 512, 3)
    assert b"PATIENT" not in (lab.photos / f"{key}.png").read_bytes()
    for wrong in ("", "../secret", "0" * 32):
        with pytest.raises(DataError, match="Drop a photo first"):
            ask.photo(lab, wrong)
    with pytest.raises(DataError):
        ask.keep_photo(lab, b"not a picture")


def test_an_estimate_comes_from_the_labs_own_runs(lab, order):
    name = service.start(lab, order)
    run = service.runs(service.arms(lab, name))[0]
    experiment = run.experiment
    guess = estimate.step_milliseconds(lab, experiment)
    assert guess is not None and guess > 0, "the embedded model is timed here where no run has been"
    (run.path / "result.json").write_text(json.dumps({"numbers": {"step_milliseconds": 123.0}}))
    assert estimate.step_milliseconds(lab, experiment) == 123.0
    assert estimate.steps(experiment, 24) == 6
    sizes = estimate.Sizes(24, 8, 40, 40)
    passes = 3 * (40 + 40) + 2 * 2 * 8  # the pretrained model's, then each run's, and its probes
    expected = estimate.START_SECONDS + 2 * 6 * 0.123 + passes * 0.123 / 8 / 3
    assert estimate.seconds(lab, [experiment] * 2, sizes) == pytest.approx(expected)
    other = experiment.model_copy(update={"backbone": Choice(name="timm", options={"model": "vit_base_patch16_224"})})
    assert estimate.seconds(lab, [other], sizes) is None, "nothing is guessed"


def test_a_set_is_adopted_once(lab, order, tmp_path):
    other = Lab(tmp_path / "other")
    for _ in range(2):
        other.adopt(lab, order.data)
    assert (other.data / order.data / "manifest.json").exists()

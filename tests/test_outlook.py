"""What a comparison will take, before it is started: measured where something was, a bound where not, and who comes first."""

from __future__ import annotations

import json
import mmap

import pytest

from rift import api, estimate, lineup, memory, outlook, service
from rift.config import Choice, Training
from rift.orders import Order
from rift.runs import Lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("outlook") / "lab")


@pytest.fixture(scope="module")
def order(lab) -> Order:
    images = api.open_data("sample:phantoms:kind=fundus,images_per_class=4", lab.data)
    arms = lineup.fields([lineup.parse(text) for text in lineup.PAIR])
    return Order(data=images.digest, natural=images.digest, training=Training(epochs=2, batch_size=4), **arms)


def finish(run, **result) -> None:
    whole = {"numbers": {"step_milliseconds": 100.0}, "backbone": {"parameters": 10}, "trainable_parameters": 10}
    (run.path / "result.json").write_text(json.dumps(whole | {"environment": {"device": "cpu"}} | result))


def test_memory_is_a_bound_until_runs_like_it_were_measured_on_the_same_device(lab, order):
    before = outlook.of(lab, lab, order, "cpu")
    parameters = estimate._embedded_parameters()
    assert before.memory == (4 * 5 * parameters, False), "two models, and a gradient and two moments of what trains"
    assert before.runs == 2 and before.finished == 0 and before.steps == 2 * 2 * -(-before.sizes.train // 4)
    assert before.ahead == 0 and before.seconds > 0
    service.place(lab, order)
    first, _ = service.runs(service.arms(lab, order.id))
    finish(first, peak_bytes=5 * 10**8)
    once = outlook.of(lab, lab, order, "cpu")
    assert once.runs == 1 and once.finished == 1
    assert once.memory == (5 * 10**8, True), "both arms are of one backbone, method and batch size"
    assert outlook.of(lab, lab, order, "cuda").memory.measured is False, "a CPU's peak says nothing of a GPU"
    assert outlook.of(lab, lab, order, "cuda").seconds is None, "nor do its steps"
    larger = order.model_copy(update={"training": Training(epochs=2, batch_size=8)})
    assert outlook.of(lab, lab, larger, "cpu").memory.measured is False


def test_what_is_not_known_is_not_guessed_and_the_queue_is_told(lab, order):
    other = order.model_copy(update={"backbone": Choice(name="timm", options={"model": "vit_base"})})
    found = outlook.of(lab, lab, other, "cpu")
    assert found.memory is None and found.seconds is None
    assert found.ahead == 1 and found.ahead_seconds > 0, "the second run of the order before"


def test_a_peak_is_of_what_came_since_it_was_reset():
    memory.reset("cpu")
    low = memory.peak("cpu")
    with mmap.mmap(-1, 80 * 10**6) as block:  # pages of its own: a list may lie where this process had some before
        for place in range(0, len(block), 4096):
            block[place] = 1
        high = memory.peak("cpu")
    assert high - low > 60 * 10**6
    memory.reset("cpu")
    assert memory.peak("cpu") < high

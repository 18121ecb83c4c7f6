"""A GPU that is lent by the call: forks of the page carry out the runs, refusals are told in words, nothing is done twice."""

from __future__ import annotations

import sys
from pathlib import Path

import gradio as gr
import pytest
import torch
from safetensors.torch import load_file

from rift import catalog, jobs, lending, measuring, recipe, service
from rift.config import Choice, Training
from rift.orders import Order
from rift.runs import Lab
from tests import methods_toys
from tests.spaces_stand_in import StandIn, lent_gpus  # noqa: F401


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return methods_toys.toy_lab(tmp_path / "lab")


def order(lab: Lab, **training) -> Order:
    toy = Choice(name="checkpoint", options={"path": str(lab.weights), "architecture": "test_vit"})
    return Order(
        data=lab.medical.digest,
        natural=lab.natural.digest,
        backbone=catalog.check("backbones", toy),
        training=Training(**{"epochs": 2, "batch_size": 8, "views": 1, **training}),
    )


def call(spaces: StandIn):
    return spaces.GPU(duration=lambda root, name, job, seconds: seconds)(lending.carry_out)


def test_it_is_active_only_where_gpus_are_lent_and_the_package_is_there(spaces, monkeypatch):
    assert lending.active()
    monkeypatch.setenv("SPACES_ZERO_GPU", "")
    assert not lending.active()
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    monkeypatch.delitem(sys.modules, "spaces")
    assert not lending.active(), "no package"


@pytest.mark.slow
def test_forks_do_what_a_worker_does_to_the_last_bit(spaces, lab, tmp_path, monkeypatch):
    name = service.start(lab, order(lab), device=jobs.IN_EVENT)
    assert not (lab.root / "worker.log").exists(), "no worker was started"
    lending.work(lab, name, call(spaces))
    assert service.status(lab, name, device=jobs.IN_EVENT).state == "done" and len(spaces.asked) == 2
    assert all(lending.LEAST_SECONDS <= one <= lending.MOST_SECONDS for one in spaces.asked)
    monkeypatch.setenv("STAND_IN_GPU", "1")  # now as another process would
    for run in service.runs(service.arms(lab, name)):
        other = Lab(tmp_path / "other")
        for data in lab.data.iterdir():
            other.adopt(lab, data.name)
        again = other.submit(run.experiment)
        recipe.execute(again, other, torch.device("cpu"))
        a, b = (load_file(one.path / "weights.safetensors") for one in (run, again))
        assert all(torch.equal(a[key], b[key]) for key in a)
    monkeypatch.delenv("STAND_IN_GPU")
    spaces.asked.clear()
    measuring.start(lab, lab, name, Choice(name="interpolation", options={"points": 2}), device=jobs.IN_EVENT)
    lending.work(lab, name, call(spaces))
    assert list(measuring.results(lab, name, "interpolation")) == ["none", "rift"] and len(spaces.asked) == 1
    lending.work(lab, name, call(spaces))
    assert len(spaces.asked) == 1, "nothing is left to do"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "says"),
    [("most", "more time on the GPU than one call may take"), ("quota", "Your share of GPU time is used up for now")],
)
def test_a_refusal_ends_in_words_and_the_cpu_can_go_on(spaces, lab, limit, says, monkeypatch):
    setattr(spaces, limit, 5)
    name = service.start(lab, order(lab), device=jobs.IN_EVENT)
    lending.work(lab, name, call(spaces))
    (first, second) = service.runs(service.arms(lab, name))
    assert first.end()["code"] == "run.quota" and second.state == "queued" and len(spaces.asked) == 1
    assert says in first.end()["message"] and "fewer epochs" in first.end()["message"] and "choose CPU" in first.end()["message"]
    service.stop(lab, name)
    status = service.status(lab, name, device=jobs.IN_EVENT)
    assert status.state == "failed" and says in status.message
    service.start(lab, order(lab), device=jobs.IN_EVENT)
    assert [run.state for run in (first, second)] == ["queued", "queued"], "Go on takes up both"
    monkeypatch.setenv("STAND_IN_GPU", "1")  # as the worker's process
    for run in (first, second):
        recipe.execute(run, lab, torch.device("cpu"))
    assert service.status(lab, name).state == "done"


@pytest.mark.slow
def test_what_cannot_fit_into_a_call_is_not_asked_for(spaces, lab, monkeypatch):
    monkeypatch.setattr(lending.estimate, "seconds", lambda *given: 3000.0)
    name = service.start(lab, order(lab), device=jobs.IN_EVENT)
    lending.work(lab, name, call(spaces))
    runs = service.runs(service.arms(lab, name))
    assert spaces.asked == [] and {run.end()["code"] for run in runs} == {"run.quota"}
    assert "needs about 460 s on the GPU, and one call gets 120 s at most" in runs[0].end()["message"]


@pytest.mark.slow
def test_a_call_that_is_cut_off_is_taken_up_from_its_checkpoint(spaces, lab):
    name = service.start(lab, order(lab, epochs=4), device=jobs.IN_EVENT)
    spaces.killed = True
    with pytest.raises(gr.Error, match="aborted"):
        lending.work(lab, name, call(spaces))
    first = service.runs(service.arms(lab, name))[0]
    assert first.state == "lost"
    spaces.killed = False
    service.status(lab, name, device=jobs.IN_EVENT)
    lending.work(lab, name, call(spaces))
    assert service.status(lab, name, device=jobs.IN_EVENT).state == "done"
    assert [event["step"] for event in first.events() if event["event"] == "resume"] == [3]

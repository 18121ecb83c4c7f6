"""What is remembered of ten thousand runs follows their files, and no picture goes through the pretrained model twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from rift import dataset, disk, history, jobs, recipe, runs, visitors
from rift.errors import DataError, RunError
from rift.model import Backbone
from rift.runs import Lab, Run
from rift.views import Views
from tests.benchmarks import scale
from tests.benchmarks.scale_lab import Template, grown, visited
from tests.methods_toys import stripes
from tests.test_train import experiment, lab, run_fresh  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Template:
    return Template(tmp_path_factory.mktemp("scale") / "example")


def put_back(path: Path, old: bytes, new: bytes) -> None:
    """Change a file in place: as long as before, and with the time of its content set back."""
    times = path.stat()
    assert old in path.read_bytes() and len(old) == len(new)
    with path.open("r+b") as file:
        file.seek(path.read_bytes().index(old))
        file.write(new)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)


def queued(lab: Lab) -> list[Run]:  # noqa: F811
    return [run for run in lab.runs() if run.state == "queued"]


def test_a_finished_run_that_is_changed_is_seen_though_size_and_time_are_as_before(template, tmp_path):
    here = grown(tmp_path / "lab", template, 20)
    run = next(run for run in here.runs() if run.state == "done")
    assert run.state == "done" and not run.damage
    put_back(run.path / "result.json", b'"seed": ', b'"sEed": ')
    assert run.state == "failed" and "damaged" in run.damage and run.end()["code"] == "run.damaged"
    with pytest.raises(RunError) as error:
        run.result()
    assert error.value.code == "run.damaged"
    put_back(run.path / "result.json", b'"sEed": ', b'"seed": ')
    assert run.state == "done"


def test_a_sum_is_taken_anew_where_a_file_of_the_same_size_and_time_holds_something_else(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = disk.known_sha256(path)
    put_back(path, b"one", b"two")
    assert disk.known_sha256(path) == hashlib.sha256(b"two").hexdigest() != first
    path.unlink()
    with pytest.raises(FileNotFoundError):
        disk.known_sha256(path)


def test_a_picture_is_held_to_the_sums_of_its_set_as_they_are_now(tmp_path):
    images = dataset.store(stripes(["narrow", "wide"], 3, 64, np.random.default_rng(0)), tmp_path, name="stripes")
    assert images.picture(0, 64).shape == images.picture(1, 64).shape == (64, 64, 3)
    first = json.loads((images.folder / "manifest.json").read_bytes())["sums"][0]
    put_back(images.folder / "manifest.json", first.encode(), first[::-1].encode())
    with pytest.raises(DataError) as error:
        images.picture(0, 64)
    assert error.value.code == "data.changed" and images.picture(1, 64).shape == (64, 64, 3)
    put_back(images.folder / "manifest.json", first[::-1].encode(), first.encode())
    with (images.folder / "blobs.bin").open("r+b") as file:
        file.write(b"\0")
    with pytest.raises(DataError):
        images.picture(0, 64)


def test_a_list_reads_each_finished_run_once(template, tmp_path, monkeypatch):
    here, read = grown(tmp_path / "lab", template, 60), Counter()
    unsealed = disk.unsealed
    monkeypatch.setattr(disk, "unsealed", lambda data: (read.update(["result"]), unsealed(data))[1])
    first = history.entries({"lab": here})
    states = {one.state for one in first}
    assert len(first) == 6 and read["result"] > 0 and states == {"done", "queued", "stopped", "failed", "lost"}
    read.clear()
    assert history.entries({"lab": here}) == first and not read, "nothing changed, nothing is read"
    done = next(run for run in here.runs() if run.state == "done")
    document = json.loads((done.path / "result.json").read_bytes())
    document["numbers"]["balanced_accuracy"] = 0.0
    (done.path / "result.json").write_text(json.dumps(disk.sealed(document)))
    again = history.entries({"lab": here})
    assert [one.id for one in again] == [one.id for one in first] and again != first, "a new number is seen"


def test_more_runs_than_are_looked_at_at_once_are_remembered():
    assert runs._intact.cache_info().maxsize > 100_000, "fewer, and a list of all would read every one of them each time"


def test_runs_are_listed_by_age_without_drafts_and_files(template, tmp_path):
    here = grown(tmp_path / "lab", template, 20)
    listed = [run.id for run in here.runs()]
    (here.root / "runs" / ".draft-x").mkdir()
    (here.root / "runs" / ".draft-x" / "experiment.json").write_text("{}")
    (here.root / "runs" / "empty").mkdir()
    (here.root / "runs" / "notes.txt").write_text("x")
    assert [run.id for run in here.runs()] == listed and len(listed) == 20
    oldest = here.root / "runs" / listed[-1] / "experiment.json"
    os.utime(oldest, (1, 1))
    assert here.runs()[0].id == listed[-1]
    assert here.run(listed[0]).path == here.root / "runs" / listed[0] == here.run(here.root / "runs" / listed[0]).path


def test_all_who_wait_share_one_look_at_the_line_which_is_taken_again(template, tmp_path, monkeypatch):
    host, labs = visited(tmp_path / "server", template, 4, 1)
    looked = Counter()
    neighbors = Lab.neighbors
    monkeypatch.setattr(Lab, "neighbors", lambda self: (looked.update(["look"]), neighbors(self))[1])
    monkeypatch.setattr(jobs, "LINE_TIMES", 1e9)
    mine = {run.id for run in labs[2].runs()}
    others = {f"{one.root.name}/{queued(one)[0].id}" for one in labs if one != labs[2]}
    assert jobs.ahead(labs[2], mine) == others
    for one in labs:
        assert len(jobs.ahead(one, {run.id for run in one.runs()})) == 3
    assert looked["look"] == 1
    jobs._lines.clear()
    monkeypatch.setattr(jobs, "LINE_TIMES", 0.0)
    for run in queued(labs[0]):
        run.append("end", state="stopped")
    assert jobs.ahead(labs[2], mine) == {one for one in others if not one.startswith(labs[0].root.name)}
    assert visitors.sweep(host.root) == []


def counted(monkeypatch) -> Counter:
    """Count each picture, by its bytes, that goes through a pretrained model: the one whose weights name the caches."""
    seen, pretrained = Counter(), set()
    fingerprint = recipe.fingerprint
    monkeypatch.setattr(recipe, "fingerprint", lambda module: (pretrained.add(id(module)), fingerprint(module))[1])

    def watched(through):
        def passed(self, images):
            if id(self) in pretrained:
                seen.update(hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images.detach())
            return through(self, images)

        return passed

    for name in ("forward", "embed"):
        monkeypatch.setattr(Backbone, name, watched(getattr(Backbone, name)))
    return seen


@pytest.mark.slow
def test_no_picture_goes_through_the_pretrained_model_twice(lab, tmp_path, monkeypatch):  # noqa: F811
    seen = counted(monkeypatch)
    kept = []  # so that no module gets the number of one that is gone
    load = recipe.catalog.door
    monkeypatch.setattr(recipe.catalog, "door", lambda *names: lambda *a, **o: kept.append(load(*names)(*a, **o)) or kept[-1])
    run_fresh(lab, tmp_path, experiment(lab))
    raw = len(lab.medical) + len(lab.natural)
    assert len(seen) == raw and set(seen.values()) == {1}, "each picture once, as it is"
    run_fresh(lab, tmp_path, experiment(lab, "rift", 1.0))
    trained = len(dataset.split(lab.medical, 0).train)
    assert len(seen) == raw + 2 * trained and set(seen.values()) == {1}, "and each of two views of those that train"
    for arm in ({"regularizer": "rsc", "strength": 1.0}, {"regularizer": "feature_l2", "strength": 1.0}, {"method": "linear"}):
        run_fresh(lab, tmp_path, experiment(lab, **arm))
    run_fresh(lab, tmp_path, experiment(lab, "rift", 1.0, learning_rate=1e-4))  # a second comparison on the same pictures
    assert len(seen) == raw + 2 * trained and set(seen.values()) == {1}


@pytest.mark.slow
def test_linear_neither_draws_a_view_nor_runs_the_backbone_while_it_trains(lab, tmp_path, monkeypatch):  # noqa: F811
    other = Lab(tmp_path / "lab")
    other.data.rmdir()
    other.data.symlink_to(lab.data)
    run_fresh(lab, tmp_path, experiment(lab, "rift", 1.0))  # after which the embeddings of all views are cached
    monkeypatch.setattr(Views, "images", lambda *_: pytest.fail("a view was drawn"))
    run = other.submit(experiment(lab, method="linear"))
    recipe.execute(run, other, torch.device("cpu"))
    assert run.state == "done", run.end()


@pytest.mark.slow
def test_the_benchmark_finds_what_it_is_to_find(tmp_path):
    document = scale.measure(scale.QUICK)
    page = scale.table(document)
    assert document["runs"]["count"] == scale.QUICK.runs
    for words in ("runs listed", "near copies", "memory", "thousand"):
        assert words in page

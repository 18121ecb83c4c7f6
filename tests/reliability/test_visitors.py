"""On a public server nobody sees, stops or delays another: labs, turns, quotas and what is deleted when."""

from __future__ import annotations

import os
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from starlette.datastructures import Headers

from rift import api, catalog, dataset, jobs, quota, service, storage, visitors
from rift.config import Choice
from rift.errors import DataError, RunError
from rift.orders import Order
from rift.runs import VISITORS, Lab
from rift.ui import visit
from rift.visitors import Everyone


def key() -> str:
    return secrets.token_hex(16)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("pictures"))
    catalog.door("natural", "bundled")(lab.data)
    api.open_data("sample:phantoms:images_per_class=5", lab.data)
    return lab


@pytest.fixture
def order(pictures):
    """Return what makes an order of one run in a lab, with its pictures there."""
    sets = {path.name: len(dataset.load(path).classes) for path in pictures.data.glob("[0-9a-f]*")}
    data, natural = sorted(sets, key=sets.__getitem__)
    backbone, method = catalog.check("backbones", Choice(name="embedded")), catalog.check("methods", Choice(name="linear"))

    def make(lab: Lab, number: int = 0) -> Order:
        for one in sets:
            lab.adopt(pictures, one)
        training = api.settings_of({"epochs": 1, "learning_rate": 1e-4 * (1 + number)})
        more = {"methods": (method,), "regularizers": (), "strengths": (1.0,), "training": training}
        return Order(data=data, natural=natural, backbone=backbone, **more)

    return make


@pytest.fixture
def unstarted(monkeypatch):
    """Let nothing be trained: the queue is what is looked at."""
    monkeypatch.setattr(jobs, "start_worker", lambda *args, **more: pytest.fail("no worker is wanted here"))
    monkeypatch.setattr(jobs, "ensure_worker", lambda *args, **more: None)


def test_a_key_opens_one_lab_and_its_folder_does_not_tell_it(tmp_path):
    ours, theirs = key(), key()
    one, other = visitors.lab(tmp_path, ours), visitors.lab(tmp_path, theirs)
    assert one.root != other.root and visitors.lab(tmp_path, ours).root == one.root
    everything = "\n".join(str(path) for path in tmp_path.rglob("*"))
    assert ours not in everything and theirs not in everything
    assert one.visiting and one.host == tmp_path and not Lab(tmp_path / "own").visiting


@pytest.mark.parametrize("wrong", ["", "x", "..", "A" * 32, "g" * 32, "a" * 31, "a" * 33, "../" + "a" * 29, "a" * 32 + "\n"])
def test_what_is_no_key_opens_nothing(tmp_path, wrong):
    with pytest.raises(RunError) as refused:
        visitors.lab(tmp_path, wrong)
    assert refused.value.code == "run.missing" and not (tmp_path / VISITORS).exists()


def test_names_of_labs_mean_those_of_whoever_asks(tmp_path):
    at_work = [key()]
    everyone = Everyone(tmp_path, Lab(tmp_path / "example"), lambda: at_work[0])
    mine = everyone["lab"]
    address = everyone.address("lab")
    assert set(everyone) == {"lab", "example"} and everyone.at(address).root == mine.root
    at_work[0] = key()
    assert everyone["lab"].root != mine.root, "the same name, for another visitor"
    assert everyone.at(address).root == mine.root, "a signed address says whose it is"
    with visitors.as_(key()):
        assert everyone["lab"].root not in (mine.root, tmp_path)
    for wrong in ("lab", "/lab", f"{'0' * 32}/lab", "../lab", f"{mine.root.name}/opened-../lab"):
        with pytest.raises(KeyError):
            everyone.at(wrong)
    at_work[0] = ""
    with pytest.raises(RunError):
        everyone["lab"]


def test_nobody_reads_the_comparison_of_another(tmp_path, unstarted, order):
    ours, theirs = visitors.lab(tmp_path, key()), visitors.lab(tmp_path, key())
    name = service.start(ours, order(ours))
    assert service.comparisons(ours) == [name] and service.comparisons(theirs) == []
    for look in (service.arms, service.stop, service.result):
        with pytest.raises(RunError) as refused:
            look(theirs, name)
        assert refused.value.code == "run.missing"
    again = order(theirs)  # the same pictures: another visitor learns nothing of it
    assert again.id == name and service.start(theirs, again) == name
    assert theirs.data.joinpath(again.data).is_dir() and len(theirs.runs()) == len(ours.runs())


def test_sixty_starts_at_once_are_counted_exactly(tmp_path, unstarted, order):
    lab = visitors.lab(tmp_path, key())
    orders = [order(lab, number) for number in range(12)]

    def press(number: int) -> str:
        try:
            return service.start(lab, orders[number % 12])
        except RunError as error:
            assert "one at work and 3 waiting" in error.sentence
            return error.code

    with ThreadPoolExecutor(16) as several:
        answers = list(several.map(press, range(60)))
    accepted = set(answers) - {"run.quota"}
    assert len(accepted) == quota.VISITOR.under_way and set(service.comparisons(lab)) == accepted
    assert service.start(lab, next(one for one in orders if one.id in accepted)) in accepted, (
        "what is under way may be asked again"
    )


def test_in_one_s_own_lab_nothing_is_limited(tmp_path, unstarted, order):
    lab = Lab(tmp_path)
    assert len({service.start(lab, order(lab, number)) for number in range(6)}) == 6
    visitors.admit(lab)


def test_a_full_lab_and_a_full_disk_take_nothing_more(tmp_path, monkeypatch):
    lab = visitors.lab(tmp_path, key())
    with pytest.raises(DataError) as refused:
        visitors.admit(lab)
    assert refused.value.code == "data.consent"
    visitors.consent(lab, True)
    visitors.admit(lab)
    monkeypatch.setattr(quota, "VISITOR", replace(quota.VISITOR, lab_bytes=1000))
    (lab.data / "large").write_bytes(b"x" * 2000)
    with pytest.raises(RunError) as full:
        visitors.admit(lab)
    assert full.value.code == "run.quota" and "under Keep" in full.value.sentence
    monkeypatch.setattr(quota, "VISITOR", replace(quota.VISITOR, lab_bytes=10**9, free_bytes=10**18))
    with pytest.raises(RunError) as disk:
        visitors.admit(lab)
    assert disk.value.code == "run.disk"
    visitors.consent(lab, False)
    assert not visitors.consented(lab)


def test_the_worker_serves_next_whom_it_served_longest_ago(tmp_path, unstarted, order):
    keys = sorted((key() for _ in range(3)), key=visitors.name_of)  # the one with most is also the first by name
    labs = [visitors.lab(tmp_path, one) for one in keys]
    for lab, count in zip(labs, (3, 1, 1), strict=True):  # the first one came first, and with more
        for number in range(count):
            service.start(lab, order(lab, number))
    turns = []
    while (found := jobs._next(labs[0])) is not None:
        home, run = found
        turns.append(labs.index(next(lab for lab in labs if lab.root == home.root)))
        (home.root / jobs.SERVED).touch()
        os.utime(home.root / jobs.SERVED, (len(turns), len(turns)))
        run.append("end", state="done")
    count = len(turns) // 5
    assert sorted(turns[:3]) == [0, 1, 2] and turns[-2 * count :] == [0] * 2 * count, turns


def test_a_place_in_line_counts_other_visitors(tmp_path, unstarted, order):
    first, second = visitors.lab(tmp_path, key()), visitors.lab(tmp_path, key())
    service.start(first, order(first))
    name = service.start(second, order(second))
    (second.root / jobs.SERVED).touch()
    assert service.status(second, name).message.startswith("2nd in line. Waiting for another run")
    assert "in line" not in service.status(first, service.comparisons(first)[0]).message


def test_a_run_is_stopped_when_its_time_is_up_and_says_so(tmp_path, monkeypatch, unstarted, order):
    lab = visitors.lab(tmp_path, key())
    name = service.start(lab, order(lab))
    (run, *_) = lab.runs()
    monkeypatch.setattr(quota, "VISITOR", replace(quota.VISITOR, run_seconds=0.05))
    with quota.capped(lab, run):
        deadline = time.monotonic() + 10
        while not run.stop_requested and time.monotonic() < deadline:
            time.sleep(0.01)
    assert run.stop_requested and quota.was_capped(run)
    service.stop(lab, name)
    assert service.status(lab, name).message.startswith("Stopped when its time on this server was up")
    with quota.capped(Lab(tmp_path), run):
        assert threading.active_count() < 50 and not quota.was_capped(run), "gone on with, it has its time again"


def test_what_is_old_is_deleted_also_by_a_server_that_never_saw_it(tmp_path):
    old, new = visitors.lab(tmp_path, key()), visitors.lab(tmp_path, key())
    (old.photos / "x").mkdir(parents=True)
    long_ago = time.time() - quota.VISITOR.retention_seconds - 1
    os.utime(old.root / visitors.SEEN, (long_ago, long_ago))
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "secret").write_text("kept")
    assert visitors.sweep(tmp_path) == [old.root.name]
    assert not old.root.exists() and new.root.exists() and (tmp_path / "secret").exists()
    assert not list(tmp_path.glob(".deleted-*"))
    assert visitors.sweep(tmp_path) == []


def test_whoever_comes_back_in_time_keeps_everything(tmp_path):
    mine = key()
    lab = visitors.lab(tmp_path, mine)
    yesterday = time.time() - quota.VISITOR.retention_seconds + 60
    os.utime(lab.root / visitors.SEEN, (yesterday, yesterday))
    visitors.lab(tmp_path, mine)
    assert visitors.sweep(tmp_path, time.time() + 3600) == [] and lab.root.exists()


def test_what_killed_processes_left_half_done_is_swept(tmp_path):
    lab = visitors.lab(tmp_path, key())
    left = [lab.data / ".reading-1-x", lab.root / "runs" / ".draft-y", lab.root / ".bundle-z"]
    left.append(tmp_path / "data" / ".grouping-q")
    fresh = lab.data / ".reading-2-x"
    for path in (*left, fresh):
        path.mkdir(parents=True)
    hour = time.time() - visitors.LEFTOVER_SECONDS - 1
    for path in left:
        os.utime(path, (hour, hour))
    visitors.sweep(tmp_path)
    assert not any(path.exists() for path in left) and fresh.exists()


def test_deleting_all_leaves_the_others_alone(tmp_path, unstarted, order):
    ours, theirs = visitors.lab(tmp_path, key()), visitors.lab(tmp_path, key())
    for lab in (ours, theirs):
        service.start(lab, order(lab))
    storage.erase(ours)
    assert ours.runs() == [] and service.comparisons(ours) == [] and len(theirs.runs()) > 0
    assert service.comparisons(theirs)


def test_a_session_belongs_to_the_key_that_came_with_it_first(monkeypatch):
    monkeypatch.setattr(visit, "MOST_REMEMBERED", 3)
    sessions, mine, theirs = visit.Sessions(), key(), key()
    assert sessions.own("a", mine) and not sessions.own("a", theirs) and not sessions.own("a", "") and sessions.own("a", mine)
    for path, query, opened in (
        ("/gradio_api/queue/data", b"session_hash=a", False),
        ("/gradio_api/queue/data/", b"session_hash=x&session_hash=a", False),
        ("/gradio_api/queue/data", b"session_hash=b", True),
        ("/config", b"session_hash=a", True),
    ):
        scope = {"path": path, "query_string": query}
        assert sessions.open(scope, Headers({visit.HEADER: theirs})) == opened, path
    for one in "cd":
        sessions.own(one, mine)
    assert sessions.own("a", theirs), "the one that was not used for longest is forgotten"

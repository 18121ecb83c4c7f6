"""The load benchmark still speaks to the app, what load has shown stays mended, and RELIABILITY.md is what was measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time

import gradio as gr
import pytest
from gradio import state_holder

from rift import jobs
from rift.runs import Lab
from rift.ui import session
from tests.benchmarks import load, reliability_page
from tests.test_ui import event_loops  # noqa: F401 - gr.Blocks leaves two open


@pytest.mark.slow
def test_two_sessions_are_answered_without_a_fault():
    found = load.row("S2", sessions=2, seconds=8)
    for kind in ("event", "look", "sub-tab", "preview", "opening_event", "opening_page"):
        assert found[f"{kind}_p95_ms"][1] > 0, f"{kind} was never asked"
    assert found["errors"][0] == found["faults_in_the_log"][0] == found["opening_errors"][0] == 0
    table = load.table({"S2": [found]})
    assert "event p95 ms" in table and "≤ 80" in table


def test_a_session_keeps_its_states_and_controls_and_no_copy_of_the_page(monkeypatch):
    monkeypatch.setattr(state_holder, "SessionState", state_holder.SessionState)
    session.begin()
    with gr.Blocks() as blocks:
        pick, kept = gr.Dropdown(["a"]), gr.State("first")
    blocks.state_session_capacity = 5
    holder = state_holder.StateHolder()
    holder.set_blocks(blocks)
    one, other = holder["one"], holder["other"]
    one[kept._id] = "second"
    one[pick._id] = gr.Dropdown(["a", "b"], render=False)
    one._update_config(pick._id)
    one._update_value_in_config(pick._id, "b" * 1000)
    assert one[kept._id] == "second" and len(one[pick._id].choices) == 2
    assert other[kept._id] == "first" and len(other[pick._id].choices) == 1
    assert len(one.config_values) == len(other.config_values) == 0


def test_pages_that_adopt_a_set_at_once_all_find_it_whole(tmp_path, monkeypatch):
    theirs, mine = Lab(tmp_path / "theirs"), Lab(tmp_path / "mine")
    (theirs.data / "abc").mkdir()
    for name in ("one", "two"):
        (theirs.data / "abc" / name).write_text(name)
    copy = shutil.copytree

    def slowly(*values, **more):
        time.sleep(0.1)
        return copy(*values, **more)

    monkeypatch.setattr(shutil, "copytree", slowly)
    seen, faults = [], []

    def adopt(delay: float) -> None:
        time.sleep(delay)
        try:
            mine.adopt(theirs, "abc")
            seen.append(sorted(path.name for path in (mine.data / "abc").iterdir()))
        except OSError as error:
            faults.append(error)

    threads = [threading.Thread(target=adopt, args=(0.03 * place,)) for place in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert faults == [] and seen == [["one", "two"]] * 6
    assert [path.name for path in mine.data.iterdir()] == ["abc"], "no draft stays"
    with pytest.raises(OSError):
        mine.adopt(theirs, "missing")
    assert [path.name for path in mine.data.iterdir()] == ["abc"]


def test_a_lab_is_known_by_its_folder(tmp_path):
    lab, other = Lab(tmp_path / "a"), Lab(tmp_path / "b")
    assert lab == Lab(tmp_path / "a") != other and len({lab, Lab(tmp_path / "a"), other}) == 2 and lab != str(lab.root)


def test_a_worker_that_ended_is_reaped_when_nothing_is_queued(tmp_path, monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    monkeypatch.setattr(jobs, "_started", [ended])
    deadline = time.monotonic() + 30
    while jobs._started and time.monotonic() < deadline:
        jobs.ensure_worker(Lab(tmp_path / "lab"))
        time.sleep(0.02)
    assert jobs._started == []


def test_nothing_is_summed_up_after_an_event(monkeypatch):
    for name in ("GRADIO_ANALYTICS_CACHE_FREQUENCY", "GRADIO_ANALYTICS_MAX_EVENTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(state_holder, "SessionState", state_holder.SessionState)
    session.begin()
    with gr.Blocks() as blocks:
        pass
    queue = blocks._queue
    monkeypatch.setattr(queue, "_get_df", lambda _: pytest.fail("the times of all events were summed up"))
    queue.events_recorded = 1000
    assert queue.compute_analytics_summary([{"function": "look", "status": "success", "process_time": 1.0}]) == {"functions": {}}


def test_the_bundled_photos_are_read_once_for_all_visitors(tmp_path, monkeypatch):
    from rift import catalog, visitors
    from rift.ui.state import App

    read, door = [], catalog.door

    def counted(kind, name):
        read.append(name)
        return door(kind, name)

    monkeypatch.setattr(catalog, "door", counted)
    who = ["a" * 32, "b" * 32]
    app = App(visitors.Everyone(tmp_path, Lab(tmp_path / "example"), lambda: who[0]), *[None] * 6)  # type: ignore[arg-type]
    one = app.lab.data / app.bundled() / "manifest.json"
    who.reverse()
    other = app.lab.data / app.bundled() / "manifest.json"
    assert one != other and one.read_bytes() == other.read_bytes()
    assert read == ["bundled"]


def test_the_page_is_made_of_the_stored_numbers():
    stored = (reliability_page.LOAD, reliability_page.KILLS, reliability_page.FUZZ)
    measured, kills, fuzz = (json.loads(path.read_text()) for path in stored)
    page = reliability_page.render(measured, kills, fuzz)
    assert reliability_page.PAGE.read_text() == page
    assert all(name in measured["rows"] for name in ("S1", "S2", "S3", "S4", "S7", "S8")) and kills["kills"] >= 200
    assert "**Unequal: 0.**" in page and "| **S1** |" in page

"""What a process found in a lab's files serves the next one, as long as the files are as they were, and never longer."""

from __future__ import annotations

import json
import shutil

import pytest

from rift import disk, estimate, history, noted, runs, service
from tests.benchmarks.scale_lab import Template, grown
from tests.test_scale import put_back


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Template:
    return Template(tmp_path_factory.mktemp("noted") / "example")


@pytest.fixture
def lab(template, tmp_path, monkeypatch):
    monkeypatch.setattr(noted, "FEW", 1)
    anew()
    return grown(tmp_path / "lab", template, 60)


def anew() -> None:
    """Remember nothing, as a process that has just begun."""
    history.forget()
    runs._intact.cache_clear()
    estimate._known.clear()


def listed(lab) -> list:
    return [history.entries({"lab": lab}), [run.state for run in lab.runs()]]


def facts(lab) -> list:
    return [estimate._facts(run) for run in lab.runs()]


def finished(lab) -> runs.Run:
    return next(run for run in lab.runs() if run.state == "done")


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """Return the lengths of all sealed documents that are read from here on."""
    seen, unsealed = [], disk.unsealed
    monkeypatch.setattr(disk, "unsealed", lambda data: (seen.append(len(data)), unsealed(data))[1])
    return seen


def test_the_next_process_reads_the_notes_and_no_result(lab, read):
    first = [facts(lab), *listed(lab)]
    assert len(read) >= 35 and {"done", "queued", "failed", "lost", "stopped"} == set(first[2])
    anew()
    read.clear()
    assert [facts(lab), *listed(lab)] == first
    assert read == [(lab.root / "noted.json").stat().st_size], "the notes, and nothing else"


def test_what_changed_between_two_processes_is_seen(lab):
    before = listed(lab)[0]
    run = finished(lab)
    put_back(run.path / "result.json", b'"seed": ', b'"sEed": ')
    anew()
    failed = {one.id for one in listed(lab)[0] if one.state == "failed"} - {one.id for one in before if one.state == "failed"}
    assert run.state == "failed" and len(failed) == 1 and len(listed(lab)[0]) == len(before), "it is shown, as damaged"
    put_back(run.path / "result.json", b'"sEed": ', b'"seed": ')
    document = json.loads((run.path / "result.json").read_bytes())
    document["numbers"]["balanced_accuracy"] = 0.0
    (run.path / "result.json").write_text(json.dumps(disk.sealed(document)))
    anew()
    after = listed(lab)[0]
    assert sorted(one.id for one in after) == sorted(one.id for one in before) and after != before


def test_images_deleted_by_another_process_leave_the_row(lab, template, tmp_path):
    assert history.GONE not in {one.images for one in listed(lab)[0]}
    anew()
    lab.data.unlink()
    assert {one.images for one in listed(lab)[0]} == {history.GONE}
    lab.data.rmdir()
    lab.data.symlink_to(template.data.resolve())
    assert history.GONE not in {one.images for one in listed(lab)[0]}, "without a new process"


@pytest.mark.parametrize("damage", ["bit", "half", "text", "other", "list", "directory"])
def test_damaged_notes_are_no_notes(lab, damage):
    first, path = listed(lab), lab.root / "noted.json"
    data = path.read_bytes()
    match damage:
        case "bit":
            path.write_bytes(data.replace(b", true]", b", null]", 1))
        case "half":
            path.write_bytes(data[: len(data) // 2])
        case "text":
            path.write_text("nothing of ours")
        case "other":
            document = json.loads(data)
            path.write_text(
                json.dumps(disk.sealed({**document, "format": 0, "found": {name: ["", 1] for name in document["found"]}}))
            )
        case "list":
            path.write_text("[1, 2]")
        case "directory":
            path.unlink()
            path.mkdir()
    anew()
    assert listed(lab) == first
    if damage != "directory":
        anew()
        assert noted.of(lab.root)._found == json.loads(data)["found"], "found again and written again"


def test_notes_that_cannot_be_written_are_done_without(lab, monkeypatch):
    def full(*_: object) -> None:
        raise disk.refused(OSError(28, "No space left on device"), "noted.json")

    monkeypatch.setattr(disk, "write_bytes", full)
    first = listed(lab)
    anew()
    assert listed(lab) == first and not (lab.root / "noted.json").exists()


def test_notes_of_what_was_deleted_go(lab):
    listed(lab)
    done = next(one for one in listed(lab)[0] if one.state == "done")
    gone = {run.id for run in service.runs(service.arms(lab, done.id))}
    history.delete(lab, done.id)
    text = (lab.root / "noted.json").read_text()
    assert done.id not in text and not any(run in text for run in gone)
    other = next(one for one in listed(lab)[0] if one.state == "done")
    shutil.rmtree(lab.comparisons / other.id)
    noted.of(lab.root)._new = 1
    listed(lab)
    assert other.id not in (lab.root / "noted.json").read_text()


def test_a_small_lab_has_no_notes(lab, monkeypatch):
    monkeypatch.setattr(noted, "FEW", 200)
    listed(lab)
    assert not (lab.root / "noted.json").exists()


def test_a_damaged_run_says_nothing_of_the_next_and_hinders_none(lab):
    run = finished(lab)
    experiment, before = run.experiment, estimate.step_milliseconds(lab, run.experiment, "cpu")
    put_back(run.path / "result.json", b'"seed": ', b'"sEed": ')
    anew()
    assert estimate._facts(run) is None and estimate.step_milliseconds(lab, experiment, "cpu") == before

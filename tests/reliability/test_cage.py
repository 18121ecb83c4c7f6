"""Whatever a file does to the process that reads it, the app goes on, and the other files of the upload are read."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rift import ask, cage, drafts, images, upload
from rift.errors import DataError
from rift.runs import Lab
from tests.reliability import dicoms

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="files are read in the app's own process where there is no fork")


def picture(seed: int) -> bytes:
    return images.encode(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8))


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def pack(tmp_path) -> Path:
    files = {f"{kind}/{number}.png": picture(10 * place + number) for place, kind in enumerate("ab") for number in range(5)}
    return zipped(tmp_path / "pack.zip", files)


@pytest.fixture
def hostile(monkeypatch):
    """Make the reader do something dreadful at a picture whose pixels are those of `picture(3)`; children inherit it."""
    worst = picture(3)

    def arm(deed: str):
        monkeypatch.setenv("RIFT_TEST_DEED", f"{deed}:{len(worst)}")
        monkeypatch.setattr(cage, "_current", [])
        monkeypatch.setattr(cage, "_COMMAND", ["-c", HOSTILE.format(worst=worst)])

    yield arm
    cage.close()


HOSTILE = """
import os, sys, signal
from rift import caged, images
sound = images.read
def read(data, **how):
    deed = os.environ["RIFT_TEST_DEED"].partition(":")[0]
    if data == {worst!r}:
        if deed == "crash": os.kill(os.getpid(), signal.SIGSEGV)
        if deed == "leave": os._exit(0)
        if deed == "fault": raise RuntimeError("a name")
        if deed == "loop":
            while True: pass
        if deed == "memory": kept = [bytearray(1 << 30) for _ in range(64)]
        if deed == "sleep":
            import time; time.sleep(60)
    return sound(data, **how)
images.read = read
caged.main(sys.argv[1])
"""


def test_the_cage_reads_what_the_reader_reads(pack, tmp_path):
    told = []
    caged = cage.read(pack, tmp_path / "caged", name="x", progress=lambda *one: told.append(one))
    plain = upload.read(pack, tmp_path / "plain", name="x")
    assert caged.digest == plain.digest and caged.report == plain.report
    assert told[0] == (0, 10, "a/0.png") and told[-1] == (10, 10, "")
    assert not list((tmp_path / "caged").glob(".*"))


@pytest.mark.parametrize("deed", ["crash", "leave", "loop", "memory", "sleep"])
def test_a_file_that_ends_its_reader_is_left_out_by_name(pack, tmp_path, hostile, monkeypatch, deed):
    hostile(deed)
    monkeypatch.setattr(cage, "SECONDS", 1)
    monkeypatch.setattr(cage, "SILENCE", 4.0)
    monkeypatch.setattr(cage, "MEMORY", 10**9)
    began = time.monotonic()
    found = cage.read(pack, tmp_path / "lab")
    assert len(found) == 9 and "a/3.png" not in found.ids
    (left,) = found.report.skipped
    assert (left.file, left.code) == ("a/3.png", "data.image") and "left out" in left.message
    assert time.monotonic() - began < 60 and not list((tmp_path / "lab").glob(".*")), "nothing half read is left"


def test_a_picture_at_which_a_decoder_ends_the_process_is_left_out_by_name(tmp_path):
    files = {f"{name}/{number}.png": picture(number) for number, name in enumerate("ab" * 5)}
    found = cage.read(zipped(tmp_path / "x.zip", {**files, "a/bad.dcm": dicoms.ENDS_GDCM}), tmp_path / "lab")
    (left,) = found.report.skipped
    assert len(found) == 10 and (left.file, left.code) == ("a/bad.dcm", "data.image") and "left out" in left.message


def test_a_fault_of_our_own_leaves_a_trace_without_what_was_read(tmp_path, hostile, capfd):
    hostile("fault")
    with pytest.raises(DataError) as refused:
        cage.check(picture(3))
    cage.close()
    assert refused.value.code == "data.image"
    told = capfd.readouterr().err
    assert "RuntimeError while reading" in told and "images.read(data)" in told and "a name" not in told


def test_an_upload_that_ends_its_reader_again_and_again_is_refused(tmp_path, hostile):
    hostile("crash")
    pack = zipped(tmp_path / "pack.zip", {f"{kind}/{number}.png": picture(3) for kind in "ab" for number in range(5)})
    with pytest.raises(DataError) as refused:
        cage.read(pack, tmp_path / "lab")
    assert refused.value.code == "data.archive" and not list((tmp_path / "lab").iterdir())


def test_refusals_come_through_in_the_reader_s_own_words(tmp_path):
    one = zipped(tmp_path / "one.zip", {f"a/{number}.png": picture(number) for number in range(4)})
    with pytest.raises(DataError) as caged:
        cage.read(one, tmp_path / "lab")
    with pytest.raises(DataError) as plain:
        upload.read(one, tmp_path / "other")
    assert (caged.value.code, caged.value.sentence) == (plain.value.code, plain.value.sentence)


def test_a_single_picture_that_crashes_is_refused_and_the_next_one_read(tmp_path, hostile):
    hostile("crash")
    lab = Lab(tmp_path / "lab")
    remarks = drafts.add(lab, "0" * 32, 0, [("bad.png", picture(3)), ("good.png", picture(4))])
    assert [(one.file, one.code) for one in remarks] == [("bad.png", "data.image")]
    with pytest.raises(DataError) as refused:
        ask.keep_photo(lab, picture(3))
    assert refused.value.code == "data.image"
    assert ask.photo(lab, ask.keep_photo(lab, picture(5))).shape == (512, 512, 3)


def test_the_cage_opens_again_after_its_keeper_was_killed(pack, tmp_path):
    cage.check(picture(1))
    cage._current[0].process.kill()
    cage._current[0].process.wait()
    cage.check(picture(1))


LIES = {
    "no JSON": (b"not json\n", cage.Ended),
    "no object": (b"[]\n", cage.Ended),
    "an unknown code": (b'{"error": ["no.such", "x"]}\n', cage.Ended),
    "a way out": (b'{"answer": {"digest": "../../x"}, "bytes": 0}\n', DataError),
    "no digest": (b'{"answer": {}, "bytes": 0}\n', DataError),
    "a line without an end": (b"x" * 150_000, cage.Ended),
}


@pytest.mark.parametrize("lie", LIES)
def test_nothing_of_a_child_is_believed_unchecked(lie, monkeypatch, tmp_path):
    """A child that decoders have taken over may say anything: it is data, of bounded length, and codes are the known ones."""
    said, refused = LIES[lie]
    liar = Liar(said)
    monkeypatch.setattr(cage, "_keeper", lambda: liar)
    with pytest.raises(refused):
        answer, _ = cage.ask("upload", {})
        cage._digest(answer)
    liar.end.close()


class Liar:
    def __init__(self, said: bytes):
        self.said = said

    def take(self, end: socket.socket) -> None:
        self.end = end.dup()  # as a child holds it, or the request could not be written and nothing would be read
        self.end.sendall(self.said)
        self.end.shutdown(socket.SHUT_WR)


def test_children_leave_no_process_and_no_descriptor(tmp_path):
    cage.check(picture(1))
    keeper = cage._current[0].process.pid
    open_before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        cage.check(picture(number))
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert len(os.listdir(f"/proc/{keeper}/fd")) <= 8
    deadline = time.monotonic() + 5
    while (left := Path(f"/proc/{keeper}/task/{keeper}/children").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def test_the_keeper_ends_with_whoever_started_it(tmp_path):
    code = (
        "import os; from rift import cage; cage.warm(); print(cage._current[0].process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout
    deadline = time.monotonic() + 10
    while Path(f"/proc/{int(said)}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{int(said)}").exists()

"""Weights and checkpoints that somebody else made: no pickle is ever opened, headers may lie, and what is not ours is refused."""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from rift import attempt, checkpoint, reference, upload, views
from rift.backbones import _hub
from rift.config import Experiment
from rift.errors import DataError, ModelError
from rift.runs import Lab
from tests.reliability.test_faults import KEY, small_state

ROOT = Path(__file__).parents[2]


class Canary:
    """An object whose pickle makes a file when it is opened."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_no_pickle_is_ever_opened(tmp_path):
    """W1: as a checkpoint, as weights, as arrays of a cache, as an upload."""
    canary = tmp_path / "canary"
    plain, torched, arrays = pickle.dumps(Canary(canary)), io.BytesIO(), io.BytesIO()
    torch.save(Canary(canary), torched)
    np.savez(arrays, embeddings=np.array([Canary(canary)], dtype=object), seconds=1.0, images=np.array([Canary(canary)]))
    lab = Lab(tmp_path / "lab")
    run = lab.submit(Experiment(data="d" * 64, natural="n" * 64))
    (run.path / "checkpoint").mkdir()
    for number, data in enumerate((plain, torched.getvalue(), arrays.getvalue())):
        path = checkpoint.path(run.path / "checkpoint", number)
        path.write_bytes(data)
        with pytest.raises(ModelError) as caught:
            _hub.read(path, path.name)
        assert caught.value.code == "model.weights"
        (tmp_path / "upload.npz").write_bytes(data)
        with pytest.raises(DataError):
            upload.read(tmp_path / "upload.npz", tmp_path / "root")
        (tmp_path / "cache.npz").write_bytes(data)
        assert views._read(tmp_path / "cache.npz") is None and reference._kept(tmp_path / "cache.npz") is None
    attempt.resume(run, lab, small_state())
    assert [event["event"] for event in run.events()] == ["refused"] * 3
    assert not canary.exists()
    pickle.loads(plain).close()
    assert canary.exists(), "the canary would have been seen"


def test_no_code_of_the_app_opens_a_pickle():
    """The recipe of the embedded model, which reads its own files with weights_only, is no part of the app."""
    for path in (ROOT / "rift").rglob("*.py"):
        text = path.read_text()
        if path.parent.name == "pretrain":
            assert "weights_only=False" not in text
            continue
        assert not re.search(r"torch\.load\(|\bimport pickle|allow_pickle=True|joblib|\bdill\b|(?<![.\w])(eval|exec)\(", text), (
            path
        )


def lying() -> dict[str, bytes]:
    """Safetensors files whose headers say what is not so, and one that is right."""

    def file(header: dict | bytes, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    def tensor(start: int, end: int, shape: list[int], kind: str = "F32") -> dict:
        return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}

    right = tensor(0, 16, [4])
    return {
        "header longer than the file": file({"a": right}, length=10**6),
        "header of 8 EB": file({"a": right}, length=2**63 - 1),
        "header of all bits": file({"a": right}, length=2**64 - 1),
        "header of 200 MB": struct.pack("<Q", 200 * 2**20) + b"{" + b" " * (1 << 20),
        "no header": b"",
        "seven bytes": b"\1" * 7,
        "no json": file(b"{not json at all}"),
        "deep json": file(b"[" * 100_000),
        "data beyond the file": file({"a": tensor(0, 4000, [1000])}),
        "less data than the shape": file({"a": tensor(0, 16, [1000])}),
        "a huge shape": file({"a": tensor(0, 16, [2**40, 2**40])}),
        "a negative shape": file({"a": tensor(0, 16, [-4])}),
        "backwards": file({"a": tensor(16, 0, [4])}),
        "overlap": file({"a": tensor(0, 16, [4]), "b": tensor(8, 16, [2])}),
        "a gap": file({"a": tensor(0, 4, [1]), "b": tensor(8, 16, [2])}),
        "an unknown kind": file({"a": tensor(0, 16, [4], "PICKLE")}),
        "bytes after the end": save({"a": torch.zeros(4)}) + b"more",
    }


@pytest.mark.parametrize("what", lying())
def test_a_header_that_lies_is_refused_at_once_and_by_name(tmp_path, what):
    """W2 and W3."""
    import resource

    path = tmp_path / "weights.safetensors"
    path.write_bytes(lying()[what])
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=r"weights\.safetensors") as caught:
        _hub.read(path, path.name)
    assert caught.value.code == "model.weights" and len(caught.value.sentence) < 500
    with pytest.raises(ValueError):
        checkpoint.read(path, KEY, "run")
    assert time.monotonic() - began < 5 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


def test_right_weights_are_read(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(save({"a": torch.zeros(4)}))
    assert list(_hub.read(tmp_path / "w.safetensors", "w")[0]) == ["a"]


def test_a_checkpoint_of_another_lab_run_or_hand_is_refused(tmp_path):
    """W4; each time nothing but the one thing is wrong."""
    path = tmp_path / "x.safetensors"
    small_state(2).save(path, KEY, "run")
    checkpoint.read(path, KEY, "run")
    with pytest.raises(ValueError, match="not this lab's"):
        checkpoint.read(path, b"another key", "run")
    with pytest.raises(ValueError, match="another run's"):
        checkpoint.read(path, KEY, "other run")
    tensors, facts = checkpoint.read(path, KEY, "run")
    from safetensors.torch import save_file

    for change in ("a weight", "the step", "no seal"):
        text = json.dumps(facts | ({"step": 3} if change == "the step" else {}))
        changed = dict(tensors)
        if change == "a weight":
            changed["classifier.bias"] = tensors["classifier.bias"] + 1
        metadata = {"facts": text, "hmac": "" if change == "no seal" else checkpoint._seal(tensors, json.dumps(facts), KEY)}
        save_file(changed, path, metadata)
        with pytest.raises(ValueError, match="seal"):
            checkpoint.read(path, KEY, "run")
    small_state(2).save(path, KEY, "run")
    other = small_state(1)
    other.classifier = torch.nn.Linear(5, 3)
    with pytest.raises(ValueError, match="another model"):
        other.load(path, KEY, "run")


def test_the_key_of_a_lab_is_its_own_and_stays(tmp_path):
    first, second = Lab(tmp_path / "a"), Lab(tmp_path / "b")
    assert first.key == Lab(tmp_path / "a").key != second.key and len(first.key) >= 32
    assert (first.root / "secret").stat().st_mode & 0o077 == 0 and not list(first.root.glob(".secret*"))

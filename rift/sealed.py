"""The files of a comparison that somebody else made, read with suspicion: each must be what its name says, and nothing is run.

JSON without NaN, parsed by a model where there is one; arrays and weights by their headers, never by pickle; sizes that a header
claims are those that are there, so that reading it later takes no more memory than the file.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from rift import archive, catalog
from rift.archive import GB, Limits
from rift.config import Experiment
from rift.errors import DataError, UserError
from rift.naming import Label
from rift.orders import Order
from rift.review import Report

ARRAYS = Limits(upload_bytes=GB, expanded_bytes=GB, member_bytes=GB, files=1000)
MOST_RUNS = 2000
Index = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)] | None


class Loose(BaseModel):
    """A document with these parts at least."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class Stored(Loose):
    created: str
    source: str
    order: Order


class Event(Loose):
    event: str
    time: float


class Step(Event):
    step: int
    steps: int


class Epoch(Event):
    epoch: int
    epochs: int


class Start(Loose):
    labels: list[Annotated[int, Field(ge=-1)]]
    classes: list[str]
    share: tuple[float, float]
    start: list[tuple[float, float]]


class Moved(Loose):
    epoch: Index
    places: list[tuple[float, float]]


class Result(Loose):
    run: str
    before: str
    numbers: dict[str, Any]
    pretrained: dict[str, Any]
    backbone: dict[str, Any]
    environment: dict[str, Any]


class Arm(Loose):
    name: str
    runs: list[dict[str, Any]]
    mean: dict[str, Number]
    standard_error: dict[str, Number]


class Document(Loose):
    version: str
    created: str
    data: dict[str, Any]
    natural: dict[str, Any]
    backbone: dict[str, Any]
    arms: list[Arm]
    differences: list[dict[str, Any]]


class Measured(Loose):
    diagnostic: str
    settings: dict[str, Any]
    runs: dict[str, dict[str, Any]]


class Manifest(Loose):
    """An image set as `rift.dataset` keeps it."""

    name: str
    about: str
    digest: str
    classes: list[str]
    depth: Annotated[int, Field(ge=1, le=16)]
    report: Report
    ids: list[str]
    labels: list[Index] | list[list[Annotated[int, Field(ge=0, le=1)]]]
    groups: list[Annotated[int, Field(ge=0, lt=2**62)]] | None
    given: list[str]
    offsets: list[Index]
    near: list[Index] | None = None
    sums: list[str] | None = None


def check(path: Path, name: str) -> None:
    """Refuse a file that is not what its name within a lab says: `data.archive`, `data.bomb` where it is larger than it looks."""
    try:
        _check(path, name)
    except (
        ValidationError,
        ValueError,
        KeyError,
        OSError,
        EOFError,
        MemoryError,
        zipfile.BadZipFile,
        SafetensorError,
        UserError,
    ) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        sentence = (
            f"{archive.plain(name, 80)!r} in the bundle is not what its name says ({archive.plain(what, 120)}); make it again."
        )
        raise DataError("data.archive", sentence) from None


def _check(path: Path, name: str) -> None:
    folder, _, rest = name.partition("/")
    id, _, file = rest.partition("/")
    if file == "events.jsonl":
        _events(path.read_bytes())
    elif file == "places.jsonl":
        _places(path.read_bytes())
    elif file == "predictions.csv":
        head = path.read_text(encoding="utf-8").partition("\n")[0]
        _demand(head.startswith("image,label,split,"), "its columns are not image, label, split and what was predicted")
    elif file == "weights.safetensors":
        with safe_open(path, "np") as weights:
            kinds = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118 - a safetensors file is no dict
        _demand(kinds <= {"F32", "F16", "BF16", "F64"}, "weights are floating point numbers")
    elif file.endswith(".npz"):
        _arrays(path)
    elif file.endswith(".json"):
        _document(path.read_bytes(), folder, id, file)
    else:
        _demand(file == "blobs.bin", "no such file is known")


def _document(data: bytes, folder: str, id: str, file: str) -> None:
    document = pydantic_core.from_json(data, allow_inf_nan=False)
    match folder, file:
        case "comparisons", "order.json":
            order = Stored.model_validate(document).order
            _demand(catalog.without_folders("backbones", order.backbone) == order.backbone, "it names a place on a machine")
            arms = len(order.methods) * (1 + len(order.regularizers) * len(order.strengths))
            _demand(arms * order.seeds <= MOST_RUNS, f"it asks for more than {MOST_RUNS} runs")
        case "comparisons", "label.json":
            Label.model_validate(document)
        case "comparisons", _:
            Document.model_validate(document)
        case "runs", "experiment.json":
            asked = Experiment.model_validate(document)
            _demand(catalog.without_folders("backbones", asked.backbone) == asked.backbone, "it names a place on a machine")
            _demand(asked.id == id, "its settings are not those that the run is named by")
        case "runs", "result.json":
            _demand(Result.model_validate(document).run == id, "it is another run's")
        case "runs", _:
            measured = Measured.model_validate(document)
            named = file.removeprefix("measures/").removesuffix(".json")
            _demand(set(measured.runs) == {id} and measured.diagnostic == named, "it is another run's or diagnostic's")
        case _:
            _manifest(Manifest.model_validate(document), id)


def _events(data: bytes) -> None:
    kinds: dict[str, type[Event]] = {"step": Step, "epoch": Epoch}
    for line in data.splitlines():
        found = pydantic_core.from_json(line, allow_inf_nan=False)
        event = kinds.get(Event.model_validate(found).event, Event).model_validate(found)
        if event.event in kinds:
            extra = event.model_extra or {}
            _demand(all(one is None or isinstance(one, (int, float, str)) for one in extra.values()), "a step holds numbers")
            _demand(math.isfinite(event.time), "a step has a time")


def _places(data: bytes) -> None:
    found = [pydantic_core.from_json(line, allow_inf_nan=False) for line in data.splitlines() if line]
    first, moved = Start.model_validate(found[0] if found else None), [Moved.model_validate(one) for one in found[1:]]
    known = len(first.start)
    _demand(len(first.labels) == known and all(len(one.places) == known for one in moved), "a map has places for all")
    _demand(all(label < len(first.classes) for label in first.labels), "its labels do not fit its classes")


def _manifest(manifest: Manifest, id: str) -> None:
    n, k = len(manifest.ids), len(manifest.classes)
    _demand(manifest.digest == id, "it is another set's")
    several = [len(one) if isinstance(one, list) else None for one in manifest.labels]
    _demand(len(set(several)) <= 1 and several[:1] in ([], [None], [k]), "its labels do not fit its classes")
    _demand(all(one < k for one in manifest.labels if isinstance(one, int)), "its labels do not fit its classes")
    lengths = {n, len(manifest.labels), len(manifest.given), len(manifest.offsets) - 1, len(set(manifest.ids))}
    lengths |= {len(one) for one in (manifest.groups, manifest.near, manifest.sums) if one is not None}
    _demand(lengths == {n}, "its lists differ in length")
    _demand(manifest.offsets == sorted(manifest.offsets), "its pictures overlap")


def _arrays(path: Path) -> None:
    """Read the headers of an npz: plain numbers or text, and as many of them as the file has bytes for."""
    with archive.opened(path, ARRAYS) as opened:
        for name, info in archive.checked(opened, path.stat().st_size, ARRAYS)[0].items():
            _demand(name.endswith(".npy") and "/" not in name, "it holds something other than arrays")
            with opened.open(info) as file:
                version: Any = np.lib.format.read_magic(file)
                readers: dict[tuple[int, int], Callable[..., Any]] = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }
                _demand(tuple(version) in readers, "its arrays are of an unknown version")
                shape, _, dtype = readers[tuple(version)](file)
                _demand(dtype.kind in "biufU" and dtype.fields is None, "it holds objects")
                there = info.file_size - file.tell()
                _demand(math.prod(shape) * dtype.itemsize == there, "its arrays are not as large as they say")


def _demand(held: bool, sentence: str) -> None:
    if not held:
        raise ValueError(sentence)

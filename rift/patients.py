"""Which images belong to one patient: what the upload says, another column of its table, how file names begin, or nothing.

Images of a patient share one part of the split. What could name the patient is offered with every set, as numbers only: the
values themselves are not kept. A choice makes a set of its own, since it is another split and so another comparison.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rift import intact
from rift.config import digest
from rift.dataset import ImageSet, load
from rift.errors import SettingError
from rift.review import Item, Notes, Report, leak

AUTO, NONE = "auto", "none"
MOST = 8  # offers
ALONE = "nothing: every image stands for itself"
LEAST = 3  # patients of each class: one for each part
NAMES: dict[str, tuple[str, Callable[[str], str]]] = {  # of an image's id: what is meant, and how it is found
    "prefix:_": ('file names up to the first "_"', lambda id: _before(id, "_")),
    "prefix:-": ('file names up to the first "-"', lambda id: _before(id, "-")),
    "folder": ("the folders within the classes", lambda id: id.rpartition("/")[0]),
}


class Offer(NamedTuple):
    """A way to tell patients: what it is in words, and the patient's number of each image, None where each is alone."""

    said: str
    groups: list[int] | None

    @property
    def patients(self) -> int:
        """How many patients there are."""
        return len(set(self.groups or []))


def _before(id: str, mark: str) -> str:
    name = id.rpartition("/")[2]
    return name.partition(mark)[0] if mark in name else ""


def remember(images: ImageSet, columns: Mapping[str, Mapping[str, str]]) -> ImageSet:
    """Keep with a set that was just read what else could name the patient; returns the set.

    `columns` are those of its table that were not read, `{name: {id: value}}`.
    """
    given = None if images.groups is None else images.groups.tolist()
    found = {AUTO: Offer("what the upload says" if given else ALONE, given)}
    seen = [_numbers(given)] if given else []
    ids = images.ids.tolist()
    ways = [(f"column:{name}", f"the column {name!r}", [values.get(id, "") for id in ids]) for name, values in columns.items()]
    ways += [(key, said, [of(id) for id in ids]) for key, (said, of) in NAMES.items()]
    for key, said, values in ways:
        groups = _numbers(values)
        if len(found) <= MOST and groups not in seen and _can_be_split(images, values, groups):
            seen.append(groups)
            found[key] = Offer(said, groups)
    if given:
        found[NONE] = Offer(ALONE, None)
    _write(images.folder, {"patients": AUTO, "origin": images.digest, "offers": {key: list(one) for key, one in found.items()}})
    return images


def _numbers(values: Sequence[Any]) -> list[int]:
    """Return the same groups numbered in order of appearance; an empty value is a group of its own."""
    known: dict[Any, int] = {}
    return [known.setdefault(("alone", place) if value == "" else value, len(known)) for place, value in enumerate(values)]


def _can_be_split(images: ImageSet, values: Sequence[str], groups: Sequence[int]) -> bool:
    numbers = np.array(groups)
    grouped = 1 < len(set(groups)) < len(groups) and sum(value == "" for value in values) <= len(values) // 2
    return grouped and all(len(np.unique(numbers[images.of(place)])) >= LEAST for place in range(len(images.classes)))


def offers(images: ImageSet) -> dict[str, Offer]:
    """Return what could name the patient, by key; empty where there is nothing to choose."""
    stored = _read(images.folder).get("offers", {})
    return {key: Offer(*one) for key, one in stored.items()} if len(stored) > 1 else {}


def chosen(images: ImageSet) -> str:
    """Return the key of the offer that a set follows."""
    return str(_read(images.folder).get("patients", AUTO))


def choose(images: ImageSet, key: str) -> ImageSet:
    """Return the same images with their patients told in another way; `setting.range` for a way that is not offered.

    Keys: `auto` as the upload says, `none`, `column:NAME`, `prefix:_`, `prefix:-`, `folder`. The set is stored beside the other.
    """
    if key == chosen(images):
        return images
    stored = _read(images.folder)
    known = stored.get("offers", {})
    if key not in known:
        there = ", ".join(known) or AUTO
        raise SettingError("setting.range", f"{images.name} cannot be grouped by {key!r}; there is {there}.")
    offer = Offer(*known[key])
    name = stored["origin"] if key == AUTO else digest({"set": stored["origin"], "groups": offer.groups})
    stored |= {"digest": name, "groups": offer.groups, "patients": key, "report": _report(images, offer).model_dump(mode="json")}
    stored["seal"] = intact.seal(stored)
    target = images.folder.parent / name
    if target.exists():
        return load(target)
    workshop = Path(tempfile.mkdtemp(dir=images.folder.parent, prefix=".grouping-"))
    try:
        for file in (images.folder / "blobs.bin", *images.folder.glob("pixels-*.npy")):  # never written to again
            _link(file, workshop / file.name)
        (workshop / "manifest.json").write_text(json.dumps(stored))
        os.rename(workshop, target)
    except OSError:
        if not (target / "manifest.json").exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return load(target)


def _report(images: ImageSet, offer: Offer) -> Report:
    kept = tuple(item for item in images.report.warnings if item.code not in ("data.groups", "data.leak"))
    notes = Notes(warnings=list(kept))
    if offer.groups is not None:
        message = f"Patients are told by {offer.said}: {offer.patients} of them, each kept in one part of the split."
        notes.warnings.append(Item(file="", code="data.groups", message=message))
        if {"test", "validation"} & set(images.given.tolist()):
            leak(_sided(images, offer.groups), notes)
    return images.report.model_copy(update={"warnings": tuple(notes.warnings)})


def _sided(images: ImageSet, groups: Sequence[int]) -> Iterable[tuple[object, str, str]]:
    return zip(groups, images.given.tolist(), images.ids.tolist(), strict=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_bytes())


def _write(folder: Path, more: Mapping[str, Any]) -> None:
    handle, partial = tempfile.mkstemp(dir=folder, prefix=".manifest-")
    with os.fdopen(handle, "w") as file:
        json.dump(_read(folder) | dict(more), file)
    os.replace(partial, folder / "manifest.json")

"""Classes under construction: pictures that a person drops or takes one class at a time, kept in the lab until they are used.

A draft is a folder `drafts/<key>/` of the lab: `draft.json` names the classes and their pictures, which lie beside it by the hash
of their bytes. The key of 128 random bits is one browser's own, so a reload finds its draft and nobody else does.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from filelock import FileLock
from pydantic import BaseModel

from rift import cage, images, quota, upload
from rift.archive import MB, Limits, plain
from rift.dataset import ImageSet
from rift.errors import DataError, SettingError
from rift.review import Entry, Item, Notes
from rift.runs import Lab, write_bytes

FEWEST, MOST = 2, 6  # classes
KEPT = 20  # drafts of a lab; the one untouched longest goes first
NAME = 60  # characters of a class name


class Picture(BaseModel):
    """One picture of a class: the name that its file had, for people, and the hash of its bytes."""

    name: str
    hash: str


class Group(BaseModel):
    """One class: what it is called, its pictures in the order they came, and what was not taken of those that came last."""

    name: str
    pictures: list[Picture] = []
    remarks: list[Item] = []


class Draft(BaseModel):
    """The classes so far."""

    classes: list[Group]

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return sum(len(one.pictures) for one in self.classes)


def read(lab: Lab, key: str) -> Draft:
    """Return a draft; two empty classes where there is none yet."""
    try:
        return Draft.model_validate_json((_home(lab, key) / "draft.json").read_bytes())
    except (OSError, ValueError):
        return Draft(classes=[Group(name=f"Class {number + 1}") for number in range(FEWEST)])


def add(lab: Lab, key: str, place: int, files: Sequence[tuple[str, bytes]], limits: Limits | None = None) -> list[Item]:
    """Put pictures into a class and return a remark for each that was not taken: unreadable, or there already.

    Raises `data.too_many` and `data.bomb` where the draft would grow beyond the limits of an upload.
    """
    remarks, limits = [], limits or quota.limits(lab)
    with _changing(lab, key) as (draft, home):
        group = _class(draft, place)
        there = {picture.hash: one.name for one in draft.classes for picture in one.pictures}
        if draft.count + len(files) > limits.files:
            raise DataError("data.too_many", f"At most {limits.files:,} pictures are taken; there would be more.")
        size = sum(path.stat().st_size for path in home.iterdir()) + sum(len(data) for _, data in files)
        if size > limits.upload_bytes:
            raise DataError("data.bomb", f"At most {limits.upload_bytes // MB} MB are taken; this would be {size // MB} MB.")
        for given, data in files:
            name = shown(given)
            try:
                data = cage.check(data)
            except DataError as error:
                remarks.append(Item(file=name, code=error.code, message=error.sentence))
                continue
            digest = hashlib.sha256(data).hexdigest()
            if digest in there:
                where = "this class" if there[digest] == group.name else f"the class {there[digest]!r}"
                remarks.append(Item(file=name, code="data.duplicate", message=f"The same picture is in {where} already."))
                continue
            write_bytes(home / digest, data)
            there[digest] = group.name
            group.pictures.append(Picture(name=name, hash=digest))
        group.remarks = remarks
    return remarks


def rename(lab: Lab, key: str, place: int, name: str) -> str:
    """Call a class by another name and return it as it is kept; `data.label` for an empty name or that of another class."""
    with _changing(lab, key) as (draft, _):
        group, wanted = _class(draft, place), plain(name, NAME)
        if not wanted:
            raise DataError("data.label", "A class needs a name, for example what its pictures show.")
        if any(one is not group and one.name.casefold() == wanted.casefold() for one in draft.classes):
            raise DataError("data.label", f"Another class is called {wanted!r} already; give each its own name.")
        group.name = wanted
        return wanted


def append(lab: Lab, key: str) -> None:
    """Add an empty class; `data.too_many` beyond six."""
    with _changing(lab, key) as (draft, _):
        if len(draft.classes) >= MOST:
            raise DataError("data.too_many", f"There are {MOST} classes already; for more, make a zip with a folder for each.")
        names = {one.name for one in draft.classes}
        free = next(name for number in range(1, MOST + 2) if (name := f"Class {number}") not in names)
        draft.classes.append(Group(name=free))


def clear(lab: Lab, key: str, place: int) -> None:
    """Take all pictures out of a class."""
    with _changing(lab, key) as (draft, _):
        draft.classes[place] = Group(name=_class(draft, place).name)


def remove(lab: Lab, key: str, place: int) -> None:
    """Take a class away with its pictures; of two classes left it is emptied and stays."""
    with _changing(lab, key) as (draft, _):
        draft.classes[place] = Group(name=_class(draft, place).name)
        if len(draft.classes) > FEWEST:
            del draft.classes[place]


def picture(lab: Lab, key: str, digest: str, size: int) -> np.ndarray:
    """Return a picture of a draft, cut to `(size, size, 3)`; `data.missing` where it is gone."""
    path = _home(lab, key) / digest
    if not digest.isalnum() or not path.exists():
        raise DataError("data.missing", "This picture is no longer in the draft.")
    return images.fit(images.read(path.read_bytes()).pixels, size)


def use(lab: Lab, key: str, name: str = "my pictures", *, leave_out_small: bool = False) -> ImageSet:
    """Read the classes as an upload is read, into the lab's image sets; raises what `upload.read` raises, in the same words."""
    draft, home, notes = read(lab, key), _home(lab, key), Notes()
    if not draft.count:
        raise DataError("data.too_few", "There is no picture yet: drop some into each class, or take them with the camera.")
    notes.classes |= {group.name for group in draft.classes}
    entries = [
        Entry(f"{group.name}/{one.name}", group.name, (home / one.hash).read_bytes)
        for group in draft.classes
        for one in group.pictures
    ]
    return upload.keep(entries, lab.data, name=name, notes=notes, leave_out_small=leave_out_small, limits=quota.limits(lab))


@contextmanager
def gathered(lab: Lab, files: Sequence[tuple[str, Path]]) -> Iterator[Path]:
    """Lay loose files, a table and its pictures, into one folder of the lab for as long as they are read."""
    folder = lab.root / "drafts" / f".loose-{secrets.token_hex(8)}"
    folder.mkdir(parents=True)
    try:
        for given, path in files:
            name, number = shown(given), 1
            while (folder / name).exists():
                number += 1
                name = f"{number} {shown(given)}"[-200:]
            shutil.copyfile(path, folder / name)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def shown(name: str) -> str:
    """Return a file's name as one that is safe to show and to keep: without folders, of ordinary length, never hidden."""
    last = plain(PurePosixPath(name.replace("\\", "/")).name, 400).replace("/", "").lstrip(". ")
    while len(last.encode()) > 180:
        last = last[1:]
    return last or "picture"


def _class(draft: Draft, place: int) -> Group:
    if not 0 <= place < len(draft.classes):
        raise SettingError("setting.range", f"There is no class {place + 1}; there are {len(draft.classes)}.")
    return draft.classes[place]


def _home(lab: Lab, key: str) -> Path:
    return (
        lab.root / "drafts" / (key if key.isalnum() and 16 <= len(key) <= 64 else "-")
    )  # a key from outside never leaves the folder


@contextmanager
def _changing(lab: Lab, key: str) -> Iterator[tuple[Draft, Path]]:
    """Change a draft, one at a time, and let go of pictures that no class has any more; nothing is kept after an error."""
    home = _home(lab, key)
    if not home.exists():
        home.mkdir(parents=True)
        _forget_old(home.parent)
    with FileLock(home.parent / f".{home.name}.lock"):
        draft = read(lab, key)
        yield draft, home
        write_bytes(home / "draft.json", json.dumps(draft.model_dump()).encode())
        wanted = {picture.hash for group in draft.classes for picture in group.pictures} | {"draft.json"}
        for path in home.iterdir():
            if path.name not in wanted and not path.name.startswith("."):
                path.unlink()


def _forget_old(root: Path) -> None:
    """Keep the newest drafts, and nothing that a crash left half read an hour ago."""
    there = sorted((path for path in root.iterdir() if path.is_dir()), key=lambda path: -path.stat().st_mtime)
    for path in [one for one in there if not one.name.startswith(".")][KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
        (root / f".{path.name}.lock").unlink(missing_ok=True)
    for path in there:
        if path.name.startswith(".") and time.time() - path.stat().st_mtime > 3600:
            shutil.rmtree(path, ignore_errors=True)

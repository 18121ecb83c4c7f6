"""A comparison as one zip, and such a zip opened again as a lab of its own that is looked at and never changed.

`rift-bundle.json` names every other file with its size and SHA-256. A bundle may come from anybody: names, sizes and digests
are checked before anything is believed, `rift.sealed` reads every file as what its name says, and it must draw a whole report.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from rift import __version__, archive, catalog, portable, sealed, service
from rift.archive import GB, LOCAL, MB
from rift.config import Settings
from rift.errors import DataError, RunError, UserError
from rift.runs import Lab, Run, write_json

INDEX = "rift-bundle.json"
LIMITS = replace(LOCAL, files=5000, member_bytes=GB)
MOST_OPENED = 50
OF_RUN = ("experiment.json", "events.jsonl", "result.json", "predictions.csv", "places.jsonl", "measures/*.json")
ID, SET = "[0-9a-f]{16}", "[0-9a-f]{64}"
KNOWN = {  # every name that a bundle may hold, and how large such a file may be
    rf"comparisons/{ID}/(order|comparison|label)\.json": 20 * MB,
    rf"runs/{ID}/(experiment|result)\.json": 20 * MB,
    rf"runs/{ID}/events\.jsonl": 100 * MB,
    rf"runs/{ID}/places\.jsonl": 20 * MB,
    rf"runs/{ID}/predictions\.csv": 200 * MB,
    rf"runs/{ID}/weights\.safetensors": GB,
    rf"runs/{ID}/measures/[a-z0-9_]{{1,60}}\.json": 50 * MB,
    rf"runs/{ID}/captures/[a-z0-9_]{{1,60}}-{ID}\.npz": 500 * MB,
    rf"data/{SET}/manifest\.json": 100 * MB,
    rf"data/{SET}/blobs\.bin": GB,
}


class Entry(Settings):
    """One file as the index names it."""

    bytes: Annotated[int, Field(ge=0, le=GB)]
    sha256: Annotated[str, Field(pattern=f"^{SET}$")]


class Index(Settings):
    """What a bundle says of itself."""

    format: Literal[1]
    rift: str
    created: str
    comparison: Annotated[str, Field(pattern=f"^{ID}$")]
    pictures: bool
    weights: bool
    files: dict[str, Entry]


def write(lab: Lab, name: str, path: Path, *, pictures: bool = False, weights: bool = False) -> Path:
    """Write a finished comparison as a bundle; `run.missing` where one of its runs is not finished.

    Without `pictures` neither the images nor arrays that show them are in it; file names are, since each prediction has one.
    """
    runs = service.runs(service.arms(lab, name))
    open_ = [run for run in runs if run.state != "done"]
    if open_:
        why = f"{len(runs) - len(open_)} of {len(runs)} runs are finished"
        raise RunError("run.missing", f"A bundle is made of a finished comparison; {why}. Let it finish, or go on with it.")
    service.result(lab, name)  # computed once and kept, so that it can be read where its arrays are not
    files: dict[str, Path | bytes] = {}
    home = lab.comparisons / name
    stored = json.loads((home / "order.json").read_bytes())
    stored["source"] = re.split(r"[/\\]", str(stored["source"]))[-1]  # no path of this machine
    files[f"comparisons/{name}/order.json"] = json.dumps(stored).encode()
    patterns = [*OF_RUN, *(["weights.safetensors"] if weights else [])]
    found = [home / "comparison.json", *home.glob("label.json")]
    found += [one for run in runs for pattern in patterns for one in sorted(run.path.glob(pattern))]
    found += [one for run in runs for one in sorted(run.path.glob("captures/*.npz")) if pictures or not _shows_pictures(one)]
    order, _ = service.order_of(lab, name)
    for data in dict.fromkeys((order.data, order.natural)):
        folder = lab.data / data
        found += [folder / "manifest.json", *(folder.glob("blobs.bin") if pictures else ())]
    files |= {one.relative_to(lab.root).as_posix(): one for one in found}
    swaps = portable.swaps(lab, name)
    files = portable.content(files, swaps)
    index = Index(
        format=1,
        rift=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        comparison=portable.swapped(name, swaps),
        pictures=pictures,
        weights=weights,
        files={key: _entry(one) for key, one in files.items()},
    )
    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as out:
            out.writestr(INDEX, index.model_dump_json(indent=1))
            for key, one in files.items():
                packed = zipfile.ZIP_STORED if key.endswith((".bin", ".npz", ".safetensors")) else zipfile.ZIP_DEFLATED
                out.writestr(key, one, packed) if isinstance(one, bytes) else out.write(one, key, packed)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _entry(content: Path | bytes) -> Entry:
    if isinstance(content, bytes):
        return Entry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    with content.open("rb") as file:
        return Entry(bytes=content.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _shows_pictures(path: Path) -> bool:
    """Whether captured arrays hold pictures, of a set or made from one."""
    with np.load(path, allow_pickle=False) as stored:
        return any(stored[key].ndim >= 3 and stored[key].dtype in (np.uint8, np.uint16) for key in stored.files)


def open_(lab: Lab, path: Path) -> tuple[str, str]:
    """Open a bundle beside a lab, read-only, and return the name of its lab and of its comparison; opened twice it is one.

    Raises `data.archive` for what is no bundle, is damaged or does not fit together, `data.escape` and `data.bomb` as uploads do,
    `data.too_many` for too many files or bundles; then nothing of it stays.
    """
    shelf = lab.root / "opened"
    shelf.mkdir(exist_ok=True)
    with path.open("rb") as file:
        name = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if (shelf / name / "opened.json").exists():
        return f"opened-{name}", service.comparisons(Lab(shelf / name))[0]
    if sum(1 for _ in shelf.glob("*/opened.json")) >= MOST_OPENED:
        raise DataError("data.too_many", f"{MOST_OPENED} bundles are open; close one in the history first.")
    draft = Path(tempfile.mkdtemp(dir=shelf, prefix=".opening-"))
    try:
        with archive.opened(path, LIMITS) as opened:
            members, _ = archive.checked(opened, path.stat().st_size, LIMITS)
            index = _index(opened, members)
            for key, info in members.items():
                if key != INDEX:
                    _take(opened, info, draft / key, index.files[key], key)
        _refuse_misfits(draft, index)
        seal = {"opened": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "file": archive.plain(path.name)}
        write_json(draft / "opened.json", seal)
        os.rename(draft, shelf / name)
        service.forget()
        return f"opened-{name}", index.comparison
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _index(opened: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> Index:
    """Return the checked index: it names exactly the files that are there, each one known, with its size."""
    if INDEX not in members or members[INDEX].file_size > 5 * MB:
        raise DataError(
            "data.archive", "This zip is no bundle of RIFT Lab. Images go to the Data tab; bundles are made under Keep."
        )
    try:
        index = Index.model_validate_json(_read(opened, members[INDEX], INDEX))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"][:2]))
        what = f"the bundle's index cannot be read ({archive.plain(where, 60)}: {error.errors()[0]['msg']})"
        raise DataError("data.archive", f"It is damaged or of another version: {what}.") from None
    for key, info in members.items():
        if key == INDEX:
            continue
        most = next((size for pattern, size in KNOWN.items() if re.fullmatch(pattern, key)), None)
        if most is None:
            raise DataError("data.archive", f"A bundle has no file {archive.plain(key, 80)!r}; it was not made by RIFT Lab.")
        if info.file_size > most:
            raise DataError(
                "data.bomb", f"{archive.plain(key, 80)!r} has {info.file_size / MB:.0f} MB; at most {most / MB:.0f} are taken."
            )
        if key not in index.files or index.files[key].bytes != info.file_size:
            raise DataError(
                "data.archive", f"{archive.plain(key, 80)!r} is not what the bundle's index says; make the bundle again."
            )
    if lost := sorted(set(index.files) - set(members)):
        raise DataError("data.archive", f"{archive.plain(lost[0], 80)!r} is missing from the bundle; make it again.")
    return index


def _read(opened: zipfile.ZipFile, info: zipfile.ZipInfo, key: str) -> bytes:
    return b"".join(_chunks(opened, info, key))


def _chunks(opened: zipfile.ZipFile, info: zipfile.ZipInfo, key: str) -> Iterator[bytes]:
    left = info.file_size
    try:
        with opened.open(info) as file:
            while left > 0 and (chunk := file.read(min(left, MB))):
                left -= len(chunk)
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError):
        left = -1
    if left:
        raise DataError("data.archive", f"{archive.plain(key, 80)!r} is damaged; make the bundle again.")


def _take(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, entry: Entry, key: str) -> None:
    """Copy one file out and see that it is, to the bit, the one that was put in."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sha = hashlib.sha256()
    with target.open("wb") as file:
        for chunk in _chunks(opened, info, key):
            sha.update(chunk)
            file.write(chunk)
    if sha.hexdigest() != entry.sha256:
        raise DataError(
            "data.archive", f"{archive.plain(key, 80)!r} was changed on the way (its SHA-256 differs); get the bundle again."
        )


def _refuse_misfits(draft: Path, index: Index) -> None:
    """Refuse files that are not what their names say, and a comparison that cannot be shown whole."""
    for path in sorted(draft.rglob("*")):
        if path.is_file():
            sealed.check(path, path.relative_to(draft).as_posix())
    lab, name = Lab(draft), index.comparison
    if service.comparisons(lab) != [name]:
        raise DataError("data.archive", "The bundle's index names another comparison than the one in it; make it again.")
    try:
        order, _ = service.order_of(lab, name)
        if order.id != name:
            raise DataError("data.archive", "The bundle's settings are not those that its comparison is named by; make it again.")
        runs = service.runs(service.arms(lab, name))
        if {run.id for run in runs} != {run.id for run in lab.runs()} or any(not _complete(run) for run in runs):
            raise DataError("data.archive", "The runs in the bundle are not the finished ones of its comparison; make it again.")
        if {one.name for one in lab.data.iterdir()} != {order.data, order.natural}:
            raise DataError("data.archive", "The image sets in the bundle are not those of its comparison; make it again.")
        _place_photos(lab, order.natural)
        service.write_report(lab, name).unlink()
    except UserError as error:
        if error.code == "data.archive":
            raise
        raise DataError("data.archive", f"The bundle cannot be shown here: {error.sentence}") from None
    except Exception as error:  # of numbers and figures that somebody wrote, anything can be wrong
        raise DataError(
            "data.archive", f"The bundle's numbers do not fit together ({type(error).__name__}); make it again."
        ) from None


def _complete(run: Run) -> bool:
    return run.state == "done" and all((run.path / name).exists() for name in OF_RUN[:4])


def _place_photos(lab: Lab, natural: str) -> None:
    """Where the natural photos are those that come with the app, show this app's own."""
    with tempfile.TemporaryDirectory(dir=lab.root) as folder:
        bundled = catalog.door("natural", "bundled")(Path(folder))
        if bundled.digest == natural:
            shutil.rmtree(lab.data / natural)
            shutil.move(bundled.folder, lab.data / natural)


def close(lab: Lab, home: str) -> None:
    """Remove an opened bundle from this lab; the file that it came from is untouched."""
    name = home.removeprefix("opened-")
    if re.fullmatch(ID, name):
        shutil.rmtree(lab.root / "opened" / name, ignore_errors=True)
    service.forget()

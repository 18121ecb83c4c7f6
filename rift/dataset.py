"""Image sets on disk: decoded once, checked, named by the hash of their content, and split without leaks.

`root/<digest>/` holds `manifest.json`, `blobs.bin` (the encoded pictures back to back, in the order of their ids) and one
`pixels-<size>.npy` for every size that was asked for. It is written beside its place and renamed at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rift import images, review
from rift.archive import LOCAL, Limits, plain
from rift.config import digest
from rift.errors import DataError, SettingError
from rift.review import PARTS, Notes, Record, Report


@dataclass(frozen=True, eq=False)
class ImageSet:
    """`n` labeled images, sorted by id; `digest` depends on their content alone, `name` and `report` on the last upload."""

    folder: Path
    name: str
    digest: str
    classes: tuple[str, ...]
    ids: np.ndarray  # (n,) str, unique
    labels: np.ndarray  # (n,) int64, index into classes
    groups: np.ndarray | None  # (n,) int64, images of one patient share a number
    given: np.ndarray  # (n,) str, "", "train", "validation" or "test" as the upload says
    report: Report
    about: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def pixels(self, size: int) -> np.ndarray:
        """Return all images as `(n, size, size, 3)` uint8, or uint16 if any is deeper; decoded once per size, then mapped.

        Writing into the result changes this process's copy only. Two processes may ask at once: the last to finish wins.
        """
        path = self.folder / f"pixels-{size}.npy"
        if not path.exists():
            handle, partial = tempfile.mkstemp(dir=self.folder, prefix=f".pixels-{size}-")
            os.close(handle)
            try:
                self._decode(Path(partial), size)
                os.replace(partial, path)
            finally:
                Path(partial).unlink(missing_ok=True)
        return np.load(path, mmap_mode="c")

    def picture(self, index: int, size: int) -> np.ndarray:
        """Return one image `(size, size, 3)`, uint8 or uint16; only this one is decoded. Raises IndexError for a wrong index."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        manifest = json.loads((self.folder / "manifest.json").read_text())
        start, end = manifest["offsets"][index : index + 2]
        with (self.folder / "blobs.bin").open("rb") as file:
            file.seek(start)
            return images.fit(images.read(file.read(end - start), depth=manifest["depth"]).pixels, size)

    def counts(self, split: Split) -> dict[str, int]:
        """Return the number of images of each part."""
        return {part: len(getattr(split, part)) for part in PARTS}

    def _decode(self, path: Path, size: int) -> None:
        manifest = json.loads((self.folder / "manifest.json").read_text())
        offsets, depth = manifest["offsets"], manifest["depth"]
        dtype = np.uint8 if depth == 8 else np.uint16
        pixels = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(len(self), size, size, 3))
        with (self.folder / "blobs.bin").open("rb") as file:
            for index in range(len(self)):
                data = file.read(offsets[index + 1] - offsets[index])
                image = images.fit(images.read(data, depth=depth).pixels, size)
                pixels[index] = image if image.dtype == dtype else image.astype(np.uint16) * 257
        pixels.flush()


def store(
    items: Iterable[tuple],
    root: Path,
    *,
    name: str,
    about: str = "",
    least: int = 1,
    least_classes: int = 1,
    leave_out_small: bool = False,
    limits: Limits = LOCAL,
    notes: Notes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageSet:
    """Decode, check and keep entries (see `Entry`) under `root/<digest>/`; the same content again gives the same set.

    A picture that cannot be read is skipped; exact copies are dropped (the test part's stays). Raises `data.conflict` for one
    picture under two classes or classes that differ by case, `data.one_class` for fewer than `least_classes`, `data.too_few` for
    classes below `least` images unless `leave_out_small`, `data.too_many` for too many classes, and then leaves nothing behind.
    """
    root.mkdir(parents=True, exist_ok=True)
    notes = notes or Notes()
    workshop = Path(tempfile.mkdtemp(dir=root, prefix=".reading-"))
    try:
        with (workshop / "spool").open("w+b") as spool:
            seen = review.decode(items, spool, notes, progress)
            review.refuse_twins({record.label for record in seen} | notes.classes)
            records = review.without_copies(seen, notes)
            records = review.with_enough(records, notes, least, least_classes, leave_out_small, limits)
            review.remark(records, notes, least, {record.label for record in seen} - {record.label for record in records})
            records.sort(key=lambda record: record.id)
            with (workshop / "blobs.bin").open("wb") as blobs:
                for record in records:
                    spool.seek(record.start)
                    blobs.write(spool.read(record.length))
        (workshop / "spool").unlink()
        return _publish(workshop, root, records, name, about, notes)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def load(folder: Path) -> ImageSet:
    """Open a stored set; `data.missing` where there is none."""
    try:
        stored = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        raise DataError("data.missing", f"There is no stored image set in {plain(str(folder))}; read the images again.") from None
    groups = stored["groups"]
    return ImageSet(
        folder=folder,
        name=stored["name"],
        digest=stored["digest"],
        classes=tuple(stored["classes"]),
        ids=np.array(stored["ids"], dtype=np.str_),
        labels=np.array(stored["labels"], dtype=np.int64),
        groups=None if groups is None else np.array(groups, dtype=np.int64),
        given=np.array(stored["given"], dtype=np.str_),
        report=Report.model_validate(stored["report"]),
        about=stored["about"],
    )


def _publish(workshop: Path, root: Path, records: list[Record], name: str, about: str, notes: Notes) -> ImageSet:
    """Write the manifest and move the folder into place; where it already is, only name and report are new."""
    classes = sorted({record.label for record in records})
    labels = [classes.index(record.label) for record in records]
    groups = _numbered([record.group for record in records])
    rows = [
        [record.id, record.hash, label, -1 if groups is None else groups[index], record.given]
        for index, (record, label) in enumerate(zip(records, labels, strict=True))
    ]
    changed = tuple(record.change for record in records if record.change)
    report = Report(kept=len(records), changed=changed, skipped=tuple(notes.skipped), warnings=tuple(notes.warnings))
    manifest = {
        "schema": 1,
        "name": plain(name),
        "about": about,
        "digest": digest({"classes": classes, "images": rows}),
        "classes": classes,
        "depth": max(record.depth for record in records),
        "report": report.model_dump(mode="json"),
        "ids": [record.id for record in records],
        "labels": labels,
        "groups": groups,
        "given": [record.given for record in records],
        "offsets": np.cumsum([0, *(record.length for record in records)]).tolist(),
    }
    folder = root / str(manifest["digest"])
    (workshop / "manifest.json").write_text(json.dumps(manifest))
    try:
        os.rename(workshop, folder)
    except OSError:
        if not (folder / "manifest.json").exists():
            raise
        # The same images, perhaps encoded otherwise: the stored bytes and their offsets stay.
        stored = json.loads((folder / "manifest.json").read_text())
        stored |= {key: manifest[key] for key in ("name", "about", "report")}
        (workshop / "manifest.json").write_text(json.dumps(stored))
        os.replace(workshop / "manifest.json", folder / "manifest.json")
    return load(folder)


def _numbered(groups: list[str | None]) -> list[int] | None:
    """Return a number per group; an image without one is a group of its own."""
    if not any(groups):
        return None
    numbers = {group: number for number, group in enumerate(sorted({group for group in groups if group}))}
    alone = iter(range(len(numbers), len(numbers) + len(groups)))
    return [numbers[group] if group else next(alone) for group in groups]


@dataclass(frozen=True, eq=False)
class Split:
    """Indices into an image set, sorted; together they are all of it, and no two share an image."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(images: ImageSet, seed: int, *, validation: float = 0.2, test: float = 0.2) -> Split:
    """Split by the seed: every class in every part, images of one group (patient) in one part only.

    Parts that the upload gives stay as they are; missing ones are cut from its training part, as shares of that part. Raises
    `data.too_few` where a class has too few images or groups to be in every part, `setting.range` for impossible shares.
    """
    if not (0 < validation < 1 and 0 < test < 1 and validation + test < 1):
        raise SettingError("setting.range", f"validation {validation} and test {test} must be above 0 and together below 1.")
    parts = {name: np.flatnonzero(images.given == name) for name in ("validation", "test")}
    pool = np.flatnonzero((images.given == "train") | (images.given == ""))
    shares = {name: share for name, share in (("validation", validation), ("test", test)) if not len(parts[name])}
    shares["train"] = 1 - sum(shares.values())
    labels = images.labels[pool]
    units = np.arange(len(pool)) if images.groups is None else np.unique(images.groups[pool], return_inverse=True)[1]
    _refuse_short(images, labels, units, len(shares))
    for attempt in range(20):  # the greedy cut can fail where groups hold several classes; another order may do
        chosen = _cut(labels, units, np.array(list(shares.values())), np.random.default_rng([seed, attempt]))
        if chosen is not None:
            parts |= {name: pool[chosen == number] for number, name in enumerate(shares)}
            return Split(**parts)
    raise DataError(
        "data.too_few", "The patients cannot be split so that every class is in every part; add patients of rare classes."
    )


def _refuse_short(images: ImageSet, labels: np.ndarray, units: np.ndarray, parts: int) -> None:
    short = []
    for number, name in enumerate(images.classes):
        count = len(np.unique(units[labels == number]))
        if count < parts:
            short.append(f"{name} ({count})")
    if short:
        what = "training images" if images.groups is None else "patients or cases to train on"
        mend = f"each class needs {parts}, one for each part; add some, or leave the class out"
        raise DataError("data.too_few", f"Too few {what} in {', '.join(short)}: {mend}.")


def _cut(labels: np.ndarray, units: np.ndarray, shares: np.ndarray, generator: np.random.Generator) -> np.ndarray | None:
    """Return the part of each image, or None: first each part gets a unit of each class, then units go where most is missing.

    Our choice, after iterative stratification (Sechidis 2011): scikit-learn's grouped splitter leaves parts without a rare class.
    """
    order = np.argsort(units, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(units[order])) + 1)
    contents = [np.unique(labels[member], return_counts=True) for member in members]
    queue = sorted(generator.permutation(len(members)), key=lambda unit: -len(members[unit]))
    totals = np.bincount(labels)
    missing = shares[:, None] * totals  # (parts, classes), images still wanted
    filled = np.zeros(missing.shape, dtype=bool)
    part_of = np.full(len(members), -1)

    def give(unit: int, part: int) -> None:
        part_of[unit] = part
        classes, counts = contents[unit]
        missing[part, classes] -= counts
        filled[part, classes] = True

    holders: list[list[int]] = [[] for _ in totals]
    for unit in reversed(queue):  # the smallest first
        for label in contents[unit][0]:
            holders[label].append(unit)
    for label in sorted(np.flatnonzero(totals), key=lambda label: len(holders[label])):
        for part in np.argsort(shares, kind="stable"):
            if not filled[part, label]:
                free = next((unit for unit in holders[label] if part_of[unit] < 0), None)
                if free is None:
                    return None
                give(free, part)
    for unit in queue:
        if part_of[unit] < 0:
            classes, counts = contents[unit]
            give(unit, int(np.argmax(missing[:, classes] @ counts)))
    chosen = np.empty(len(labels), dtype=np.int64)
    for unit, member in enumerate(members):
        chosen[member] = part_of[unit]
    return chosen

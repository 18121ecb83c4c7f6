"""Entries on their way into an image set are decoded, checked and remarked on; every file ends as kept, skipped or refused.

Codes of items, beside those of errors: data.orientation data.alpha data.color data.depth data.frames (how a picture was altered),
data.duplicate (a copy was dropped), data.left_out (its class was), data.unlabeled (a file without a class), data.extension
data.constant data.mixed data.few data.imbalance data.empty data.name data.groups data.leak data.encoding data.header data.near
data.shortcut (warnings); of DICOM also data.window and data.header (how it was read).
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field, replace
from typing import Annotated, BinaryIO, NamedTuple

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rift import copies, images, shortcuts
from rift.archive import Limits, plain
from rift.errors import DataError


class Item(BaseModel):
    """One remark about one file, or about the whole set when `file` is empty; never holds control characters."""

    model_config = ConfigDict(frozen=True)
    file: Annotated[str, AfterValidator(plain)]
    code: str
    message: Annotated[str, AfterValidator(lambda text: plain(text, 500))]
    # ids of kept images that it is about, where `file` is none of them; for the page, not part of the documents
    pictures: Annotated[tuple[str, ...], Field(exclude_if=lambda pictures: not pictures)] = ()


class Report(BaseModel):
    """What became of the files that were seen: `kept + len(skipped)` of them; those in `changed` are kept, but altered."""

    model_config = ConfigDict(frozen=True)
    kept: int
    changed: tuple[Item, ...] = ()
    skipped: tuple[Item, ...] = ()
    warnings: tuple[Item, ...] = ()


MOST_PICTURES = 6  # that a remark about the whole set shows
PARTS = ("train", "validation", "test")
REFUSING = ("data.burned_in", "data.bomb")  # one such file refuses the whole upload
WORKSHOP = ".reading-"  # how a folder begins that a reader works in; then comes its process
Progress = Callable[[int, int, str], None]  # (number, of how many or 0, which file)
Label = str | tuple[str, ...]  # an image's class; in a set of findings, the names of those that it shows


class Entry(NamedTuple):
    """One image on its way into a store."""

    id: str
    label: Label
    content: bytes | np.ndarray | Callable[[], bytes]  # encoded bytes, `(h, w)` or `(h, w, 3)` levels, or what reads the bytes
    group: str | None = None  # patient, case or lesion
    given: str = ""  # one of PARTS if the upload says so


@dataclass
class Notes:
    """What a reader has to say beside the entries; `classes` are all it has seen, empty ones too."""

    skipped: list[Item] = field(default_factory=list)
    warnings: list[Item] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    cut: dict[str, str] = field(default_factory=dict)  # class names as they are shown, and before they were cut short
    columns: dict[str, dict[str, str]] = field(default_factory=dict)  # of a table, beside what is read: {name: {id: value}}
    without: Mapping[str, str] = field(default_factory=dict)  # files that are not to be read: {id: sentence}


@dataclass(frozen=True)
class Record:
    """A decoded image: what its checks need, and where its bytes lie in the spool."""

    id: str
    label: Label
    group: str | None
    given: str
    hash: str  # SHA-256 of the pixels
    start: int
    length: int
    depth: int
    gray: bool
    change: Item | None
    signature: np.ndarray  # see `copies`
    traits: shortcuts.Traits
    format: str = ""  # as of the image
    patient: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class, or the findings, that it counts for."""
        return names(self.label)


def names(label: Label) -> tuple[str, ...]:
    """Return the classes that a label names: one, or any number of findings."""
    return (label,) if isinstance(label, str) else label


def said(label: Label) -> str:
    """Return a label in words."""
    return ", ".join(names(label)) or "no finding"


def decode(items: Iterable[tuple], spool: BinaryIO, notes: Notes, progress: Progress | None) -> list[Record]:
    """Read and decode every item once; what cannot be read becomes a skipped item, and DICOM a picture without a header.

    `progress` hears of each before it is read.
    """
    total = len(items) if isinstance(items, Sized) else 0
    records: list[Record] = []
    salt = secrets.token_bytes(16)  # so that nobody can try out which patient a DICOM header named
    taken: Counter[str] = Counter()
    for number, entry in enumerate(Entry(*item) for item in items):
        if progress is not None:
            progress(number, total, entry.id)
        unique = shown = plain(entry.id)
        while unique in taken:  # names that differ only in what cannot be shown
            taken[shown] += 1
            unique = f"{shown}~{taken[shown]}"
        taken[unique] = 1
        notes.classes |= set(names(entry.label))
        try:
            if entry.id in notes.without:
                raise DataError("data.image", notes.without[entry.id])
            content = entry.content() if callable(entry.content) else entry.content
            data = images.encode(content) if isinstance(content, np.ndarray) else content
            image = images.read(data, salt=salt)
            data = images.kept(image, data)
        except DataError as error:
            if error.code in REFUSING:
                raise DataError(error.code, f"{unique!r}: {error.sentence}") from None
            notes.skipped.append(Item(file=unique, code=error.code, message=error.sentence))
            continue
        records.append(_record(entry, unique, image, spool.tell(), len(data), notes))
        spool.write(data)
    if progress is not None:
        progress(total or len(records), total or len(records), "")
    return records


def _record(entry: Entry, id: str, image: images.Image, start: int, length: int, notes: Notes) -> Record:
    pixels = image.pixels
    if pixels.min() == pixels.max():
        notes.warnings.append(Item(file=id, code="data.constant", message="Every pixel of this picture is the same."))
    ending = id.rpartition(".")[2].lower().replace("jpg", "jpeg").replace("tif", "tiff").replace("tifff", "tiff")
    ending = "dicom" if ending == "dcm" else ending
    if ending in {"png", "jpeg", "tiff", "bmp", "webp", "gif", "dicom"} - {image.format.lower()}:
        notes.warnings.append(Item(file=id, code="data.extension", message=f"This is {image.format}, whatever its name says."))
    change = None
    if image.changes:
        change = Item(file=id, code=image.changes[0][0], message=" ".join(sentence for _, sentence in image.changes))
    sha = hashlib.sha256(f"{pixels.shape}{pixels.dtype}".encode())
    sha.update(pixels.data)
    hash, traits = sha.hexdigest(), shortcuts.of(pixels, image.format)
    more = (image.depth, traits.gray, change, copies.signature(pixels), traits, image.format, image.patient)
    return Record(id, entry.label, entry.group, entry.given, hash, start, length, *more)


def refuse_twins(names: set[str]) -> None:
    """Refuse classes that differ by case alone (`data.conflict`): nobody but the user knows whether they are one."""
    by_fold: dict[str, str] = {}
    for name in sorted(names):
        other = by_fold.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(
                "data.conflict", f"The classes {other!r} and {name!r} differ only by case; merge or rename one of them."
            )


def without_copies(records: list[Record], notes: Notes) -> list[Record]:
    """Keep one of equal pictures, the one in the test part if there is one; two labels for one picture are refused."""
    rank = {"test": 0, "validation": 1, "train": 2, "": 3}
    kept: dict[str, Record] = {}
    conflicts = []
    moved = 0
    for record in sorted(records, key=lambda record: (rank[record.given], record.id)):
        first = kept.setdefault(record.hash, record)
        if first is record:
            continue
        if first.label != record.label:
            conflicts.append(f"{first.id!r} ({said(first.label)}) and {record.id!r} ({said(record.label)})")
        moved += first.given != record.given
        sides = f" It stood in both {first.given} and {record.given}." if first.given != record.given else ""
        message = f"The same picture as {first.id!r}.{sides}"
        notes.skipped.append(Item(file=record.id, code="data.duplicate", message=message, pictures=(first.id,)))
    if conflicts:
        most = "; ".join(conflicts[:3]) + (f"; and {len(conflicts) - 3} more" if len(conflicts) > 3 else "")
        raise DataError("data.conflict", f"The same picture stands under two classes: {most}. Keep each under one class.")
    if moved:
        message = (
            f"Pictures that stood in more than one of the given parts: {moved}. Each stays once, if it can in the test part."
        )
        notes.warnings.append(Item(file="", code="data.duplicate", message=message))
    return list(kept.values())


def with_enough(
    records: list[Record], notes: Notes, least: int, least_classes: int, leave_out_small: bool, limits: Limits
) -> list[Record]:
    """Return the records of classes with `least` images; see `store` for what is refused."""
    if not records:
        first = f" The first, {notes.skipped[0].file!r}: {notes.skipped[0].message}" if notes.skipped else ""
        code = "data.image" if any(item.code == "data.image" for item in notes.skipped) else "data.too_few"
        raise DataError(code, f"No image could be used of {len(notes.skipped)} files.{first}")
    if not isinstance(records[0].label, str):
        return _findings_with_enough(records, notes, least, least_classes, leave_out_small, limits)
    sizes = Counter(name for record in records for name in record.classes)
    _refuse_many(len(sizes), limits)
    small = {label: count for label, count in sorted(sizes.items()) if count < least}
    if len(sizes) >= least_classes and small and not leave_out_small:
        listed = ", ".join(f"{label} ({count})" for label, count in small.items())
        mend = f"each needs {least}: add images, or leave these classes out (--leave-out-small)"
        raise DataError("data.too_few", f"Too few different images in {listed}; {mend}.")
    for label, count in small.items():
        message = f"The class {label!r} was left out: it has {count} of the {least} images a class needs."
        notes.warnings.append(Item(file="", code="data.left_out", message=message))
    left_out = [record for record in records if record.label in small]
    notes.skipped += [Item(file=record.id, code="data.left_out", message="Its class was left out.") for record in left_out]
    found = sorted(set(sizes) - set(small))
    if len(found) < least_classes:
        listed = f": {', '.join(found)}" if found else ""
        raise DataError(
            "data.one_class", f"There is {len(found)} class{listed}; at least {least_classes} are needed to tell apart."
        )
    return [record for record in records if record.label not in small]


def _findings_with_enough(
    records: list[Record], notes: Notes, least: int, least_classes: int, leave_out_small: bool, limits: Limits
) -> list[Record]:
    """Return all records, with only the findings that `least` images show and `least` do not: others teach and tell nothing."""
    _refuse_many(len(notes.classes), limits)
    sizes = Counter(name for record in records for name in record.classes)
    small = {name: sizes[name] for name in sorted(notes.classes) if not least <= sizes[name] <= len(records) - least}
    if small and not leave_out_small:
        listed = ", ".join(f"{name} ({count} of {len(records)})" for name, count in small.items())
        mend = f"each needs {least} images that show it and {least} that do not: add images, or leave it out (--leave-out-small)"
        raise DataError("data.too_few", f"Too few different images for the finding {listed}; {mend}.")
    for name, count in small.items():
        message = f"The finding {name!r} was left out: {count} of {len(records)} images show it; {least} must, and {least} not."
        notes.warnings.append(Item(file="", code="data.left_out", message=message))
    if len(notes.classes) - len(small) < least_classes:
        left, seen = len(notes.classes) - len(small), len(notes.classes)
        message = f"{left} of {seen} findings are left; at least {least_classes} are needed."
        raise DataError("data.one_class", message)
    return [replace(record, label=tuple(name for name in record.label if name not in small)) for record in records]


def _refuse_many(classes: int, limits: Limits) -> None:
    if classes > limits.classes:
        raise DataError("data.too_many", f"There are {classes:,} classes; at most {limits.classes:,} are taken.")


def leak(images: Iterable[tuple[object, str, str]], notes: Notes) -> None:
    """Warn of patients (group, given part, id of each image) who stand in more than one of the parts that the upload gives."""
    sides: dict[object, set[str]] = defaultdict(set)
    ids: dict[object, list[str]] = defaultdict(list)
    for group, given, id in images:
        if group is not None and group != "":
            sides[group].add(given or "train")
            ids[group].append(id)
    if leaking := [group for group, parts in sides.items() if len(parts) > 1]:
        message = f"{len(leaking)} patients or cases stand in more than one of the given parts; the test score will flatter."
        shown = tuple(id for group in leaking for id in ids[group])[:MOST_PICTURES]
        notes.warnings.append(Item(file="", code="data.leak", message=message, pictures=shown))

"""What a user brings becomes an image set: class folders or a table with images (folder or zip), or a MedMNIST-style npz."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rift import archive, labeled, patients
from rift.archive import LOCAL, Limits, Listing, plain
from rift.dataset import ImageSet, store
from rift.errors import DataError
from rift.review import Entry, Item, Notes, Progress
from rift.table import PARTS

PATIENTS = {  # what file names say of patients; a rule counts only when all names of a set follow it
    "person, patient, subject or case and a number": r"((?:person|patient|subject|case)[-_ ]?\d+)[-_ ].*",
    "P and a number": r"(p\d{3,})[-_].*",
    "IM- and a number": r"(im-\d+)-\d.*",
}
_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom")


def read(
    source: Path | str,
    root: Path,
    *,
    name: str | None = None,
    limits: Limits = LOCAL,
    least: int = 3,
    least_classes: int = 2,
    leave_out_small: bool = False,
    findings: bool = True,
    without: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> ImageSet:
    """Read an upload into `root/<digest>/`; every file ends as kept or skipped in its report, or the whole is refused.

    `least` images are needed in each of `least_classes` classes (natural images: 1 and 1, and no `findings`, since each has one
    name); of findings `least` images must show each and `least` must not. Files named in `without` are not read but skipped with
    its sentence; `progress` hears (number, of how many, file) before each. Refused, with nothing left in `root`:
    `data.missing` no such path, `data.archive` not a sound zip, npz or folder, `data.escape` names or links that lead outside,
    `data.bomb` more bytes than `limits`, `data.label` a table that cannot be understood, and what `store` refuses.
    """
    path, notes = Path(source), Notes(without=without or {})
    if not path.exists():
        raise DataError("data.missing", f"There is nothing at {plain(str(path))!r}; give a zip, a folder or an npz.")

    def kept(entries: list[Entry]) -> ImageSet:
        more: dict[str, Any] = {
            "least": least,
            "least_classes": least_classes,
            "leave_out_small": leave_out_small,
            "limits": limits,
        }
        return keep(entries, root, name=name or path.stem, notes=notes, progress=progress, **more)

    if path.is_file() and path.suffix.lower() == ".npz":
        return kept(_arrays(path, limits))
    with archive.listing(path, limits) as files:
        for skipped, sentence in files.skipped:
            notes.skipped.append(Item(file=skipped, code="data.image", message=sentence))
        outer = _common_root(files)
        tables = [member for member in files.members if _is_table(member.name, outer)]
        if len(tables) > 1:
            listed = ", ".join(plain(member.name) for member in tables[:5])
            raise DataError("data.label", f"There are {len(tables)} tables ({listed}); keep the one that lists the labels.")
        if tables:
            files.members.remove(tables[0])
            entries = labeled.by_table(tables[0], files.members, outer, notes, limits)
            if not findings and any(not isinstance(entry.label, str) for entry in entries):
                sentence = "The table has a column for each finding, but natural images have one name each; use a label column."
                raise DataError("data.label", sentence)
            return kept(entries)
        return kept(_class_folders(files, outer, notes))


def keep(
    entries: list[Entry],
    root: Path,
    *,
    name: str,
    notes: Notes,
    limits: Limits = LOCAL,
    least: int = 3,
    least_classes: int = 2,
    leave_out_small: bool = False,
    progress: Progress | None = None,
) -> ImageSet:
    """Store entries as `read` does, with the patients that their file names tell, and remember what else could tell them."""
    sized: dict[str, Any] = {"least": least, "least_classes": least_classes, "leave_out_small": leave_out_small}
    grouped = _with_patients(entries, notes)
    images = store(grouped, root, name=name, limits=limits, notes=notes, progress=progress, **sized)
    return patients.remember(images, notes.columns) if least > 1 else images


def _common_root(files: Listing) -> int:
    """Return how many outer folders hold everything; files beside them (a readme) do not count."""
    outer = 0
    while True:
        deep = [member.name.split("/")[outer:] for member in files.members if member.name.count("/") > outer]
        tops = {parts[0] for parts in deep}
        listed = any(_is_table(member.name, outer) for member in files.members)
        nested = any(len(parts) > 2 or (len(parts) == 2 and _is_table(parts[1], 0)) for parts in deep)
        if listed or len(tops) != 1 or not nested or tops.pop().lower() in PARTS:
            return outer
        outer += 1


def _is_table(name: str, outer: int) -> bool:
    return name.count("/") == outer and name.lower().endswith((".csv", ".tsv"))


def _class_folders(files: Listing, outer: int, notes: Notes) -> list[Entry]:
    """Read `class/…/image`, or `train/class/…/image` where all outermost folders are named after parts."""
    tops = {member.name.split("/")[outer] for member in files.members if member.name.count("/") > outer}
    split = bool(tops) and all(top.lower() in PARTS for top in tops)
    level = outer + split
    cleaned: dict[str, str] = {}
    entries = []
    for member in files.members:
        parts = member.name.split("/")
        shown = labeled.below(member.name, outer)
        if len(parts) < level + 2:
            message = "It lies in no class folder; put each image (PNG, JPEG, TIFF, DICOM) into a folder named after its class."
            notes.skipped.append(Item(file=shown, code="data.unlabeled", message=message))
            continue
        folder = parts[level]
        if folder not in cleaned:
            cleaned[folder] = labeled.class_name(folder, notes)
        entries.append(Entry(shown, cleaned[folder], member.read, None, PARTS[parts[outer].lower()] if split else ""))
    named = {folder.split("/")[level] for folder in files.folders if folder.count("/") == level}
    notes.classes |= {labeled.class_name(folder, notes) for folder in named - set(cleaned)}
    return entries


def _with_patients(entries: list[Entry], notes: Notes) -> list[Entry]:
    """Group the images by patient where every file name follows one known rule and it groups anything."""
    named = [entry for entry in entries if entry.id.lower().endswith(_ENDINGS)]
    if any(entry.group for entry in entries):
        return entries
    for rule, pattern in PATIENTS.items():
        found = {entry.id: re.fullmatch(pattern, entry.id.rpartition("/")[2], re.IGNORECASE) for entry in named}
        groups = {id: match[1].lower() for id, match in found.items() if match}
        if len(groups) == len(named) and 1 < len(set(groups.values())) < len(named):
            count = len(set(groups.values()))
            message = f"The file names start with {rule}: taken for {count} patients, each kept in one part of the split."
            notes.warnings.append(Item(file="", code="data.groups", message=message))
            return [entry._replace(group=groups.get(entry.id)) for entry in entries]
    return entries


def _arrays(path: Path, limits: Limits) -> list[Entry]:
    """Read `train_images`, `train_labels`, `val_…`, `test_…`, or `images` and `labels`; `class_names` may name the labels."""
    with archive.opened(path, limits) as packed:
        files, _ = archive.checked(packed, path.stat().st_size, replace(limits, member_bytes=limits.expanded_bytes))
        keys = {name.removesuffix(".npy"): info for name, info in files.items() if name.endswith(".npy")}
        prefixes = [
            prefix for prefix in ("train_", "val_", "test_", "") if f"{prefix}images" in keys and f"{prefix}labels" in keys
        ]
        if not prefixes:
            listed = plain(", ".join(sorted(keys))) or "none"
            raise DataError(
                "data.archive", f"The npz needs train_images and train_labels, or images and labels; it has {listed}."
            )
        names = [str(name) for name in _array(packed, keys["class_names"])] if "class_names" in keys else []
        entries = []
        for prefix in prefixes:
            pixels, labels = _array(packed, keys[f"{prefix}images"]), _array(packed, keys[f"{prefix}labels"])
            texts = _label_texts(labels, len(pixels), names, prefix)
            deep = pixels.dtype == np.uint16 and pixels.ndim == 3
            if not deep and not (
                pixels.dtype == np.uint8 and (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] in (1, 3)))
            ):
                got = f"{prefix}images is {pixels.dtype} of shape {pixels.shape}"
                raise DataError("data.image", f"{got}; (n, h, w) or (n, h, w, 3) uint8, or (n, h, w) uint16 is read.")
            folder = prefix.replace("_", "/")
            entries += [
                Entry(f"{folder}{index:06d}", text, image, None, PARTS.get(prefix.rstrip("_"), ""))
                for index, (image, text) in enumerate(zip(pixels, texts, strict=True))
            ]
    width = max((len(text) for entry in entries if (text := str(entry.label)).isdecimal()), default=0)
    return [entry._replace(label=text.zfill(width)) if (text := str(entry.label)).isdecimal() else entry for entry in entries]


def _array(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Read one array; its header must not promise more than there is, and objects (pickles) are never loaded."""
    name = plain(info.filename)
    try:
        with packed.open(info) as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize > info.file_size:
                raise ValueError("objects, or more promised than stored")
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, OSError, EOFError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            "data.archive", f"{name} in the npz cannot be read ({plain(str(error), 80)}); save plain arrays again."
        ) from None


def _label_texts(labels: np.ndarray, count: int, names: list[str], prefix: str) -> list[str]:
    if labels.ndim == 2 and labels.shape[1] > 1:
        sentence = f"{prefix}labels gives {labels.shape[1]} labels to an image; one is read, and findings from a CSV."
        raise DataError("data.label", sentence)
    flat = labels.reshape(-1)
    if len(flat) != count or flat.dtype.kind not in "iubU":
        got = f"{prefix}labels is {labels.dtype} of shape {labels.shape} for {count} images"
        raise DataError("data.label", f"{got}; one whole number or name per image is needed.")
    if names and flat.dtype.kind != "U":
        if flat.min(initial=0) < 0 or flat.max(initial=0) >= len(names):
            raise DataError("data.label", f"{prefix}labels goes beyond the {len(names)} class_names; name every class.")
        return [names[label] for label in flat.astype(int)]
    return [str(label) for label in flat]

"""Image sets on disk: decoded once, checked, named by the hash of their content, and split without leaks.

`root/<digest>/` holds `manifest.json`, `blobs.bin` (the encoded pictures back to back, in the order of their ids) and one
`pixels-<size>.npy` for every size that was asked for. It is written beside its place and renamed at the end, and what changes
in it later is noticed (`intact`).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rift import catalog, hints, images, intact, manifest, review, scans, stratify
from rift.archive import LOCAL, Limits, plain
from rift.config import Choice, Training
from rift.errors import DataError, SettingError
from rift.review import PARTS, WORKSHOP, Notes, Progress, Record, Report


@dataclass(frozen=True, eq=False)
class ImageSet:
    """`n` labeled images, sorted by id; `digest` depends on their content alone, `name` and `report` on the last upload."""

    folder: Path
    name: str
    digest: str
    classes: tuple[str, ...]
    ids: np.ndarray  # (n,) str, unique
    labels: np.ndarray  # (n,) int64, index into classes; of findings (n, k) uint8, 1 where the image shows it
    groups: np.ndarray | None  # (n,) int64, images of one patient share a number
    given: np.ndarray  # (n,) str, "", "train", "validation" or "test" as the upload says
    report: Report
    about: str = ""
    near: np.ndarray | None = None  # (n,) int64, near copies of one picture share a number

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def task(self) -> str:
        """The task that these labels ask for: `single_label`, or `multi_label` where an image may show several findings."""
        return "multi_label" if self.labels.ndim == 2 else "single_label"

    def of(self, index: int) -> np.ndarray:
        """Return which images `(n,)` bool are of a class, or show a finding."""
        return self.labels[:, index] > 0 if self.labels.ndim == 2 else self.labels == index

    def pixels(self, size: int) -> np.ndarray:
        """Return all images as `(n, size, size, 3)` uint8, or uint16 if any is deeper; decoded once per size, then mapped.

        Writing into the result changes this process's copy only. Two processes may ask at once: the last to finish wins.
        Raises `data.changed` where pictures or labels are not those that were stored.
        """
        intact.check(json.loads((self.folder / "manifest.json").read_text()))
        path = self.folder / f"pixels-{size}.npy"
        if not intact.whole(path):
            handle, partial = tempfile.mkstemp(dir=self.folder, prefix=f".pixels-{size}-")
            os.close(handle)
            try:
                self._decode(Path(partial), size)
                intact.end(Path(partial))
                os.replace(partial, path)
            finally:
                Path(partial).unlink(missing_ok=True)
        return np.load(path, mmap_mode="c")

    def picture(self, index: int, size: int) -> np.ndarray:
        """Return one image `(size, size, 3)`, uint8 or uint16; only this one is decoded. Raises IndexError for a wrong index."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        stored = intact.manifest(self.folder)
        with self._blobs() as file:
            return images.fit(images.read(intact.picture(file, stored, index), depth=stored["depth"]).pixels, size)

    @property
    def has_pictures(self) -> bool:
        """Whether the pictures are here; a comparison that was opened from a bundle may have come without."""
        return (self.folder / "blobs.bin").exists()

    def _blobs(self) -> BinaryIO:
        try:
            return (self.folder / "blobs.bin").open("rb")
        except FileNotFoundError:
            raise DataError("data.missing", f"The pictures of {self.name} are not here; only their numbers came along.") from None

    def counts(self, split: Split) -> dict[str, int]:
        """Return the number of images of each part."""
        return {part: len(getattr(split, part)) for part in PARTS}

    def _decode(self, path: Path, size: int) -> None:
        stored = json.loads((self.folder / "manifest.json").read_text())
        depth = stored["depth"]
        dtype = np.uint8 if depth == 8 else np.uint16
        pixels = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(len(self), size, size, 3))
        with self._blobs() as file:
            for index in range(len(self)):
                image = images.fit(images.read(intact.picture(file, stored, index), depth=depth).pixels, size)
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
    progress: Progress | None = None,
) -> ImageSet:
    """Decode, check and keep entries (see `Entry`) under `root/<digest>/`; the same content again gives the same set.

    A picture that cannot be read is skipped; exact copies are dropped (the test part's stays). Raises `data.conflict` for one
    picture under two classes or classes that differ by case, `data.one_class` for fewer than `least_classes`, `data.too_few` for
    classes below `least` images unless `leave_out_small`, `data.too_many` for too many classes, and then leaves nothing behind.
    An entry's label is its class or, in a set of findings, the tuple of those that it shows, `notes.classes` all there are.
    """
    root.mkdir(parents=True, exist_ok=True)
    notes = notes or Notes()
    workshop = Path(tempfile.mkdtemp(dir=root, prefix=f"{WORKSHOP}{os.getpid()}-"))
    try:
        with (workshop / "spool").open("w+b") as spool:
            seen = review.decode(items, spool, notes, progress)
            review.refuse_twins(notes.classes)
            records = review.without_copies(seen, notes)
            records = scans.grouped(review.with_enough(records, notes, least, least_classes, leave_out_small, limits), notes)
            hints.overall(records, notes, least, manifest.names(seen) - manifest.names(records))
            records.sort(key=lambda record: record.id)
            near = hints.remark(records, notes) if least > 1 else None
            sums = []
            with (workshop / "blobs.bin").open("wb") as blobs:
                for record in records:
                    spool.seek(record.start)
                    data = spool.read(record.length)
                    sums.append(intact.sum_of(data))
                    blobs.write(data)
        (workshop / "spool").unlink()
        return _publish(workshop, root, records, name, about, notes, near, sums)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def load(folder: Path) -> ImageSet:
    """Open a stored set; `data.missing` where there is none."""
    try:
        stored = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        raise DataError("data.missing", f"There is no stored image set in {plain(str(folder))}; read the images again.") from None
    groups, labels = stored["groups"], np.array(stored["labels"])
    return ImageSet(
        folder=folder,
        name=stored["name"],
        digest=stored["digest"],
        classes=tuple(stored["classes"]),
        ids=np.array(stored["ids"], dtype=np.str_),
        labels=labels.astype(np.uint8 if labels.ndim == 2 else np.int64),
        groups=None if groups is None else np.array(groups, dtype=np.int64),
        given=np.array(stored["given"], dtype=np.str_),
        report=Report.model_validate(stored["report"]),
        about=stored["about"],
        near=None if stored.get("near") is None else np.array(stored["near"], dtype=np.int64),
    )


def _publish(
    workshop: Path,
    root: Path,
    records: list[Record],
    name: str,
    about: str,
    notes: Notes,
    near: list[int] | None,
    sums: list[str],
) -> ImageSet:
    """Write the manifest and move the folder into place; where it already is, only name and report are new."""
    document = manifest.of(records, name, about, notes, near, sums)
    folder = root / str(document["digest"])
    (workshop / "manifest.json").write_text(json.dumps(document))
    try:
        os.rename(workshop, folder)
    except OSError:
        if not (folder / "manifest.json").exists():
            raise
        stored = json.loads((folder / "manifest.json").read_text())
        if not intact.holds(folder):
            with tempfile.TemporaryDirectory(dir=root, prefix=".damaged-") as aside:
                os.replace(folder, Path(aside) / "set")
                os.rename(workshop, folder)
            return load(folder)
        # The same images, perhaps encoded otherwise: the stored bytes and their offsets stay.
        stored |= {key: document[key] for key in ("name", "about", "report")}
        (workshop / "manifest.json").write_text(json.dumps(stored))
        os.replace(workshop / "manifest.json", folder / "manifest.json")
    return load(folder)


@dataclass(frozen=True, eq=False)
class Split:
    """Indices into an image set, sorted; together they are all of it, and no two share an image."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(images: ImageSet, seed: int, *, validation: float = 0.2, test: float = 0.2) -> Split:
    """Split by the seed: every class in every part, images of one group (patient) and near copies in one part only.

    Of findings each part has images with and without every one. Parts that the upload gives stay as they are; missing ones are
    cut from its training part, as shares of that part. Raises `data.too_few` where a class has too few images or groups to be in
    every part, `setting.range` for impossible shares.
    """
    if not (0 < validation < 1 and 0 < test < 1 and validation + test < 1):
        raise SettingError("setting.range", f"validation {validation} and test {test} must be above 0 and together below 1.")
    arrays = (images.labels, images.given, images.groups, images.near)  # not the digest: patients may be told afterwards
    asked = (seed, validation, test, images.classes)
    return stratify.once(arrays, asked, lambda: _split(images, seed, validation, test))


def _split(images: ImageSet, seed: int, validation: float, test: float) -> Split:
    parts = {name: np.flatnonzero(images.given == name) for name in ("validation", "test")}
    pool = np.flatnonzero((images.given == "train") | (images.given == ""))
    shares = {name: share for name, share in (("validation", validation), ("test", test)) if not len(parts[name])}
    shares["train"] = 1 - sum(shares.values())
    columns = stratify.columns_of(images.labels[pool])
    units = stratify.units_of([one[pool] for one in (images.groups, images.near) if one is not None], len(pool))
    _refuse_short(images, columns, units, len(shares))
    wanted, several = np.array(list(shares.values())), images.task == "multi_label"
    for attempt in range(20):  # the greedy cut can fail where groups hold several classes; another order may do
        chosen = stratify.cut(columns, units, wanted, np.random.default_rng([seed, attempt]), rarest_first=several)
        if chosen is not None:
            parts |= {name: pool[chosen == number] for number, name in enumerate(shares)}
            for one in parts.values():
                one.flags.writeable = False  # others are given the same
            return Split(**parts)
    what = "finding is present and absent" if several else "class is"
    raise DataError("data.too_few", f"The patients cannot be split so that every {what} in every part; add patients.")


def parts(images: ImageSet, training: Training, seed: int) -> Split:
    """Return the parts that a run of this seed uses: the split, with as few training images of each class as were asked for."""
    whole = split(images, training.split_seed)
    if not training.shots:
        return whole
    return replace(whole, train=whole.train[stratify.few(images.labels[whole.train], training.shots, seed)])


def taught(images: ImageSet, chosen: np.ndarray, training: Training, seed: int) -> np.ndarray:
    """Return the labels `(m,)` or `(m, k)` that these training images are trained with: their own, or dealt out among them.

    The same for every arm of a seed. Validation and test images are never asked here: they keep what is true.
    """
    labels = images.labels[chosen]
    return labels[np.random.default_rng([seed, 2]).permutation(len(labels))] if training.shuffle_labels else labels


def refuse_misfit(images: ImageSet, task: Choice, training: Training) -> None:
    """Raise `setting.range` for a task that these labels cannot have, and for a way to draw images that they do not allow."""
    if task.name != images.task and not getattr(catalog.module("tasks", task.name), "IGNORES_LABELS", False):
        held = "findings, several for an image" if images.task == "multi_label" else "one class for each image"
        raise SettingError("setting.range", f"{images.name} holds {held}: its task is {images.task}, not {task.name}.")
    if training.balanced and images.task == "multi_label":
        why = "an image with several findings belongs to several classes, so that they cannot all be drawn equally often"
        raise SettingError("setting.range", f"training: balanced = True is not allowed for {images.name}: {why}; leave it off.")


def _refuse_short(images: ImageSet, columns: np.ndarray, units: np.ndarray, parts: int) -> None:
    names = list(images.classes)
    if images.task == "multi_label":
        names += [f"images without {name}" for name in names]
    short = []
    for number, name in enumerate(names):
        count = len(np.unique(units[columns[:, number]])) if number < columns.shape[1] else 0
        if count < parts:
            short.append(f"{name} ({count})")
    if short:
        what = "training images" if images.groups is None else "patients or cases to train on"
        what += "" if images.near is None else " (near copies count once)"
        mend = f"each class needs {parts}, one for each part; add some, or leave the class out"
        raise DataError("data.too_few", f"Too few {what} in {', '.join(short)}: {mend}.")

"""What a set of DICOM files needs beside its pictures: patients kept together, and a word about writing in the pictures."""

from __future__ import annotations

import itertools
from dataclasses import replace

from rift.review import MOST_PICTURES, Item, Notes, Record

LEAST = 3  # patients of each class: one for each part


def grouped(records: list[Record], notes: Notes) -> list[Record]:
    """Group the images of one patient where the headers tell of patients and nothing else, a table or the file names, does.

    Nobody is grouped where a class would have fewer than `LEAST` patients, since no split could follow; that is said.
    """
    scans = [record for record in records if record.format == "DICOM"]
    if not scans:
        return records
    told = f"Nothing of the headers of {len(scans)} DICOM files was kept, but writing in a picture stays in it"
    shown = tuple(record.id for record in itertools.islice(scans, MOST_PICTURES))
    notes.warnings.append(Item(file="", code="data.header", message=f"{told}: look for names before you share.", pictures=shown))
    numbers = {hash: str(number) for number, hash in enumerate(dict.fromkeys(r.patient for r in scans if r.patient), 1)}
    several = len(numbers) < sum(bool(record.patient) for record in scans)  # else each has one image: the same as knowing none
    if not several or any(record.group for record in records):
        return records
    units: dict[str, set[str]] = {}
    for record in records:
        for name in record.classes:
            units.setdefault(name, set()).add(record.patient or record.id)
    if enough := min(map(len, units.values()), default=0) >= LEAST:
        told = f"The DICOM headers tell of {len(numbers)} patients: each is kept in one part of the split"
        told = f"{told}. What names them was not kept, only a number."
        records = [replace(record, group=numbers.get(record.patient)) for record in records]
    else:
        told = f"The DICOM headers tell of too few patients ({len(numbers)}) to split every class by them"
        told = f"{told}, so they were left aside: images of one patient may stand on both sides of the test."
    notes.warnings.append(Item(file="", code="data.groups" if enough else "data.leak", message=told))
    return records

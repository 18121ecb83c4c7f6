"""What to know of a whole set before its numbers are believed: near copies, traits that give the class away, twin names."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from rift import copies, lookalikes, shortcuts, stratify
from rift.review import MOST_PICTURES, Item, Notes, Record, leak, names, said
from rift.shortcuts import TRAITS, Hint

LEAST = 3  # units of a class that a split needs: one for each part


def remark(records: Sequence[Record], notes: Notes) -> list[int] | None:
    """Append what was found to the warnings; return a number for each record that its near copies share, None without any."""
    for one, other in lookalikes.alike({name for record in records for name in record.classes}):
        points = " and ".join(lookalikes.odd(name) or "ASCII" for name in (one, other))
        message = f"The classes {one!r} and {other!r} look the same but are two ({points}); rename one if they are meant as one."
        notes.warnings.append(Item(file="", code="data.name", message=message))
    groups = [record.group or f"\n{place}" for place, record in enumerate(records)]  # no group holds a line break
    patients = np.unique(groups, return_inverse=True)[1]
    near = _near(records, patients, notes)
    units = patients if near is None else stratify.units_of([patients, near], len(records))
    _shortcuts(records, units, notes)
    return None if near is None else near.tolist()


def _near(records: Sequence[Record], patients: np.ndarray, notes: Notes) -> np.ndarray | None:
    """Tell near copies, and return the numbers by which a split keeps them together where it can."""
    if len(records) > copies.MOST:
        message = f"Near copies were not looked for: there are more than {copies.MOST:,} pictures."
        notes.warnings.append(Item(file="", code="data.near", message=message))
        return None
    pairs = copies.pairs(np.stack([record.signature for record in records]))
    if not pairs:
        return None
    near = stratify.connected(len(records), [(one, other) for one, other, _ in pairs])
    _, numbers, sizes = np.unique(near, return_inverse=True, return_counts=True)
    count = int((sizes[numbers] > 1).sum())
    kept = _can_be_split(records, patients) <= _can_be_split(records, stratify.units_of([patients, near], len(records)))
    parts = [record.given or "train" for record in records]
    end = f"each such group is kept in one part of the split{' wherever the upload gives none' if len(set(parts)) > 1 else ''}"
    end = end if kept else "a class has too few others, so they may stand on both sides of the split: the test score will flatter"
    _tell(records, pairs, f"{count} pictures are near copies of another (saved again, resized or mirrored): {{}}; {end}.", notes)
    if two := [pair for pair in pairs if records[pair[0]].label != records[pair[1]].label]:
        _tell(records, two, "Near copies stand under two classes: {}; one of the labels is probably wrong.", notes)
    if sides := [pair for pair in pairs if parts[pair[0]] != parts[pair[1]]]:
        _tell(records, sides, "Near copies stand in more than one of the given parts: {}; the test score will flatter.", notes)
    return near if kept else None


def _can_be_split(records: Sequence[Record], units: np.ndarray) -> bool:
    held: dict[str, set[int]] = {}
    for record, unit in zip(records, units.tolist(), strict=True):
        for name in names(record.label):
            held.setdefault(name, set()).add(unit)
    return all(len(found) >= LEAST for found in held.values())


def _tell(records: Sequence[Record], pairs: Sequence[tuple[int, int, str]], sentence: str, notes: Notes) -> None:
    one, other, way = pairs[0]
    first, second = records[one], records[other]
    labels = "" if first.label == second.label else f" ({said(first.label)} and {said(second.label)})"
    example = f"{'for example ' if len(pairs) > 1 else ''}{first.id!r} and{f', {way},' if way else ''} {second.id!r}{labels}"
    shown = tuple(dict.fromkeys(records[place].id for pair in pairs for place in pair[:2]))[:MOST_PICTURES]
    notes.warnings.append(Item(file="", code="data.near", message=sentence.format(example), pictures=shown))


def _shortcuts(records: Sequence[Record], units: np.ndarray, notes: Notes) -> None:
    """Tell which traits give the class, or a finding, away."""
    traits = [record.traits for record in records]
    if isinstance(records[0].label, str):
        found = [(hint, "the class") for hint in shortcuts.hints(traits, [said(record.label) for record in records], units)]
    else:
        best: dict[str, tuple[Hint, str]] = {}  # of each trait the finding that it tells best
        for name in sorted({name for record in records for name in record.label}):
            shown = [name if name in record.label else f"no {name}" for record in records]
            for hint in shortcuts.hints(traits, shown, units):
                if hint.trait not in best or hint.right - hint.share > best[hint.trait][0].right - best[hint.trait][0].share:
                    best[hint.trait] = hint, repr(name)
        found = list(best.values())
    for hint, what in found:
        message = (
            f"By {TRAITS[hint.trait]} alone, a simple rule is right about {what} for {hint.right:.0%} of the pictures; always "
            f"saying {hint.commonest!r} is right for {hint.share:.0%}. For example {hint.inside:.0%} of the {hint.there} "
            f"pictures with {hint.where} are {hint.label!r}, and {hint.outside:.0%} of all. A model may learn that instead."
        )
        code = "data.mixed" if hint.trait == "color" else "data.shortcut"
        notes.warnings = [item for item in notes.warnings if item.code != "data.mixed" or code != "data.mixed"]  # this says more
        pictures = tuple(records[place].id for place in hint.examples[:MOST_PICTURES])
        notes.warnings.append(Item(file="", code=code, message=message, pictures=pictures))


def overall(records: list[Record], notes: Notes, least: int, left_out: set[str]) -> None:
    """Append warnings about the whole set: what a model could learn instead of the task, and what the numbers cannot carry."""

    def warn(code: str, message: str, about: Iterable[Record] = ()) -> None:
        pictures = tuple(record.id for record in itertools.islice(about, MOST_PICTURES))
        notes.warnings.append(Item(file="", code=code, message=message, pictures=pictures))

    sizes = Counter(name for record in records for name in record.classes)
    several = not isinstance(records[0].label, str)
    for name in sorted(notes.classes - set(sizes) - left_out):
        warn("data.empty", f"The class {name!r} has no image that could be used.")
    gray = Counter(name for record in records if record.gray for name in record.classes)
    shares = {name: gray[name] / sizes[name] for name in sizes}
    if max(shares.values()) - min(shares.values()) > 0.2:  # our choice: below that it helps a model little
        low, high = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
        told = f"{shares[high]:.0%} of {high!r} are gray, but {shares[low]:.0%} of {low!r}"
        warn(
            "data.mixed",
            f"{told}; a model may learn that instead of the task.",
            (r for r in records if r.gray and high in r.classes),
        )
    if len({record.given for record in records if record.given} & {"test", "validation"}) and any(r.group for r in records):
        leak([(record.group, record.given, record.id) for record in records], notes)
    depth = max(record.depth for record in records)
    if deep := [r for r in records if r.depth > 8 and r.format != "DICOM"]:  # of DICOM each has its own window
        warn("data.depth", f"{len(deep)} images are deeper than 8 bits; level {2**depth - 1} became white in all of them.", deep)
    if least > 1 and not several and max(sizes.values()) > 10 * min(sizes.values()):  # mAP counts every finding alike
        small, large = min(sizes, key=lambda name: (sizes[name], name)), max(sizes, key=lambda name: (sizes[name], name))
        counts = f"{large} has {sizes[large]} images, {small} {sizes[small]}"
        warn("data.imbalance", f"{counts}; look at balanced accuracy, not accuracy.")
    if least > 1 and min(sizes.values()) < 10:
        smallest, name = "rarest finding" if several else "smallest class", min(sizes, key=lambda name: (sizes[name], name))
        few = (record for record in records if name in record.classes)
        warn("data.few", f"The {smallest} has {sizes[name]} images; the intervals will be wide.", few)

"""Which class a file or a row of a table names: class names made readable, and the images that a table lists."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict

from rift import lookalikes, table
from rift.archive import Limits, Member, plain
from rift.errors import DataError
from rift.review import Entry, Item, Label, Notes, said


def class_name(text: str, notes: Notes) -> str:
    """Return a class's name without invisible characters, composed (NFC), with a warning when that changed or confuses it."""
    cleaned, whole = plain(text), plain(text, len(text))
    if not cleaned:
        raise DataError("data.label", "A class name is empty or invisible; give each class a readable name.")
    if notes.cut.setdefault(cleaned, whole) != whole:
        raise DataError(
            "data.label", f"Two class names start with the same {len(cleaned) - 1} characters; give them shorter names."
        )
    if cleaned != text.strip():
        points = " ".join(f"U+{ord(c):04X}" for c in text if c not in cleaned)[:200] or "letters composed, spaces or length"
        warning = Item(file="", code="data.name", message=f"The class name {cleaned!r} was cleaned ({points}).")
    else:
        scripts = lookalikes.mixed(cleaned)
        if not scripts:
            return cleaned
        message = f"The class name {cleaned!r} mixes {' and '.join(scripts)} letters that may look alike."
        warning = Item(file="", code="data.name", message=message)
    if warning not in notes.warnings:
        notes.warnings.append(warning)
    return cleaned


def by_table(labels: Member, members: list[Member], outer: int, notes: Notes, limits: Limits) -> list[Entry]:
    """Read the images that a table lists; those it does not list, and rows without an image, are skipped items."""
    parsed = table.parse(labels.read(), limits.files)
    _remark(labels.name, parsed, notes)
    findings = {name: class_name(name, notes) for name in parsed.findings}
    if len(set(findings.values())) < len(findings):
        raise DataError("data.label", "Two columns of the table have names that look the same; rename one of them.")
    notes.classes |= set(findings.values())
    finder = _finder(members, outer)
    listed: dict[str, tuple[int, Label]] = {}
    missing: dict[str, int] = {}
    entries = []
    for place, (line, row) in enumerate(parsed.rows):
        given = row["file"]
        found = _find(finder, given, line)
        if found is None:
            missing.setdefault(given, line)
            continue
        label: Label = tuple(findings[name] for name in row["label"]) if findings else _class(row["label"], notes)
        before, other = listed.setdefault(found.name, (line, label))
        if other != label:
            both = f"{said(other)!r} in line {before} of the table and {said(label)!r} in line {line}"
            raise DataError("data.conflict", f"{plain(given)!r} is {both}; keep one.")
        if before != line:
            message = f"Listed in line {before} of the table and again in line {line}."
            notes.warnings.append(Item(file=given, code="data.duplicate", message=message))
        elif label or findings:
            entries.append(Entry(below(found.name, outer), label, found.read, row["group"] or None, row["split"]))
            for name, values in parsed.others.items():
                notes.columns.setdefault(name, {})[plain(entries[-1].id)] = values[place]
        else:
            message = f"Line {line} of the table gives it no label."
            notes.skipped.append(Item(file=given, code="data.unlabeled", message=message))
    for given, line in missing.items():
        message = f"Line {line} of the table lists it, but no such file was uploaded."
        notes.skipped.append(Item(file=given, code="data.missing", message=message))
    for member in members:
        if member.name not in listed:
            message = "The table does not list it, so it has no label."
            notes.skipped.append(Item(file=below(member.name, outer), code="data.unlabeled", message=message))
    return sorted(entries, key=lambda entry: entry.id)


def _class(text: str, notes: Notes) -> str:
    return class_name(text, notes) if text else ""


def _remark(name: str, parsed: table.Table, notes: Notes) -> None:
    """Say how the table was read wherever it could have been meant otherwise."""
    said = []
    if parsed.encoding == "cp1252":
        said.append(("data.encoding", "The table is not UTF-8; it was read as Windows-1252: look at the class names."))
    if parsed.findings:
        count = len(parsed.findings)
        message = f"The table has no label column, so each of its {count} columns of 0 and 1 was read as a finding (multi-label)."
        said.append(("data.findings", message))
    if parsed.unread:
        columns = ", ".join(parsed.unread[:10]) + (", …" if len(parsed.unread) > 10 else "")
        said.append(("data.unread", f"Columns of the table that were not read: {columns}."))
    notes.warnings += [Item(file=name, code=code, message=message) for code, message in said]


def below(name: str, outer: int) -> str:
    return "/".join(name.split("/")[outer:]) or name


def _finder(members: list[Member], outer: int) -> dict[str, list[Member]]:
    """Map paths and bare names, with and without ending, to the files they may mean."""
    finder: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        path = unicodedata.normalize("NFC", below(member.name, outer))
        for key in {path, path.rpartition("/")[2]}:
            for form in {key, re.sub(r"\.\w{3,5}$", "", key)}:
                finder[form].append(member)
    return finder


def _find(finder: dict[str, list[Member]], given: str, line: int) -> Member | None:
    if re.match(r"/|\\|[A-Za-z]:", given) or ".." in re.split(r"[/\\]", given):
        raise DataError("data.escape", f"Line {line} of the table names {plain(given)!r}, which leads outside; use plain names.")
    found = finder.get(unicodedata.normalize("NFC", given).removeprefix("./"), [])
    if len(found) > 1:
        both = " and ".join(repr(plain(member.name)) for member in found[:2])
        raise DataError("data.conflict", f"Line {line} of the table: {plain(given)!r} may mean {both}; write the whole path.")
    return found[0] if found else None

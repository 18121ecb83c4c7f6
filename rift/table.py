"""A table of labels, read strictly: every value stays text, and a row that does not fit the header is refused with its line."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from rift.archive import plain
from rift.errors import DataError

PARTS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
COLUMNS = {  # what each column may be called, the likeliest first
    "file": ("file", "filename", "file_name", "image", "path", "image_id"),
    "label": ("label", "class", "diagnosis", "dx", "target", "category"),
    "group": ("patient", "patient_id", "group", "lesion_id", "subject", "case"),
    "split": ("split",),
}
_FORMULA = re.compile(
    r"[\t\r\n]|[\s\x00-\x1f\u00ad\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]"
)
MOST_OTHERS = 20  # columns that were not read whose values are kept until it is known whether they group the images
RESERVED = {name for names in COLUMNS.values() for name in names}


class Table(NamedTuple):
    """What a table says: of every row its line and {file, label, group, split}, "" where a column is absent."""

    rows: list[tuple[int, dict[str, Any]]]  # of findings, "label" is the tuple of those that the row marks with 1
    encoding: str
    findings: tuple[str, ...]  # the columns of findings; empty where a label column names one class for each image
    unread: tuple[str, ...]  # the columns that were not read
    others: Mapping[str, list[str]] = MappingProxyType({})  # the values of those, row by row: one of them may name the patient


def parse(data: bytes, most_rows: int) -> Table:
    """Read the rows of a table; a label column gives each image one class, and then no other column is a label.

    A table without one is read as findings: each of its columns, but for file, group and split, is a finding, and every value
    in it is 0 or 1. Comma, semicolon and tab are told apart by the header. Raises `data.label` for what cannot be read without
    guessing and `data.too_many` for more than `most_rows`.
    """
    text, encoding = _decode(data)
    delimiter, header = _header(text)
    lower = [name.lower() for name in header]
    columns = {role: next((lower.index(name) for name in names if name in lower), None) for role, names in COLUMNS.items()}
    several = columns["label"] is None
    others = {place: name for place, name in enumerate(header) if name and name.lower() not in RESERVED}
    findings = others if several else {}
    if wrong := next((name for name in findings.values() if ";" in name), None):
        raise DataError("data.label", f"The finding {plain(wrong)!r} holds a semicolon, which separates findings; rename it.")
    read = {*columns.values(), *findings}
    unread = {place: plain(name) or f"column {place + 1}" for place, name in enumerate(header) if place not in read}
    values: dict[str, list[str]] = {name: [] for name in list(unread.values())[:MOST_OTHERS]}
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        next(reader)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                row = _row(cells, len(header), columns, reader.line_num)
                marks = {"label": _marked(cells, findings, reader.line_num)} if several else {}
                rows.append((reader.line_num, row | marks))
                for place, name in list(unread.items())[:MOST_OTHERS]:
                    values[name].append(plain(cells[place]))
            if len(rows) > most_rows:
                raise DataError("data.too_many", f"The table has more than the {most_rows:,} rows that are taken.")
    except csv.Error as error:
        reason = plain(str(error))
        raise DataError("data.label", f"Line {reader.line_num} of the table cannot be read ({reason}); mend it.") from None
    if not rows:
        raise DataError("data.label", "The table has a header but no rows; list one image per line.")
    return Table(rows, encoding, tuple(findings.values()), tuple(unread.values()), values)


def _row(cells: list[str], width: int, columns: dict[str, int | None], line: int) -> dict[str, Any]:
    if len(cells) != width:
        mend = "put quotes around values that hold the separator"
        raise DataError("data.label", f"Line {line} of the table has {len(cells)} values and the header {width}; {mend}.")
    row = {role: "" if column is None else cells[column].strip() for role, column in columns.items()}
    if row["split"] and row["split"].lower() not in PARTS:
        raise DataError("data.label", f"Line {line}: the split {plain(row['split'])!r} is none of {', '.join(PARTS)}.")
    return row | {"split": PARTS.get(row["split"].lower(), "")}


def _marked(cells: list[str], findings: dict[int, str], line: int) -> tuple[str, ...]:
    """Return the findings that a row marks with 1; whatever is neither 0 nor 1 is refused with its line and column."""
    for place, name in findings.items():
        if cells[place].strip() not in ("0", "1"):
            got = plain(cells[place], 60)
            mend = "the table has no label column, so each other column is a finding: write 0 or 1, drop it, or call it patient"
            raise DataError(
                "data.label", f"Line {line} of the table, column {plain(name)!r}: {got!r} is neither 0 nor 1; {mend}."
            )
    return tuple(name for place, name in findings.items() if cells[place].strip() == "1")


def _decode(data: bytes) -> tuple[str, str]:
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if utf16 else ("utf-8-sig", "cp1252"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            line = text[: text.index("\0")].count("\n") + 1
            raise DataError("data.label", f"Line {line} of the table holds a NUL character; save the table as UTF-8 CSV.")
        return text, encoding
    raise DataError("data.label", "The table is neither UTF-8, UTF-16 nor Windows-1252 text; save it as UTF-8 CSV.")


def _header(text: str) -> tuple[str, list[str]]:
    """Find the separator by which the first line names a file and a label column, else a file and two findings or more."""
    first: list[str] = []
    several: tuple[str, list[str]] | None = None
    for delimiter in (",", ";", "\t"):
        try:
            cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            raise DataError("data.label", f"Line 1 of the table cannot be read ({plain(str(error))}); mend it.") from None
        header = [cell.strip() for cell in cells]
        lower = [name.lower() for name in header]
        if twice := sorted({name for name in lower if name and lower.count(name) > 1}):
            raise DataError("data.label", f"Line 1 of the table names the column {plain(twice[0])!r} twice; rename one.")
        if set(lower) & set(COLUMNS["file"]):
            if set(lower) & set(COLUMNS["label"]):
                return delimiter, header
            if len(set(lower) - RESERVED - {""}) > 1:
                several = several or (delimiter, header)
        first = max(first, header, key=len)
    if several:
        return several
    need = f"a column {' or '.join(COLUMNS['file'])}, and a column {' or '.join(COLUMNS['label'])}"
    more = "or instead of that one two or more columns of 0 and 1, one for each finding"
    raise DataError("data.label", f"The table has the columns {plain(', '.join(first)) or '(none)'}; it needs {need}, {more}.")


def written(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV for people, who open it in a spreadsheet: every text in it is a `cell`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    for row in (head, *rows):
        writer.writerow([cell(one) for one in row])
    return text.getvalue()


def cell(value: Any) -> Any:
    """Return a text that no spreadsheet takes for a formula, with an apostrophe before one that it would; numbers stay.

    Spreadsheets skip blanks and signs that are not seen, and take the wide signs of East Asian text for the narrow ones.
    """
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value

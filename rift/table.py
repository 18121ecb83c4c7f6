"""A table of labels, read strictly: every value stays text, and a row that does not fit the header is refused with its line."""

from __future__ import annotations

import codecs
import csv
import io

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


def parse(data: bytes, most_rows: int) -> tuple[list[tuple[int, dict[str, str]]], str]:
    """Return (line, {file, label, group, split}) of every row, "" where a column is absent, and the encoding that was found.

    Comma, semicolon and tab are told apart by the header. Raises `data.label` for what cannot be read without guessing and
    `data.too_many` for more than `most_rows`.
    """
    text, encoding = _decode(data)
    delimiter, header = _header(text)
    columns = {role: next((header.index(name) for name in names if name in header), None) for role, names in COLUMNS.items()}
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        next(reader)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((reader.line_num, _row(cells, len(header), columns, reader.line_num)))
            if len(rows) > most_rows:
                raise DataError("data.too_many", f"The table has more than the {most_rows:,} rows that are taken.")
    except csv.Error as error:
        reason = plain(str(error))
        raise DataError("data.label", f"Line {reader.line_num} of the table cannot be read ({reason}); mend it.") from None
    if not rows:
        raise DataError("data.label", "The table has a header but no rows; list one image per line.")
    return rows, encoding


def _row(cells: list[str], width: int, columns: dict[str, int | None], line: int) -> dict[str, str]:
    if len(cells) != width:
        mend = "put quotes around values that hold the separator"
        raise DataError("data.label", f"Line {line} of the table has {len(cells)} values and the header {width}; {mend}.")
    row = {role: "" if column is None else cells[column].strip() for role, column in columns.items()}
    if row["split"] and row["split"].lower() not in PARTS:
        raise DataError("data.label", f"Line {line}: the split {plain(row['split'])!r} is none of {', '.join(PARTS)}.")
    return row | {"split": PARTS.get(row["split"].lower(), "")}


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
    """Find the separator by which the first line names a file and a label column."""
    first: list[str] = []
    for delimiter in (",", ";", "\t"):
        try:
            cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            raise DataError("data.label", f"Line 1 of the table cannot be read ({plain(str(error))}); mend it.") from None
        header = [cell.strip().lower() for cell in cells]
        if twice := sorted({name for name in header if name and header.count(name) > 1}):
            raise DataError("data.label", f"Line 1 of the table names the column {plain(twice[0])!r} twice; rename one.")
        if set(header) & set(COLUMNS["file"]) and set(header) & set(COLUMNS["label"]):
            return delimiter, header
        first = max(first, header, key=len)
    need = f"a column {' or '.join(COLUMNS['file'])}, and a column {' or '.join(COLUMNS['label'])}"
    raise DataError("data.label", f"The table has the columns {plain(', '.join(first)) or '(none)'}; it needs {need}.")

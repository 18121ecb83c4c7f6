"""Tables of labels: read strictly, in the encodings and separators that spreadsheets write, every row accounted for."""

from __future__ import annotations

import csv
import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rift.errors import DataError
from rift.table import parse
from rift.upload import read
from tests.uploads import picture, refusal, unpacked, zipped

FILES = {f"images/{number}.png": picture(number) for number in range(6)}
ROWS = [(f"{number}.png", "cat" if number < 3 else "dog") for number in range(6)]
TABLE = "\n".join(["file,label", *map(",".join, ROWS)])


def upload(tmp_path, table: str | bytes, **more: bytes):
    data = table.encode() if isinstance(table, str) else table
    return zipped(tmp_path / "up.zip", {"labels.csv": data, **FILES, **more}, zipfile.ZIP_STORED)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_encodings_and_separators(encoding, delimiter, tmp_path):
    text = TABLE.replace("dog", "düg").replace(",", delimiter).replace("\n", "\r\n")
    stored = read(upload(tmp_path, text.encode(encoding)), tmp_path / "root")
    assert stored.classes == ("cat", "düg") and stored.report.skipped == () and stored.ids[0] == "images/0.png"
    codes = [item.code for item in stored.report.warnings]
    assert ("data.encoding" in codes) == (encoding == "cp1252")


@pytest.mark.parametrize("header", ["filename,dx", "Image , Diagnosis", "path,CLASS", "image_id,target"])
def test_columns_are_found_by_name_and_files_by_any_form_of_their_name(header, tmp_path):
    rows = ["images/0.png,a", "1.png,a", "2,a", "./images/3.png,b", "images/4,b", " 5 ,b "]
    stored = read(upload(tmp_path, "\n".join([header, *rows])), tmp_path / "root")
    assert len(stored) == 6 and stored.classes == ("a", "b") and stored.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_folder_and_an_outer_folder_give_the_same_set(tmp_path):
    files = {"labels.csv": TABLE.encode(), **FILES}
    digests = {
        read(zipped(tmp_path / "a.zip", files), tmp_path / "root").digest,
        read(unpacked(tmp_path / "b", files), tmp_path / "root").digest,
        read(zipped(tmp_path / "c.zip", {f"pack/{name}": data for name, data in files.items()}), tmp_path / "root").digest,
    }
    assert len(digests) == 1


def test_labels_stay_text(tmp_path):
    rows = [f"{number}.png,{label}" for number, label in enumerate(["NA", "None", "nan", "01", "1", "1.0"])]
    stored = read(upload(tmp_path, "\n".join(["file,label", *rows])), tmp_path / "root", least=1)
    assert stored.classes == ("01", "1", "1.0", "NA", "None", "nan")


def test_patients_and_split(tmp_path):
    rows = [
        f"{number}.png,{label},p{number // 2},{part}"
        for (number, label), part in zip(enumerate("aabbab"), ["train", "val", "", "Test", "train", "train"], strict=True)
    ]
    stored = read(upload(tmp_path, "\n".join(["file,label,patient_id,split", *rows])), tmp_path / "root")
    assert stored.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert stored.given.tolist() == ["train", "validation", "", "test", "train", "train"]
    assert "2 patients" in next(item.message for item in stored.report.warnings if item.code == "data.leak")


def test_every_row_and_every_file_is_accounted_for(tmp_path):
    table = TABLE + "\nghost.png,cat\nghost.png,dog\n6.png,\n0.png,cat\n"
    more = {"images/6.png": picture(6), "images/7.png": picture(7), "notes.txt": b"x"}
    stored = read(upload(tmp_path, table, **more), tmp_path / "root")
    told = {item.file: item.code for item in stored.report.skipped}
    assert told == {
        "ghost.png": "data.missing",
        "6.png": "data.unlabeled",
        "images/7.png": "data.unlabeled",
        "notes.txt": "data.unlabeled",
    }
    assert "Line 8" in next(item.message for item in stored.report.skipped if item.file == "ghost.png")
    assert [item.message for item in stored.report.warnings if item.code == "data.duplicate"] == [
        "Listed in line 2 of the table and again in line 11."
    ]


BAD = {
    "C5 ragged": (TABLE + "\nx.png,cat,extra", "data.label", "Line 8 of the table has 3 values"),
    "C5 short": (TABLE.replace("1.png,cat", "1.png"), "data.label", "Line 3 "),
    "C6 open quote": (TABLE + '\n"x.png,cat', "data.label", "Line 8 "),
    "C6 open quote at the end": (TABLE + '\n0.png,"cat', "data.label", "Line 8 "),
    "C6 text after a quote": (TABLE + '\n0.png,"c"at', "data.label", "Line 8 "),
    "C7 NUL": (TABLE.replace("2.png", "2\0.png"), "data.label", "Line 4 of the table holds a NUL"),
    "C8 empty": ("", "data.label", "(none)"),
    "C8 header only": ("file,label\n\n", "data.label", "no rows"),
    "C9 twice": ("file,label,Label\n0.png,a,b", "data.label", "'label' twice"),
    "no label": ("file,age\n0.png,3", "data.label", "columns file, age; it needs"),
    "C14 two labels": (TABLE + "\n0.png,dog", "data.conflict", "'cat' in line 2 of the table and 'dog' in line 8"),
    "C14 label and none": (TABLE + "\n0.png,", "data.conflict", "line 8"),
    "C15 long field": (TABLE + "\nx.png," + "y" * 10_000_000, "data.label", "Line 8 "),
    "C15 long header": ("file,label," + "y" * 10_000_000, "data.label", "Line 1 "),
    "C16 parent": (TABLE + "\n../../etc/passwd,cat", "data.escape", "leads outside"),
    "C16 absolute": (TABLE + "\n/etc/passwd,cat", "data.escape", "Line 8 "),
    "C16 drive": (TABLE + "\nC:\\x.png,cat", "data.escape", "leads outside"),
    "split": ("file,label,split\n0.png,cat,holdout", "data.label", "'holdout' is none of train"),
    "bytes": (b"file,label\n0.png,\x81\x8d\xff", "data.label", "save it as UTF-8"),
    "half UTF-16": ("file,label".encode("utf-16") + b"x", "data.label", "save it as UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_refused_with_their_line(name, tmp_path):
    table, code, words = BAD[name]
    error = refusal(upload(tmp_path, table), tmp_path / "root")
    assert error.code == code and words in str(error)
    assert len(str(error)) < 700


def test_ambiguous_names_and_two_tables_are_refused(tmp_path):
    error = refusal(upload(tmp_path, TABLE, **{"more/0.png": picture(9)}), tmp_path / "root")
    assert error.code == "data.conflict" and "'images/0.png' and 'more/0.png'" in str(error)
    error = refusal(upload(tmp_path, TABLE, **{"other.csv": b"x"}), tmp_path / "root")
    assert error.code == "data.label" and "labels.csv, other.csv" in str(error)


def test_too_many_rows():
    with pytest.raises(DataError, match="more than the 3 rows") as caught:
        parse(TABLE.encode(), 3)
    assert caught.value.code == "data.too_many"


CELL = st.text(st.characters(exclude_categories=["C"], exclude_characters="\u2028\u2029\x85"), max_size=12).map(str.strip)


@given(st.lists(st.tuples(CELL.filter(bool), CELL), min_size=1, max_size=8), st.sampled_from(",;\t"))
def test_writing_and_parsing_keeps_the_text(rows, delimiter):
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([("file", "label"), *rows])
    parsed, encoding, *_ = parse(file.getvalue().encode(), 100)
    assert encoding == "utf-8-sig"
    assert [(row["file"], row["label"]) for _, row in parsed] == rows


@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_refused(data):
    try:
        rows = parse(data, 100).rows
    except DataError as error:
        assert error.code == "data.label"
    else:
        assert all(set(row) == {"file", "label", "group", "split"} for _, row in rows)

"""Hostile zips and folders: refused before anything is read, in seconds, with nothing left behind."""

from __future__ import annotations

import io
import os
import random
import shutil
import stat
import struct
import zipfile
from dataclasses import replace

import pytest

from rift.archive import LOCAL, PUBLIC, Limits
from rift.upload import read
from tests.uploads import good, picture, plain_zip, refusal, unpacked


def with_name(name: str) -> bytes:
    """A good zip with one name patched in as it stands, which `zipfile` would mend when writing."""
    raw = name.encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for other, data in good().items():
            archive.writestr(other, data)
        archive.writestr("N" * len(raw), picture(99))
    return file.getvalue().replace(b"N" * len(raw), raw)


def with_entry(change, data: bytes = b"x" * 2000, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A good zip whose last entry is changed by `change(info)` in the directory only."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for other, content in good().items():
            archive.writestr(other, content)
        archive.writestr("cat/last.png", data)
        change(archive.filelist[-1])
        archive._didModify = True
    return file.getvalue()


def attribute(**values):
    def change(info):
        for key, value in values.items():
            setattr(info, key, value)

    return change


def overlapping() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("cat/0.png", picture(0))
        for number in range(50):
            info = zipfile.ZipInfo(f"cat/{number + 1}.png")
            first = archive.filelist[0]
            for key in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(info, key, getattr(first, key))
            archive.filelist.append(info)
    return file.getvalue()


def twice() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("cat/0.png", picture(0))
        archive.writestr("cat/0.png", picture(1))
    return file.getvalue()


def crowded() -> bytes:
    """An end-of-directory record that promises four million entries."""
    return b"PK\3\4" + bytes(60) + struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 65535, 65535, 200_000_000, 64, 0)


LINK = attribute(external_attr=(stat.S_IFLNK | 0o777) << 16)
SMALL = replace(LOCAL, expanded_bytes=50_000, upload_bytes=40_000, files=20, member_bytes=30_000, classes=5)

HOSTILE = {  # name: (bytes, code, words in the sentence, limits)
    "Z1 parent": (lambda: with_name("../evil.png"), "data.escape", "leads outside", LOCAL),
    "Z1 parent within": (lambda: with_name("cat/../../x.png"), "data.escape", "leads outside", LOCAL),
    "Z2 absolute": (lambda: with_name("/etc/passwd"), "data.escape", "'/etc/passwd'", LOCAL),
    "Z3 backslash": (lambda: with_name("..\\..\\x.png"), "data.escape", "leads outside", LOCAL),
    "Z4 NUL": (lambda: with_name("cat/a.png\0.exe"), "data.escape", "plain relative names", LOCAL),
    "Z5 drive": (lambda: with_name("C:/x.png"), "data.escape", "C:/x.png", LOCAL),
    "Z5 UNC": (lambda: with_name("\\\\host\\x.png"), "data.escape", "leads outside", LOCAL),
    "Z6 link": (lambda: with_entry(LINK, b"/etc/passwd"), "data.escape", "link or a device", LOCAL),
    "Z7 ratio": (lambda: plain_zip({**good(), "cat/b.png": bytes(20_000_000)}), "data.bomb", "200 times", LOCAL),
    "Z8 total": (lambda: plain_zip({f"cat/{n}.bmp": bytes(9000) for n in range(9)}), "data.bomb", "expand to", SMALL),
    "Z9 lying size": (
        lambda: with_entry(attribute(file_size=10), random.Random(0).randbytes(5000)),
        "data.bomb",
        "10 bytes",
        LOCAL,
    ),
    "Z9 lying stored": (
        lambda: with_entry(attribute(file_size=10), b"x" * 99, zipfile.ZIP_STORED),
        "data.bomb",
        "10 bytes",
        LOCAL,
    ),
    "Z10 overlap": (overlapping, "data.bomb", "shares its bytes", LOCAL),
    "Z12 100 k members": (lambda: plain_zip({f"c/{n}": b"" for n in range(20_001)}), "data.too_many", "20,000", PUBLIC),
    "Z12 promised": (crowded, "data.too_many", "200,000", LOCAL),
    "Z13 deep": (lambda: plain_zip({"a/" * 2100 + "x.png": picture(0)}), "data.archive", "20 folders deep", LOCAL),
    "Z14 long": (lambda: plain_zip({"cat/" + "n" * 300 + ".png": picture(0)}), "data.archive", "255 characters", LOCAL),
    "Z15 encrypted": (lambda: with_entry(attribute(flag_bits=1)), "data.archive", "password", LOCAL),
    "Z16 LZMA": (lambda: plain_zip(good(), zipfile.ZIP_LZMA), "data.archive", "deflate", LOCAL),
    "Z16 deflate64": (lambda: with_entry(attribute(compress_type=9)), "data.archive", "deflate", LOCAL),
    "Z17 cut": (lambda: plain_zip(good())[:-30], "data.archive", "damaged or unfinished", LOCAL),
    "Z19 empty": (lambda: plain_zip({}), "data.too_few", "No image", LOCAL),
    "Z20 no zip": (lambda: b"hello", "data.archive", "is no zip", LOCAL),
    "Z21 polyglot": (lambda: picture(0) + plain_zip(good()), "data.archive", "is no zip", LOCAL),
    "Z22 twice": (twice, "data.archive", "twice", LOCAL),
    "Z23 file and folder": (lambda: plain_zip({**good(), "cat": b"x"}), "data.archive", "both a file and a folder", LOCAL),
    "Z24 case twins": (lambda: plain_zip({**good(), "Cat/9.png": picture(9)}), "data.conflict", "'Cat' and 'cat'", LOCAL),
    "Z30 gzip": (lambda: b"\x1f\x8b\x08" + bytes(99), "data.archive", "is no zip", LOCAL),
    "too large": (lambda: b"PK\3\4" + bytes(50_000), "data.bomb", "at most", SMALL),
    "L1 one class": (lambda: plain_zip({k: v for k, v in good().items() if "cat" in k}), "data.one_class", "1 class: cat", LOCAL),
    "L2 small": (lambda: plain_zip({**good(), "ant/1.png": picture(77)}), "data.too_few", "ant (1)", LOCAL),
    "L5 classes": (lambda: plain_zip({f"c{n}/1.png": picture(n) for n in range(6)}), "data.too_many", "at most 5", SMALL),
    "L13 two labels": (lambda: plain_zip({**good(), "dog/9.png": picture(0)}), "data.conflict", "'cat/0.png'", LOCAL),
    "L14 all the same": (lambda: plain_zip(dict.fromkeys(good(), picture(0))), "data.conflict", "two classes", LOCAL),
    "N invisible class": (lambda: plain_zip({**good(), "\u200b/9.png": picture(9)}), "data.label", "readable name", LOCAL),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_zips_are_refused(name, tmp_path):
    build, code, words, limits = HOSTILE[name]
    (tmp_path / "up.zip").write_bytes(build())
    error = refusal(tmp_path / "up.zip", tmp_path / "root", limits=limits)
    assert error.code == code, str(error)
    assert words in str(error)
    assert sorted(path.name for path in tmp_path.iterdir()) in (["up.zip"], ["root", "up.zip"])


def test_paths_that_are_nothing(tmp_path):
    assert refusal(tmp_path / "no.zip", tmp_path / "root").code == "data.missing"
    (tmp_path / "a.png").write_bytes(picture(0))
    error = refusal(tmp_path / "a.png", tmp_path / "root")
    assert error.code == "data.archive" and "give a .zip, a folder" in str(error)


def test_folders_follow_no_links(tmp_path):
    folder = unpacked(tmp_path / "up", good())
    (folder / "cat/inner.png").symlink_to(folder / "dog/0.png")
    os.mkfifo(folder / "cat/pipe.png")
    stored = read(folder, tmp_path / "root")
    assert len(stored) == 6 and [item.file for item in stored.report.skipped] == ["cat/inner.png", "cat/pipe.png"]
    shutil.rmtree(tmp_path / "root")
    (folder / "cat/outer.png").symlink_to("/etc/passwd")
    assert refusal(folder, tmp_path / "root").code == "data.escape"
    (folder / "cat/outer.png").unlink()
    (folder / "bird").symlink_to(tmp_path, target_is_directory=True)
    error = refusal(folder, tmp_path / "root")
    assert error.code == "data.escape" and "'bird'" in str(error)


def test_folders_have_limits_too(tmp_path):
    folder = unpacked(tmp_path / "up", good())
    for limits, code in (
        (Limits(files=5), "data.too_many"),
        (Limits(expanded_bytes=999), "data.bomb"),
        (Limits(depth=0), "data.archive"),
    ):
        assert refusal(folder, tmp_path / "root", limits=limits).code == code
    error = refusal(folder, tmp_path / "root", limits=Limits(member_bytes=10))
    assert error.code == "data.image" and "at most" in str(error)

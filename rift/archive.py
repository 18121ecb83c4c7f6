"""The files of an upload, in a zip or a folder: all names and sizes are checked first, then each file is read on its own.

Nothing is ever extracted; names are data only.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from rift.errors import DataError

MB, GB = 10**6, 10**9


@dataclass(frozen=True)
class Limits:
    """What one upload may hold."""

    upload_bytes: int = 500 * MB
    expanded_bytes: int = 4 * GB
    member_bytes: int = 100 * MB
    files: int = 200_000
    classes: int = 1000
    ratio: int = 200  # expanded to compressed; asked of a file over 1 MB and of a whole over 10 MB
    depth: int = 20  # folders within folders
    name: int = 255  # characters of one file or folder name


LOCAL = Limits()
PUBLIC = Limits(upload_bytes=200 * MB, expanded_bytes=GB, files=20_000, classes=200)


@dataclass(frozen=True)
class Member:
    """One file: its path with "/" between the parts, and how to get its bytes (raises `data.archive` or `data.image`)."""

    name: str
    read: Callable[[], bytes]


@dataclass
class Listing:
    """The files of an upload, sorted by name, without the system's own litter."""

    members: list[Member] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)  # every folder that is named, empty ones too
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (name, sentence)


@contextmanager
def listing(source: Path, limits: Limits = LOCAL) -> Iterator[Listing]:
    """List a zip or a folder; its members can be read within the `with`.

    Raises `data.escape` for a name or link that leads outside, `data.bomb` for what would expand beyond the limits,
    `data.too_many` for too many files and `data.archive` for a file that is no sound zip.
    """
    if source.is_dir():
        yield _folder(source.resolve(), limits)
        return
    with opened(source, limits) as archive:
        files, folders = checked(archive, source.stat().st_size, limits)
        members = [Member(name, partial(_unzip, archive, info)) for name, info in sorted(files.items()) if not _litter(name)]
        yield Listing(members, [name for name in folders if not _litter(name)])


def plain(text: str, most: int = 200) -> str:
    """Return text that is safe to show: composed (NFC), one line, no control, format or unassigned characters, cut short."""
    spaced = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text))
    kept = "".join(c for c in spaced if unicodedata.category(c)[0] != "C").strip()
    return kept if len(kept) <= most else kept[: most - 1] + "…"


@contextmanager
def opened(source: Path, limits: Limits) -> Iterator[zipfile.ZipFile]:
    """Open a zip whose size and number of files are within the limits."""
    size = source.stat().st_size
    if size > limits.upload_bytes:
        raise DataError("data.bomb", f"The file has {size / MB:.0f} MB; at most {limits.upload_bytes // MB} MB are taken.")
    with source.open("rb") as file:
        if file.read(4) not in (b"PK\3\4", b"PK\5\6"):
            raise DataError("data.archive", f"{plain(source.name)} is no zip; give a .zip, a folder or a MedMNIST-style .npz.")
        _refuse_crowd(file, size, limits)
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error, UnicodeDecodeError):
        raise DataError("data.archive", f"{plain(source.name)} is a damaged or unfinished zip; make it again.") from None
    with archive:
        yield archive


def checked(archive: zipfile.ZipFile, packed_bytes: int, limits: Limits) -> tuple[dict[str, zipfile.ZipInfo], list[str]]:
    """Check every entry of the zip's directory, before anything is read; return files by name, and the folders."""
    entries = archive.infolist()
    if len(entries) > limits.files:
        raise DataError("data.too_many", f"The zip has {len(entries):,} files; at most {limits.files:,} are taken.")
    files: dict[str, zipfile.ZipInfo] = {}
    folders = []
    for info in entries:
        name = _safe_name(info, limits)
        _refuse_entry(info, name, limits)
        if info.is_dir():
            folders.append(name.rstrip("/"))
        elif files.setdefault(name, info) is not info:
            raise DataError("data.archive", f"The zip holds {plain(name)!r} twice; make it again with each file once.")
    total = sum(info.file_size for info in entries)
    most = min(limits.expanded_bytes, max(limits.ratio * packed_bytes, 10 * MB))
    if total > most:
        raise DataError("data.bomb", f"The zip would expand to {total / MB:.0f} MB; at most {most / MB:.0f} MB are taken.")
    _refuse_overlap(archive, entries)
    parents = {name.rpartition("/")[0] for name in files}
    while above := {name.rpartition("/")[0] for name in parents} - parents:
        parents |= above
    if twice := sorted(parents & set(files)):
        raise DataError("data.archive", f"{plain(twice[0])!r} is both a file and a folder in the zip; rename one of them.")
    return files, folders


def _refuse_crowd(file: BinaryIO, size: int, limits: Limits) -> None:
    """`zipfile` reads the whole directory before it answers, so the length stated at the end of the file is looked at first."""
    file.seek(max(0, size - 65_700))
    tail = file.read()
    at, at64 = tail.rfind(b"PK\5\6"), tail.rfind(b"PK\6\6")
    count, length = struct.unpack_from("<HL", tail, at + 10) if 0 <= at <= len(tail) - 22 else (0, 0)
    if 0 <= at64 <= len(tail) - 56 and (count == 0xFFFF or length == 0xFFFFFFFF):
        count, length = struct.unpack_from("<QQ", tail, at64 + 32)
    if count > limits.files or length > limits.files * 512:
        raise DataError("data.too_many", f"The zip lists more than the {limits.files:,} files that are taken; leave some out.")


def _safe_name(info: zipfile.ZipInfo, limits: Limits) -> str:
    name = info.orig_filename  # unlike `filename`, not yet cut at NUL
    if not info.flag_bits & 0x800 and not name.isascii():
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")  # many tools write UTF-8 without saying so
    if not name:
        raise DataError("data.archive", "A file in the zip has no name; make the zip again.")
    parts = name.rstrip("/").split("/")
    if "\0" in name or "\\" in name or name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name):
        raise DataError("data.escape", f"The name {plain(name)!r} in the zip leads outside of it; use plain relative names.")
    if len(parts) > limits.depth or max(map(len, parts)) > limits.name:
        allowed = f"{limits.depth} folders deep and {limits.name} characters a name are allowed"
        raise DataError("data.archive", f"The name {plain(name, 60)!r} in the zip is too long or too deep; {allowed}.")
    return name


def _refuse_entry(info: zipfile.ZipInfo, name: str, limits: Limits) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DataError("data.escape", f"{plain(name)!r} in the zip is a link or a device; put the file itself there.")
    if info.flag_bits & 0x1:
        raise DataError("data.archive", f"{plain(name)!r} in the zip is encrypted; make the zip without a password.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError("data.archive", f"{plain(name)!r} is packed in a way that is not read; use the ordinary zip (deflate).")
    size, packed = info.file_size, info.compress_size
    if size > limits.member_bytes or (size > MB and size > limits.ratio * packed):
        allowed = f"{limits.member_bytes / MB:.0f} MB and {limits.ratio} times its packed size are allowed"
        raise DataError("data.bomb", f"{plain(name)!r} in the zip would expand to {size / MB:.0f} MB; {allowed}.")
    # Deflate never adds more than 5 bytes per 16 kB block and a few at the end: more packed than plain bytes is a lie.
    if packed > size + size // 1000 + 64 or (info.compress_type == zipfile.ZIP_STORED and packed != size):
        raise DataError("data.bomb", f"{plain(name)!r} in the zip states {size} bytes but holds more; make the zip again.")


def _refuse_overlap(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> None:
    """Each entry needs bytes of its own (Fifield 2019, "A better zip bomb": overlapping entries)."""
    end = 0
    for info in sorted(entries, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise DataError(
                "data.bomb", f"{plain(info.filename)!r} shares its bytes with another file of the zip; make it again."
            )
        end = info.header_offset + 30 + info.compress_size
    if end > archive.start_dir:
        raise DataError("data.archive", "The zip's directory does not fit its files; make the zip again.")


def _unzip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(info) as file:
            data = file.read(info.file_size + 1)  # never more than the directory said
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, struct.error, NotImplementedError, RuntimeError):
        data = b""
    if len(data) != info.file_size:
        raise DataError("data.archive", "Its bytes in the zip are damaged (the checksum does not fit); make the zip again.")
    return data


def _folder(root: Path, limits: Limits) -> Listing:
    found, total = Listing(), 0
    for path, folders, files in os.walk(root):  # links to folders are listed, never entered
        here = Path(path)
        for name in sorted([*folders, *files]):
            item = here / name
            relative = item.relative_to(root).as_posix()
            if _litter(relative):
                continue
            if item.is_symlink() or not (item.is_dir() or item.is_file()):
                _refuse_link(item, root, relative)
                found.skipped.append((relative, "It is a link, a pipe or a device, and those are not followed."))
            elif item.is_dir():
                found.folders.append(relative)
            else:
                total += item.stat().st_size
                found.members.append(Member(relative, partial(_load, item, limits)))
        if len(here.relative_to(root).parts) > limits.depth:
            raise DataError("data.archive", f"The folder is more than {limits.depth} levels deep; use root/class/image.")
        if len(found.members) > limits.files:
            raise DataError("data.too_many", f"The folder has more than the {limits.files:,} files that are taken.")
        if total > limits.expanded_bytes:
            raise DataError("data.bomb", f"The folder holds more than the {limits.expanded_bytes / GB:g} GB that are taken.")
    found.members.sort(key=lambda member: member.name)
    return found


def _refuse_link(item: Path, root: Path, relative: str) -> None:
    if item.is_symlink() and not item.resolve().is_relative_to(root):
        raise DataError("data.escape", f"{plain(relative)!r} is a link that leads outside the folder; put the file itself there.")


def _load(path: Path, limits: Limits) -> bytes:
    size = path.stat().st_size
    if size > limits.member_bytes:
        raise DataError("data.image", f"The file has {size / MB:.0f} MB; at most {limits.member_bytes / MB:.0f} MB are taken.")
    return path.read_bytes()


def _litter(name: str) -> bool:
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1].lower() in (".ds_store", "thumbs.db", "desktop.ini", "dicomdir")

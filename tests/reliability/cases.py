"""Bad and odd uploads, made by a seeded generator, and what must become of each: the rows C, N, L, Z and I of the test plan.

R the upload is refused with this code and nothing is stored; S the file "x" is skipped with this code, all others are kept;
N it is kept, and altered: with a code among the changed ones, or as `check` says; W it is kept, and warned of with this code;
OK it is kept, and nothing is said. Every picture is drawn from a seed; none is of a patient.
"""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from rift import images
from rift.archive import LOCAL, PUBLIC
from rift.dataset import ImageSet

Make = Callable[[np.random.Generator], bytes]
Check = Callable[[ImageSet], Any]


@dataclass(frozen=True)
class Case:
    """One row: what makes the upload, and what must become of it."""

    row: str
    make: Make
    outcome: str
    code: str = ""
    says: str = ""  # words of the remark or of the refusal
    check: Check | None = None  # of the stored set; what it returns must be true
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ""  # where the outcome is not the one of the test plan: why


# --- pictures -----------------------------------------------------------------------------------------------------------------


def noise(rng: np.random.Generator, height: int = 16, width: int = 16, channels: int = 3) -> np.ndarray:
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(picture: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """A PNG by hand: Pillow cannot lie about the size."""
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def gif(frames: int) -> bytes:
    """A GIF of one frame, its block repeated."""
    one = save(Image.fromarray(np.zeros((8, 8), np.uint8)), "GIF")
    start = one.index(b",", 13)
    return one[:start] + one[start:-1] * frames + b";"


def looping_tiff(rng: np.random.Generator) -> bytes:
    """A TIFF whose only directory names itself as the next one."""
    data = bytearray(save(noise(rng), "TIFF"))
    first = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    return bytes(data)


def text_bomb(rng: np.random.Generator) -> bytes:
    data = save(noise(rng))
    return data[:33] + chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(bytes(70_000_000))) + data[33:]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def frames(rng: np.random.Generator, kind: str, **options: Any) -> bytes:
    several = [Image.fromarray(noise(rng)) for _ in range(3)]
    return save(several[0], kind, save_all=True, append_images=several[1:], **options)


RAMP = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)


def hidden(rng: np.random.Generator) -> bytes:
    """Color under full transparency on the left."""
    rgba = np.dstack([noise(rng), np.full((16, 16), 255, np.uint8)])
    rgba[:, :8, 3] = 0
    return save(rgba)


def transparent_palette(rng: np.random.Generator) -> bytes:
    picture = Image.fromarray(noise(rng)).quantize(16)
    return save(picture, transparency=picture.getpixel((0, 0)))


def gray_alpha(rng: np.random.Generator) -> bytes:
    alpha = np.tile(np.repeat(np.array([0, 255], np.uint8), 8), (16, 1))
    return save(Image.merge("LA", [Image.fromarray(noise(rng)[..., 0]), Image.fromarray(alpha)]))


def profiled(rng: np.random.Generator) -> bytes:
    """A picture in another color space than sRGB."""
    return save(noise(rng), icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())


# --- uploads ------------------------------------------------------------------------------------------------------------------


def good(rng: np.random.Generator, each: int = 10, names: tuple[str, ...] = ("cat", "dog")) -> dict[str, bytes]:
    """Two classes of ten pictures of noise: nothing is to be said of them."""
    return {f"{name}/{number}.png": save(noise(rng)) for name in names for number in range(each)}


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def nameless(rng: np.random.Generator) -> bytes:
    """A zip with a file whose name is empty, at which zipfile itself fails with an IndexError."""
    file = io.BytesIO(zipped(good(rng)))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo("x"), b"x")
        archive.infolist()[-1].filename = ""
    return file.getvalue()


def extra(name: str, data: Callable[[np.random.Generator], bytes] | bytes, **more: bytes) -> Make:
    """A good upload and one file more; its name ends in /x.… so that it can be found again."""
    return lambda rng: zipped({**good(rng), **more, name: data if isinstance(data, bytes) else data(rng)})


def x(data: Callable[[np.random.Generator], bytes] | bytes, ending: str = "png") -> Make:
    return extra(f"cat/x.{ending}", data)


def named(name: str) -> Make:
    """A name patched in as it stands, which `zipfile` would mend when writing."""
    raw = name.encode()
    return lambda rng: zipped({**good(rng), "N" * len(raw): save(noise(rng))}).replace(b"N" * len(raw), raw)


def entry(data: bytes = b"x" * 2000, compression: int = zipfile.ZIP_DEFLATED, **values: int) -> Make:
    """A good zip whose last entry is another one in the directory than it is."""

    def make(rng: np.random.Generator) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as archive:
            for name, content in good(rng).items():
                archive.writestr(name, content)
            archive.writestr("cat/last.png", data)
            for key, value in values.items():
                setattr(archive.filelist[-1], key, value)
            archive._didModify = True
        return file.getvalue()

    return make


def overlapping(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("cat/0.png", save(noise(rng)))
        first = archive.filelist[0]
        for number in range(50):
            info = zipfile.ZipInfo(f"cat/{number + 1}.png")
            for key in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(info, key, getattr(first, key))
            archive.filelist.append(info)
    return file.getvalue()


def wrong_sum(rng: np.random.Generator) -> bytes:
    picture = save(noise(rng))
    return zipped({**good(rng), "cat/x.png": picture}, zipfile.ZIP_STORED).replace(picture[60:90], bytes(30), 1)


def zip64(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in good(rng).items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    return file.getvalue()


def twice(rng: np.random.Generator) -> bytes:
    data = zipped({**good(rng), "cat/y.png": save(noise(rng))})
    return data.replace(b"cat/y.png", b"cat/0.png")


def tarred(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in good(rng).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def crowd(count: int) -> Make:
    """A zip of many empty files, by hand: `zipfile` would take ten seconds to write it."""

    def make(rng: np.random.Generator) -> bytes:
        files, directory = io.BytesIO(), io.BytesIO()
        for number in range(count):
            name = f"cat/{number:06d}.png".encode()
            common = struct.pack("<HHHHHLLLHH", 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0)
            directory.write(b"PK\1\2\x14\0" + common + struct.pack("<HHHLL", 0, 0, 0, 0, files.tell()) + name)
            files.write(b"PK\3\4" + common + name)
        sizes = len(directory.getvalue()), files.tell()
        end = b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, min(count, 65535), min(count, 65535), *sizes, 0)
        return files.getvalue() + directory.getvalue() + end

    return make


def split(rng: np.random.Generator) -> dict[str, bytes]:
    return {f"{part}/{name}": data for part in ("train", "test") for name, data in good(rng).items()}


def again(rng: np.random.Generator, change: Callable[[Image.Image], bytes], name: str = "cat/x.jpg") -> bytes:
    """A good upload and a copy of a smooth picture of it, saved in another way."""
    coarse = Image.fromarray(noise(rng, 24, 24)).resize((160, 160), Image.Resampling.BICUBIC)
    return zipped({**good(rng), "cat/smooth.png": save(coarse), name: change(coarse)})


# --- tables -------------------------------------------------------------------------------------------------------------------

HEADER = "file,label"
ROWS = [f"{number}.png,{'cat' if number < 10 else 'dog'}" for number in range(20)]
TABLE = "\n".join([HEADER, *ROWS])


def listed(table: str | bytes, more: int = 0) -> Make:
    """Twenty pictures and a table; `more` pictures beyond those."""

    def make(rng: np.random.Generator) -> bytes:
        files = {f"images/{number}.png": save(noise(rng)) for number in range(20 + more)}
        return zipped({"labels.csv": table.encode() if isinstance(table, str) else table, **files})

    return make


def labels(*names: str) -> Make:
    """A table of ten pictures for each of these labels, as they stand."""

    def make(rng: np.random.Generator) -> bytes:
        rows = [f"{number}.png,{name}" for number, name in enumerate(name for name in names for _ in range(10))]
        files = {f"images/{number}.png": save(noise(rng)) for number in range(10 * len(names))}
        return zipped({"labels.csv": "\n".join([HEADER, *rows]).encode(), **files})

    return make


def classes(*names: str) -> Check:
    return lambda stored: stored.classes == tuple(sorted(names))


def folder(name: str) -> Make:
    """A good upload in which "dog" has this name."""
    return lambda rng: zipped(good(rng, names=("cat", name)))


PATIENTS = "\n".join(
    [f"{HEADER},patient,split", *(f"{row},p{n // 2},{'test' if n % 4 == 1 else 'train'}" for n, row in enumerate(ROWS))]
)
PROMISE = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 65535, 65535, 200_000_000, 64, 0)  # four million entries
LINK = (stat.S_IFLNK | 0o777) << 16
SMALL = replace(LOCAL, expanded_bytes=50_000, upload_bytes=40_000, member_bytes=30_000)
SOME = replace(LOCAL, classes=49)

CASES = [
    # labels
    Case("C1 BOM", listed(TABLE.encode("utf-8-sig")), "OK", check=classes("cat", "dog")),
    Case("C2 UTF-16", listed(TABLE.replace("dog", "dög").encode("utf-16")), "N", check=classes("cat", "dög")),
    Case("C3 cp1252", listed(TABLE.replace("dog", "dög").encode("cp1252")), "W", "data.encoding", check=classes("cat", "dög")),
    Case("C4 semicolon", listed(TABLE.replace(",", ";")), "N", check=classes("cat", "dog")),
    Case("C4 tab", listed(TABLE.replace(",", "\t")), "N", check=classes("cat", "dog")),
    Case("C5 ragged", listed(TABLE + "\n5.png,cat,9"), "R", "data.label", "Line 22 of the table has 3 values"),
    Case("C6 open quote", listed(TABLE + '\n"x.png,cat'), "R", "data.label", "Line 22 "),
    Case("C7 NUL", listed(TABLE.replace("2.png", "2\0.png", 1)), "R", "data.label", "NUL"),
    Case("C8 empty", listed(""), "R", "data.label", "(none)"),
    Case("C8 header only", listed(HEADER + "\n"), "R", "data.label", "no rows"),
    Case("C9 header twice", listed("file,label,LABEL\n0.png,a,b"), "R", "data.label", "twice"),
    Case("C10 NA", labels("NA", "None", "nan"), "OK", check=classes("NA", "None", "nan")),
    Case("C11 01 and 1", labels("01", "1", "1.0"), "OK", check=classes("01", "1", "1.0")),
    Case("C12 spaces", labels("cat", " cat ", "dog"), "N", check=classes("cat", "dog")),
    Case("C13 file missing", listed(TABLE + "\nx.png,cat"), "S", "data.missing", "Line 22"),
    Case("C13 image unlisted", lambda rng: listed(TABLE, more=1)(rng).replace(b"20.png", b"xx.png"), "S", "data.unlabeled"),
    Case("C14 two labels", listed(TABLE + "\n0.png,dog"), "R", "data.conflict", "line 2 of the table and 'dog' in line 22"),
    Case(
        "C15 10 MB field", lambda rng: listed(TABLE + "\nx.png," + rng.bytes(5_000_000).hex())(rng), "R", "data.label", "Line 22 "
    ),
    Case("C16 path", listed(TABLE + "\n../../etc/passwd,cat"), "R", "data.escape", "leads outside"),
    # names
    Case("N1 script", labels("cat", "<img src=y onerror=alert(1)>"), "N", check=classes("cat", "<img src=y onerror=alert(1)>")),
    Case("N2 right to left", folder("\u202egod"), "W", "data.name", "U+202E", classes("cat", "god")),
    Case("N3 zero width", folder("do\u200bg"), "W", "data.name", "U+200B", classes("cat", "dog")),
    Case("N4 Cyrillic", folder("c\u0430t"), "W", "data.name", "look the same", classes("cat", "c\u0430t")),
    Case("N4 Cyrillic alone", labels("\u0441\u0430\u0440", "cap"), "W", "data.name", "U+0441 U+0430 U+0440"),
    Case("N4 l and 1", labels("type l", "type 1"), "W", "data.name", "look the same"),
    Case("N5 NFC and NFD", labels("caf\u00e9", "cafe\u0301", "tea"), "W", "data.name", "U+0301", classes("caf\u00e9", "tea")),
    Case("N6 300 characters", labels("cat", "n" * 300), "N", check=lambda one: one.classes[1] == "n" * 199 + "…"),
    Case("N6 cut to the same", labels("n" * 300, "n" * 301), "R", "data.label", "shorter names"),
    Case("N7 emoji", folder("😀"), "OK", check=classes("cat", "😀")),
    Case("N8 formula", labels("cat", "=cmd|' /C calc'!A0"), "N", check=classes("cat", "=cmd|' /C calc'!A0")),
    Case("N9 CON", folder("CON"), "N", check=classes("cat", "CON")),
    Case("N10 template", folder("${7*7}{{7*7}}"), "N", check=classes("cat", "${7*7}{{7*7}}")),
    Case("N10 Greek word", folder("β-cell"), "OK", check=classes("cat", "β-cell")),
    # sets
    Case("L1 one class", lambda rng: zipped(good(rng, names=("cat",))), "R", "data.one_class", "1 class: cat"),
    Case("L2 one image", extra("ant/x.png", lambda rng: save(noise(rng))), "R", "data.too_few", "ant (1)"),
    Case(
        "L2 left out",
        extra("ant/x.png", lambda rng: save(noise(rng))),
        "S",
        "data.left_out",
        options={"leave_out_small": True},
    ),
    Case("L3 empty folder", extra("ant/", b""), "W", "data.empty", "'ant'"),
    Case("L4 two of two", lambda rng: zipped(good(rng, 2)), "R", "data.too_few", note="a class needs one image for each part"),
    Case("L4 three of two", lambda rng: zipped(good(rng, 3)), "W", "data.few", "The smallest class has 3"),
    Case(
        "L5 too many classes",
        lambda rng: zipped(good(rng, 1, tuple(f"c{number}" for number in range(50)))),
        "R",
        "data.too_many",
        "at most 49",
        options={"limits": SOME},
    ),
    Case(
        "L6 999 to 1",
        lambda rng: zipped({f"{'cat' if n < 297 else 'dog'}/{n}.png": save(noise(rng)) for n in range(300)}),
        "W",
        "data.imbalance",
        "cat has 297 images, dog 3",
        note="three, since a class needs as many",
    ),
    Case("L7 ten images", lambda rng: zipped(good(rng, 5)), "W", "data.few", "intervals will be wide"),
    Case("L8 too many for a Space", crowd(20_001), "R", "data.too_many", "20,000", options={"limits": PUBLIC}),
    Case(
        "L9 copies across parts",
        lambda rng: zipped({**(files := split(rng)), "train/cat/x.png": files["test/cat/1.png"]}),
        "S",
        "data.duplicate",
        "both test and train",
        check=lambda one: (
            "parts: 1." in one.report.warnings[0].message and one.given[one.ids == "test/cat/1.png"].tolist() == ["test"]
        ),
    ),
    Case(
        "L10 saved again",
        lambda rng: again(rng, lambda one: save(one.resize((110, 110)), "JPEG", quality=70)),
        "W",
        "data.near",
        "'cat/smooth.png' and 'cat/x.jpg'",
        lambda one: one.near[one.ids == "cat/x.jpg"] == one.near[one.ids == "cat/smooth.png"],
    ),
    Case(
        "L11 mirrored",
        lambda rng: again(rng, lambda one: save(one.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "JPEG", quality=70)),
        "W",
        "data.near",
        "and, mirrored, 'cat/x.jpg'",
    ),
    Case(
        "L10 two labels",
        lambda rng: again(rng, lambda one: save(one, "JPEG", quality=70), "dog/x.jpg"),
        "W",
        "data.near",
        "under two classes: 'cat/smooth.png' and 'dog/x.jpg' (cat and dog)",
    ),
    Case("L12 one patient in both", listed(PATIENTS), "W", "data.leak", "5 patients"),
    Case(
        "L12 one patient, no parts",
        listed("\n".join(line.rpartition(",")[0] for line in PATIENTS.split("\n"))),
        "N",
        check=lambda one: len(set(one.groups.tolist())) == 10,
    ),
    Case(
        "L13 one picture, two labels",
        lambda rng: zipped({**(files := good(rng)), "dog/x.png": files["cat/1.png"]}),
        "R",
        "data.conflict",
        "'cat/1.png' (cat) and 'dog/x.png' (dog)",
    ),
    Case("L14 all the same", lambda rng: zipped(dict.fromkeys(good(rng), save(noise(rng)))), "R", "data.conflict"),
    Case(
        "L14 each class the same",
        lambda rng: zipped({f"{name}/{n}.png": data for name in "ab" for data in [save(noise(rng))] for n in range(9)}),
        "R",
        "data.too_few",
        "a (1), b (1)",
    ),
    # archives
    Case("Z1 parent", named("../evil.png"), "R", "data.escape", "leads outside"),
    Case("Z2 absolute", named("/etc/passwd"), "R", "data.escape", "leads outside"),
    Case("Z3 backslash", named("..\\..\\y.png"), "R", "data.escape", "leads outside"),
    Case("Z4 NUL", named("cat/a.png\0.exe"), "R", "data.escape", "plain relative names"),
    Case("Z5 drive", named("C:/y.png"), "R", "data.escape", "leads outside"),
    Case("Z5 UNC", named("\\\\host\\y.png"), "R", "data.escape", "leads outside"),
    Case("Z6 link", entry(b"/etc/passwd", external_attr=LINK), "R", "data.escape", "link or a device"),
    Case("Z7 1029 to 1", extra("cat/b.png", bytes(20_000_000)), "R", "data.bomb", "200 times"),
    Case(
        "Z8 total",
        lambda rng: zipped({f"cat/{n}.bmp": bytes(9000) for n in range(9)}),
        "R",
        "data.bomb",
        "expand to",
        options={"limits": SMALL},
    ),
    Case("Z9 lying size", lambda rng: entry(rng.bytes(5_000_000), file_size=10)(rng), "R", "data.bomb", "states 10 bytes"),
    Case("Z10 overlap", overlapping, "R", "data.bomb", "shares its bytes"),
    Case("Z11 zip in zip", x(lambda rng: zipped(good(rng)), "zip"), "S", "data.image", "archive inside"),
    Case("Z12 100 k members", crowd(100_000), "R", "data.too_many", "20,000", options={"limits": PUBLIC}),
    Case("Z12 promised", lambda rng: b"PK\3\4" + bytes(60) + PROMISE, "R", "data.too_many", "200,000"),
    Case("Z13 deep", extra("a/" * 2100 + "x.png", b"x"), "R", "data.archive", "20 folders deep"),
    Case("Z14 long", extra("cat/" + "n" * 300 + ".png", b"x"), "R", "data.archive", "255 characters"),
    Case("Z15 encrypted", entry(flag_bits=1), "R", "data.archive", "password"),
    Case("Z16 LZMA", lambda rng: zipped(good(rng), zipfile.ZIP_LZMA), "R", "data.archive", "deflate"),
    Case("Z16 deflate64", entry(compress_type=9), "R", "data.archive", "deflate"),
    Case("Z17 cut", lambda rng: zipped(good(rng))[:-30], "R", "data.archive", "damaged or unfinished"),
    Case("Z18 checksum", wrong_sum, "S", "data.archive", "checksum"),
    Case("Z19 empty", lambda rng: zipped({}), "R", "data.too_few", "No image"),
    Case("Z20 no zip", lambda rng: rng.bytes(5000), "R", "data.archive", "is no zip"),
    Case("Z21 polyglot", lambda rng: save(noise(rng), "JPEG") + zipped(good(rng)), "R", "data.archive", "is no zip"),
    Case("Z22 twice", twice, "R", "data.archive", "twice"),
    Case("Z23 file and folder", extra("cat", b"x"), "R", "data.archive", "both a file and a folder"),
    Case("Z24 case twins", extra("Cat/9.png", lambda rng: save(noise(rng))), "R", "data.conflict", "differ only by case"),
    Case("Z25 litter", extra("__MACOSX/cat/._0.png", b"x", **{".DS_Store": b"x", "cat/Thumbs.db": b"x"}), "OK"),
    Case("Z26 UTF-8 unsaid", lambda rng: utf8_unsaid(rng), "N", check=classes("cat", "dog", "épi")),
    Case("Z27 zip64", zip64, "OK"),
    Case(
        "Z28 one top folder",
        lambda rng: zipped({f"pack/{k}": v for k, v in good(rng).items()}),
        "OK",
        check=classes("cat", "dog"),
    ),
    Case("Z29 parts", lambda rng: zipped(split(rng)), "N", check=lambda one: sorted(set(one.given)) == ["test", "train"]),
    Case("Z29 nameless", nameless, "R", "data.archive", "has no name", note="no row of the plan: the fuzzer found it"),
    Case("Z30 tar", tarred, "R", "data.archive", "is no zip"),
    Case("Z30 7z", lambda rng: b"7z\xbc\xaf\x27\x1c" + rng.bytes(99), "R", "data.archive", "is no zip"),
    Case("Z30 rar", lambda rng: b"Rar!\x1a\7\1\0" + rng.bytes(99), "R", "data.archive", "is no zip"),
    # images
    Case(
        "I1 100 megapixels",
        x(lambda rng: png(10_000, 10_000, 1, 0, bytes(1251 * 10_000))),
        "S",
        "data.image",
        "50 megapixels",
        note="one large picture does not cost the user the others; alone it is refused",
    ),
    Case("I2 60000 squared", x(lambda rng: png(60_000, 60_000, 8, 0, b"")), "S", "data.image", "megapixels"),
    Case("I3 TIFF loop", x(b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "tif"), "S", "data.image", "damaged"),
    Case("I3 loop of directories", x(looping_tiff, "tif"), "OK"),
    Case("I4 GIF", x(lambda rng: gif(10_000), "gif"), "S", "data.image", "a GIF"),
    Case("I5 text bomb", x(text_bomb), "S", "data.image", "damaged"),
    Case("I6 1 x 10000", x(lambda rng: save(noise(rng, 1, 10_000))), "S", "data.image", "at least 8 px"),
    Case("I7 EPS", x(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "S", "data.image", "an EPS"),
    Case("I8 half a JPEG", x(lambda rng: save(noise(rng, 40, 40), "JPEG")[:1500], "jpg"), "S", "data.image", "cut short"),
    Case("I9 PNG bit flip", x(lambda rng: flipped(save(noise(rng, 40, 40)), 3000)), "S", "data.image", "damaged"),
    Case("I10 zero bytes", x(b""), "S", "data.image", "0 bytes"),
    Case("I11 HTML", x(b"<!DOCTYPE html><script>alert(1)</script>"), "S", "data.image", "web page"),
    Case("I12 JPEG named png", x(lambda rng: save(noise(rng), "JPEG")), "W", "data.extension", "This is JPEG"),
    *(
        Case(
            f"I13 turn {turn}",
            x(lambda rng, turn=turn: turned(rng, turn)),
            "N",
            "data.orientation",
            check=lambda one: upright(one),
        )
        for turn in range(2, 9)
    ),
    Case("I14 16 bits", x(save(RAMP)), "N", "data.depth", check=lambda one: levels(one) >= 4000),
    Case(
        "I15 12 bits",
        x(save((RAMP // 16).astype(np.uint16), "TIFF"), "tif"),
        "N",
        "data.depth",
        check=lambda one: levels(one) >= 4000,
    ),
    Case(
        "I16 negative",
        x(lambda rng: save(rng.normal(size=(16, 16)).astype(np.float32), "TIFF"), "tif"),
        "N",
        "data.depth",
        "stretched",
    ),
    Case("I16 NaN", x(save(np.full((16, 16), np.nan, np.float32), "TIFF"), "tif"), "S", "data.image", "NaN"),
    Case("I17 CMYK", x(lambda rng: save(Image.fromarray(noise(rng)).convert("CMYK"), "JPEG"), "jpg"), "N", "data.color", "CMYK"),
    Case("I18 palette", x(transparent_palette), "N", "data.alpha"),
    Case("I19 hidden color", x(hidden), "N", "data.alpha", check=lambda one: not of_x(one)[:, :8].any()),
    Case("I20 gray and alpha", x(gray_alpha), "N", "data.alpha", check=lambda one: not of_x(one)[:, :8].any()),
    Case("I21 one bit", x(lambda rng: save(Image.fromarray(noise(rng)).convert("1"))), "N", "data.depth", "One bit"),
    Case("I22 animated WebP", x(lambda rng: frames(rng, "WEBP", lossless=True), "webp"), "N", "data.frames"),
    Case("I23 pages", x(lambda rng: frames(rng, "TIFF"), "tif"), "N", "data.frames", "several frames"),
    Case("I24 constant", x(save(np.full((16, 16), 7, np.uint8))), "W", "data.constant"),
    Case("I25 1 x 1", x(save(np.zeros((1, 1), np.uint8))), "S", "data.image", "1 x 1 px"),
    Case("I26 SVG", x(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "svg"), "S", "data.image", "SVG"),
    Case("I27 AVIF", x(lambda rng: save(noise(rng), "AVIF"), "avif"), "S", "data.image", "AVIF"),
    Case("I27 HEIC", x(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heic"), "S", "data.image", "HEIC"),
    Case("I28 mixed sizes", x(lambda rng: save(noise(rng, 30, 50))), "OK"),
    Case(
        "I29 mixed colors",
        lambda rng: zipped(good(rng) | {f"dog/{n}.png": save(noise(rng)[..., 0]) for n in range(10)}),
        "W",
        "data.mixed",
        "always saying 'cat' is right for 50%",
    ),
    Case("I30 color profile", x(profiled), "N", "data.color", "not sRGB"),
]


def utf8_unsaid(rng: np.random.Generator) -> bytes:
    """UTF-8 names without the flag that says so."""
    files = {f"N{number}".ljust(11, "N"): save(noise(rng)) for number in range(3)}
    data = zipped({**good(rng), **files})
    for number in range(3):
        data = data.replace(f"N{number}".ljust(11, "N").encode(), f"épi/{number}.png".encode().ljust(11, b"_"))
    return data


UPRIGHT = noise(np.random.default_rng(13), 16, 24)


def turned(rng: np.random.Generator, turn: int) -> bytes:
    """A picture that its EXIF orientation makes the upright one."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[turn]  # Pillow's transposition that undoes it
    exif = Image.Exif()
    exif[0x0112] = turn
    return save(Image.fromarray(UPRIGHT).transpose(Image.Transpose(back)), exif=exif)


def of_x(stored: ImageSet) -> np.ndarray:
    """The pixels of x as they are read."""
    (place,) = [index for index, name in enumerate(stored.ids) if "/x." in name]
    return stored.pixels(16)[place]


def upright(stored: ImageSet) -> bool:
    return bool((of_x(stored) == images.fit(UPRIGHT, 16)).all())


def levels(stored: ImageSet) -> int:
    (place,) = [index for index, name in enumerate(stored.ids) if "/x." in name]
    return len(np.unique(stored.pixels(64)[place]))

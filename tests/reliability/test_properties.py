"""What holds of any upload: nothing lost or outside the store, order and repetition change nothing, parts share no group."""

from __future__ import annotations

import csv
import io
import itertools
import tempfile
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rift import dataset, images, table, upload
from rift.errors import DataError
from rift.ui.widgets import html

STEADY = settings(max_examples=30, deadline=None, derandomize=True)


def picture(seed: int) -> bytes:
    return images.encode(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8))


def smooth(seed: int) -> bytes:
    """Pictures of which some are near copies of others: five scenes, each in sixteen sizes."""
    levels = np.random.default_rng(seed % 5).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    size = 40 + seed // 5
    return images.encode(np.asarray(Image.fromarray(levels).resize((size, size), Image.Resampling.BICUBIC)))


PART = st.text(st.sampled_from("ab\u200b\u0301é. _~"), min_size=1, max_size=3).filter(lambda text: text not in (".", ".."))
HOSTILE = st.sampled_from(["..", "/", "\\", "C:", "__MACOSX", "train", "test", "n" * 300, "CON", "\u202eab"])
NAME = st.lists(st.one_of(PART, PART, PART, HOSTILE), min_size=1, max_size=4).map("/".join)
JUNK = st.sampled_from([b"", b"<svg/>", b"PK\3\4", picture(0)[:99], b"GIF89a", b"\xff\xd8\xff\xe0", b"file,label\n"])
CONTENT = st.one_of(st.integers(0, 9).map(picture), st.integers(0, 79).map(smooth), JUNK)
TREE = st.dictionaries(NAME, CONTENT, max_size=10)


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def everything_in(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def stored(files: dict[str, bytes], home: Path, **options: int) -> dataset.ImageSet | DataError:
    (home / "up.zip").write_bytes(zipped(files))
    try:
        return upload.read(home / "up.zip", home / "inner/store", **options)
    except DataError as error:
        return error


@STEADY
@given(TREE, st.sampled_from([{"least": 1, "least_classes": 1}, {"least": 2, "least_classes": 1}]))
def test_every_member_is_stored_or_skipped_with_a_code_or_the_whole_is_refused(tree, options):
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        found = stored(tree, home, **options)
        files = set(everything_in(home))
        if isinstance(found, DataError):
            assert files == {"up.zip"} and found.code in DataError.codes
            return
        assert files == {"up.zip", f"inner/store/{found.digest}/blobs.bin", f"inner/store/{found.digest}/manifest.json"}
        litter = [name for name in tree if "__MACOSX" in name.split("/")]
        report = found.report
        assert report.kept == len(found) == len(set(found.ids)) and report.kept + len(report.skipped) + len(litter) == len(tree)
        assert all(item.code.startswith("data.") and item.message for item in report.skipped)
        assert all(text.isprintable() for text in (*found.ids, *found.classes))


@STEADY
@given(TREE, st.randoms(use_true_random=False))
def test_again_and_in_another_order_is_the_same(tree, shuffle):
    names = list(tree)
    shuffle.shuffle(names)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        first = stored(tree, Path(one), least=1, least_classes=1)
        again = stored(tree, Path(one), least=1, least_classes=1)
        mixed = stored({name: tree[name] for name in names}, Path(other), least=1, least_classes=1)
        if isinstance(first, DataError):
            assert isinstance(again, DataError) and first.sentence == again.sentence
            assert isinstance(mixed, DataError)  # of several reasons the first that is met is told
            return
        assert first.digest == again.digest == mixed.digest and first.report == again.report == mixed.report
        assert [path.name for path in (Path(one) / "inner/store").iterdir()] == [first.digest]


@settings(STEADY, max_examples=8)
@given(st.lists(st.integers(0, 79), min_size=12, max_size=20, unique=True), st.randoms(use_true_random=False), st.integers(0, 9))
def test_parts_are_all_and_share_neither_group_nor_near_copy(seeds, shuffle, seed):
    files = {f"{'ab'[number % 2]}/p{number % 7}-{number}.png": smooth(seed) for number, seed in enumerate(seeds)}
    files |= {f"{name}/p{8 + number}-x.png": picture(10 * ord(name) + number) for name in "ab" for number in range(4)}
    names = list(files)
    shuffle.shuffle(names)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        found = stored(files, Path(one))
        mixed = stored({name: files[name] for name in names}, Path(other))
        try:
            parts = dataset.split(found, seed)
        except DataError as error:
            assert error.code == "data.too_few"
            return
        other_parts = dataset.split(mixed, seed)
    assert all(np.array_equal(getattr(parts, name), getattr(other_parts, name)) for name in dataset.PARTS)
    assert sorted(np.concatenate([*vars(parts).values()]).tolist()) == list(range(len(found)))
    assert found.near is not None
    for groups in (found.groups, found.near):
        if groups is not None:
            sides = [set(groups[chosen].tolist()) for chosen in vars(parts).values()]
            assert not any(a & b for a, b in itertools.combinations(sides, 2))


MODES = {"L": 1, "RGB": 3, "LA": 2, "RGBA": 4, "1": 1, "P": 3, "CMYK": 4, "I;16": 1}


@STEADY
@given(
    st.sampled_from(sorted(MODES)),
    st.integers(8, 40),
    st.integers(8, 40),
    st.integers(0, 10**6),
    st.sampled_from(["PNG", "TIFF", "BMP", "WEBP", "JPEG"]),
)
def test_what_the_reader_returns_is_finite_and_stable_when_saved_without_loss(mode, height, width, seed, kind):
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    try:
        made(mode, height, width, rng).save(file, kind)
    except (OSError, ValueError, KeyError):  # Pillow cannot write this mode so
        return
    image = images.read(file.getvalue())
    pixels = image.pixels
    assert pixels.shape == (height, width, 3) and pixels.dtype in (np.uint8, np.uint16) and pixels.flags.c_contiguous
    assert np.isfinite(images.fit(pixels, 16).astype(np.float64)).all()
    for again in ["PNG", "TIFF", "BMP", "WEBP"] if pixels.dtype == np.uint8 else ["PNG", "TIFF"]:
        file = io.BytesIO()
        plain = pixels if pixels.dtype == np.uint8 else pixels[..., 0]
        Image.fromarray(plain).save(file, again, **({"lossless": True} if again == "WEBP" else {}))
        np.testing.assert_array_equal(images.read(file.getvalue(), depth=None if pixels.dtype == np.uint8 else 16).pixels, pixels)


def made(mode: str, height: int, width: int, rng: np.random.Generator) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.uint16))
    if mode == "P":
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).quantize(16)
    if mode == "1":
        return Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)).convert("1")
    channels = [Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)) for _ in range(MODES[mode])]
    return channels[0] if mode == "L" else Image.merge(mode, channels)


class Read(HTMLParser):
    """What a browser would make of a piece of a page: its tags, attributes and text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.text += data


TEXT = st.one_of(st.text(max_size=40), st.text(st.sampled_from("<>&\"'/=+-@\t\r\n ;{}a1é\u202e"), max_size=40))


@STEADY
@given(TEXT)
def test_text_comes_out_of_a_page_as_it_went_in(text):
    found = Read(html('<p title="{text}">{text}</p>', text=text))
    assert found.tags == [("p", [("title", text)])] and found.text == text


@STEADY
@given(st.lists(st.tuples(TEXT, TEXT), max_size=5))
def test_text_comes_out_of_a_table_as_it_went_in_and_is_no_formula(rows):
    head, *found = csv.reader(io.StringIO(table.written(["one", "other"], rows), newline=""))
    assert head == ["one", "other"] and len(found) == len(rows)
    for cells, row in zip(found, rows, strict=True):
        for cell, text in zip(cells, row, strict=True):
            assert cell in (text, f"'{text}")
            assert not cell.lstrip().startswith(("=", "+", "-", "@")) or float(cell) is not None  # a number may

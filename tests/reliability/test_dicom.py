"""DICOM: each row of the table D1 to D22 with the outcome that it must have, and nothing of a header anywhere."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import struct
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_voi_lut, convert_color_space
from pydicom.sequence import Sequence

from rift import dataset, drafts, images, memory, patients
from rift.errors import DataError
from rift.runs import Lab
from rift.upload import read
from tests.reliability import dicoms
from tests.reliability.dicoms import COLOR, RAMP, SMOOTH, compressed, enclosed, written
from tests.reliability.dicoms import dicom as made
from tests.uploads import good, refusal, unpacked, zipped

ROOT = Path(__file__).parents[2]
FULL = {"WindowCenter": 2048, "WindowWidth": 4096}  # all 12 bits
DEEP = np.rint(RAMP / 4095 * 65535)
ITEM = Dataset()
ITEM.LUTDescriptor, ITEM.LUTData = [4096, 0, 12], (np.arange(4096) ** 2 // 4095).astype("<u2").tobytes()


def gray(data: bytes) -> np.ndarray:
    pixels = images.read(data).pixels
    assert images.is_gray(pixels)
    return pixels[..., 0].astype(int)


def codes(data: bytes) -> list[str]:
    return [code for code, _ in images.read(data).changes]


def told(data: bytes) -> str:
    return " ".join(sentence for _, sentence in images.read(data).changes)


# --- normalised: the picture that must come out, level for level --------------------------------------------------------------

TWO = {"WindowCenter": [2048, 100], "WindowWidth": [4096, 50]}
GARBAGE = (RAMP | 0xF000).astype(np.uint16)  # what older files keep in the bits above, such as an overlay
PLANES = COLOR.transpose(2, 0, 1)
FRAMES = np.stack([np.full_like(RAMP, 100 * n) + RAMP // 2 for n in range(5)])
LEVELS = {
    "D1 MONOCHROME1 is its twin turned over": (made(4095 - RAMP, PhotometricInterpretation="MONOCHROME1", **FULL), DEEP),
    "D2 12 bits in 16": (made(**FULL), DEEP),
    "D2 what lies above the bits stored": (made(GARBAGE, **FULL), DEEP),
    "D2 bits at the upper end": (made((RAMP << 4) | 9, HighBit=15, **FULL), DEEP),
    "D2 8 bits stay 8 bits": (made(COLOR[..., 0]), COLOR[..., 0]),
    "D2 5 bits in 8": (made(COLOR[..., 0] >> 3, BitsStored=5, HighBit=4), np.rint((COLOR[..., 0] >> 3) / 31 * 255)),
    "D3 signed": (made(RAMP.astype(np.int16) - 2048, WindowCenter=0, WindowWidth=4096), DEEP),
    "D4 rescale": (made(RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=3071.5, WindowWidth=8191), DEEP),
    "D4 a slope below 0 turns over": (made(4095 - RAMP, RescaleSlope=-1, RescaleIntercept=4095, **FULL), DEEP),
    "D5 the first of two windows": (made(**TWO), DEEP),
    "D7 the middle frame": (made(FRAMES, NumberOfFrames=5, **FULL), np.rint(FRAMES[2] / 4095 * 65535)),
    "D8 RGB": (made(COLOR), COLOR),
    "D8 RGB in planes": (made(COLOR, PlanarConfiguration=1, PixelData=PLANES.tobytes()), COLOR),
    "D8 big endian": (made(syntax=uid.ExplicitVRBigEndian, **FULL), DEEP),
    "implicit": (made(syntax=uid.ImplicitVRLittleEndian, **FULL), DEEP),
    "deflated": (made(syntax=uid.DeflatedExplicitVRLittleEndian, **FULL), DEEP),
    "D10 JPEG lossless": (compressed(RAMP, uid.JPEGLosslessSV1, **FULL), DEEP),
    "D10 JPEG lossless, any predictor": (compressed(RAMP, uid.JPEGLossless, **FULL), DEEP),
    "D10 JPEG lossless of color": (compressed(SMOOTH, uid.JPEGLosslessSV1), SMOOTH),
    "D10 JPEG-LS": (compressed(RAMP, uid.JPEGLSLossless, **FULL), DEEP),
    "D11 JPEG 2000": (compressed(RAMP, uid.JPEG2000Lossless, **FULL), DEEP),
    "D11 JPEG 2000, signed": (
        compressed(RAMP.astype(np.int16) - 2048, uid.JPEG2000Lossless, WindowCenter=0, WindowWidth=4096),
        DEEP,
    ),
    "D11 JPEG 2000 of color": (compressed(SMOOTH, uid.JPEG2000Lossless), SMOOTH),
    "D12 RLE": (compressed(RAMP, uid.RLELossless, **FULL), DEEP),
    "D12 RLE of color": (compressed(SMOOTH, uid.RLELossless), SMOOTH),
    "D19 a program in front": (written(dicoms.dataset(**FULL), b"MZ" + bytes(126)), DEEP),
    "D19 a TIFF in front": (written(dicoms.dataset(**FULL), b"II*\0" + bytes(124)), DEEP),
}


@pytest.mark.parametrize("name", LEVELS)
def test_the_picture_is_the_one_that_the_file_means(name):
    data, expected = LEVELS[name]
    image = images.read(data)
    assert image.format == "DICOM" and image.depth == 8 * image.pixels.dtype.itemsize
    wanted = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=-1)
    np.testing.assert_allclose(image.pixels.astype(int), wanted, atol=1 if image.depth == 16 else 0)


@pytest.mark.parametrize("name", LEVELS)
def test_what_is_kept_is_a_png_without_any_text_and_the_same_picture(name):
    image = images.read(LEVELS[name][0])
    data = images.kept(image, LEVELS[name][0])
    chunks, at = [], 8
    while at < len(data):
        chunks.append(data[at + 4 : at + 8])
        at += 12 + struct.unpack_from(">L", data, at)[0]
    assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}
    again = images.read(data, depth=image.depth)
    np.testing.assert_array_equal(again.pixels, image.pixels)


def test_every_syntax_that_is_said_to_be_read_was_tried():
    frame = base64.b64decode(dicoms.HTJ2K)
    levels = (np.add.outer(np.arange(16), np.arange(16)) * 130).astype(np.uint16)
    for syntax in (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K):
        np.testing.assert_allclose(gray(enclosed(frame, levels, syntax, **FULL)), levels / 4095 * 65535, atol=1)
    for syntax in (uid.JPEGBaseline8Bit, uid.JPEG2000):
        np.testing.assert_allclose(images.read(compressed(SMOOTH, syntax, **_lossy(syntax))).pixels.astype(int), SMOOTH, atol=24)
    np.testing.assert_allclose(gray(compressed(SMOOTH[..., 0], uid.JPEGBaseline8Bit)), SMOOTH[..., 0], atol=3)


def _lossy(syntax: str) -> dict[str, str]:
    return {"PhotometricInterpretation": "RGB"} if syntax == uid.JPEG2000 else {}


@pytest.mark.parametrize("look", ["YBR_FULL", "YBR_FULL_422"])
def test_ybr_becomes_rgb_as_pydicom_turns_it(look):
    stored = convert_color_space(SMOOTH, "RGB", "YBR_FULL")
    data = stored.tobytes()
    if look == "YBR_FULL_422":
        stored[:, 1::2, 1:] = stored[:, ::2, 1:]
        flat = stored.reshape(-1, 6)
        data = flat[:, [0, 3, 1, 2]].tobytes()
    read = images.read(made(SMOOTH, PhotometricInterpretation=look, PixelData=data))
    np.testing.assert_array_equal(read.pixels, convert_color_space(stored, "YBR_FULL", "RGB"))
    assert [code for code, _ in read.changes] == ["data.color", "data.header"]


@pytest.mark.parametrize(("bits", "first", "entries"), [(8, 0, 256), (16, 0, 256), (16, 10, 100), (16, 0, 0)])
def test_a_palette_is_looked_up_as_pydicom_does(bits, first, entries):
    many, rng = entries or 65536, np.random.default_rng(3)
    palette = {"PhotometricInterpretation": "PALETTE COLOR"}
    for color in ("Red", "Green", "Blue"):
        palette[f"{color}PaletteColorLookupTableDescriptor"] = [entries, first, bits]
        table = rng.integers(0, 2**bits, many).astype(f"<u{bits // 8}")
        palette[f"{color}PaletteColorLookupTableData"] = table.tobytes()
    indices = COLOR[..., 0] if entries else RAMP
    expected = apply_color_lut(indices, dicoms.dataset(indices, **palette))
    image = images.read(made(indices, **palette))
    np.testing.assert_array_equal(image.pixels, expected >> (bits - 8))
    assert [code for code, _ in image.changes] == ["data.color"] + ["data.depth"] * (bits > 8) + ["data.header"]


def test_a_palette_of_8_bit_levels_in_16_bits_is_not_black():
    palette = {"PhotometricInterpretation": "PALETTE COLOR"}
    for color in ("Red", "Green", "Blue"):
        palette[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palette[f"{color}PaletteColorLookupTableData"] = np.arange(256, dtype="<u2").tobytes()
    np.testing.assert_array_equal(gray(made(COLOR[..., 0], **palette)), COLOR[..., 0])


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", "LUT"])
@pytest.mark.parametrize(("center", "width"), [(1500, 700), (40.5, 400.25), (2048, 1)])
def test_windows_agree_with_pydicom(function, center, width):
    more = {"VOILUTSequence": Sequence([ITEM])} if function == "LUT" else {"VOILUTFunction": function}
    data = made(WindowCenter=center, WindowWidth=width, **more)
    with np.errstate(over="ignore"):
        expected = apply_voi_lut(RAMP, dcmread(io.BytesIO(data)), prefer_lut=True).astype(float) / 4095 * 65535
    np.testing.assert_allclose(gray(data), expected, atol=17)  # one level of 12 bits is 16


def test_a_frame_of_an_enhanced_file_has_its_own_window_before_the_shared_one():
    def group(center: float, slope: float | None = None) -> Dataset:
        made, window, values = Dataset(), Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 4096
        made.FrameVOILUTSequence = Sequence([window])
        if slope is not None:
            values.RescaleSlope, values.RescaleIntercept = slope, 0
            made.PixelValueTransformationSequence = Sequence([values])
        return made

    shared = Sequence([group(9000, 1)])
    own = Sequence([group(9000), group(2048), group(9000)])
    frames = np.stack([RAMP] * 3)
    asked = {"NumberOfFrames": 3, "SharedFunctionalGroupsSequence": shared}
    np.testing.assert_allclose(gray(made(frames, PerFrameFunctionalGroupsSequence=own, **asked)), DEEP, atol=1)
    assert "percentile" in told(made(frames, **asked))  # the shared one lies beyond all levels


UNUSABLE = {
    "none": {},
    "empty": {"WindowCenter": "", "WindowWidth": ""},
    "D6 width 0": {"WindowCenter": 2048, "WindowWidth": 0},
    "D6 width below 0": {"WindowCenter": 2048, "WindowWidth": -5},
    "D6 no width": {"WindowCenter": 2048},
    "D6 beside all levels": {"WindowCenter": 60000, "WindowWidth": 10},
    "D6 far too wide": {"WindowCenter": 0, "WindowWidth": 100_000_000},
    "D6 no number": {"WindowCenter": 2048, "WindowWidth": "XXSECRETXX"},
    "D6 infinite": {"WindowCenter": "inf", "WindowWidth": "nan"},
    "D6 unknown table": {"VOILUTSequence": Sequence([Dataset()])},
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_without_a_usable_window_the_percentiles_are_taken_and_said(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom, of what is written here on purpose
        data = _raw_window(UNUSABLE[name])
    low, high = np.percentile(RAMP, (0.5, 99.5))
    np.testing.assert_allclose(gray(data), np.clip((RAMP - low) / (high - low), 0, 1) * 65535, atol=1)
    assert "data.window" in codes(data) and "0.5 to the 99.5 percentile" in told(data) and "SECRET" not in told(data)


def _raw_window(elements: dict) -> bytes:
    """Return a file whose window pydicom itself would refuse to write."""
    texts = {name: value for name, value in elements.items() if isinstance(value, str) and value}
    data = made(**{name: ("1" * len(value) if name in texts else value) for name, value in elements.items()})
    for name, value in texts.items():
        tag = {"WindowCenter": b"\x28\0\x50\x10", "WindowWidth": b"\x28\0\x51\x10"}[name]
        at = data.index(tag) + 8
        data = data[:at] + value.encode() + data[at + len(value) :]
    return data


def test_padding_does_not_count_among_the_percentiles():
    values = RAMP.astype(np.int16) // 2
    values[:16] = -2000
    shown = gray(made(values, PixelPaddingValue=-2000))
    assert (shown[:16] == 0).all() and shown[16:].min() == 0 and shown[17].min() > 0 and shown.max() == 65535


def test_a_rescale_that_makes_no_sense_is_left_out_and_told():
    data = made(RescaleSlope=0, RescaleIntercept=5, **FULL)
    np.testing.assert_allclose(gray(data), DEEP, atol=1)
    assert "rescale cannot be used" in told(data)


def test_float_pixels_and_one_bit():
    values = np.linspace(-1, 3, 32 * 48, dtype=np.float32).reshape(32, 48)
    asked = {"PixelData": None, "FloatPixelData": values.tobytes(), "BitsAllocated": 32, "WindowCenter": 1, "WindowWidth": 4}
    data = made(**asked, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(gray(data), np.linspace(0, 65535, 32 * 48).reshape(32, 48), atol=1)
    checks = np.indices((32, 48)).sum(0) % 2
    one = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "PixelData": np.packbits(checks, bitorder="little").tobytes()}
    np.testing.assert_array_equal(gray(made(checks.astype(np.uint8), **one)), checks * 255)


def test_what_was_changed_is_told_in_words():
    data = written(dicoms.dataset(FRAMES, NumberOfFrames=5, PhotometricInterpretation="MONOCHROME1", **TWO), b"MZ" + bytes(126))
    assert codes(data) == ["data.frames", "data.window", "data.color", "data.header"]
    assert "the middle one is used" in told(data) and "first of its windows" in told(data) and "inverted" in told(data)
    assert "nothing of its header." in told(data) and "like a program" in told(data)
    assert "does not say whether writing" in told(made(BurnedInAnnotation=None, **FULL))


# --- skipped and refused: an upload with one such file among good ones --------------------------------------------------------

J2K = compressed(RAMP, uid.JPEG2000Lossless, **FULL)
SIZE = J2K.index(b"\xff\x4f\xff\x51") + 8  # where the stream states its columns and rows
LOSSLESS = compressed(RAMP, uid.JPEGLosslessSV1, **FULL)
SOF = LOSSLESS.index(b"\xff\xc3") + 5
JPEG_12 = compressed(SMOOTH[..., 0], uid.JPEGBaseline8Bit).replace(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.51")
DISC = written(dicoms.dataset(None)).replace(uid.SecondaryCaptureImageStorage.encode(), b"1.2.840.10008.1.3.10\0\0\0\0\0")
RLE_BOMB = struct.pack("<16L", 2, 64, 64 + 10_000_000, *[0] * 13) + b"\x81\0" * 10_000_000  # 1.3 GB, were it unpacked


def segmented() -> bytes:
    elements = {f"{color}PaletteColorLookupTableDescriptor": [256, 0, 16] for color in ("Red", "Green", "Blue")}
    return made(COLOR[..., 0], PhotometricInterpretation="PALETTE COLOR", **elements)


SKIPPED = {
    "D13 MPEG-2": (lambda: enclosed(bytes(64), RAMP, uid.MPEG2MPML), "MPEG2 Main Profile / Main Level"),
    "D13 MPEG-4": (lambda: enclosed(bytes(64), RAMP, uid.MPEG4HP41), "MPEG-4 AVC/H.264"),
    "D13 HEVC": (lambda: enclosed(bytes(64), RAMP, uid.HEVCMP51), "HEVC/H.265"),
    "D13 12-bit JPEG": (
        lambda: JPEG_12.replace(*(struct.pack("<HH2sHH", 0x28, 0x101, b"US", 2, bits) for bits in (8, 12))),
        "of 12 bits, which is not read",
    ),
    "D13 a made-up syntax": (lambda: made(**FULL).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.2.1\0"), "does not know"),
    "D16 no preamble": (lambda: made()[128:], "no picture this app knows"),
    "D16 neither preamble nor mark": (lambda: made()[132:], "DICOM without the 128 bytes"),
    "D16 a bare dataset": (lambda: made()[made().index(b"\x08\0\x16\0") :], "DICOM without the 128 bytes"),
    "D17 pixels cut off": (lambda: made()[:-500], "fewer pixels"),
    "D17 no pixel at all": (lambda: made(PixelData=b""), "fewer pixels"),
    "D17 JPEG 2000 cut off": (lambda: J2K[:-400], "cut short in its pixels"),
    "D17 JPEG lossless cut off": (lambda: LOSSLESS[:-300], "cut short in its pixels"),
    "D17 deflated, cut off": (lambda: made(syntax=uid.DeflatedExplicitVRLittleEndian)[:-200], "cut short"),
    "D18 more rows": (lambda: made(Rows=33), "fewer pixels"),
    "D18 fewer rows": (lambda: made(Rows=31), "more pixels"),
    "D18 fewer columns": (lambda: made(Columns=47), "more pixels"),
    "D18 more frames": (lambda: made(RAMP[None], NumberOfFrames=3), "fewer pixels"),
    "D18 a billion frames": (lambda: made(RAMP[None], NumberOfFrames=10**9), "fewer pixels"),
    "D18 fewer frames": (
        lambda: made(np.stack([RAMP] * 4), NumberOfFrames=4).replace(b"IS\2\0" + b"4 ", b"IS\2\0" + b"2 "),
        "more",
    ),
    "D18 60000 x 60000": (lambda: made(Rows=60000, Columns=60000), "50 megapixels"),
    "D18 no rows": (lambda: made(Rows=0), "at least 8 px"),
    "D18 a JPEG 2000 stream of its own size": (
        lambda: J2K[:SIZE] + struct.pack(">2L", 60000, 60000) + J2K[SIZE + 8 :],
        "does not fit the compressed",
    ),
    "D18 a JPEG stream of its own size": (
        lambda: LOSSLESS[:SOF] + struct.pack(">2H", 60000, 60000) + LOSSLESS[SOF + 4 :],
        "does not fit the compressed",
    ),
    "D18 RLE that holds too little": (lambda: enclosed(RLE_BOMB[:64] + bytes(9), RAMP, uid.RLELossless), "damaged"),
    "D18 RLE of three planes for two bytes": (lambda: enclosed(b"\3" + RLE_BOMB[1:99], RAMP, uid.RLELossless), "does not fit"),
    "D18 no stream at all": (lambda: enclosed(bytes(4000), RAMP, uid.JPEG2000Lossless), "cut short"),
    "D18 color that is none": (lambda: made(SamplesPerPixel=3), "contradicts itself"),
    "D18 a color space of its own": (lambda: made(PhotometricInterpretation="XXSECRETXX"), "way to store color"),
    "D18 a palette in segments": (segmented, "in segments"),
    "D21 a DICOMDIR by another name": (lambda: DISC, "DICOMDIR"),
    "D22 a report": (lambda: made(None, ConceptNameCodeSequence=Sequence([Dataset()])), "without a picture"),
    "D22 a PDF": (lambda: made(None, EncapsulatedDocument=b"%PDF-1.7 XXSECRETXX "), "without a picture"),
    "nothing after the mark": (lambda: bytes(128) + b"DICM", "without a picture"),
    "noise after the mark": (lambda: bytes(128) + b"DICM" + np.random.default_rng(5).bytes(4000), ""),
    "NaN": (
        lambda: made(PixelData=None, BitsAllocated=32, FloatPixelData=np.full((32, 48), np.nan, np.float32).tobytes()),
        "NaN",
    ),
    "sequences 3000 deep": (lambda: made()[: made().index(b"\x08\0\x16\0")] + DEEP_SEQUENCE * 3000, ""),
}
DEEP_SEQUENCE = struct.pack("<HH2sHLHHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)


@pytest.mark.parametrize("name", SKIPPED)
def test_one_bad_file_is_skipped_with_its_reason(name, tmp_path):
    make, words = SKIPPED[name]
    source = zipped(tmp_path / "up.zip", {**good(), "cat/scan": make()}, compression=0)
    memory.reset("cpu")
    before, started = memory.peak("cpu"), time.process_time()
    stored = read(source, tmp_path / "root")
    assert time.process_time() - started < 5 and memory.peak("cpu") - before < 300e6
    (item,) = stored.report.skipped
    assert (item.file, item.code) == ("cat/scan", "data.image") and words in item.message and "SECRET" not in item.message
    assert len(stored) == 6


def test_rle_is_unpacked_as_far_as_there_are_pixels():
    memory.reset("cpu")
    before = memory.peak("cpu")
    assert (gray(enclosed(RLE_BOMB, RAMP, uid.RLELossless, **FULL)) == 0).all()
    assert memory.peak("cpu") - before < 300e6


REFUSED = {
    "D15 burned in": (lambda: made(BurnedInAnnotation="YES"), "data.burned_in", "leave it out, or cover the writing"),
    "D15 burned in, other letters": (
        lambda: made(BurnedInAnnotation="YES").replace(b"YES ", b"yes "),
        "data.burned_in",
        "'cat/scan'",
    ),
    "D20 deflated bomb": (lambda: dicoms.deflated_bomb(), "data.bomb", "beyond 100 MB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_such_file_refuses_the_upload_and_nothing_stays(name, tmp_path):
    make, code, words = REFUSED[name]
    source = unpacked(tmp_path / "up", {**good(), "cat/scan": make()})
    memory.reset("cpu")
    before = memory.peak("cpu")
    error = refusal(source, tmp_path / "root")
    assert error.code == code and words in str(error) and memory.peak("cpu") - before < 300e6


def test_a_dicomdir_is_ignored_and_scans_are_found_by_their_content(tmp_path):
    scans = {
        f"{label}/{number}{end}": made(
            np.random.default_rng(number + 3 * k).permutation(RAMP.ravel()).reshape(RAMP.shape), **FULL
        )
        for k, (label, end) in enumerate(SIDES, 1)
        for number in range(1, 4)
    }
    stored = read(zipped(tmp_path / "up.zip", {**scans, "DICOMDIR": DISC, "readme": b"hi"}), tmp_path / "root")
    assert len(stored) == 6 and [item.file for item in stored.report.skipped] == ["readme"]
    assert {item.code for item in stored.report.changed} == {"data.window"} and len(stored.report.changed) == 6
    assert [item.code for item in stored.report.warnings] == ["data.header", "data.few"]
    assert stored.pixels(16).dtype == np.uint16


SIDES = (("ill", ""), ("well", ".dcm"))


def test_endings_that_do_not_fit_are_told(tmp_path):
    files = {
        **good(),
        "cat/scan.png": made(**FULL),
        "cat/photo.dcm": images.encode(COLOR),
        "cat/scan.dcm": made(RAMP // 2, **FULL),
    }
    stored = read(zipped(tmp_path / "up.zip", files), tmp_path / "root")
    wrong = {item.file: item.message for item in stored.report.warnings if item.code == "data.extension"}
    assert set(wrong) == {"cat/scan.png", "cat/photo.dcm"} and "This is DICOM" in wrong["cat/scan.png"]


# --- patients -----------------------------------------------------------------------------------------------------------------


def scans(patients_of: dict[str, list[str]]) -> dict[str, bytes]:
    """A different picture for every patient's ID that a class lists."""
    rng = np.random.default_rng(9)
    return {
        f"{label}/{number}.dcm": made(rng.integers(0, 4096, (16, 16)).astype(np.uint16), PatientID=who, **FULL)
        for label, whom in patients_of.items()
        for number, who in enumerate(whom)
    }


def test_images_of_one_patient_stay_on_one_side_and_the_set_is_the_same_each_time(tmp_path):
    whom = {"ill": ["A", "A", "B", "B", "C", "D"], "well": ["E", "E", "F", "G", "H", "A"]}
    source = zipped(tmp_path / "up.zip", scans(whom))
    stored = read(source, tmp_path / "one")
    assert [item.code for item in stored.report.warnings if item.code == "data.groups"]
    names = np.array(whom["ill"] + whom["well"])
    groups = np.array(stored.groups)
    assert all((groups[i] == groups[j]) == (names[i] == names[j]) for i in range(12) for j in range(12))
    for seed in range(5):
        split = dataset.split(stored, seed)
        sides = [set(groups[chosen]) for chosen in (split.train, split.validation, split.test)]
        assert sum(map(len, sides)) == len(set().union(*sides))
    assert read(source, tmp_path / "two").digest == stored.digest  # the key is another, the numbers are not
    assert {"auto", "none"} <= set(patients.offers(stored))


@pytest.mark.parametrize(
    ("whom", "code"),
    [
        ({"ill": ["A", "A", "A", "B"], "well": ["C", "D", "E"]}, "data.leak"),
        ({"ill": ["A"] * 4, "well": ["A"] * 3}, "data.leak"),
        ({"ill": ["A", "B", "C"], "well": ["D", "E", "F"]}, None),
        ({"ill": [""] * 3, "well": [""] * 3}, None),
    ],
)
def test_nobody_is_grouped_where_no_split_could_follow(whom, code, tmp_path):
    stored = read(zipped(tmp_path / "up.zip", scans(whom)), tmp_path / "root")
    assert stored.groups is None
    found = [item.code for item in stored.report.warnings if item.code in ("data.groups", "data.leak")]
    assert found == ([code] if code else [])


def test_what_a_table_says_of_patients_comes_first(tmp_path):
    files = scans({"ill": ["A", "A", "B", "C"], "well": ["D", "D", "E", "F"]})
    rows = [f"{name},{name.split('/')[0]},{place}" for place, name in enumerate(files)]
    table = "\n".join(["file,label,patient", *rows]).encode()
    stored = read(zipped(tmp_path / "up.zip", {**files, "labels.csv": table}), tmp_path / "root")
    assert len(set(stored.groups)) == 8


def test_a_patient_is_hashed_under_a_key_and_only_when_asked():
    data = made(PatientID="XXSECRETXX", **FULL)
    hashes = [images.read(data, salt=salt).patient for salt in (b"one", b"one", b"two")]
    assert hashes[0] == hashes[1] != hashes[2] and len(hashes[0]) == 32 and "SECRET" not in "".join(hashes)
    assert images.read(data).patient == ""


# --- D14: nothing of a header anywhere ----------------------------------------------------------------------------------------

TEXTS = {  # thirty values that name somebody, wherever a header may hold them
    **dict.fromkeys(
        ("PatientName", "OtherPatientNames", "ReferringPhysicianName", "OperatorsName", "PatientMotherBirthName"), "PN"
    ),
    **dict.fromkeys(("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "InstitutionName", "StationName"), "LO"),
    **dict.fromkeys(("PatientAddress", "PatientTelephoneNumbers", "Occupation", "EthnicGroup", "MilitaryRank"), "LO"),
    **dict.fromkeys(
        ("StudyDescription", "SeriesDescription", "ImageComments", "PatientComments", "AdditionalPatientHistory"), "LO"
    ),
    **dict.fromkeys(("RequestingService", "ProtocolName", "DeviceSerialNumber", "WindowCenterWidthExplanation"), "LO"),
}


def planted(broken: str = "") -> tuple[bytes, list[str]]:
    """Return a file with thirty secrets and the secrets; `broken` names an element that a reader stumbles over."""
    secrets = [f"ZQ{number:02d}secretXQ" for number in range(30)]
    left = iter(secrets)
    one = dicoms.dataset(**FULL)
    for name in TEXTS:
        setattr(one, name, next(left))
    nested = Dataset()
    nested.PatientName, nested.ImageComments = next(left), next(left)
    one.ReferencedPatientSequence = Sequence([nested])
    one.SharedFunctionalGroupsSequence = Sequence([nested])
    one.private_block(0x0029, next(left), create=True).add_new(1, "LO", next(left))
    one.file_meta.ImplementationVersionName = next(left)
    left = list(left)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if broken:
            setattr(one, broken, secrets[0])
        return written(one, (left[0].encode() if left else b"").ljust(128, b"\0")), secrets


BROKEN = ("", "PhotometricInterpretation", "VOILUTFunction", "BurnedInAnnotation", "SpecificCharacterSet")


@pytest.mark.parametrize("broken", BROKEN)
def test_nothing_of_a_header_is_in_anything_that_comes_out(broken, tmp_path, caplog, capfd, monkeypatch):
    from typer.testing import CliRunner

    from rift.cli import app

    data, secrets = planted(broken)
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    monkeypatch.setattr(logging.getLogger("pydicom"), "disabled", False)
    assert sum(secret.encode() in data for secret in secrets) >= 29
    files = {
        **good(),
        "cat/scan.dcm": data,
        "cat/half.dcm": data[:-900],
        "dog/odd.dcm": data.replace(b"1.2.840.10008.1.2.1\0", secrets[1].encode().ljust(20)),
    }
    source = zipped(tmp_path / "up.zip", files)
    seen = []
    for name, content in files.items():
        try:
            images.read(content, salt=b"key")
        except DataError as error:
            seen += [repr(error), str(error), "".join(traceback.format_exception(error)), repr(error.__context__), name]
    for more in ([], ["--json"]):
        outcome = CliRunner().invoke(app, ["verify", str(source), *more])
        seen += [outcome.output, repr(outcome.exception)]
    stored = read(source, tmp_path / "lab" / "data")
    stored.pixels(16)
    lab = Lab(tmp_path / "lab")
    drafts.add(lab, "0123456789abcdef0", 0, [("a.dcm", data)])
    seen += [stored.report.model_dump_json(), json.dumps({key: list(one) for key, one in patients.offers(stored).items()})]
    everything = "\n".join([*seen, caplog.text, *capfd.readouterr()]).encode()
    everything += b"".join(path.read_bytes() for path in (tmp_path / "lab").rglob("*") if path.is_file())
    assert [secret for secret in secrets if secret.encode() in everything] == []
    assert b"secret" not in everything.lower() and b"DICM" not in everything


def test_only_allow_listed_elements_are_ever_parsed(monkeypatch):
    import pydicom.filereader

    asked = []
    real = pydicom.filereader.read_dataset

    def watched(*where, **how):
        found = real(*where, **how)
        asked.extend([found] if how.get("specific_tags") else [])  # items of sequences come whole, and are dropped
        return found

    monkeypatch.setattr(pydicom.filereader, "read_dataset", watched)
    data, _ = planted()
    images.read(data)
    (meta, found) = asked
    assert {element.keyword for element in meta} == {"TransferSyntaxUID", "MediaStorageSOPClassUID"}
    assert {element.tag.group for element in found} <= {0x0028, 0x5200, 0x7FE0}, "pixels, functional groups, and nothing else"


@pytest.mark.slow
def test_nothing_of_a_header_is_in_a_report_or_an_export(tmp_path):
    rng, files, secrets = np.random.default_rng(1), {}, []
    for label in ("ill", "well"):
        for number in range(8):
            data, secrets = planted()
            files[f"{label}/{number}.dcm"] = data.replace(
                RAMP.tobytes(), rng.integers(0, 4096, RAMP.shape).astype("<u2").tobytes()
            )
    source, out = zipped(tmp_path / "up.zip", files), tmp_path / "out"
    asked = [sys.executable, "-m", "rift", "compare", source, "--out", out, "--epochs", "1", "--set", "batch_size=8", "--json"]
    told = subprocess.run(asked, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert told.returncode == 0, told.stderr[-2000:]
    everything = told.stdout + told.stderr + b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert (out / "report.html").exists() and b"ill/0.dcm" in everything
    assert [secret for secret in secrets if secret.encode() in everything] == []


# --- real ones ----------------------------------------------------------------------------------------------------------------


def test_the_real_samples_are_read(shared, tmp_path):
    import zipfile

    found, told_of = {}, {}
    with zipfile.ZipFile(shared / "data/med_dicom_samples.zip") as archive:
        for name in archive.namelist():
            try:
                found[name] = images.read(archive.read(name))
            except DataError as error:
                told_of[name] = str(error)
    assert list(told_of) == ["emri_small_jpeg_2k_lossless_too_short.dcm"] and "cut short in its pixels" in next(
        iter(told_of.values())
    )
    assert len(found) == 13
    for name, image in found.items():
        assert len(np.unique(image.pixels >> (image.depth - 8))) > (1 if "liver" in name else 4), name
        assert 5 < image.pixels.mean() * 255 / np.iinfo(image.pixels.dtype).max < 190, name  # neither black nor white
    np.testing.assert_array_equal(found["emri_small.dcm"].pixels, found["emri_small_big_endian.dcm"].pixels)
    np.testing.assert_array_equal(found["SC_rgb.dcm"].pixels, found["SC_rgb_16bit.dcm"].pixels)
    difference = found["SC_rgb.dcm"].pixels.astype(int) - found["SC_ybr_full_uncompressed.dcm"].pixels
    assert abs(difference).max() <= 8  # it went through a JPEG once
    film = found["RG3_J2KI.dcm"].pixels[..., 0]
    assert film[:, :80].mean() > 60000  # MONOCHROME1: beside the collimator the film is white


def test_a_picture_dropped_into_a_class_is_kept_without_its_header(tmp_path):
    lab = Lab(tmp_path)
    assert (
        drafts.add(lab, "0123456789abcdef0", 0, [("a", made(**FULL)), ("b", made(BurnedInAnnotation="YES"))])[0].code
        == "data.burned_in"
    )
    (kept,) = [path for path in (tmp_path / "drafts").rglob("*") if path.is_file() and len(path.name) == 64]
    assert Image.open(io.BytesIO(kept.read_bytes())).format == "PNG"


@pytest.mark.parametrize("kind", ["plain", "enhanced", "palette", "JPEG 2000", "JPEG lossless", "RLE", "deflated"])
def test_whatever_is_changed_in_a_file_it_is_read_or_refused_in_our_words(kind):
    rng = np.random.default_rng(len(kind))
    data = FUZZED[kind]()
    for _ in range(40):
        broken = bytearray(data)
        start = int(rng.choice([132, len(data) // 2]))
        for place in rng.integers(start, len(data), rng.integers(1, 8)):
            broken[place] = rng.choice([0, 1, 0x7F, 0xFF, broken[place] ^ 1, rng.integers(256)])
        started = time.process_time()
        try:
            pixels = images.read(bytes(broken)).pixels
            assert pixels.ndim == 3 and pixels.dtype in (np.uint8, np.uint16)
        except DataError as error:
            assert error.code in ("data.image", "data.burned_in", "data.bomb")
        assert time.process_time() - started < 2


def enhanced() -> bytes:
    window, group = Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = 2048, 4096
    group.FrameVOILUTSequence = Sequence([window])
    return made(FRAMES[:, :16, :16], NumberOfFrames=5, SharedFunctionalGroupsSequence=Sequence([group]))


def palette() -> bytes:
    tables = {f"{color}PaletteColorLookupTableData": bytes(range(256)) for color in ("Red", "Green", "Blue")}
    tables |= {f"{color}PaletteColorLookupTableDescriptor": [256, 0, 8] for color in ("Red", "Green", "Blue")}
    return made(COLOR[..., 0], PhotometricInterpretation="PALETTE COLOR", **tables)


FUZZED = {
    "plain": lambda: made(RAMP[:16, :16], RescaleSlope=1, RescaleIntercept=0, **FULL),
    "enhanced": enhanced,
    "palette": palette,
    "JPEG 2000": lambda: J2K,
    "JPEG lossless": lambda: LOSSLESS,
    "RLE": lambda: compressed(RAMP, uid.RLELossless, **FULL),
    "deflated": lambda: made(syntax=uid.DeflatedExplicitVRLittleEndian, **FULL),
}

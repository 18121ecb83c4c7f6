"""The image reader: every kind of picture, damaged ones, and independent references for orientation, alpha and depth."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rift import images
from rift.errors import DataError

RAMP = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)  # 4096 levels
COLOR = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def save(picture: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    """Encode with Pillow."""
    file = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """Write a PNG by hand: Pillow cannot write color of 16 bits, nor lie about the size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_png(levels: np.ndarray) -> bytes:
    """Encode (h, w, 2 to 4) uint16."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    return png(levels.shape[1], levels.shape[0], 16, {2: 4, 3: 2, 4: 6}[levels.shape[2]], rows)


def codes(image: images.Image) -> list[str]:
    return [code for code, _ in image.changes]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


BAD = {
    "empty": (b"", "0 bytes"),
    "half a JPEG": (save(COLOR, "JPEG")[:900], "cut short"),
    "half a PNG": (save(COLOR)[:2000], "cut short"),
    "half a TIFF": (save(COLOR, "TIFF")[:5000], "cut short"),
    "PNG bit flip": (flipped(save(COLOR), 3000), "damaged"),
    "1 x 1": (save(np.zeros((1, 1), np.uint8)), "1 x 1 px"),
    "one thin side": (save(np.zeros((7, 100), np.uint8)), "at least 8 px"),
    "60000 x 60000": (png(60000, 60000, 8, 0, b""), "megapixels"),
    "60 megapixels": (png(10000, 6000, 1, 0, b""), "50 megapixels"),
    "long side": (png(20001, 10, 1, 0, bytes(2502 * 10)), "20000 px a side"),
    "GIF": (save(COLOR, "GIF"), "a GIF"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "an EPS"),
    "HTML": (b"<!DOCTYPE html><html><script>alert(1)</script>", "a web page or an SVG"),
    "SVG": (b'\xef\xbb\xbf<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
    "AVIF": (save(COLOR, "AVIF"), "AVIF"),
    "zip": (b"PK\3\4" + bytes(60), "archive inside"),
    "DICOM": (bytes(128) + b"DICM" + bytes(64), "DICOM"),
    "text": (b"hello, this is a readme", "PNG, JPEG, TIFF, BMP, WebP and DICOM are read"),
    "NaN": (save(np.full((16, 16), np.nan, np.float32), "TIFF"), "NaN"),
    "TIFF that points at itself": (b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "damaged"),
    "text bomb": (
        save(COLOR)[:33]
        + (lambda body: struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body)))(
            b"key\0\0" + zlib.compress(bytes(70_000_000))
        )
        + save(COLOR)[33:],
        "damaged",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_refused_with_a_reason(name):
    data, words = BAD[name]
    with pytest.raises(DataError) as caught:
        images.read(data)
    assert caught.value.code == "data.image"
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP"])
def test_lossless_formats_come_back_bit_for_bit(kind):
    image = images.read(save(COLOR, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert image.format == kind and image.changes == () and image.depth == 8
    assert image.pixels.dtype == np.uint8
    np.testing.assert_array_equal(image.pixels, COLOR)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_agrees_with_pillow_and_is_said(kind, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = save(COLOR, kind, exif=exif)
    image = images.read(data)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(image.pixels, expected)
    assert codes(image) == ([] if turn == 1 else ["data.orientation"])


def test_orientation_of_16_bit_color():
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    levels = np.stack([RAMP[:32]] * 3, axis=-1)
    data = deep_png(levels)
    image = images.read(data[:33] + chunk + data[33:])
    np.testing.assert_array_equal(image.pixels, np.rot90(levels, -1))


def test_alpha_is_laid_over_black_so_that_hidden_color_is_gone():
    rgba = np.full((16, 16, 4), 200, np.uint8)
    rgba[:, :8, 3], rgba[:, 8:, 3] = 0, 255
    image = images.read(save(rgba))
    assert codes(image) == ["data.alpha"]
    assert (image.pixels[:, :8] == 0).all() and (image.pixels[:, 8:] == 200).all()
    opaque = np.dstack([COLOR, np.full(COLOR.shape[:2], 255, np.uint8)])
    assert images.read(save(opaque)).changes == ()


@pytest.mark.parametrize("mode", ["LA", "P", "L"])
def test_transparency_of_gray_and_palette(mode):
    gray = np.full((16, 16), 200, np.uint8)
    gray[:, :8] = 10
    if mode == "LA":
        data = save(Image.merge("LA", [Image.fromarray(gray), Image.fromarray(np.where(gray == 10, 0, 255).astype(np.uint8))]))
    elif mode == "P":
        picture = Image.fromarray(gray).convert("P")
        data = save(picture, transparency=picture.getpixel((0, 0)))
    else:
        data = save(Image.fromarray(gray), transparency=10)
    image = images.read(data)
    assert codes(image) == ["data.alpha"]
    assert (image.pixels[:, :8] == 0).all() and (image.pixels[:, 8:] == 200).all()


def test_one_bit_palette_and_cmyk():
    checks = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)
    one = images.read(save(Image.fromarray(checks).convert("1")))
    np.testing.assert_array_equal(one.pixels[..., 0], checks)
    assert codes(one) == ["data.depth"]
    palette = Image.fromarray(COLOR).quantize(16)
    np.testing.assert_array_equal(images.read(save(palette)).pixels, np.asarray(palette.convert("RGB")))
    cmyk = images.read(save(Image.fromarray(np.full((16, 16, 3), 255, np.uint8)).convert("CMYK"), "JPEG"))
    assert codes(cmyk) == ["data.color"] and "CMYK" in cmyk.changes[0][1]
    assert cmyk.pixels.min() > 250


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_keeps_every_level(kind):
    image = images.read(save(RAMP, kind))
    assert image.depth == 16 and codes(image) == ["data.depth"]
    np.testing.assert_array_equal(image.pixels[..., 1], RAMP)
    assert len(np.unique(images.fit(image.pixels, 64))) >= 4000


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_color_and_alpha_png_keep_every_level(channels):
    levels = np.stack([RAMP] * channels, axis=-1)
    if channels != 3:
        levels[..., -1] = 65535
    image = images.read(deep_png(levels))
    np.testing.assert_array_equal(image.pixels, np.stack([RAMP] * 3, axis=-1))
    if channels != 3:
        levels[:32, :, -1] = 0
        image = images.read(deep_png(levels))
        assert "data.alpha" in codes(image) and (image.pixels[:32] == 0).all() and (image.pixels[32:, :, 0] == RAMP[32:]).all()


def test_16_bit_color_tiff_says_that_it_falls_short():
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, np.stack([RAMP] * 3, axis=-1), photometric="rgb")
    image = images.read(file.getvalue())
    assert image.pixels.dtype == np.uint8 and image.depth == 8
    assert "16-bit PNG keeps all levels" in dict(image.changes)["data.depth"]


def test_inverted_16_bit_tiff_equals_its_twin():
    tifffile = pytest.importorskip("tifffile")
    twins = []
    for photometric, levels in (("minisblack", RAMP), ("miniswhite", 65535 - RAMP)):
        file = io.BytesIO()
        tifffile.imwrite(file, levels, photometric=photometric)
        twins.append(images.read(file.getvalue()).pixels)
    np.testing.assert_array_equal(*twins)


def test_12_bits_in_16_fill_the_range_and_share_the_depth_of_their_set():
    levels = (RAMP // 16).astype(np.uint16)
    own = images.read(save(levels))
    assert own.depth == 12 and own.pixels.max() == 65535 and len(np.unique(own.pixels)) == 4096
    shared = images.read(save(levels), depth=16)
    np.testing.assert_array_equal(shared.pixels[..., 0], levels)


def test_8_bits_in_16_are_8_bits_unless_the_set_is_deeper():
    levels = (RAMP // 256).astype(np.uint16)
    own = images.read(save(levels))
    assert own.depth == 8 and own.pixels.dtype == np.uint8 and own.pixels.max() == 255
    assert images.read(save(levels), depth=12).pixels.max() == round(255 * 65535 / 4095)


def test_float_and_32_bit_values_are_stretched_and_it_is_said():
    values = np.linspace(-1.5, 2.5, 256, dtype=np.float32).reshape(16, 16)
    image = images.read(save(values, "TIFF"))
    assert image.pixels.min() == 0 and image.pixels.max() == 65535 and len(np.unique(image.pixels)) == 256
    assert "-1.5 to 2.5" in dict(image.changes)["data.depth"]
    assert (images.read(save(np.full((16, 16), 3.0, np.float32), "TIFF")).pixels == 0).all()
    whole = images.read(save(RAMP.astype(np.int32) // 16, "TIFF"))
    assert whole.depth == 12 and whole.pixels.max() == 65535
    assert images.read(save(RAMP.astype(np.int32) * 100, "TIFF")).pixels.max() == 65535


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "PNG"])
def test_the_first_of_several_frames_is_taken(kind):
    frames = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (50, 150, 250)]
    image = images.read(
        save(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {}))
    )
    assert codes(image) == ["data.frames"] and (image.pixels == 50).all()


def test_the_format_is_found_from_the_content():
    assert images.read(save(COLOR, "JPEG")).format == "JPEG"


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 40), st.integers(8, 40), st.integers(8, 40), st.sampled_from([np.uint8, np.uint16]), st.integers(0, 99))
def test_fit_keeps_type_shape_and_constants(height, width, size, dtype, seed):
    level = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, endpoint=True)
    fitted = images.fit(np.full((height, width, 3), level, dtype), size)
    assert fitted.shape == (size, size, 3) and fitted.dtype == dtype and (fitted == level).all()


def test_fit_crops_the_centre_and_leaves_a_square_of_that_size_alone():
    np.testing.assert_array_equal(images.fit(COLOR, 40), COLOR[:, 10:50])
    deep = np.repeat(RAMP[..., None], 3, axis=-1)
    np.testing.assert_array_equal(images.fit(deep, 64), deep)


def test_fit_is_antialiased_and_the_same_at_both_depths():
    checks = np.repeat((np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=-1)
    assert images.fit(checks, 32)[4:-4, 4:-4].std() < 10  # without antialiasing it would be black or white
    wide = np.repeat(COLOR, 2, axis=0)
    deep = images.fit(wide.astype(np.uint16) * 257, 24)
    np.testing.assert_allclose(deep / 257, images.fit(wide, 24), atol=1.0)


def test_encode_is_lossless_and_refuses_other_arrays():
    for levels in (COLOR, COLOR[..., :1], COLOR[..., 0]):
        read = images.read(images.encode(levels)).pixels
        np.testing.assert_array_equal(read, np.broadcast_to(levels.reshape(40, 60, -1), read.shape))
    np.testing.assert_array_equal(images.read(images.encode(RAMP)).pixels[..., 0], RAMP)
    with pytest.raises(ValueError, match="float64"):
        images.encode(np.zeros((16, 16)))

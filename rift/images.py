"""The one image reader: encoded bytes in, `(h, w, 3)` pixels out, and a record of whatever had to be altered on the way.

PNG, JPEG, TIFF, BMP, WebP and DICOM are read; every picture is decoded to its last pixel, so a damaged one is found here.
Pictures deeper than 8 bits keep their levels as uint16. Two exceptions are said in `changes`: colored TIFF of 16 bits
(Pillow reads 8 of them), and 32-bit integer or float values that do not fit into 16 bits (stretched from smallest to largest).
Color profiles (ICC) are not applied; one other than sRGB is said.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image as pillow
from PIL import ImageChops

from rift import dicom
from rift.errors import DataError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
MOST_PIXELS, LONGEST_SIDE, SHORTEST_SIDE = 50_000_000, 20_000, 8
DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras, X-ray and CT devices use
_ALLOWED = "PNG, JPEG, TIFF, BMP, WebP and DICOM are read"
_HEADLESS = "DICOM without the 128 bytes and the word DICM that such a file begins with (save it as a DICOM file again), or it is"
_KEPT = ("data.depth", "Deeper than 8 bits: its levels are kept in 16 bits and scaled with those of the whole set.")
_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_OTHERS = {
    b"GIF8": "a GIF",
    b"%!PS": "an EPS",
    b"\xc5\xd0\xd3\xc6": "an EPS",
    b"%PDF": "a PDF",
    b"PK\3\4": "an archive inside the upload, and those are not unpacked",
    b"\x1f\x8b": "an archive inside the upload, and those are not unpacked",
    b"7z\xbc\xaf": "an archive inside the upload, and those are not unpacked",
    b"Rar!": "an archive inside the upload, and those are not unpacked",
    b"<": "a web page or an SVG drawing",
    **dict.fromkeys((b"\2\0\0\0", b"\2\0\1\0", b"\x08\0\0\0", b"\x08\0\5\0", b"\x08\0\x08\0", b"\x08\0\x16\0"), _HEADLESS),
}
_TURNS = {  # EXIF orientation to what makes the picture upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@dataclass(frozen=True, eq=False)
class Image:
    """A decoded picture."""

    pixels: np.ndarray  # (h, w, 3) uint8, or uint16 over the full range 0 to 65535 where the source is deeper
    depth: int  # bits that the levels use, one of DEPTHS; 8 for ordinary pictures and for 16-bit files that use no more
    format: str  # one of FORMATS or DICOM, found from the content
    changes: tuple[tuple[str, str], ...]  # (code, sentence) for everything that was altered
    patient: str = ""  # of DICOM, with a salt: a keyed hash of the patient's ID


def read(data: bytes, *, depth: int | None = None, salt: bytes = b"") -> Image:
    """Decode a picture; deeper ones are scaled so that level 2**depth - 1 becomes 65535 (their own depth by default).

    Pictures of one set must share one `depth`, or a dark picture would be brightened. Raises `data.image` for a picture that is
    damaged, cut short, of another format, smaller than 8 px, larger than 50 Mpx or 20 000 px, or holds NaN, and of DICOM what
    `dicom.read` raises. With a `salt`, DICOM's patient is told as a hash under this key.
    """
    _refuse_other(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; damaged pixels raise
            return _decode_dicom(data, salt) if _is_dicom(data) else _decode(data, depth)
    except DataError:
        raise
    except pillow.DecompressionBombError:
        told = f"The picture has far more than the {MOST_PIXELS // 10**6} megapixels allowed."
    except Exception as error:  # decoders raise dozens of kinds; each of them means the same to the user
        told = f"The picture is damaged or cut short ({type(error).__name__}); export or copy it again."
    raise DataError("data.image", told)  # out here, so that the decoder's own words, which may quote a header, are gone


def kept(image: Image, data: bytes) -> bytes:
    """Return the bytes to keep of a file that was read: its own, but of DICOM the picture alone, as PNG."""
    if image.format != "DICOM":
        return data
    return encode(image.pixels[..., :1] if is_gray(image.pixels) else image.pixels)


def fit(pixels: np.ndarray, size: int) -> np.ndarray:
    """Crop the centre square of `(h, w, 3)` and resize it to `(size, size, 3)`: antialiased bicubic, same dtype and range."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(square)
    if pixels.dtype == np.uint8:
        return np.asarray(pillow.fromarray(np.ascontiguousarray(square)).resize((size, size), pillow.Resampling.BICUBIC))
    channels = [
        np.asarray(pillow.fromarray(square[..., c].astype(np.float32)).resize((size, size), pillow.Resampling.BICUBIC))
        for c in range(3)
    ]
    return np.stack(channels, axis=-1).round().clip(0, 65535).astype(np.uint16)


def encode(pixels: np.ndarray) -> bytes:
    """Write `(h, w)` uint8 or uint16, `(h, w, 1)` or `(h, w, 3)` uint8 as PNG, without loss."""
    flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if flat.dtype not in (np.uint8, np.uint16) or flat.ndim not in (2, 3) or (flat.ndim == 3 and flat.dtype != np.uint8):
        raise ValueError(f"cannot store {pixels.dtype} of shape {pixels.shape}: (h, w) uint8 or uint16, or (h, w, 3) uint8")
    file = io.BytesIO()
    pillow.fromarray(np.ascontiguousarray(flat)).save(file, "PNG", compress_level=4)
    return file.getvalue()


def jpeg(pixels: np.ndarray) -> bytes:
    """Return `(h, w, 3)` uint8 or uint16 as a JPEG file to look at, never to train on."""
    shallow = pixels if pixels.dtype == np.uint8 else pixels >> 8
    file = io.BytesIO()
    pillow.fromarray(np.ascontiguousarray(shallow, dtype=np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


def is_gray(pixels: np.ndarray) -> bool:
    """Tell whether all three channels of `(h, w, 3)` are equal."""
    return bool(np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 1], pixels[..., 2]))


def _refuse_other(data: bytes) -> None:
    if not data:
        raise DataError("data.image", "The file is empty (0 bytes); copy it again.")
    if _is_dicom(data) or data.startswith(_STARTS) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        return
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    kind = next((name for mark, name in _OTHERS.items() if start.startswith(mark)), None)
    if data[4:8] == b"ftyp":
        kind = "a HEIC or AVIF picture or a film"
    raise DataError("data.image", f"The file is {kind or 'no picture this app knows'}, whatever its name says; {_ALLOWED}.")


def _refuse_size(width: int, height: int) -> None:
    if min(width, height) < SHORTEST_SIDE:
        raise DataError("data.image", f"The picture is {width} x {height} px; each side needs at least {SHORTEST_SIDE} px.")
    if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
        limit = f"{MOST_PIXELS // 10**6} megapixels and {LONGEST_SIDE} px a side are allowed"
        raise DataError("data.image", f"The picture is {width} x {height} px; {limit}: make it smaller.")


def _is_dicom(data: bytes) -> bool:
    return data[128:132] == b"DICM"  # its first 128 bytes may be anything, even those of a TIFF or of a program


def _decode_dicom(data: bytes, salt: bytes) -> Image:
    frame = dicom.read(data, _refuse_size, salt)
    levels = frame.levels if frame.levels.ndim == 3 else np.repeat(frame.levels[..., None], 3, axis=-1)
    return Image(levels, 8 * levels.dtype.itemsize, "DICOM", frame.changes, frame.patient)


def _decode(data: bytes, depth: int | None) -> Image:
    picture = pillow.open(io.BytesIO(data), formats=FORMATS)
    _refuse_size(*picture.size)
    changes: list[tuple[str, str]] = []
    if picture.getexif().get(0x0112, 1) in _TURNS:
        changes.append(("data.orientation", "Turned upright as its EXIF orientation says."))
    if getattr(picture, "is_animated", False):
        changes.append(("data.frames", "It holds several frames or pages; the first is used."))
    profile = picture.info.get("icc_profile") or b"sRGB"
    if b"sRGB" not in profile.replace(b"\0", b""):  # newer profiles hold their name in UTF-16
        changes.append(("data.color", "Its color profile is not sRGB and is not applied; colors may look different."))
    kind = "JPEG" if picture.format == "MPO" else str(picture.format)
    picture.load()  # all of it, or an error: LOAD_TRUNCATED_IMAGES stays unset
    values = _deep(picture, data, changes)
    levels = 8
    if values is None:
        values = np.asarray(_to_rgb(picture, changes))
    else:
        brightest = int(values.max())
        levels = next(bits for bits in DEPTHS if brightest < 2**bits)
        scaled_to = levels if depth is None else depth
        values = values.astype(np.uint8) if scaled_to == 8 else _scale(values, scaled_to)
        values = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=-1)
    # Pillow turns a TIFF while loading and then drops the tag, so the tag is asked again.
    turn = _TURNS.get(picture.getexif().get(0x0112, 1), lambda a: a)
    return Image(np.ascontiguousarray(turn(values)), levels, kind, tuple(changes))


def _deep(picture: pillow.Image, data: bytes, changes: list[tuple[str, str]]) -> np.ndarray | None:
    """Return `(h, w)` or `(h, w, 3)` uint16 levels of a picture deeper than 8 bits, None for the others."""
    bits = picture.tag_v2.get(258, (8,)) if picture.format == "TIFF" else (8,)  # type: ignore[attr-defined]
    if picture.format == "PNG" and data[24] == 16 and data[25] in (2, 4, 6):
        values = _deep_png(data, changes)
    elif picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.uint16)
        if picture.format == "TIFF" and picture.tag_v2.get(262) == 0:  # type: ignore[attr-defined]
            top = next(2**depth - 1 for depth in DEPTHS if values.max() < 2**depth)
            values = top - values
            changes.append(("data.color", "Its levels are stored with 0 as white; inverted."))
    elif picture.mode in ("I", "F"):
        return _stretch(np.asarray(picture), changes)
    else:
        if max(bits) > 8:
            changes.append(
                ("data.depth", f"TIFF with {max(bits)} bits per color is read at 8 bits; 16-bit PNG keeps all levels.")
            )
        return None
    changes.append(_KEPT)
    return values


def _deep_png(data: bytes, changes: list[tuple[str, str]]) -> np.ndarray:
    """Decode a PNG of 16 bits with color or alpha; Pillow would keep 8 of them."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    tensor = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.UNCHANGED)
    values = tensor.permute(1, 2, 0).numpy()
    if values.shape[2] in (2, 4):
        values, alpha = values[..., :-1], values[..., -1:]
        if alpha.min() < 65535:
            changes.append(("data.alpha", "Transparent parts were laid over black."))
            values = ((values.astype(np.uint32) * alpha + 32767) // 65535).astype(np.uint16)
    return values if values.shape[2] == 3 else values[..., 0]


def _stretch(values: np.ndarray, changes: list[tuple[str, str]]) -> np.ndarray:
    """Return integer levels that fit into 16 bits as they are; stretch all others from their smallest to their largest."""
    if not np.isfinite(values).all():
        raise DataError("data.image", "The picture holds NaN or infinite values; replace them and export it again.")
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind in "iu" and low >= 0 and high <= 65535:
        changes.append(
            ("data.depth", "Deeper than 8 bits: its levels are kept in 16 bits and scaled with those of the whole set.")
        )
        return values.astype(np.uint16)
    changes.append(
        ("data.depth", f"Its values from {low:g} to {high:g} were stretched to black and white, for this picture alone.")
    )
    scaled = (values.astype(np.float64) - low) * (65535.0 / (high - low) if high > low else 0.0)
    return scaled.round().astype(np.uint16)


def _scale(values: np.ndarray, depth: int) -> np.ndarray:
    if depth == 16:
        return values
    top = 2**depth - 1
    return ((values.astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16)


def _to_rgb(picture: pillow.Image, changes: list[tuple[str, str]]) -> pillow.Image:
    """Return 8-bit RGB, with alpha laid over black so that no hidden color comes back."""
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
        straight = picture.convert({"La": "LA", "RGBa": "RGBA"}.get(picture.mode, picture.mode)).convert("RGBA")
        alpha = straight.getchannel("A")
        if alpha.getextrema() == (255, 255):
            return straight.convert("RGB")
        changes.append(("data.alpha", "Transparent parts were laid over black."))
        return ImageChops.multiply(straight.convert("RGB"), pillow.merge("RGB", [alpha] * 3))
    if picture.mode == "1":
        changes.append(("data.depth", "One bit per pixel: black became 0 and white 255."))
    elif picture.mode not in ("L", "P", "RGB"):
        changes.append(("data.color", f"Converted from {picture.mode} to RGB; colors may differ slightly."))
    return picture.convert("RGB")

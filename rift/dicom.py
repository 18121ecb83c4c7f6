"""DICOM files behind the one image reader: bytes in, the levels of one frame out, shown as the file asks.

Of a header only the allow-listed elements below are ever looked at, all of them about the pixels but one, the patient's ID, which
leaves this file as a keyed hash alone. No value of a header is in any sentence. Order (PS3.4 N.2): stored values, modality
(rescale or LUT), values of interest (window or LUT), then inversion of MONOCHROME1. Overlays are not drawn.

Decoders: pydicom's own for uncompressed and deflated, Pillow (JPEG, RLE), GDCM (JPEG lossless, JPEG-LS) and OpenJPEG (JPEG
2000, HTJ2K), all under permissive licenses. JPEG of 12 bits and films (MPEG) are not read.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image as pillow

from rift import windows
from rift.errors import DataError

MOST_BYTES = 100_000_000  # that a deflated file may hold, as many as any one file
_META = ("TransferSyntaxUID", "MediaStorageSOPClassUID")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_SHAPE = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration")
_DEPTH = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "BurnedInAnnotation")
_PALETTE = [f"{color}PaletteColorLookupTable{part}" for color in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")]
ALLOWED = (*_PIXELS, *_SHAPE, *_DEPTH, *_PALETTE, "ExtendedOffsetTable", "ExtendedOffsetTableLengths", *windows.ELEMENTS)
_IMPLICIT, _DEFLATED, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
_RAW = (_IMPLICIT, "1.2.840.10008.1.2.1", _DEFLATED, _BIG_ENDIAN)
_EXTENDED, _RLE = "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.5"
_DECODERS = {"1.2.840.10008.1.2.4.50": "pillow", _EXTENDED: "pillow"}
_DECODERS |= {f"1.2.840.10008.1.2.4.{end}": "gdcm" for end in (57, 70, 80, 81)}  # lossless JPEG, JPEG-LS
_DECODERS |= {f"1.2.840.10008.1.2.4.{end}": "pylibjpeg" for end in (90, 91, 201, 202, 203)}  # JPEG 2000, HTJ2K
_COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_SHOWN = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", *_COLORS)
_PICTURELESS = "The file is DICOM without a picture: a report, a PDF or a plan, or it was cut short in its pixels; leave it out."
_KEPT = "Its pixels were kept, and nothing of its header"


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a DICOM file."""

    levels: np.ndarray  # (h, w) or (h, w, 3) uint8, or (h, w) uint16; black is 0, white the largest of its type
    changes: tuple[tuple[str, str], ...]  # (code, sentence)
    patient: str  # keyed hash of the patient's ID; "" where there is none, or no key was given


def read(data: bytes, refuse_size: Callable[[int, int], None], salt: bytes = b"") -> Frame:
    """Decode the middle frame; `refuse_size(width, height)` is asked before any pixel is decoded.

    Raises `data.image` for what holds no picture or one that is not read or not whole, `data.bomb` for a deflated file beyond
    100 MB, `data.burned_in` where the file says that its picture bears annotations. Whatever a decoder raises comes through.
    """
    found, syntax = _elements(data, salt)
    if _text(found, "BurnedInAnnotation") == "YES":
        what = "The file says that writing is burned into its picture (BurnedInAnnotation), which may name the patient"
        raise DataError("data.burned_in", f"{what}; leave it out, or cover the writing and say so in the file.")
    kind = next((name for name in _PIXELS if name in found), None)
    if kind is None:
        raise DataError("data.image", _PICTURELESS)
    look = _text(found, "PhotometricInterpretation")
    if look not in _SHOWN:
        raise DataError("data.image", "The DICOM file's way to store color is not read; export it as RGB or as PNG.")
    refuse_size(int(found.Columns), int(found.Rows))
    frames = max(1, int(found.get("NumberOfFrames") or 1))
    index = (frames - 1) // 2
    changes: list[tuple[str, str]] = []
    if frames > 1:
        changes.append(("data.frames", "It holds several frames; the middle one is used."))
    values = _stored(found, syntax, kind, look, index, frames)
    if look in ("MONOCHROME1", "MONOCHROME2"):
        levels = _gray(values, found, windows.places(found, index), kind, look, changes)
    else:
        levels = _color(values, found, look, syntax, changes)
    unsaid = "" if _text(found, "BurnedInAnnotation") == "NO" else "; it does not say whether writing is part of the picture"
    program = " It began like a program (MZ)." if data[:2] == b"MZ" else ""
    changes.append(("data.header", f"{_KEPT}{unsaid}.{program}"))
    who = _text(found, "PatientID").encode()
    return Frame(levels, tuple(changes), hashlib.blake2b(who, key=salt, digest_size=16).hexdigest() if salt and who else "")


def _elements(data: bytes, salt: bytes) -> tuple[Any, str]:
    """Return the allow-listed elements and the transfer syntax; a deflated file is inflated up to its limit and no further."""
    from pydicom.filereader import read_dataset
    from pydicom.tag import Tag

    _hush()
    file = BytesIO(data)
    file.seek(132)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, size: tag.group != 2, specific_tags=[Tag(n) for n in _META])
    syntax = str(meta.get("TransferSyntaxUID") or _IMPLICIT)
    if str(meta.get("MediaStorageSOPClassUID")) == "1.2.840.10008.1.3.10":
        raise DataError("data.image", "The file is the directory of a DICOM disc (DICOMDIR), not a picture; it was left out.")
    if syntax not in (*_RAW, *_DECODERS, _RLE):
        raise DataError("data.image", _unread(syntax))
    if syntax == _DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        file = BytesIO(inflater.decompress(data[file.tell() :], MOST_BYTES + 1))
        if file.getbuffer().nbytes > MOST_BYTES:
            raise DataError(
                "data.bomb", f"The deflated DICOM file would expand beyond {MOST_BYTES // 10**6} MB; save it uncompressed."
            )
        if not inflater.eof:
            raise DataError("data.image", "The deflated DICOM file is cut short; export or copy it again.")
    wanted: list[Any] = [Tag(name) for name in (*ALLOWED, *(["PatientID"] if salt else []))]
    last, how = Tag("PixelData"), (syntax == _IMPLICIT, syntax != _BIG_ENDIAN)
    return read_dataset(file, *how, stop_when=lambda tag, vr, size: tag > last, specific_tags=wanted), syntax


def _hush() -> None:
    """Keep the libraries from telling a log or the terminal what a header holds."""
    logging.getLogger("pydicom").disabled = True


def _unread(syntax: str, more: str = "") -> str:
    """Name a transfer syntax in the standard's words; one that the standard does not know could say anything."""
    from pydicom.uid import UID_dictionary

    entry = UID_dictionary.get(syntax, ("", ""))
    name = entry[0] if entry[1] == "Transfer Syntax" else "a compression that the standard does not know"
    return f"The DICOM file is compressed as {name}{more}, which is not read; export it uncompressed or as JPEG 2000."


def _text(found: Any, name: str) -> str:
    return str(found.get(name) or "").strip().upper()


def _stored(found: Any, syntax: str, kind: str, look: str, index: int, frames: int) -> np.ndarray:
    """Return the stored values of one frame, `(h, w)` or `(h, w, 3)` as RGB; what does not fit its header is not decoded."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    samples, bits = int(found.get("SamplesPerPixel") or 1), int(found.BitsAllocated)
    if samples != (3 if look in _COLORS else 1):
        raise DataError("data.image", "The DICOM header contradicts itself about color; export the picture again.")
    decoder = _DECODERS.get(syntax, "")
    if syntax == _RLE:
        found.PixelData, found.PlanarConfiguration = (
            _unpacked(_packed(found, index, frames), found, samples * bits // 8, samples),
            0,
        )
        syntax, index, frames, found.NumberOfFrames = _RAW[1], 0, 1, 1
    if syntax in _RAW:
        each = int(found.Rows) * int(found.Columns) * samples * bits / 8 * (2 / 3 if look == "YBR_FULL_422" else 1)
        spare = len(found[kind].value or b"") - each * frames
        if spare < 0 or spare >= max(2, each / max(int(found.Rows), int(found.Columns))):  # padding is usual, a row is a lie
            what = "fewer" if spare < 0 else "more"
            raise DataError("data.image", f"The DICOM file holds {what} pixels than its header says; export or copy it again.")
    else:
        if syntax == _EXTENDED and int(found.BitsStored) > 8:
            raise DataError("data.image", _unread(syntax, " of 12 bits"))
        _refuse_other_size(_packed(found, index, frames), found, samples)
    # A value may lie higher than its lowest bits; the decoder cuts off what is above, and the shift what is below.
    shift = max(0, int(found.get("HighBit") or 0) + 1 - int(found.BitsStored)) if kind == "PixelData" and bits in (8, 16) else 0
    if shift:
        found.BitsStored = min(bits, int(found.HighBit) + 1)
    values, _ = get_decoder(UID(syntax)).as_array(found, index=index, decoding_plugin=decoder)
    return values >> shift if shift else values


def _packed(found: Any, index: int, frames: int) -> bytes:
    from pydicom.encaps import get_frame

    offsets = (found.ExtendedOffsetTable, found.ExtendedOffsetTableLengths) if "ExtendedOffsetTable" in found else None
    return get_frame(found.PixelData, index, number_of_frames=frames, extended_offsets=offsets)


def _unpacked(frame: bytes, found: Any, planes: int, samples: int) -> bytes:
    """Undo RLE (PS3.5 annex G) by Pillow's PackBits, which never writes more than the pixels there are; as uncompressed bytes."""
    pixels = int(found.Rows) * int(found.Columns)
    count, *starts = struct.unpack_from("<16L", frame)
    if count != planes:
        raise DataError("data.image", "The DICOM header does not fit the compressed picture in it; export it again.")
    parts = [frame[start:end] for start, end in zip(starts[:count], [*starts[1:count], len(frame)], strict=True)]
    rows = [np.asarray(pillow.frombytes("L", (pixels, 1), part, "packbits", "L")) for part in parts]
    ordered = np.concatenate(rows).reshape(samples, planes // samples, pixels)[:, ::-1]  # the highest byte comes first
    return ordered.transpose(2, 0, 1).tobytes()


def _refuse_other_size(frame: bytes, found: Any, samples: int) -> None:
    """Compare what the compressed frame says of its own size with the header, and look for its end."""
    if b"\xff\xd9" not in frame[-64:]:
        raise DataError("data.image", "The compressed picture in the DICOM file is cut short; export or copy it again.")
    if _coded_size(frame) != (int(found.Columns), int(found.Rows), samples):
        raise DataError("data.image", "The DICOM header does not fit the compressed picture in it; export it again.")


def _coded_size(frame: bytes) -> tuple[int, int, int]:
    """Return columns, rows and samples as a JPEG, JPEG-LS (SOF) or JPEG 2000 stream (SIZ) states them."""
    if (start := frame.find(b"\xff\x4f\xff\x51", 0, 4096)) >= 0:
        right, bottom, left, top = struct.unpack_from(">4L", frame, start + 8)
        return right - left, bottom - top, struct.unpack_from(">H", frame, start + 40)[0]
    at = 2
    while frame[at + 1] not in {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}:
        at += 1 if frame[at + 1] == 0xFF else 2 + struct.unpack_from(">H", frame, at + 2)[0]
    rows, columns, samples = struct.unpack_from(">HHB", frame, at + 5)
    return columns, rows, samples


def _gray(stored: np.ndarray, found: Any, places: list[Any], kind: str, look: str, changes: list[tuple[str, str]]) -> np.ndarray:
    """Return stored values as they are to be looked at: uint8, or uint16 where they are deeper."""
    bits = int(found.BitsStored) if kind == "PixelData" else 32
    values, ends = windows.rescaled(stored, found, places, bits, changes)
    if not np.isfinite(values).all():
        raise DataError("data.image", "The picture holds NaN or infinite values; replace them and export it again.")
    shown, told = windows.through(values, places)
    if shown is None and not told and ends is not None:  # ordinary levels, as in any picture of 8 bits
        shown = windows.between(values, *ends)
    elif shown is None:
        inside = values[stored != found.PixelPaddingValue] if isinstance(found.get("PixelPaddingValue"), int) else values
        low, high = windows.ends(inside)
        shown = windows.between(values, low, high) if high > low else windows.between(values, values.min(), values.max())
        stretched = f"its values from the {windows.LOW:g} to the {windows.HIGH:g} percentile became black to white"
        told = f"{told or 'It has no window'}; {stretched}, for this picture alone."
    if told:
        changes.append(("data.window", told))
    if look == "MONOCHROME1":
        shown = 1 - shown
        changes.append(("data.color", "Its levels are stored with 0 as white (MONOCHROME1); inverted."))
    top, dtype = (255, np.uint8) if bits <= 8 else (65535, np.uint16)
    return np.rint(shown * np.float32(top)).astype(dtype)


def _color(values: np.ndarray, found: Any, look: str, syntax: str, changes: list[tuple[str, str]]) -> np.ndarray:
    """Return `(h, w, 3)` uint8 of color values, or of indices into the file's palette."""
    bits = int(found.BitsStored)
    if look == "PALETTE COLOR":
        values, bits = _painted(values, found, ">" if syntax == _BIG_ENDIAN else "<")
        changes.append(("data.color", "Its palette was turned into RGB."))
    elif look != "RGB":
        changes.append(("data.color", "Converted from YBR to RGB; colors may differ slightly."))
    if bits > 8:
        changes.append(("data.depth", "DICOM with more than 8 bits per color is read at 8 bits."))
        values = values >> (bits - 8)
    return values.clip(0, 255).astype(np.uint8)


def _painted(indices: np.ndarray, found: Any, order: str) -> tuple[np.ndarray, int]:
    """Look indices up in the three palettes (PS3.3 C.7.6.3.1.5); return `(h, w, 3)` and the bits of its levels."""
    channels = []
    for color in ("Red", "Green", "Blue"):
        data = found.get(f"{color}PaletteColorLookupTableData")
        if not data:
            raise DataError("data.image", "The DICOM file's palette is missing or stored in segments; export it as RGB.")
        entries, first, _ = (int(number) for number in found[f"{color}PaletteColorLookupTableDescriptor"].value)
        table = np.frombuffer(data, f"{order}u2" if len(data) >= 2 * (entries or 65536) else "u1")
        channels.append(table[np.clip(indices.astype(np.int32) - first, 0, min(entries or 65536, len(table)) - 1)])
    painted = np.stack(channels, axis=-1)
    return painted, 16 if painted.max() > 255 else 8  # some writers keep 8-bit levels in 16 bits

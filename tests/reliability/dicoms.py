"""DICOM files made in code: never a patient's."""

from __future__ import annotations

import base64
import io
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

RAMP = np.linspace(0, 4095, 32 * 48).astype(np.uint16).reshape(32, 48)  # 12 bits
COLOR = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
SMOOTH = np.stack([np.add.outer(np.arange(32) * 3, np.arange(48) * step).astype(np.uint8) for step in (1, 2, 3)], axis=-1)
HEAD = {"BurnedInAnnotation": "NO", "PatientID": "", "Modality": "OT", "SOPInstanceUID": "1.2.3.4"}
# 16 x 16 of 12 bits, the sum of its row and its column times 130, written once by imagecodecs 2026.3.6 (OpenJPH)
HTJ2K = (
    "/0//UQApQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3Bl"
    "bkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAIYAAf+TwAAmt/YFB3QAAMAAE0AAEwBG+QMHdABG+QMHdADAABPAABOAoIDyAoJ0AKAE5QCjVADAABVQAAVYSJAgQfKqcgJ1AEgi"
    "QYLkwEIB7LYAwAAtCAAFpgICAgICAgIC58p6enGCeAACBQQEBAQEBP79jGB79jGB7LoA/9k="
)

# A drawn ramp as JPEG-LS, changed by the fuzzer until GDCM's decoder ended the process: an exception that C++ catches nowhere
ENDS_GDCM = zlib.decompress(
    base64.b85decode(
        "c-p;EO-NKx6h8OOG+y%Wjg|~iaV-QF@woT>-oc2`8B57=#8E0Jn80n|PNPMWN~;!<&@Kqtv=WIRP!n?}EnD<M6GPA@Wr`>)gI?#p_bhbbvcr9R-~G<H=jYuE"
        "@Xvhs|CZ~|<~798fjB%t)PO*tM<E)~5J&rufG|u$+T0MFb7?q+Fl_vU;h{f<5j2Rf3>)`4?%Vd9P&?a@T!R+$^3ZF#2Ko)lm7LoaDncL#?%{{&Idb6`%He9z"
        "3dO#Ia4wh4vq))!?%sHyP~`h}Ng=hXO9~8f-4sl2x<Xi-0*8@&69{Yp6QsFJn;xSugjE5fOOP#UP#B>whAa*jiaGSo!q6b#yn2KT1_}x}=2n=&Sis6U%i$Su"
        "Suh5T*hgl+`E8jNX;(<sGA&DZ4i{2lhtiTBw>fH#XITuI_U2jKlgAZ~DYy{Qad1dSq|?&0)6%hp=StzYp2yRYVV7z`21)2IDr}9A1-*Bw`!A|D(Ft)>8X#X7"
        "EM)tJ3;AA?b*j5YFGFuKU>q3`#dKsOU{q!4P^=zVEYMVD5>x+lu+Ry^dQP3ie8qqXWFz`OLDjC_)Pwivqy6@ws-C67DnaeFzXjhnu|6jx3H}dgB)*SNEK3eS"
        "#(xWx5EcL6=z;QhJVwfyi*=CUsdyqrV&O`}Q}s}i2|~)NtW*kD_q5gs<=Gak%!X)#rX|7^r<`@)(i*5<%1mptG?ikvY5No{IS}HGu$G)TNzdwc+EYDz<|=N>"
        "bK6K-lVaCuSsz<C{B!K_rBnCLcidec+n8V6nAcVo16)Fbm1C7k4ec{|HeaiSZ2L+ju=laAOQ9_{uZ7OqmopoYw))Eml&uN!DU7eYt9v*R+W7Hnk+yo>i!}0K"
        "C#*RUWvfm+y%A=sUyh{Brk7EHg|4PZTixi2wAiD+VRLGa*{a`+sPVe{QKiY#FQWM8A9rSHKCv^w<f|yG?7#W#SAzTg0~aG}n*"
    )
)


def dataset(pixels: np.ndarray | None = RAMP, syntax: str = uid.ExplicitVRLittleEndian, **elements: Any) -> Dataset:
    """Return a dataset of `(h, w)`, `(h, w, 3)` or, with NumberOfFrames, one axis more; elements given as None are left out."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3.4"
    meta.TransferSyntaxUID = uid.UID(syntax)
    made = Dataset()
    made.file_meta = meta
    made.SOPClassUID = meta.MediaStorageSOPClassUID
    if pixels is not None:
        frames = "NumberOfFrames" in elements
        shape = pixels.shape[1:] if frames else pixels.shape
        made.Rows, made.Columns = shape[:2]
        made.SamplesPerPixel = 3 if len(shape) == 3 else 1
        made.PhotometricInterpretation = "RGB" if len(shape) == 3 else "MONOCHROME2"
        if len(shape) == 3:
            made.PlanarConfiguration = 0
        bits = 8 * pixels.dtype.itemsize
        made.BitsAllocated, made.BitsStored = bits, bits if bits == 8 or len(shape) == 3 else 12
        made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
        order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
        raw = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        made.PixelData = raw + b"\0" * (len(raw) % 2)
        made["PixelData"].VR = "OB" if bits == 8 else "OW"
    for name, value in {**HEAD, **elements}.items():
        if value is None:
            made.pop(name, None)
        else:
            setattr(made, name, value)
    return made


def written(made: Dataset, preamble: bytes = bytes(128)) -> bytes:
    """Return the bytes of a file."""
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True, overwrite=True)
    return preamble + file.getvalue()[128:]


def dicom(pixels: np.ndarray | None = RAMP, syntax: str = uid.ExplicitVRLittleEndian, **elements: Any) -> bytes:
    """Return a whole file; see `dataset`."""
    return written(dataset(pixels, syntax, **elements))


def compressed(pixels: np.ndarray, syntax: str, **elements: Any) -> bytes:
    """Return a file compressed by pydicom (RLE, JPEG 2000), by Pillow (JPEG) or by GDCM (lossless JPEG, JPEG-LS)."""
    if syntax == uid.JPEGBaseline8Bit:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=95)
        look = "YBR_FULL_422" if pixels.ndim == 3 else "MONOCHROME2"
        return enclosed(file.getvalue(), pixels, syntax, PhotometricInterpretation=look, **elements)
    made = dataset(pixels, **elements)
    if syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless):
        return _by_gdcm(written(made), syntax)
    if pixels.ndim == 3 and syntax == uid.JPEG2000Lossless:
        made.PhotometricInterpretation = "YBR_RCT"
    lossy = {"j2k_psnr": [60]} if syntax == uid.JPEG2000 else {}
    plugin = "pydicom" if syntax == uid.RLELossless else "pylibjpeg"
    made.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False, **lossy)
    return written(made)


def enclosed(frame: bytes, like: np.ndarray, syntax: str, **elements: Any) -> bytes:
    """Return a file around one compressed frame."""
    made = dataset(like, syntax, **elements)
    made.PixelData = encapsulate([frame])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return written(made)


def _by_gdcm(data: bytes, syntax: str) -> bytes:
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.dcm", Path(folder) / "after.dcm"
        before.write_bytes(data)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(before))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(after))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return after.read_bytes()


def deflated_bomb(megabytes: int = 400) -> bytes:
    """Return a small file in the deflated syntax that would expand to so many megabytes."""
    start = dicom(None, uid.DeflatedExplicitVRLittleEndian)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = squeeze.compress(struct.pack("<HH2sHL", 0x0008, 0x0100, b"UT", 0, megabytes * 10**6)) + squeeze.flush(
        zlib.Z_FULL_FLUSH
    )
    block = squeeze.compress(bytes(10**6)) + squeeze.flush(zlib.Z_FULL_FLUSH)  # which can be repeated
    return start[: _meta_end(start)] + head + block * megabytes + squeeze.flush()


def _meta_end(data: bytes) -> int:
    return 144 + struct.unpack_from("<L", data, 140)[0]

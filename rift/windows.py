"""DICOM's stored values as they are to be looked at: rescale, window or table of gray levels, to float32 between 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

LOW, HIGH = 0.5, 99.5  # percentiles that become black and white where no window can be used: our choice
ELEMENTS = (  # of a header, that are looked at here
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_UNUSABLE = "Its window cannot be used"


def places(found: Any, index: int) -> list[Any]:
    """Return where rescale and window may stand, the frame's own first: enhanced files keep them in groups."""
    groups = [found.get("PerFrameFunctionalGroupsSequence") or [], (found.get("SharedFunctionalGroupsSequence") or [])]
    own = [groups[0][index]] if index < len(groups[0]) else []
    macros = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
    return [*(item[name][0] for item in (*own, *groups[1][:1]) for name in macros if item.get(name)), found]


def _first(places: Sequence[Any], name: str) -> Any:
    return next((place.get(name) for place in places if place.get(name) not in (None, "")), None)


def rescaled(
    stored: np.ndarray, found: Any, places: list[Any], bits: int, changes: list[tuple[str, str]]
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Return float32 values after the modality LUT or rescale, and those of the lowest and highest level of an 8-bit picture."""
    if "ModalityLUTSequence" in found:
        from pydicom.pixels import apply_modality_lut

        return apply_modality_lut(stored, found).astype(np.float32), None
    try:
        slope, shift = (_first(places, name) for name in ("RescaleSlope", "RescaleIntercept"))
        slope, shift = float(1 if slope is None else slope), float(shift or 0)
    except (ValueError, TypeError, OverflowError):
        slope, shift = 0.0, 0.0
    if not (np.isfinite([slope, shift]).all() and 0 < abs(slope) < 1e9 and abs(shift) < 1e9):
        slope, shift = 1.0, 0.0
        changes.append(("data.window", "Its rescale cannot be used; the values are those that are stored."))
    ends = sorted((shift, (2**bits - 1) * slope + shift)) if bits <= 8 and found.get("PixelRepresentation") != 1 else None
    return stored.astype(np.float32) * np.float32(slope) + np.float32(shift), (ends[0], ends[1]) if ends else None


def through(values: np.ndarray, places: list[Any]) -> tuple[np.ndarray | None, str]:
    """Return values in [0, 1] as the file's VOI LUT or its first window shows them (PS3.3 C.11.2), and which it was.

    None where there is none, with an empty sentence, and where it cannot be used: no positive width, no numbers, or nearly all
    levels of a picture that has some become one.
    """
    try:
        if lut := _first(places, "VOILUTSequence"):
            from pydicom.pixels import apply_voi

            place = next(place for place in places if place.get("VOILUTSequence"))
            shown = apply_voi(values.astype(np.int32), place).astype(np.float32) / np.float32(2 ** lut[0].LUTDescriptor[2] - 1)
            told = "Shown through its table of gray levels (VOI LUT)."
        else:
            given = [_first(places, name) for name in ("WindowCenter", "WindowWidth")]
            if given == [None, None]:
                return None, ""
            center, width = (np.atleast_1d(np.asarray(one, float)) for one in given)
            told = f"Shown through {'its window' if center.size == 1 else 'the first of its windows'}."
            shown = _windowed(values, center[0], width[0], str(_first(places, "VOILUTFunction") or "LINEAR").strip().upper())
    except Exception:  # pydicom raises many kinds, and its words may hold values of the header
        return None, _UNUSABLE
    blind = _spread(values) > 0 and _spread(shown) < 1 / 256
    return (None, _UNUSABLE) if blind or not np.isfinite(shown).all() else (shown, told)


def _spread(values: np.ndarray) -> float:
    low, high = ends(values)
    return high - low


def ends(values: np.ndarray) -> tuple[float, float]:
    """Return the percentiles `LOW` and `HIGH`, of about a million values at most."""
    sample = values.reshape(-1)[:: 1 + values.size // 1_000_000]
    low, high = np.percentile(sample, (LOW, HIGH)) if sample.size else (0.0, 0.0)
    return float(low), float(high)


def _windowed(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    if not np.isfinite(center) or not 0 < width < 1e9 or (function == "LINEAR" and width < 1):
        raise ValueError("no window")
    if function == "SIGMOID":
        return (1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -50, 50)))).astype(np.float32)
    half = width / 2 if function == "LINEAR_EXACT" else (width - 1) / 2
    middle = center if function == "LINEAR_EXACT" else center - 0.5
    return between(values, middle - half, middle + half)


def between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map `low` to 0 and `high` to 1, clipped; float32."""
    if not high > low:
        return (values > low).astype(np.float32)
    scaled = (values - np.float32(low)) * np.float32(1 / (float(high) - float(low)))
    return np.clip(scaled, 0, 1, out=scaled)

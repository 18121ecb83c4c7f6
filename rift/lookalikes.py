"""Names that look the same to people and are not: letters of other alphabets, full-width forms, l and 1."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable


def skeleton(text: str) -> str:
    """Return what a name looks like: two names with the same skeleton are told apart by nobody (Unicode TS 39, section 4)."""
    from confusable_homoglyphs.confusables import confusables_data as seen_as  # a megabyte of characters

    def shape(letter: str) -> str:
        others = [entry["c"] for entry in seen_as.get(letter, ())]
        if len(others) != 1:  # none, or it is the one that others are taken for
            return letter
        return min(letter, others[0]) if len(seen_as.get(others[0], ())) == 1 else others[0]

    return "".join(map(shape, unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))))


def alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of different names that look the same."""
    first: dict[str, str] = {}
    found = []
    for name in sorted(names):
        other = first.setdefault(skeleton(name), name)
        if other != name:
            found.append((other, name))
    return found


def mixed(text: str) -> list[str]:
    """Return the alphabets that one word of the text mixes though they have letters that look alike; empty for ordinary names."""
    for word in re.findall(r"[^\W\d_]+", text):
        scripts = {unicodedata.name(letter, "?").split()[0] for letter in word}
        if len(scripts & {"LATIN", "CYRILLIC", "GREEK"}) > 1:
            return sorted(scripts)
    return []


def odd(text: str) -> str:
    """Return the letters of a name that are not ASCII as code points, for names that cannot be told apart by looking."""
    return " ".join(f"U+{ord(letter):04X}" for letter in text if not letter.isascii())

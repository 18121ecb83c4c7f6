"""The line-up of a comparison: which arms are trained, listed one by one or as methods x regularizers x strengths.

An arm is written `METHOD+REGULARIZER@STRENGTH`, for example `full+none`, `full+rift@1` or `lora:rank=4+rift:map=learned@auto`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rift import catalog, comparison
from rift.comparison import NONE, Arm
from rift.config import ArmOrder, Choice, Strength
from rift.errors import SettingError

MOST = 6
PAIR = ("full+none", "full+rift@1")
PRODUCT = ("methods", "regularizers", "strengths", "baseline")  # the fields of an order that say the same without a list
_DEFAULTS = (("full",), ("rift",), (1.0,))


def parse(text: str) -> ArmOrder:
    """Read `METHOD+REGULARIZER@STRENGTH`; the strength is 1 where it is left out. Raises `setting.range` for anything else."""
    whole, at, strength = text.strip().rpartition("@")
    whole, strength = (whole, strength) if at else (strength, "1")
    method, plus, regularizer = whole.partition("+") if not re.search(r"\+[a-z]", whole) else _halves(whole)
    if not plus or not method or not regularizer:
        wanted = "METHOD+REGULARIZER@STRENGTH, for example full+rift@1 or full+none"
        raise SettingError("setting.range", f"The arm {text[:80]!r} is not {wanted}.")
    (weight, *more) = catalog.strengths(f"The strength of the arm {text[:80]!r}:", strength)
    if more:
        raise SettingError("setting.range", f"The arm {text[:80]!r} has several strengths; write an arm for each.")
    return ArmOrder(method=catalog.parse(method), regularizer=catalog.parse(regularizer), strength=weight)


def _halves(text: str) -> tuple[str, str, str]:
    at = re.search(r"\+[a-z]", text).start()  # type: ignore[union-attr]  # a plus before a digit belongs to a number: 1e+05
    return text[:at], "+", text[at + 1 :]


def written(arm: ArmOrder) -> str:
    """Return an arm as `parse` reads it; options at their defaults are left out."""
    method, regularizer = (option(menu, one) for menu, one in (("methods", arm.method), ("regularizers", arm.regularizer)))
    return f"{method}+{regularizer}" + ("" if arm.regularizer.name == "none" else f"@{number(arm.strength)}")


def option(menu: str, choice: Choice) -> str:
    """Return a checked choice as the command line has it: `NAME`, or `NAME:key=value,key=value`."""
    options = ",".join(f"{key}={value}" for key, value in catalog.changed(menu, choice).items())
    return f"{choice.name}:{options}" if options else choice.name


def number(strength: Strength) -> str:
    """Return a strength in as few digits as say exactly the same."""
    if isinstance(strength, str):
        return strength
    short = f"{strength:g}"
    return short if float(short) == strength else repr(strength)


def said(arm: ArmOrder) -> str:
    """Return an arm in words: `rift, strength 1 (full)`."""
    if arm.regularizer.name == "none":
        return f"no regularizer ({option('methods', arm.method)})"
    strength = "strength chosen" if arm.strength == "auto" else f"strength {number(arm.strength)}"
    return f"{option('regularizers', arm.regularizer)}, {strength} ({option('methods', arm.method)})"


def checked(arms: Sequence[ArmOrder]) -> tuple[ArmOrder, ...]:
    """Return the arms with every option filled in.

    Raises `setting.range` for no arm, more than `MOST`, two that are the same, and one that changes nothing: a strength of 0,
    or a penalty where the method never trains the backbone.
    """
    if not 1 <= len(arms) <= MOST:
        raise SettingError("setting.range", f"A comparison has 1 to {MOST} arms; this has {len(arms)}.")
    without: Strength = "auto" if any(arm.strength == "auto" and arm.regularizer.name != "none" for arm in arms) else 0.0
    found: list[ArmOrder] = []
    for arm in arms:
        method, regularizer = catalog.check("methods", arm.method), catalog.check("regularizers", arm.regularizer)
        plain = regularizer.name == "none"
        one = ArmOrder(method=method, regularizer=regularizer, strength=without if plain else arm.strength)
        if not plain and one.strength == 0:
            mend = "give it a strength above 0, or take it away"
            raise SettingError("setting.range", f"The arm {said(one)} changes nothing: strength 0 is no regularizer; {mend}.")
        if not plain and comparison.never_trains(method):
            why = f"{method.name} never trains the backbone, so there is nothing a penalty could hold"
            raise SettingError(
                "setting.range", f"The arm {said(one)} changes nothing: {why}; take it away, or change its method."
            )
        if one in found:
            raise SettingError("setting.range", f"Two arms are the same: {said(one)}. Change one of them, or take it away.")
        found.append(one)
    return tuple(found)


def fields(arms: Sequence[ArmOrder]) -> dict[str, Any]:
    """Return the fields of an `Order` for these arms: their product where they are one, so that equal arms have one id."""
    wanted = checked(arms)
    penalties = [arm for arm in wanted if arm.regularizer.name != "none"]
    whole: dict[str, Any] = {
        "methods": _once(arm.method for arm in wanted),
        "regularizers": _once(arm.regularizer for arm in penalties),
        "strengths": _once(arm.strength for arm in penalties),
        "baseline": len(penalties) < len(wanted),
    }
    if penalties:
        same = [ArmOrder(method=one.method, regularizer=one.regularizer, strength=one.strength) for one in product(**whole)]
        if len(same) == len(wanted) and all(arm in same for arm in wanted):
            return whole
    return {"arms": wanted}


def _once(values: Any) -> tuple[Any, ...]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return tuple(found)


def asked(
    methods: Sequence[str], regularizers: Sequence[str], strengths: Sequence[Strength], arms: Sequence[str]
) -> dict[str, Any]:
    """Return the fields of an `Order` for what was written; `setting.unknown` where it was written in both ways."""
    if arms:
        if any(tuple(given) != default for given, default in zip((methods, regularizers, strengths), _DEFAULTS, strict=True)):
            raise SettingError("setting.unknown", "Give the arms one by one, or method, regularizer and strength, not both.")
        return fields([parse(text) for text in arms])
    found: dict[str, Any] = {
        "methods": tuple(catalog.check("methods", catalog.parse(text)) for text in methods),
        "regularizers": tuple(catalog.check("regularizers", catalog.parse(text)) for text in regularizers),
        "strengths": tuple(strengths),
    }
    comparison.plan(*found.values())
    return found


def plan(arms: Sequence[ArmOrder]) -> list[Arm]:
    """Return the arms of a list, checked, each with its unique name."""
    return comparison.named([(arm.method, arm.regularizer, arm.strength) for arm in checked(arms)])


def product(
    methods: Sequence[Choice], regularizers: Sequence[Choice], strengths: Sequence[Strength], baseline: bool = True
) -> list[Arm]:
    """Return every method x (none, then regularizer x strength); without the baseline only those with a regularizer, if any."""
    found = comparison.plan(methods, regularizers, strengths)
    return found if baseline else [replace(arm, same_as="") for arm in found if arm.regularizer.name != NONE.name] or found

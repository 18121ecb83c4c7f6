"""The folder is the menu: each file of a menu's folder is one choice, and one function in it is the choice.

The function's annotated keyword arguments are its settings: the form, the command line, the check and the error text all
come from that one line.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pydantic

from rift.config import Choice
from rift.errors import ModelError, SettingError

DOORS = {
    "backbones": "load",
    "methods": "adapt",
    "regularizers": "build",
    "tasks": "build",
    "diagnostics": "measure",
    "natural": "load",
    "samples": "load",
    "toys": "run",
}
_ROOT = Path(__file__).parent
LONGEST_SAID = 200  # characters of what somebody wrote that an error repeats
Model = typing.TypeVar("Model", bound=pydantic.BaseModel)


@functools.cache
def names(menu: str) -> tuple[str, ...]:
    """Return the choices of a menu: the names of its files, sorted; nothing is imported."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules([str(_ROOT / menu)]) if not m.name.startswith("_")))


def module(menu: str, name: str) -> ModuleType:
    """Import one choice; `setting.unknown` (for a backbone `model.unknown`) names the known ones."""
    if name not in names(menu):
        error, code = (ModelError, "model.unknown") if menu == "backbones" else (SettingError, "setting.unknown")
        raise error(code, f"There is no {menu.rstrip('s')} named {name[:LONGEST_SAID]!r}; there is {', '.join(names(menu))}.")
    return importlib.import_module(f"rift.{menu}.{name}")


def door(menu: str, name: str) -> Any:
    """Return the function that is the choice, for example `rift.regularizers.rift.build`."""
    return getattr(module(menu, name), DOORS[menu])


@functools.cache
def summary(menu: str, name: str) -> str:
    """Return the first paragraph of the choice's docstring as one line, read without importing it."""
    text = ast.get_docstring(ast.parse((_ROOT / menu / f"{name}.py").read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def captures(diagnostic: str) -> bool:
    """Return whether a diagnostic needs the models: then it has `capture`, and is measured when asked, not after training."""
    return hasattr(module("diagnostics", diagnostic), "capture")


def of_every_run(diagnostic: str) -> bool:
    """Return whether a diagnostic's figure takes every run, all seeds of an arm, instead of the first of each arm."""
    return bool(getattr(module("diagnostics", diagnostic), "EVERY_RUN", False))


def keywords(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return a function's keyword-only arguments by name: the annotation, and the default (`...` where there is none)."""
    found = {
        key: parameter
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    # of these alone: the others may be of types that are imported for checkers only
    written = SimpleNamespace(__annotations__={key: parameter.annotation for key, parameter in found.items()})
    hints = typing.get_type_hints(written, function.__globals__, include_extras=True)  # type: ignore[attr-defined]
    return {
        key: (hints[key], ... if parameter.default is inspect.Parameter.empty else parameter.default)
        for key, parameter in found.items()
    }


@functools.cache
def settings(menu: str, name: str) -> type[pydantic.BaseModel]:
    """Return a pydantic model of the choice's settings, made from the signature of its function.

    A diagnostic that captures has those of `capture` and of `measure` in one form; a name belongs to one of the two.
    """
    fields = keywords(door(menu, name))
    if menu == "diagnostics" and captures(name):
        first = keywords(module(menu, name).capture)
        assert not first.keys() & fields.keys(), f"{name}: capture and measure share the setting {first.keys() & fields.keys()}"
        fields = first | fields
    return _form(f"{menu}.{name}", fields)


@functools.cache
def look_settings(diagnostic: str) -> type[pydantic.BaseModel]:
    """Return a pydantic model of what can be set where a diagnostic is asked about one photo: the keywords of its `look`."""
    return _form(f"diagnostics.{diagnostic}.look", keywords(module("diagnostics", diagnostic).look))


def _form(name: str, fields: Mapping[str, tuple[Any, Any]]) -> type[pydantic.BaseModel]:
    config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
    return pydantic.create_model(name, __config__=config, **fields)  # type: ignore[call-overload]


def check(menu: str, choice: Choice, *, stored: bool = False) -> Choice:
    """Return the choice with every option converted and every default filled in, so that equal settings hash alike.

    Raises `setting.unknown` for a name that does not exist, `setting.range` for a value that is not allowed. One that is
    `stored` was checked when it was made: a file that it names need not be here any more.
    """
    options = of_preset(choice) if menu == "diagnostics" else choice.options
    whole = validated(settings(menu, choice.name), options, choice.name, stored)
    return Choice(name=choice.name, options=whole.model_dump(mode="json"))


def opens_files(menu: str, name: str) -> bool:
    """Return whether a choice opens a file that its options name: whoever may choose it, chooses among this machine's files."""
    return bool(getattr(module(menu, name), "OPENS_FILES", False))


def refuse_files(menu: str, text: str) -> None:
    """Refuse what somebody wrote from outside where it is no choice of the menu, or one that opens a file of this machine."""
    name = text.partition(":")[0].strip()
    if opens_files(menu, name):
        others = ", ".join(one for one in names(menu) if not opens_files(menu, one))
        why = f"{name} opens a file of the machine that the app runs on, so it can be chosen there only"
        raise ModelError("model.unknown", f"{why}: on its own page or its command line. There is {others}.")


def without_folders(menu: str, choice: Choice) -> Choice:
    """Return a choice as others may read it: of a file that it opens, the name and not where it lies."""
    if not opens_files(menu, choice.name):
        return choice
    last = {key: re.split(r"[/\\]", value)[-1] if isinstance(value, str) else value for key, value in choice.options.items()}
    return Choice(name=choice.name, options=last)


def presets(diagnostic: str) -> dict[str, dict[str, Any]]:
    """Return a diagnostic's named groups of settings; one that brings no `PRESETS` is as quick as it gets at its defaults."""
    return {"quick": {}, "default": {}} | getattr(module("diagnostics", diagnostic), "PRESETS", {})


def of_preset(choice: Choice) -> dict[str, Any]:
    """Return a diagnostic's options with `preset`, where there is one, replaced by what it stands for; options beside it win."""
    options = dict(choice.options)
    known, preset = presets(choice.name), options.pop("preset", "default")
    if preset not in known:
        raise SettingError("setting.range", f"{choice.name} has no preset {preset!r}; there is {', '.join(known)}.")
    return known[preset] | options


def validated(model: type[Model], values: Mapping[str, Any], where: str, stored: bool = False) -> Model:
    """Build a pydantic model from loose values; the first problem becomes a SettingError that says what is allowed."""
    known = model.model_fields
    for key in values:
        if key not in known:
            offer = f"its settings are {', '.join(known)}" if known else "it has no settings"
            raise SettingError("setting.unknown", f"{where} has no setting {str(key)[:LONGEST_SAID]!r}; {offer}.")
    try:
        return model.model_validate(dict(values), context={"stored": stored})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or where
        raise SettingError(
            "setting.range", f"{where}: {key} = {repr(first['input'])[:LONGEST_SAID]} is not allowed: {first['msg']}."
        ) from None


def parse(text: str) -> Choice:
    """Read `NAME` or `NAME:key=value,key=value` as written on the command line; values stay text until `check`."""
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise SettingError("setting.unknown", f"{part[:LONGEST_SAID]!r} in {text[:LONGEST_SAID]!r} is not key=value.")
        options[key.strip()] = value.strip()
    return Choice(name=name.strip(), options=options)


def strengths(option: str, text: str) -> list[Any]:
    """Read comma-separated strengths; `setting.range` for anything but `auto` and numbers from 0 to 1000000."""
    try:
        values: list[Any] = ["auto" if part == "auto" else float(part) for part in text.split(",")]
    except ValueError:
        raise SettingError(
            "setting.range", f"{option} {text[:80]!r} is not allowed: give auto or numbers of at least 0, for example 1."
        ) from None
    if not all(isinstance(value, str) or 0 <= value <= 1e6 for value in values):
        raise SettingError("setting.range", f"{option} {text[:80]!r} is not allowed: a strength lies between 0 and 1000000.")
    return values


def changed(menu: str, choice: Choice) -> dict[str, Any]:
    """Return the options of a checked choice that differ from their defaults, and those that have none."""
    fields = settings(menu, choice.name).model_fields
    return {key: value for key, value in choice.options.items() if fields[key].is_required() or fields[key].default != value}

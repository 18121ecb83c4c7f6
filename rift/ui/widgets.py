"""Settings become controls, errors become messages, and a user's text becomes harmless, each in this one place."""

from __future__ import annotations

import functools
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gradio as gr
import pydantic
from markupsafe import Markup

from rift import catalog
from rift.config import Choice
from rift.errors import UserError

# `show_progress_on`: else Gradio tells each output of each event that it waits, and looks for it in the whole page each time:
# of five seconds' work for opening a sub-tab all but a few tenths.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "show_progress_on": []}


def html(template: str, **values: Any) -> Markup:
    """Return markup in which every value is escaped; a part that is markup already comes as `Markup`."""
    return Markup(template).format(**values)


def join(template: str, rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the template once for each row, every value escaped."""
    return Markup("").join(Markup(template).format(**row) for row in rows)


def problem(error: UserError) -> Markup:
    """Return an error as a part of the page that stays, since a toast vanishes."""
    return html(
        '<div class="rift problem" role="alert"><b>{what}</b> <code>{code}</code></div>', what=str(error), code=error.code
    )


def told(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Let a UserError reach the person as a message; Gradio shows a message as markup, so its text is escaped here."""

    @functools.wraps(handler)
    def wrapped(*values: Any, **more: Any) -> Any:
        try:
            return handler(*values, **more)
        except UserError as error:
            said = html("{what} <code>{code}</code>", what=error.sentence, code=error.code)  # Gradio drops a title of ours
            raise gr.Error(said, print_exception=False) from None

    return wrapped


def dropped(**about: Any) -> gr.File:
    """Return a field for files that are read at once: its value is `(name, path)` of each, the name as the person has it.

    Gradio's own answer is a path under a name of its making, and leaves an empty file behind. `unlink` what was read.
    """
    field = gr.File(**about)
    field.preprocess = _given  # type: ignore[method-assign, assignment]  # of a subclass Gradio would write a file beside this one
    return field


def _given(payload: Any) -> list[tuple[str, Path]]:
    files = getattr(payload, "root", [payload]) if payload is not None else []
    return [(str(one.orig_name or Path(one.path).name), Path(one.path)) for one in files]


def control(name: str, field: pydantic.fields.FieldInfo, value: Any = None) -> Any:
    """Return the control of one setting: what it may hold, its default and its help come from its annotation."""
    value = field.default if value is None else value
    about: dict[str, Any] = {"label": name.replace("_", " ").capitalize(), "info": field.description, "min_width": 200}
    if field.is_required():
        about["value"] = None
    kind = field.annotation
    if typing.get_origin(kind) is typing.Literal:
        return gr.Dropdown(list(typing.get_args(kind)), **{"value": value, **about})
    if kind is bool:
        return gr.Checkbox(value=value, **{key: about[key] for key in ("label", "info", "min_width")})
    if kind in (int, float):  # no bounds: Gradio would refuse each keystroke in its own words; the check does it in ours
        return gr.Number(**{"value": value, **about}, precision=0 if kind is int else None)
    return gr.Textbox(**{"value": "" if field.is_required() else value, **about})


class Menu:
    """One menu of the catalog as a drop-down, the chosen one's sentence and its settings; `read` turns values into a Choice."""

    def __init__(self, menu: str, default: str, label: str, files: bool = True):
        """Build it; without `files` it has no choice that opens a file of this machine."""
        self.menu, names = menu, [name for name in catalog.names(menu) if files or not catalog.opens_files(menu, name)]
        self.pick = gr.Dropdown(list(names), value=default, label=label, elem_id=f"pick-{menu}")
        self.about = gr.HTML(self._about(default))
        self.inputs: list[Any] = [self.pick]
        self._places: dict[str, dict[str, int]] = {}
        groups: list[tuple[str, Any]] = []
        for name in names:
            fields = catalog.settings(menu, name).model_fields
            self._places[name] = {}
            if not fields:
                continue
            with gr.Accordion(f"Options of {name}", open=False, visible=name == default) as group, gr.Row():
                for key, field in fields.items():
                    self._places[name][key] = len(self.inputs)
                    self.inputs.append(control(key, field))
            groups.append((name, group))
        about = {name: self._about(name) for name in names}
        # on the page itself, which needs no answer of the server for it: the sentence is there with the choice
        shows = "".join(f", {{__type__: 'update', visible: chosen === {json.dumps(name)}}}" for name, _ in groups)
        self.pick.change(
            None, self.pick, [self.about, *(group for _, group in groups)], js=f"chosen => [({json.dumps(about)})[chosen]{shows}]"
        )

    def _about(self, name: str) -> str:
        return html('<p class="rift about">{text}</p>', text=catalog.summary(self.menu, name))

    def read(self, values: Sequence[Any]) -> Choice:
        """Return the checked choice of these values, in the order of `inputs`; an empty one is left to its default."""
        return catalog.check(self.menu, self.loose(values))

    def loose(self, values: Sequence[Any]) -> Choice:
        """Return the choice of these values as they were typed."""
        places = self._places[values[0]]
        return Choice(name=values[0], options={key: values[at] for key, at in places.items() if values[at] not in (None, "")})

    def show(self, choice: Choice) -> list[Any]:
        """Return a choice in the order of `inputs`, its own settings at their defaults where it says nothing."""
        shown: list[Any] = [choice.name] + [gr.skip()] * (len(self.inputs) - 1)
        fields = catalog.settings(self.menu, choice.name).model_fields
        for key, place in self._places[choice.name].items():
            shown[place] = choice.options.get(key, None if fields[key].is_required() else fields[key].default)
        return shown


class Form:
    """All settings of one pydantic model as controls."""

    def __init__(
        self, model: type[pydantic.BaseModel], hidden: Sequence[str] = (), values: Mapping[str, Any] = MappingProxyType({})
    ):
        self._model, self.names = model, [name for name in model.model_fields if name not in hidden]
        with gr.Row():
            self.inputs = [control(name, model.model_fields[name], values.get(name)) for name in self.names]

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the values by name; an empty one is left to its default."""
        return {name: value for name, value in zip(self.names, values, strict=True) if value not in (None, "")}

    def show(self, values: Mapping[str, Any]) -> list[Any]:
        """Return these values in the order of `inputs`, defaults where nothing is given."""
        return [values.get(name, self._model.model_fields[name].default) for name in self.names]

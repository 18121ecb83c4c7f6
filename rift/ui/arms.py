"""The arms of a comparison as a list to pick from and one form that changes the arm picked; nothing is known to a server.

The list lives in a hidden text of the page, and with it which arm the form holds, so that both always belong together however
fast a person is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr

from rift import catalog, lineup
from rift.config import ArmOrder, Choice
from rift.errors import SettingError, UserError
from rift.ui.widgets import PRIVATE, Menu

STRENGTH = (
    "How strongly the model is asked to keep its old view of images. 0 is ordinary finetuning; the penalty is relative, "
    "so 1 means about the same for every backbone. Try 0.1 and 10."
)
AUTO = (
    "Tries up to five strengths in short trainings and takes the largest that costs the task nothing these images could show. "
    "The arm without a penalty gets as many tries at its learning rate. Nearly three times as long."
)
SAME = "Otherwise each arm has its own."


class Arms:
    """The controls; `inputs` are read back by `read`, and `fill` gives the values that show other arms."""

    def __init__(self) -> None:
        pair = [lineup.parse(text) for text in lineup.PAIR]
        self.plan = gr.Textbox(_text(pair, 1), visible="hidden", elem_id="plan")
        with gr.Row():
            with gr.Column(min_width=320):
                self.pick = gr.Radio(
                    _labels(pair), value=1, label="Arms", elem_id="arms-list", info="Choose one to change it. Up to six."
                )
                with gr.Row():
                    self.add = gr.Button("Add an arm", size="sm", min_width=120, elem_id="add-arm")
                    self.remove = gr.Button("Remove this arm", size="sm", min_width=120, elem_id="remove-arm")
            with gr.Column(min_width=320):
                self.regularizer = Menu("regularizers", "rift", "Regularizer")
                self.strength = gr.Number(1.0, label="Strength λ", info=STRENGTH, elem_id="strength")
                self.auto = gr.Checkbox(False, label="Choose the strength on the validation images", info=AUTO, elem_id="auto")
            with gr.Column(min_width=320):
                self.method = Menu("methods", "full", "Finetuning method")
                self.same = gr.Checkbox(True, label="One method for all arms", info=SAME, elem_id="same-method")
        self.form = [self.strength, self.auto, *self.regularizer.inputs, *self.method.inputs]
        self.inputs: list[Any] = [self.plan, self.same, *self.form]

    def connect(self) -> None:
        """Let a click on an arm bring it into the form, and the two buttons add and remove."""
        shown, more = [self.plan, self.pick, *self.form], {**PRIVATE, "concurrency_limit": None}
        self.pick.input(lambda to, *values: self._move(values, to=to), [self.pick, *self.inputs], shown, **more)
        self.add.click(lambda *values: self._move(values, add=True), self.inputs, shown, **more)
        self.remove.click(lambda *values: self._move(values, remove=True), self.inputs, shown, **more)

    def raw(self, values: Sequence[Any]) -> tuple[list[ArmOrder], int]:
        """Return the arms as they stand, the one in the form as it is typed, and its place; wrong options are found later."""
        kept, same, strength, auto, *rest = values
        stored = json.loads(kept)
        arms, held = [_stored(one) for one in stored["arms"]], int(stored["held"])
        at = len(self.regularizer.inputs)
        method = self.method.loose(rest[at:])
        typed = -1.0 if strength is None or not 0 <= strength <= 1e6 else float(strength)
        weight: Any = "auto" if auto else typed
        now = ArmOrder.model_construct(method=method, regularizer=self.regularizer.loose(rest[:at]), strength=weight)
        arms[held] = now
        return [one.model_copy(update={"method": method}) for one in arms] if same else arms, held

    def read(self, values: Sequence[Any]) -> tuple[ArmOrder, ...]:
        """Return the checked arms; raises a SettingError in words."""
        arms, _ = self.raw(values)
        if any(one.strength == -1.0 for one in arms):
            raise SettingError("setting.range", "Give a strength between 0 and 1000000, for example 1.")
        return lineup.checked(arms)

    def label(self, values: Sequence[Any]) -> Any:
        """Return the list with the words of the arms as they stand."""
        arms, held = self.raw(values)
        return gr.Radio(choices=_labels(arms), value=held)

    def fill(self, arms: Sequence[ArmOrder], held: int) -> list[Any]:
        """Return the values of the plan, the list and the form that show these arms, this one in the form."""
        one = arms[held]
        auto = one.strength == "auto"
        form = [1.0 if auto or one.regularizer.name == "none" else one.strength, auto]
        form += [*self.regularizer.show(one.regularizer), *self.method.show(one.method)]
        return [_text(arms, held), gr.Radio(choices=_labels(arms), value=held), *form]

    def _move(self, values: Sequence[Any], to: int | None = None, *, add: bool = False, remove: bool = False) -> list[Any]:
        arms, held = self.raw(values)
        if add and len(arms) >= lineup.MOST:
            raise gr.Error(f"A comparison has at most {lineup.MOST} arms; take one away first.", print_exception=False)
        if remove and len(arms) == 1:
            raise gr.Error("One arm has to stay.", print_exception=False)
        if add:
            arms.append(_another(arms, arms[held]))
            held = len(arms) - 1
        elif remove:
            del arms[held]
            held = min(held, len(arms) - 1)
        else:
            held = held if to is None else min(max(0, int(to)), len(arms) - 1)
        return self.fill(arms, held)


def _another(arms: Sequence[ArmOrder], like: ArmOrder) -> ArmOrder:
    """Return an arm that is not there yet: ten times as strong as the newest of its kind."""
    base = like if like.regularizer.name != "none" else ArmOrder(method=like.method)
    taken = [one.strength for one in arms if one.regularizer == base.regularizer and not isinstance(one.strength, str)]
    strongest = max([one for one in taken if one > 0], default=0.1)
    return base.model_copy(update={"strength": min(strongest * 10, 1e6)})


def _text(arms: Sequence[ArmOrder], held: int) -> str:
    return json.dumps({"arms": [one.model_dump(mode="json") for one in arms], "held": held})


def _labels(arms: Sequence[ArmOrder]) -> list[tuple[str, int]]:
    return [(f"{place + 1}  {_said(one)}", place) for place, one in enumerate(arms)]


def _said(one: ArmOrder) -> str:
    try:
        whole = {menu: catalog.check(f"{menu}s", getattr(one, menu)) for menu in ("method", "regularizer")}
    except UserError:
        return f"{one.regularizer.name} ({one.method.name}): not allowed yet"
    return lineup.said(one.model_copy(update=whole))


def _stored(one: dict[str, Any]) -> ArmOrder:
    """Return an arm as it was kept, also one that is not allowed (yet)."""
    method, regularizer = (Choice(**one[key]) for key in ("method", "regularizer"))
    return ArmOrder.model_construct(method=method, regularizer=regularizer, strength=one["strength"])

"""An order in other words: as a command, as Python, and as a small file of settings that holds nothing of the images."""

from __future__ import annotations

import json
import shlex
from typing import Annotated, Any, Literal

from pydantic import Field

from rift import catalog, lineup, patients
from rift.archive import plain
from rift.config import ArmOrder, Choice, Settings, Training
from rift.dataset import ImageSet
from rift.errors import SettingError
from rift.orders import Order, experiments

MOST_BYTES = 64_000
SEEDS = 20  # that the page offers


def arms(order: Order) -> tuple[ArmOrder, ...]:
    """Return the arms of an order one by one, however it says them."""
    return tuple(ArmOrder(method=arm.method, regularizer=arm.regularizer, strength=arm.strength) for arm, _ in experiments(order))


def _asked(order: Order, images: ImageSet, source: str, natural: str) -> dict[str, Any]:
    """Return the arguments of `api.compare` that ask for the same; what is at its default is left out."""
    found: dict[str, Any] = {"data": source or "DATA", "out": "result"}
    if order.backbone.name != "embedded" or catalog.changed("backbones", order.backbone):
        found["backbone"] = lineup.option("backbones", order.backbone)
    if order.arms or not order.baseline or len(order.strengths) > 1:
        found["arms"] = [lineup.written(arm) for arm in arms(order)]
    else:
        found["methods"] = [lineup.option("methods", one) for one in order.methods]
        found["regularizers"] = [lineup.option("regularizers", one) for one in order.regularizers]
        found["strengths"] = list(order.strengths)
    default = Training()
    if training := {key: value for key, value in order.training if value != getattr(default, key)}:
        found["training"] = training
    if order.seeds > 1:
        found["seeds"] = order.seeds
    if natural:
        found["natural"] = natural
    if any(item.code == "data.left_out" for item in images.report.warnings):
        found["leave_out_small"] = True
    if (way := patients.chosen(images)) != patients.AUTO:
        found["patients"] = way
    if order.task.name != images.task:
        found["task"] = lineup.option("tasks", order.task)
    return found


def command(order: Order, images: ImageSet, source: str = "", natural: str = "") -> str:
    """Return the command that asks for the same order; `source` and `natural` are how the images were given."""
    asked = _asked(order, images, source, natural)
    parts = ["python", "-m", "rift", "compare", asked["data"], "--out", asked["out"]]
    parts += ["--backbone", asked["backbone"]] if "backbone" in asked else []
    for key, flag in (("methods", "--method"), ("regularizers", "--regularizer"), ("arms", "--arm")):
        parts += [word for text in asked.get(key, ()) for word in (flag, text)]
    parts += ["--strength", lineup.number(asked["strengths"][0])] if "strengths" in asked else []
    parts += [word for key, value in asked.get("training", {}).items() for word in ("--set", f"{key}={value}")]
    for key, flag in (("seeds", "--seeds"), ("natural", "--natural"), ("patients", "--patients"), ("task", "--task")):
        parts += [flag, str(asked[key])] if key in asked else []
    parts += ["--leave-out-small"] if "leave_out_small" in asked else []
    return shlex.join(parts)


def python(order: Order, images: ImageSet, source: str = "", natural: str = "") -> str:
    """Return the same as a Python program."""
    asked = _asked(order, images, source, natural)
    first = [repr(asked.pop("data")), repr(asked.pop("out"))]
    lines = first + [f"{key}={value!r}" for key, value in asked.items()]
    return "import rift\n\nrift.compare(\n" + "".join(f"    {line},\n" for line in lines) + ")\n"


class Saved(Settings):
    """The file of settings: how to train, not on what."""

    rift: Literal["settings"] = "settings"
    version: Literal[1] = 1
    backbone: Choice = Choice(name="embedded")
    arms: Annotated[tuple[ArmOrder, ...], Field(min_length=1, max_length=lineup.MOST)]
    training: Training = Training()
    seeds: Annotated[int, Field(ge=1, le=SEEDS)] = 1
    task: Choice | None = None  # None: what the labels ask for


def save(order: Order, images: ImageSet) -> str:
    """Return the settings of an order as JSON: no digest, no name and no path of any image."""
    task = None if order.task.name == images.task else order.task
    kept = Saved(backbone=order.backbone, arms=arms(order), training=order.training, seeds=order.seeds, task=task)
    return json.dumps(kept.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def load(data: bytes | str, *, files: bool = True) -> Saved:
    """Return the settings of a file, checked as if they had been typed; `files`: they may name weights on this machine.

    Raises `setting.range` or `setting.unknown`, each with one sentence, for a file that is too large, is none of ours, or holds
    a name or a value that is not allowed.
    """
    if len(data) > MOST_BYTES:
        most = f"{MOST_BYTES // 1000} kB"
        raise SettingError("setting.range", f"The file has over {most}, more than settings can; choose one that was saved here.")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise SettingError("setting.range", "The file is no JSON; choose a file of settings that was saved here.") from None
    if not isinstance(values, dict) or values.get("rift") != "settings":
        raise SettingError("setting.range", "The file is JSON, but no settings of RIFT Lab; choose one that was saved here.")
    try:
        found = catalog.validated(Saved, values, "The file of settings")
        if not files:
            catalog.refuse_files("backbones", found.backbone.name)
        task = catalog.check("tasks", found.task) if found.task else None
        backbone, lines = catalog.check("backbones", found.backbone), lineup.checked(found.arms)
    except SettingError as error:
        raise SettingError(error.code, plain(error.sentence, 400)) from None
    return found.model_copy(update={"backbone": backbone, "arms": lines, "task": task})

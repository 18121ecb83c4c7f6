"""What a comparison is called, by itself or by a person, and how its arms were trained, in the words of a person."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from rift import dataset, service
from rift.archive import plain
from rift.config import SHUFFLED, Settings
from rift.errors import RunError
from rift.orders import Order
from rift.runs import Lab, write_json

LONGEST_NAME = 80


class Label(Settings):
    """What a person said of a comparison: its name, empty where it has the one that it is born with, and whether it is pinned."""

    name: str = ""
    pinned: bool = False


def label_of(lab: Lab, name: str) -> Label:
    """Return what a person said of a comparison; a damaged note counts as none."""
    try:
        return Label.model_validate_json((lab.comparisons / name / "label.json").read_bytes())
    except (OSError, ValidationError):
        return Label()


def rename(lab: Lab, name: str, text: str) -> None:
    """Give a comparison a name; an empty one takes it back. `run.missing` where there is no such comparison."""
    _change(lab, name, name=plain(text, LONGEST_NAME))


def pin(lab: Lab, name: str, pinned: bool) -> None:
    """Let a comparison stand before the others, or no longer; `run.missing` where there is none."""
    _change(lab, name, pinned=pinned)


def _change(lab: Lab, comparison: str, **changed: Any) -> None:
    if comparison not in service.comparisons(lab):
        raise RunError("run.missing", "This comparison is no longer there; it may have been deleted.")
    new = label_of(lab, comparison).model_copy(update=changed)
    write_json(lab.comparisons / comparison / "label.json", new.model_dump())


def title(lab: Lab, name: str) -> str:
    """Return a comparison's name for people: the one that a person gave it, else the images and what is compared."""
    given = label_of(lab, name).name
    return given + _shuffled(service.order_of(lab, name)[0]) if given else made(lab, name)  # no name hides what was shuffled


def made(lab: Lab, name: str) -> str:
    """Return the name that a comparison is born with: the images and what is compared."""
    order, _ = service.order_of(lab, name)
    images = dataset.load(lab.data / order.data)
    task = "" if order.task.name == images.task else f", {order.task.name}"
    return f"{images.name}{task}{_shuffled(order)}: {' and '.join(arm.name for arm in service.arms(lab, name))}"


def _shuffled(order: Order) -> str:
    return f" ({SHUFFLED})" if order.training.shuffle_labels else ""


def about(lab: Lab, name: str) -> str:
    """Return in one line how the arms of a comparison were trained, and what is compared where its name does not say it."""
    order, _ = service.order_of(lab, name)
    training, first = order.training, service.arms(lab, name)[-1]
    seeds = f"{order.seeds} seeds" if order.seeds > 1 else "1 seed"
    options = ", ".join(f"{key} {_said(value)}" for key, value in first.regularizer.options.items())
    penalty = f"; {first.regularizer.name} ({options}), strength {_said(first.strength)}" if first.strength else ""
    drawn = f", {training.shots} training images of each class" if training.shots else ""
    drawn += ", classes drawn equally often" if training.balanced else ""
    drawn += ", training labels shuffled on purpose" if training.shuffle_labels else ""
    what = f"{made(lab, name)}. " if label_of(lab, name).name else ""
    return (
        f"{what}{order.backbone.name}, {first.method.name} finetuning, {training.epochs} epochs at learning rate "
        f"{training.learning_rate:g}{drawn}, {seeds}{penalty}."
    )


def _said(value: Any) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def when(time: str) -> str:
    """Return an ISO time in UTC to the minute, as a person reads it."""
    return f"{time[:16].replace('T', ' ')} UTC"

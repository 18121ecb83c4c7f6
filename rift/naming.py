"""What a comparison is called, and how its arms were trained, in the words of a person."""

from __future__ import annotations

from typing import Any

from rift import dataset, service
from rift.config import SHUFFLED
from rift.runs import Lab


def title(lab: Lab, name: str) -> str:
    """Return a comparison's name for people: the images and what is compared."""
    order, _ = service.order_of(lab, name)
    images = dataset.load(lab.data / order.data)
    task = "" if order.task.name == images.task else f", {order.task.name}"
    shuffled = f" ({SHUFFLED})" if order.training.shuffle_labels else ""
    return f"{images.name}{task}{shuffled}: {' and '.join(arm.name for arm in service.arms(lab, name))}"


def about(lab: Lab, name: str) -> str:
    """Return in one line how the arms of a comparison were trained."""
    order, _ = service.order_of(lab, name)
    training, first = order.training, service.arms(lab, name)[-1]
    seeds = f"{order.seeds} seeds" if order.seeds > 1 else "1 seed"
    options = ", ".join(f"{key} {_said(value)}" for key, value in first.regularizer.options.items())
    penalty = f"; {first.regularizer.name} ({options}), strength {_said(first.strength)}" if first.strength else ""
    drawn = f", {training.shots} training images of each class" if training.shots else ""
    drawn += ", classes drawn equally often" if training.balanced else ""
    drawn += ", training labels shuffled on purpose" if training.shuffle_labels else ""
    return (
        f"{order.backbone.name}, {first.method.name} finetuning, {training.epochs} epochs at learning rate "
        f"{training.learning_rate:g}{drawn}, {seeds}{penalty}."
    )


def _said(value: Any) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def label(lab: Lab, name: str) -> str:
    """Return a comparison's name and age for a list."""
    return f"{title(lab, name)}, {service.created(lab, name)[:16].replace('T', ' ')} UTC"

"""What a comparison is asked to be, and the experiments that follow from it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from rift import catalog, comparison, lineup
from rift.comparison import Arm
from rift.config import ArmOrder, Choice, Experiment, Settings, Strength, Training, digest

SINGLE = Choice(name="single_label")


class Order(Settings):
    """What a comparison is asked to be: `arms` as they are listed, else methods x regularizers x strengths and the baseline.

    Equal orders are the same comparison; `lineup.fields` gives equal arms the same form.
    """

    data: str  # digest of the image set
    natural: str  # digest of the natural set
    backbone: Choice = Choice(name="embedded")
    methods: tuple[Choice, ...] = (Choice(name="full"),)
    regularizers: tuple[Choice, ...] = (Choice(name="rift"),)
    strengths: tuple[Strength, ...] = (1.0,)
    baseline: bool = True  # also train every method without a regularizer
    training: Training = Training()
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    task: Annotated[Choice, Field(exclude_if=lambda task: task == SINGLE)] = SINGLE  # what the images' labels ask for
    arms: Annotated[tuple[ArmOrder, ...], Field(exclude_if=lambda arms: not arms, max_length=lineup.MOST)] = ()

    @model_validator(mode="after")
    def _arms_or_their_product(self) -> Order:
        changed = [name for name in lineup.PRODUCT if getattr(self, name) != type(self).model_fields[name].default]
        if self.arms and changed:
            raise ValueError(f"arms are listed one by one, so {changed[0]} must stay away")
        return self

    @property
    def id(self) -> str:
        """Name of the comparison: 16 hexadecimal digits of the hash of all settings."""
        return digest(self.model_dump(mode="json"))[:16]


def experiments(order: Order) -> list[tuple[Arm, list[Experiment]]]:
    """Return the arms of an order, each with its experiments by seed; raises a SettingError for a wrong choice."""
    arms = lineup.plan(order.arms) if order.arms else lineup.product(**{name: getattr(order, name) for name in lineup.PRODUCT})
    backbone, task = catalog.check("backbones", order.backbone, stored=True), catalog.check("tasks", order.task)

    def experiment(arm: Arm, seed: int) -> Experiment:
        return Experiment(
            data=order.data,
            natural=order.natural,
            task=task,
            backbone=backbone,
            method=arm.method,
            regularizer=arm.regularizer,
            strength=arm.strength,
            training=order.training,
            seed=seed,
        )

    named = {arm.name: arm for arm in arms}  # an arm that changes nothing has the runs of the one it is the same as
    asked = [[experiment(named.get(arm.same_as, arm), seed) for seed in range(order.seeds)] for arm in arms]
    return list(zip(comparison.marked(arms, order.training), asked, strict=True))

"""Another rank than the first of a run over several devices (see `distributed`): it trains with the worker and writes nothing."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from typing import Any

import torch

from rift import checkpoint, distributed, recipe, train, trials
from rift.errors import UserError
from rift.runs import Lab


def assist(lab: Lab, run: str, device: torch.device, rank: int, step: int, chosen: float | None) -> None:
    """Train a run that has done `step` steps, with the strength or rate that its trials chose, where there were any."""
    one = lab.run(run)
    _, _, pretrained, task, views = recipe.prepare(one, lab, device)
    experiment, strength = one.experiment, one.experiment.strength
    if chosen is not None:
        experiment, strength = trials.settled(experiment, chosen)
    state, stages = train.set_up(experiment, pretrained, task, views)
    if step:
        state.load(checkpoint.path(one.path / "checkpoint", step), lab.key, run)
    distributed.same(train.tensors(state))
    torch.manual_seed(experiment.seed + rank)  # dropout, where a method has any, draws other noise for each share
    for _ in train.train(state, task, views, experiment.training, float(strength), experiment.seed, dict, stages):
        pass


def main(about: dict[str, Any]) -> None:
    """Meet the other ranks, train and end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the worker is asked too, saves, and ends this process with itself
    device = torch.device(about["device"])
    distributed.join(about["rank"], about["ranks"], about["meeting"], device)
    with suppress(UserError):  # a training that diverges does so on every rank, and the worker tells it
        assist(Lab(about["lab"]), about["run"], device, about["rank"], about["step"], about["chosen"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

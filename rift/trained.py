"""Finished runs as models again: the pretrained backbone, and each run's own, on the CPU."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from rift import catalog, dataset
from rift.errors import RunError
from rift.model import Backbone, Classifier
from rift.runs import Lab, Run


def pretrained(run: Run) -> Backbone:
    """Return the pretrained backbone that a run started from; a ModelError where its weights are not at hand.

    Where it started from random weights, those that its seed stands for, as when it was trained.
    """
    backbone = run.experiment.backbone
    seed = run.experiment.seed if backbone.options.get("init") == "random" else 0
    return _pretrained(backbone.model_dump_json(), seed)


@functools.lru_cache(maxsize=2)
def _pretrained(choice: str, seed: int) -> Backbone:
    import torch

    from rift.config import Choice

    chosen = Choice.model_validate_json(choice)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return catalog.door("backbones", chosen.name)(**chosen.options).eval()


def finetuned(lab: Lab, run: Run) -> Classifier:
    """Return the classifier of a finished run: what it changed comes from its `weights.safetensors`, the rest is pretrained."""
    return _finetuned(lab.root, run.id)


@functools.lru_cache(maxsize=6)
def _finetuned(root: Path, name: str) -> Classifier:
    lab = Lab(root)
    return build(lab, lab.run(name))


def build(lab: Lab, run: Run, epoch: int | None = None) -> Classifier:
    """Return what `finetuned` does as a new object, which the caller may move and change; of a kept `epoch`, as it was then."""
    experiment, backbone = run.experiment, pretrained(run)
    images = dataset.load(lab.data / experiment.data)
    task = catalog.door("tasks", experiment.task.name)(images.classes, **experiment.task.options)
    classifier = Classifier(copy.deepcopy(backbone), task.head(backbone))
    catalog.door("methods", experiment.method.name)(classifier.backbone, **experiment.method.options)
    path = run.whole("weights.safetensors") if epoch is None else epoch_path(run, epoch)
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise RunError("run.damaged", f"{path.name} of run {run.id} is damaged ({error}); start its comparison again.") from error
    unexpected = classifier.load_state_dict(state, strict=False).unexpected_keys
    assert not unexpected, f"{run.id} has weights that its method does not know: {unexpected[:3]}"
    return classifier.eval()


def epochs(run: Run) -> tuple[int, ...]:
    """Return the epochs whose weights a run kept (`keep="epochs"`), ascending."""
    return tuple(sorted(int(path.stem) for path in (run.path / "epochs").glob("*.safetensors")))


def epoch_path(run: Run, epoch: int) -> Path:
    """Return where the weights after an epoch are kept."""
    return run.path / "epochs" / f"{epoch:04d}.safetensors"


def forget() -> None:
    """Drop the finetuned models that this process remembers, as when their runs were deleted."""
    _finetuned.cache_clear()

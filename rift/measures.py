"""Every diagnostic on a run, kept in the run as one JSON each: from saved arrays, or from the models when it captures them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rift import captures, catalog, dataset, disk, trained
from rift.captures import Data, Images
from rift.config import Choice, digest
from rift.dataset import ImageSet
from rift.errors import RunError
from rift.runs import SCHEMA, Lab, Run, write_json
from rift.snapshot import Snapshot

Say = Callable[[str], None]
Tell = Callable[[int, int, str, float | None], None]
SAY_SECONDS = 1.0
REMOVED = ("natural_accuracy", "cka_debiased", "cka_natural_debiased")


def measure_all(run: Run, before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """Run every diagnostic that needs saved arrays only, keep each under `measures/`, and return all their numbers."""
    numbers: dict[str, Any] = {}
    for name in catalog.names("diagnostics"):
        if not catalog.captures(name):
            values = catalog.door("diagnostics", name)(before, after)
            numbers |= _keep(run, catalog.check("diagnostics", Choice(name=name)), values)["runs"][run.id]
    return numbers


def measure_again(
    lab: Lab,
    run: Run,
    diagnostic: Choice,
    *,
    device: torch.device | str = "cpu",
    say: Say = lambda text: None,
    tell: Tell = lambda done, total, what, each: None,
) -> dict[str, Any]:
    """Measure one diagnostic on a finished run with these checked settings, keep the document in the run and return it.

    One that captures runs the models first, unless its arrays are kept from an earlier time; how far it is goes to `tell` as
    parts done, parts in all, what they are and the seconds that one takes (None while nobody can know), and now and then to
    `say` as a sentence. Raises `run.missing` for a run without
    its arrays, `data.missing` where its images were deleted, `run.memory`, and what the diagnostic and `tell` raise.
    """
    if catalog.captures(diagnostic.name):
        arrays = captured(lab, run, diagnostic, device=torch.device(device), say=say, tell=tell)
        _, theirs = _settings(diagnostic)
        return _keep(run, diagnostic, catalog.door("diagnostics", diagnostic.name)(arrays, **theirs))
    paths = (lab.cache / (run.result() or {})["before"], run.whole("snapshot.npz"))
    if not all(path.exists() for path in paths):
        raise RunError("run.missing", f"The run {run.id} came without its arrays; start its comparison here to have them.")
    before, after = map(Snapshot.load, paths)
    return _keep(run, diagnostic, catalog.door("diagnostics", diagnostic.name)(before, after, **diagnostic.options))


def captured(
    lab: Lab,
    run: Run,
    diagnostic: Choice,
    *,
    device: torch.device,
    say: Say = lambda text: None,
    tell: Tell = lambda done, total, what, each: None,
) -> captures.Arrays:
    """Return what a diagnostic computes with the models of a finished run, kept in `captures/` by its settings."""
    ours, _ = _settings(diagnostic)

    def compute(parts: Any) -> Any:
        pretrained, finetuned = copy.deepcopy(trained.pretrained(run)).to(device), trained.build(lab, run).to(device)
        images, pace = _images(lab, run, pretrained.pixels), _Pace(diagnostic.name, say, tell)
        data = Data(
            *images,
            natural_head=pretrained.natural_head(images[2].classes),
            folder=parts,
            seed=run.experiment.seed,
            device=device,
            task=catalog.door("tasks", run.experiment.task.name)(images[1].classes, **run.experiment.task.options),
            progress=pace.progress,
            spared=pace.spared,
            epochs=trained.epochs(run),
            at_epoch=lambda epoch: trained.build(lab, run, epoch).to(device),
            cache=lab.cache,
        )
        try:
            return catalog.module("diagnostics", diagnostic.name).capture(pretrained, finetuned, data, **ours)
        except torch.OutOfMemoryError as error:
            raise RunError("run.memory", f"{diagnostic.name} needs more memory than {device} has; use --device cpu.") from error

    return captures.kept(captures_path(run, diagnostic), compute)


def captures_path(run: Run, diagnostic: Choice) -> Path:
    """Return where the arrays of a diagnostic with these checked settings are kept, once they are."""
    ours, _ = _settings(diagnostic)
    return run.path / "captures" / f"{diagnostic.name}-{digest(ours)[:16]}.npz"


def _settings(diagnostic: Choice) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part one form: settings that `capture` names are its own, all others those of `measure`."""
    names = catalog.keywords(catalog.module("diagnostics", diagnostic.name).capture)
    ours = {key: value for key, value in diagnostic.options.items() if key in names}
    return ours, {key: value for key, value in diagnostic.options.items() if key not in names}


class _Pace:
    """Tells how far a capture is: each time to `tell`, now and then with the time left to people.

    The clock begins anew after a part that was kept from an earlier time: it took none now, and says nothing of those to come.
    """

    def __init__(self, name: str, say: Say, tell: Tell):
        self.name, self.say, self.tell = name, say, tell
        self.began: tuple[float, int] | None = None  # time and parts done
        self.said = 0.0

    def spared(self) -> None:
        self.began = None

    def progress(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        self.began = self.began or (now, done)
        fresh = done - self.began[1]
        each = (now - self.began[0]) / fresh if fresh > 0 else None
        self.tell(done, total, what, each)
        if now - self.said >= SAY_SECONDS or not self.said:
            self.said = now
            left = "" if each is None else f", about {each * (total - done):.0f} s left"
            self.say(f"{self.name}: {done} of {total} {what}{left}")


def _images(lab: Lab, run: Run, size: int) -> tuple[Images, Images, Images]:
    """Return the training, the test and the natural images of a run."""
    medical, natural = (dataset.load(lab.data / name) for name in (run.experiment.data, run.experiment.natural))

    def some(images: ImageSet, which: Any) -> Images:
        return Images(images.pixels(size)[which], images.ids[which], images.labels[which], images.classes)

    training, seed = run.experiment.training, run.experiment.seed
    parts = dataset.parts(medical, training, seed)
    trained = replace(some(medical, parts.train), labels=dataset.taught(medical, parts.train, training, seed))
    return trained, some(medical, parts.test), some(natural, slice(None))


def without_adapter(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """Return natural accuracy and debiased CKA, as `removed_…`, of a model whose adapter was taken out again."""
    found: dict[str, Any] = {}
    for name, options in (("zero_shot", {}), ("drift", {"shuffles": 20})):  # fewest: their floor is not asked for
        found |= catalog.door("diagnostics", name)(before, after, **options)
    wanted = [*REMOVED, *(f"{key}_reason" for key in REMOVED)]
    return plain({f"removed_{key}": found[key] for key in wanted if key in found})


def nothing_to_remove(method: str) -> dict[str, Any]:
    """Return the same numbers of a method without adapter: none, and why."""
    reason = f"{method} trains the model's own weights; there is no adapter to remove"
    return dict.fromkeys(f"removed_{key}" for key in REMOVED) | {f"removed_{key}_reason": reason for key in REMOVED}


def _keep(run: Run, diagnostic: Choice, values: Any) -> dict[str, Any]:
    values = plain(values)
    head = {"schema": SCHEMA, "diagnostic": diagnostic.name, "settings": diagnostic.options, "n": values.get("n")}
    document = {**head, "runs": {run.id: values}}
    (run.path / "measures").mkdir(exist_ok=True)
    write_json(run.path / "measures" / f"{diagnostic.name}.json", disk.sealed(document))
    return document


def plain(value: Any) -> Any:
    """Turn arrays and numpy numbers into what JSON knows; a number that is not finite becomes None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Finished runs of the same images as one document: the arms' numbers, and what differs beyond chance."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rift import __version__, about, catalog, differences, statistics, verdict
from rift.config import SHUFFLED, Choice, Experiment, Strength, Training
from rift.dataset import ImageSet, Split
from rift.runs import SCHEMA, Lab, Run
from rift.snapshot import Snapshot

NONE = Choice(name="none")
NUMBERS = [
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "average_precision",
    "reconstruction_error",
    "reconstruction_error_of_mean",
    "cka",
    "cka_debiased",
    "cka_layers",
    "cka_natural",
    "cka_natural_debiased",
    "natural_accuracy",
    "natural_top5",
    "natural_accuracy_unrotated",
    "natural_agreement",
    "natural_knn_accuracy",
    "removed_natural_accuracy",
    "removed_cka_debiased",
    "removed_cka_natural_debiased",
    "task_loss",
    "penalty",
    "seconds",
    "step_milliseconds",
]


@dataclass(frozen=True)
class Arm:
    """What one arm does differently from the others; its runs differ in the seed only."""

    name: str
    method: Choice
    regularizer: Choice
    strength: Strength
    runs: tuple[Run, ...] = ()
    same_as: str = ""  # the arm whose runs these are, since the penalty has nothing to hold

    @property
    def note(self) -> str:
        """Return in words why an arm has no runs of its own, empty where it has."""
        if not self.same_as:
            return ""
        why = f"{self.method.name} never trains the backbone, so there is nothing that a penalty could hold"
        return f"{self.name} changes nothing: {why}. Its numbers are those of {self.same_as}, and it is not trained again."


def plan(methods: Sequence[Choice], regularizers: Sequence[Choice], strengths: Sequence[Strength]) -> list[Arm]:
    """Return every method × (none, then regularizer × strength), each once and with a unique name; the choices are checked.

    Where a strength is "auto", so is that of `none`: its learning rate is chosen from as many trials.
    """
    without: Strength = "auto" if "auto" in strengths else 0.0
    triples = [
        (catalog.check("methods", method), catalog.check("regularizers", regularizer), strength)
        for method in methods
        for regularizer, strength in [(NONE, without), *((one, strength) for one in regularizers for strength in strengths)]
    ]
    arms = named([(method, one, without if one.name == "none" else strength) for method, one, strength in triples])
    plain = {_key(arm)[0]: arm.name for arm in arms if arm.regularizer.name == "none"}
    idle = [never_trains(arm.method) and arm.regularizer.name != "none" for arm in arms]
    return [replace(arm, same_as=plain[_key(arm)[0]]) if same else arm for arm, same in zip(arms, idle, strict=True)]


def marked(arms: Sequence[Arm], training: Training) -> list[Arm]:
    """Return arms whose names say that their labels were shuffled, where they were; no page shows an arm without its name."""

    def name(plain: str) -> str:
        return (f"{plain[:-1]}, {SHUFFLED}]" if plain.endswith("]") else f"{plain}[{SHUFFLED}]") if plain else ""

    shuffled = training.shuffle_labels
    return [replace(arm, name=name(arm.name), same_as=name(arm.same_as)) if shuffled else arm for arm in arms]


def never_trains(method: Choice) -> bool:
    """Whether a method leaves the backbone as it is: then an arm is its baseline to the last bit, whatever the penalty."""
    return bool(getattr(catalog.module("methods", method.name), "BACKBONE_NEVER_TRAINS", False))


def trained(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms that have runs of their own."""
    return [arm for arm in arms if not arm.same_as]


def measures(arms: Sequence[Arm]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what each diagnostic measured, by arm and diagnostic; of several seeds the first one that is done.

    A diagnostic whose figure takes every run has an entry for each, named as `name_of_run` does.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    several: dict[str, dict[str, dict[str, Any]]] = {}
    for arm in trained(arms):
        each = [(run, run.measures()) for run in arm.runs if run.state == "done"]
        found[arm.name] = {name: one for name, one in (each[0][1] if each else {}).items() if not catalog.of_every_run(name)}
        for run, one in each:
            if whole := {name: values for name, values in one.items() if catalog.of_every_run(name)}:
                several[name_of_run(arm, run)] = whole
    return found | several


def name_of_run(arm: Arm, run: Run) -> str:
    """Return what a run is called where every run is shown."""
    return f"{arm.name}, seed {run.experiment.seed}"


def of_runs(runs: Sequence[Run]) -> list[Arm]:
    """Return the arms that these runs make up, the baselines first; used when a report is made of chosen runs."""
    experiments = sorted(((run.experiment, run) for run in runs), key=lambda pair: pair[0].seed)
    experiments.sort(key=lambda pair: pair[0].regularizer.name != "none")
    found = named([(e.method, e.regularizer, e.strength) for e, _ in experiments])
    arms = [replace(arm, runs=tuple(run for e, run in experiments if _key(e) == _key(arm))) for arm in found]
    return [one for arm in arms for one in marked([arm], arm.runs[0].experiment.training)]


def named(triples: Sequence[tuple[Choice, Choice, Strength]]) -> list[Arm]:
    """Name each distinct arm: the regularizer, non-default options in brackets, the method in front where several run."""
    several_methods = len({method.model_dump_json() for method, _, _ in triples}) > 1
    strengths = {kind: {strength for _, one, strength in triples if (one.name == "none") == kind} for kind in (True, False)}
    arms: dict[str, Arm] = {}
    for method, regularizer, strength in triples:
        plain = regularizer.name == "none"
        said = strength if isinstance(strength, str) else f"{strength:g}"
        more = [] if len(strengths[plain]) == 1 else [f"strength={said}"]
        if plain:  # its own has no weight to choose: "auto" is of its learning rate
            more = ["learning_rate=auto"] if more and strength == "auto" else []
        name = _name("regularizers", regularizer, more)
        name = f"{_name('methods', method, [])} {name}" if several_methods else name
        arms.setdefault(name, Arm(name, method, regularizer, strength))
    return list(arms.values())


def _key(one: Arm | Experiment) -> tuple[str, str, Strength]:
    return one.method.model_dump_json(), one.regularizer.model_dump_json(), one.strength


def _name(menu: str, choice: Choice, more: list[str]) -> str:
    options = [f"{key}={value}" for key, value in catalog.changed(menu, choice).items()] + more
    return f"{choice.name}[{', '.join(options)}]" if options else choice.name


def document(lab: Lab, arms: Sequence[Arm], images: ImageSet, natural: ImageSet, parts: Split) -> dict[str, Any]:
    """Return the comparison document of `contract.md` (schema 1) for runs that have ended; at least one must be done."""
    done = [run for arm in arms for run in arm.runs if run.state == "done"]
    first = done[0].result() or {}
    experiment = done[0].experiment
    before = Snapshot.load(lab.cache / first["before"])
    groups = {"test": None if images.groups is None else images.groups[parts.test], "natural": natural.groups}
    return {
        "schema": SCHEMA,
        "version": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": {
            "name": images.name,
            "digest": images.digest,
            "classes": list(images.classes),
            "task": experiment.task.name,
            "shots": experiment.training.shots,
            "balanced": experiment.training.balanced,
            "shuffle_labels": experiment.training.shuffle_labels,
            "counts": images.counts(parts),
            **report_of(images),
        },
        "backbone": {**catalog.without_folders("backbones", experiment.backbone).model_dump(), **first["backbone"]},
        "natural": {
            "name": natural.name,
            "images": len(natural.ids),
            "classes": list(natural.classes),
            "warnings": _natural_warnings(natural, before),
        },
        "pretrained": first["pretrained"],
        "arms": [_arm(arm) for arm in arms],
        "differences": _differences(lab, arms, groups),
        "remarks": about.remarks({name_of_run(arm, run): run.result() or {} for arm in trained(arms) for run in arm.runs}),
        "environment": {
            "python": platform.python_version(),
            "rift": __version__,
            **first["environment"],
        },
    }


def report_of(images: ImageSet) -> dict[str, Any]:
    """Return what was kept, changed, skipped and warned about at the door."""
    kinds = {kind: {"__all__": {"pictures"}} for kind in ("changed", "skipped", "warnings")}
    return images.report.model_dump(mode="json", exclude=kinds)


def _natural_warnings(natural: ImageSet, before: Snapshot) -> list[dict[str, str]]:
    warnings = report_of(natural)["warnings"]
    judge = before.judge()
    for index, label in enumerate(natural.classes):
        if index not in judge.known:
            one = "it has one image, and nearest mean takes two"
            why = one if judge.way == "nearest mean" else "the backbone knows no such word"
            message = f"{label!r} is not scored: {why}."
            warnings.append({"file": label, "code": "natural.unknown", "message": message})
    return warnings


def arms_like(lab: Lab, run: Run) -> list[dict[str, Any]]:
    """Return `arms[]` of all finished runs of a lab that are of the same images, backbone and split as this one.

    Where training settings differ, an arm's name says which.
    """
    asked, alike = run.experiment, {"data", "natural", "task", "backbone"}
    groups: dict[str, list[Run]] = {}
    for other in lab.runs():
        one = other.experiment
        same = one.model_dump(include=alike) == asked.model_dump(include=alike)
        if same and one.training.split_seed == asked.training.split_seed and other.state == "done":
            groups.setdefault(one.training.model_dump_json(), []).append(other)
    found = []
    for group in groups.values():
        training = group[0].experiment.training
        settings = [f"{key}={value}" for key, value in training if value != getattr(Training(), key) and key != "shuffle_labels"]
        more = f" ({', '.join(settings)})" if len(groups) > 1 and settings else ""
        found += [_arm(replace(arm, name=arm.name + more)) | {"settings": more} for arm in of_runs(group)]
    return found


def _arm(arm: Arm) -> dict[str, Any]:
    rows = [_row(run) for run in arm.runs]
    means: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    for key in NUMBERS:
        if key != "cka_layers":
            means[key], errors[key] = statistics.mean_and_standard_error(row[key] for row in rows)
    trained = next((result["trainable_parameters"] for run in arm.runs if (result := run.result())), None)
    return {
        "name": arm.name,
        "method": arm.method.model_dump(mode="json"),
        "regularizer": arm.regularizer.model_dump(mode="json"),
        "strength": arm.strength,
        "trainable_parameters": trained,
        "same_as": arm.same_as or None,
        "note": arm.note or None,
        "runs": rows,
        "mean": means,
        "standard_error": errors,
    }


def _row(run: Run) -> dict[str, Any]:
    result, end = run.result(), run.end()
    row: dict[str, Any] = {"run": run.id, "seed": run.experiment.seed, "diverged": end.get("code") == "run.diverged"}
    row |= {key: (result or {}).get(key) for key in ("strength", "learning_rate", "tuning", "memory")}
    numbers = result["numbers"] if result else {}
    reason = end.get("message") or "the run was not finished"
    for key in NUMBERS:
        row[key] = numbers.get(key)
        if row[key] is None:
            unknown = "it could not be computed" if key in numbers else "not measured when this run was made"
            if key.startswith("reconstruction") and run.experiment.task.name != "reconstruction":
                unknown = "this run names classes, it reconstructs no image"
            row[f"{key}_reason"] = numbers.get(f"{key}_reason") or (reason if not result else unknown)
    return row


def _differences(lab: Lab, arms: Sequence[Arm], groups: dict[str, np.ndarray | None]) -> list[dict[str, Any]]:
    """Compare every arm with the arm without penalty of its method, and judge all of it as one family."""
    rows = []
    for arm in arms:
        baseline = next((one for one in arms if one.method == arm.method and one.regularizer.name == "none"), None)
        if baseline is None or arm is baseline or arm.same_as:
            continue
        other = {run.experiment.pair_id: run for run in baseline.runs if run.state == "done"}
        done = [run for run in arm.runs if run.state == "done"]
        pairs = [(run, other[run.experiment.pair_id]) for run in done if run.experiment.pair_id in other]
        for metric in differences.metrics(arm.runs[0]):
            head = {"metric": metric, "arm": arm.name, "baseline": baseline.name}
            rows.append(head | _difference(lab, metric, pairs, groups["natural" if "natural" in metric else "test"]))
    return verdict.judged(rows)


def _difference(lab: Lab, metric: str, pairs: differences.Pairs, groups: np.ndarray | None) -> dict[str, Any]:
    try:
        return asdict(differences.between(lab, metric, pairs, groups))
    except ValueError as error:
        nothing = dict.fromkeys(("difference", "low", "high", "p_value", "patients"))
        return {**nothing, "n": 0, "seeds": len(pairs), "difference_reason": str(error)}

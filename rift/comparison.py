"""Finished runs of the same images as one document: the arms' numbers, and what differs beyond chance."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rift import __version__, catalog, similarity, statistics
from rift.config import Choice, Experiment
from rift.dataset import ImageSet, Split
from rift.runs import SCHEMA, Lab, Run
from rift.snapshot import Snapshot

NONE = Choice(name="none")
NUMBERS = [
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "average_precision",
    "cka",
    "cka_debiased",
    "cka_layers",
    "cka_natural",
    "cka_natural_debiased",
    "natural_accuracy",
    "natural_top5",
    "natural_accuracy_unrotated",
    "natural_agreement",
    "task_loss",
    "penalty",
    "seconds",
    "step_milliseconds",
]
COMPARED = ("balanced_accuracy", "accuracy", "cka_debiased", "cka_natural_debiased", "natural_accuracy")


@dataclass(frozen=True)
class Arm:
    """What one arm does differently from the others; its runs differ in the seed only."""

    name: str
    method: Choice
    regularizer: Choice
    strength: float
    runs: tuple[Run, ...] = ()


def plan(methods: Sequence[Choice], regularizers: Sequence[Choice], strengths: Sequence[float]) -> list[Arm]:
    """Return every method × (none, then regularizer × strength), each once and with a unique name; the choices are checked."""
    triples = [
        (catalog.check("methods", method), catalog.check("regularizers", regularizer), strength)
        for method in methods
        for regularizer, strength in [(NONE, 0.0), *((one, strength) for one in regularizers for strength in strengths)]
    ]
    return _named([(method, one, 0.0 if one.name == "none" else strength) for method, one, strength in triples])


def of_runs(runs: Sequence[Run]) -> list[Arm]:
    """Return the arms that these runs make up, the baselines first; used when a report is made of chosen runs."""
    experiments = sorted(((run.experiment, run) for run in runs), key=lambda pair: pair[0].seed)
    experiments.sort(key=lambda pair: pair[0].regularizer.name != "none")
    found = _named([(e.method, e.regularizer, e.strength) for e, _ in experiments])
    return [replace(arm, runs=tuple(run for e, run in experiments if _key(e) == _key(arm))) for arm in found]


def _named(triples: Sequence[tuple[Choice, Choice, float]]) -> list[Arm]:
    """Name each distinct arm: the regularizer, non-default options in brackets, the method in front where several run."""
    several_methods = len({method.model_dump_json() for method, _, _ in triples}) > 1
    several_strengths = len({strength for _, one, strength in triples if one.name != "none"}) > 1
    arms: dict[str, Arm] = {}
    for method, regularizer, strength in triples:
        more = [f"strength={strength:g}"] if several_strengths and regularizer.name != "none" else []
        name = _name("regularizers", regularizer, more)
        name = f"{_name('methods', method, [])} {name}" if several_methods else name
        arms.setdefault(name, Arm(name, method, regularizer, strength))
    return list(arms.values())


def _key(one: Arm | Experiment) -> tuple[str, str, float]:
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
    return {
        "schema": SCHEMA,
        "version": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": {
            "name": images.name,
            "digest": images.digest,
            "classes": list(images.classes),
            "task": images.task,
            "shots": experiment.training.shots,
            "balanced": experiment.training.balanced,
            "counts": images.counts(parts),
            **report_of(images),
        },
        "backbone": {"name": experiment.backbone.name, "options": experiment.backbone.options, **first["backbone"]},
        "natural": {
            "name": natural.name,
            "images": len(natural.ids),
            "classes": list(natural.classes),
            "warnings": _natural_warnings(natural, before),
        },
        "pretrained": first["pretrained"],
        "arms": [_arm(arm) for arm in arms],
        "differences": _differences(lab, arms),
        "environment": {
            "python": platform.python_version(),
            "rift": __version__,
            **first["environment"],
        },
    }


def report_of(images: ImageSet) -> dict[str, Any]:
    """Return what was kept, changed, skipped and warned about at the door."""
    return images.report.model_dump(mode="json")


def _natural_warnings(natural: ImageSet, before: Snapshot) -> list[dict[str, str]]:
    warnings = report_of(natural)["warnings"]
    for index, label in enumerate(natural.classes):
        if before.rows is None or np.isnan(before.rows[index]).any():
            why = "the backbone has no natural head" if before.rows is None else "the backbone knows no such word"
            message = f"{label!r} is not scored: {why}."
            warnings.append({"file": label, "code": "natural.unknown", "message": message})
    return warnings


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
        "runs": rows,
        "mean": means,
        "standard_error": errors,
    }


def _row(run: Run) -> dict[str, Any]:
    result, end = run.result(), run.end()
    row: dict[str, Any] = {"run": run.id, "seed": run.experiment.seed, "diverged": end.get("code") == "run.diverged"}
    numbers = result["numbers"] if result else {}
    reason = end.get("message") or "the run was not finished"
    for key in NUMBERS:
        row[key] = numbers.get(key)
        if row[key] is None:
            row[f"{key}_reason"] = numbers.get(f"{key}_reason") or (reason if not result else "it could not be computed")
    return row


def _differences(lab: Lab, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    rows = []
    for arm in arms:
        baseline = next((one for one in arms if one.method == arm.method and one.regularizer.name == "none"), None)
        if baseline is None or arm is baseline:
            continue
        other = {run.experiment.pair_id: run for run in baseline.runs if run.state == "done"}
        done = [run for run in arm.runs if run.state == "done"]
        pairs = [(run, other[run.experiment.pair_id]) for run in done if run.experiment.pair_id in other]
        rows += [_difference(lab, metric, arm, baseline, pairs) for metric in COMPARED]
    return rows


def _difference(lab: Lab, metric: str, arm: Arm, baseline: Arm, pairs: Sequence[tuple[Run, Run]]) -> dict[str, Any]:
    head = {"metric": metric, "arm": arm.name, "baseline": baseline.name}
    natural = "natural" in metric
    try:
        if not pairs:
            raise ValueError("no seed was finished in both arms")
        found = _compare_sets(lab, metric, pairs) if metric.startswith("cka") else _compare_images(metric, pairs)
    except ValueError as error:
        nothing = dict.fromkeys(("difference", "low", "high", "p_value", "verdict"))
        return {**head, **nothing, "n": 0, "seeds": len(pairs), "difference_reason": str(error)}
    verdict = statistics.verdict(found, smallest=statistics.SMALLEST_NATURAL if natural else statistics.SMALLEST)
    return {**head, **asdict(found), "verdict": verdict}


def _compare_images(metric: str, pairs: Sequence[tuple[Run, Run]]) -> statistics.Difference:
    """Compare the share of images that are named rightly, image by image."""
    a, b = (np.stack([_hits(run, metric) for run in side]) for side in zip(*pairs, strict=True))
    if metric == "balanced_accuracy":
        labels = _accuracy_arrays(pairs[0][0])[1]
        if labels.ndim == 2:
            raise ValueError("of findings the average precision is compared, not the balanced accuracy")
        weights = statistics.balanced_weights(labels)
        a, b = a * weights, b * weights
    return statistics.paired_difference(a, b)


def _accuracy_arrays(run: Run) -> tuple[np.ndarray, np.ndarray]:
    measured = run.measures()["accuracy"]
    return np.array(measured["predictions"]), np.array(measured["labels"])


def _hits(run: Run, metric: str) -> np.ndarray:
    if metric != "natural_accuracy":
        predictions, labels = _accuracy_arrays(run)
        right = (predictions == labels).astype(float)
        return right if right.ndim == 1 else right.mean(1)  # of findings: the share of them that is answered rightly
    measured = run.measures()["zero_shot"]
    if measured.get("natural_accuracy") is None:
        raise ValueError(measured.get("natural_accuracy_reason", "no natural image was scored"))
    scored = np.array(measured["scored"], bool)
    return (np.array(measured["top5"])[scored, 0] == np.array(measured["labels"])[scored]).astype(float)


def _compare_sets(lab: Lab, metric: str, pairs: Sequence[tuple[Run, Run]]) -> statistics.Difference:
    """Compare how like the pretrained model the two arms are, by debiased CKA of the whole set."""
    name = "natural" if "natural" in metric else "test"
    befores = [_before(lab, run).sets[name].embeddings for run, _ in pairs]

    def similarity_to(before: np.ndarray, run: Run) -> statistics.Statistic:
        after = Snapshot.load(run.path / "snapshot.npz").sets[name].embeddings
        return lambda kept: similarity.debiased_cka(before[kept], after[kept])

    def measured(side: int) -> list[statistics.Statistic]:
        return [similarity_to(before, pair[side]) for before, pair in zip(befores, pairs, strict=True)]

    return statistics.paired_statistic_difference(measured(0), measured(1), len(befores[0]))


def _before(lab: Lab, run: Run) -> Snapshot:
    return Snapshot.load(lab.cache / (run.result() or {})["before"])

"""What differs between runs of two arms on the same images, from what the runs keep; a patient's images stay together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rift import findings, similarity, statistics
from rift.runs import Lab, Run
from rift.snapshot import Arrays, Snapshot

KEPT = ("cka_debiased", "cka_natural_debiased", "natural_accuracy")
METRICS = {
    "single_label": ("balanced_accuracy", "accuracy", *KEPT),
    "multi_label": ("average_precision", "accuracy", *KEPT),
    "reconstruction": ("reconstruction_error", *KEPT),
}
Pairs = Sequence[tuple[Run, Run]]


def metrics(run: Run) -> tuple[str, ...]:
    """Return what runs of this one's task are compared by."""
    return METRICS[run.experiment.task.name]


def between(lab: Lab, metric: str, pairs: Pairs, groups: np.ndarray | None) -> statistics.Difference:
    """Return the difference of the first runs of the pairs to the second ones; one pair per seed.

    `groups` `(n,)` numbers the patients of the set that the metric is of (test or natural), None where unknown. ValueError, with
    the reason as its text, where the metric is not defined.
    """
    if not pairs:
        raise ValueError("no seed was finished in both arms")
    if metric.startswith("cka") or metric == "average_precision":
        number = similarity_to_before if metric.startswith("cka") else mean_average_precision
        n = len(_arrays(pairs[0][0], _set_of(metric)).ids)
        fold = statistics.folds(n, groups)
        each = [[statistics.leave_out(number(lab, run, metric), fold) for run in pair] for pair in pairs]
        a, b = (np.stack(side) for side in zip(*each, strict=True))
        return statistics.paired_statistic_difference(a, b, n, patients=None if groups is None else len(np.unique(groups)))
    kept = scored(pairs[0][0], metric)
    a, b = (np.stack([scores(run, metric) for run in side]) for side in zip(*pairs, strict=True))
    return statistics.paired_difference(a, b, groups=None if groups is None else groups[kept])


def scored(run: Run, metric: str) -> np.ndarray:
    """Return the indices of the images of its set that a metric counts."""
    if metric == "natural_accuracy":
        measured = run.measures()["zero_shot"]
        if measured.get("natural_accuracy") is None:
            raise ValueError(measured.get("natural_accuracy_reason", "no natural image was scored"))
        return np.flatnonzero(measured["scored"])
    if metric == "reconstruction_error":
        return np.arange(len(_errors(run)))
    labels = np.array(run.measures()["accuracy"]["labels"])
    return np.arange(len(labels)) if labels.ndim == 2 else np.flatnonzero(labels >= 0)


def scores(run: Run, metric: str) -> np.ndarray:
    """Return each counted image's part `(n,)` in an accuracy or in the reconstruction error, which is their mean."""
    if metric == "reconstruction_error":
        return _errors(run)
    kept = scored(run, metric)
    if metric == "natural_accuracy":
        measured = run.measures()["zero_shot"]
        return (np.array(measured["top5"])[kept, 0] == np.array(measured["labels"])[kept]).astype(float)
    if run.experiment.task.name == "multi_label":  # the share of right answers over images and findings
        test = _arrays(run, "test")
        return np.mean((np.asarray(test.logits) >= 0) == (test.labels > 0), axis=1)
    measured = run.measures()["accuracy"]
    labels = np.array(measured["labels"])[kept]
    hits = (np.array(measured["predictions"])[kept] == labels).astype(float)
    return hits * statistics.balanced_weights(labels) if metric == "balanced_accuracy" else hits


def similarity_to_before(lab: Lab, run: Run, metric: str) -> statistics.Statistic:
    """Return debiased CKA with the pretrained embeddings as a function of the images kept."""
    before, after = (one.embeddings for one in embeddings(lab, run, _set_of(metric)))
    return lambda kept: similarity.debiased_cka(before[kept], after[kept])


def embeddings(lab: Lab, run: Run, name: str) -> tuple[Arrays, Arrays]:
    """Return what the pretrained and the finetuned model computed on the set "test" or "natural"."""
    return Snapshot.load(lab.cache / (run.result() or {})["before"]).sets[name], _arrays(run, name)


def mean_average_precision(lab: Lab, run: Run, metric: str) -> statistics.Statistic:
    """Return mean average precision as a function of the images kept; a finding that all or none show is left out of the mean."""
    test = _arrays(run, _set_of(metric))
    truth, logits = np.asarray(test.labels) > 0, np.asarray(test.logits)

    def number(kept: np.ndarray) -> float:
        judged = findings.both(truth[kept])
        if not len(judged):
            raise ValueError("no finding is there on some of the test images and not on others")
        return float(findings.average_precision(truth[kept], logits[kept])[judged].mean())

    return number


def _errors(run: Run) -> np.ndarray:
    return np.array(run.measures()["accuracy"]["errors"])


def _set_of(metric: str) -> str:
    return "natural" if "natural" in metric else "test"


def _arrays(run: Run, name: str) -> Arrays:
    return Snapshot.load(run.whole("snapshot.npz")).sets[name]

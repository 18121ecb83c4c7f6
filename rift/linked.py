"""Single test images across the models of a comparison: what each calls them, where two differ, and what lies nearest.

All of it is read from what the runs keep, `predictions.csv` and the neighbors that `retrieval` measured; no model runs. Images
are named by their place among the test images, and whatever comes from a page is checked to be one before it is used.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rift import dataset, measuring, service
from rift.errors import DataError
from rift.runs import Lab
from rift.statistics import paired_difference

NAMED = 0.5  # a finding is named from this probability on, as `accuracy` counts it
SHOWN, NOT_SHOWN = "shows {}", "does not show {}"


@dataclass(frozen=True, eq=False)
class Answers:
    """What the models of a comparison say about its `n` test images: that of the first finished seed of each arm."""

    ids: tuple[str, ...]
    classes: tuple[str, ...]  # empty where the models name none
    truth: np.ndarray  # (n, k) bool
    arms: Mapping[str, np.ndarray]  # (n, k) probabilities; of models that name no class (n, 1), their errors
    several: bool  # whether an image may show several findings
    near: Mapping[str, tuple[str, ...]]  # by arm the ids of the images that `retrieval` looks up
    labels: Mapping[str, frozenset[str]] = field(default_factory=dict)  # what each of them shows, by id

    def __len__(self) -> int:
        return len(self.ids)

    def right(self, arm: str) -> np.ndarray:
        """Return which images `(n,)` an arm gets right; of findings those where all answers are."""
        if self.several:
            return ((self.arms[arm] >= NAMED) == self.truth).all(1)
        return self.truth[np.arange(len(self)), self.arms[arm].argmax(1)]

    def called(self, arm: str, i: int) -> str:
        """Return what an arm calls an image."""
        one = self.arms[arm][i]
        if not self.several:
            return self.classes[int(one.argmax())]
        return ", ".join(name for name, p in zip(self.classes, one, strict=True) if p >= NAMED) or "no finding"

    def label(self, i: int) -> str:
        """Return what an image shows."""
        return ", ".join(name for name, there in zip(self.classes, self.truth[i], strict=True) if there) or "no finding"


def answers(lab: Lab, name: str) -> Answers:
    """Return what the finished arms of a comparison say about its test images, read once; without arms where none kept it."""
    stamps = []
    for arm, run in measuring.runs(lab, name, "accuracy").items():
        path = run.whole("predictions.csv")
        if path.exists():
            stamps.append((arm, str(path), path.stat().st_mtime_ns))
    task = service.order_of(lab, name)[0].task.name
    return _answers(tuple(stamps), task)


@lru_cache(maxsize=8)
def _answers(files: tuple[tuple[str, str, int], ...], task: str) -> Answers:
    """Read the arms' files; an arm of other test images than the first one's is left out, as no image of it can be compared."""
    ids: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    truth = np.zeros((0, 0), bool)
    arms: dict[str, np.ndarray] = {}
    near: dict[str, tuple[str, ...]] = {}
    labels: dict[str, frozenset[str]] = {}
    for arm, path, _ in files:
        with open(path, encoding="utf-8", newline="") as file:
            (_, _, _, *columns), *rows = csv.reader(file)
        test = [row for row in rows if row[2] == "test"]
        theirs = tuple(row[0] for row in test)
        if arms and theirs != ids:
            continue
        if not arms:
            ids, classes = theirs, () if task == "reconstruction" else tuple(columns)
            truth = np.array([[one in _shown(row[1], task) for one in classes] for row in test], bool).reshape(
                len(ids), len(classes)
            )
        arms[arm] = np.array([row[3:] for row in test], np.float64).reshape(len(ids), -1)
        near[arm] = (*theirs, *(row[0] for row in rows if row[2] == "train"))
        labels |= {row[0]: _shown(row[1], task) for row in rows}
    return Answers(ids, classes, truth, arms, task == "multi_label", near, labels)


def _shown(label: str, task: str) -> frozenset[str]:
    return frozenset(filter(None, label.split(";"))) if task == "multi_label" else frozenset({label})


def places(lab: Lab, name: str) -> tuple[str, dict[str, int]]:
    """Return the image set of a comparison and the place of each image in it; no place where its images were deleted."""
    data = service.order_of(lab, name)[0].data
    return data, _places(lab, data)


def _places(lab: Lab, data: str) -> dict[str, int]:
    folder = lab.data / data
    try:
        return _places_of(str(folder), (folder / "manifest.json").stat().st_mtime_ns)
    except (OSError, DataError):
        return {}


@lru_cache(maxsize=4)
def _places_of(folder: str, stamp: int) -> dict[str, int]:
    return {str(one): place for place, one in enumerate(dataset.load(Path(folder)).ids)}


def numbers(lab: Lab, name: str) -> dict[tuple[str, int], int]:
    """Return for each test image by set and place in it its place among the test images."""
    data, known = places(lab, name)
    return {(data, known[one]): i for i, one in enumerate(answers(lab, name).ids) if one in known}


def picked(found: Answers, value: object) -> int | None:
    """Return the test image that a page names; None for whatever is none."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 and int(text) < len(found) else None


def picked_cell(found: Answers, value: object) -> tuple[str, int, int] | None:
    """Return arm, truth and answer of the cell that a page names as `truth answer arm`; None for whatever is none."""
    true, _, rest = str(value).partition(" ")
    called, _, arm = rest.partition(" ")
    truths, calls = cells(found)
    known = all(one.isascii() and one.isdigit() and len(one) < 9 for one in (true, called)) and arm in found.arms
    return (arm, int(true), int(called)) if known and int(true) < len(truths) and int(called) < len(calls) else None


def cells(found: Answers) -> tuple[list[str], list[str]]:
    """Return what a confusion matrix is of: the truths and the answers. Of findings, each is there or not, and named or not."""
    if not found.several:
        return list(found.classes), list(found.classes)
    return [said.format(name) for name in found.classes for said in (SHOWN, NOT_SHOWN)], ["named", "not named"]


def cell(found: Answers, arm: str, true: int, called: int) -> np.ndarray:
    """Return the images `(m,)` of one cell of an arm's confusion matrix, the surest answer first."""
    scores = found.arms[arm]
    if found.several:
        one = true // 2
        named = scores[:, one] >= NAMED
        kept = (found.truth[:, one] == (true % 2 == 0)) & (named == (called == 0))
        sure = scores[:, one] if called == 0 else 1 - scores[:, one]
    else:
        kept, sure = found.truth[:, true] & (scores.argmax(1) == called), scores[:, called]
    chosen = np.flatnonzero(kept)
    return chosen[np.argsort(-sure[chosen], kind="stable")]


def most_confused(found: Answers) -> tuple[str, int, int]:
    """Return the cell of all arms with most wrong answers, else the first cell of the first arm."""
    counts = np.stack([_wrong(found, arm) for arm in found.arms])
    place, true, called = np.unravel_index(int(counts.argmax()), counts.shape)
    return list(found.arms)[int(place)], int(true), int(called)


def _wrong(found: Answers, arm: str) -> np.ndarray:
    """Return how many images are in each cell of an arm `(truths, answers)`, none where the answer is right."""
    if found.several:
        named = found.arms[arm] >= NAMED
        findings = np.zeros((2 * len(found.classes), 2), int)
        findings[0::2, 1], findings[1::2, 0] = (found.truth & ~named).sum(0), (~found.truth & named).sum(0)
        return findings
    counts = np.zeros((len(found.classes),) * 2, int)
    np.add.at(counts, (found.truth.argmax(1), found.arms[arm].argmax(1)), 1)
    np.fill_diagonal(counts, 0)
    return counts


def exchanged(found: Answers, arm: str, baseline: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images that an arm gets right and the baseline wrong, and the other way round."""
    now, was = found.right(arm), found.right(baseline)
    return np.flatnonzero(now & ~was), np.flatnonzero(was & ~now)


def exchanged_said(found: Answers, arm: str, baseline: str) -> str:
    """Say how many images were fixed and broken, and whether so uneven a split is beyond chance (McNemar's exact test)."""
    fixed, broken = exchanged(found, arm, baseline)
    n = len(fixed) + len(broken)
    head = (
        f"Of {len(found)} test images {arm} gets {len(fixed)} right that {baseline} gets wrong, and {len(broken)} the other way."
    )
    if not n:
        return f"{head} The two are right on the same images."
    p = paired_difference(found.right(arm).astype(float), found.right(baseline).astype(float)).p_value
    tested = f"McNemar's exact test looks at these {n}: p = {p:.2g}, images taken as independent, one seed each"
    return f"{head} {tested}; the verdict, which knows patients and seeds, is the one to quote."


def disagreements(found: Answers, arm: str, baseline: str, most: int = 12) -> list[tuple[int, float]]:
    """Return the images on whose truth two arms put most unlike probability, with arm minus baseline in [-1, 1].

    Of findings it is the probability of the right answer, on the finding where the two are furthest apart.
    """
    a, b = (np.where(found.truth, one, 1 - one if found.several else 0.0) for one in (found.arms[arm], found.arms[baseline]))
    gaps = a - b
    apart = np.take_along_axis(gaps, np.abs(gaps).argmax(1)[:, None], 1)[:, 0]
    order = np.argsort(-np.abs(apart), kind="stable")[:most]
    return [(int(i), float(apart[i])) for i in order if apart[i]]


def said(found: Answers, i: int) -> list[tuple[str, str, str, bool]]:
    """Return arm, what it calls an image, with which probability, and whether that is right."""
    rows = []
    for arm, scores in found.arms.items():
        if not found.classes:
            rows.append((arm, "reconstruction error", f"{scores[i, 0]:.4f}", False))
        else:
            rows.append((arm, found.called(arm, i), percent(float(scores[i].max())), bool(found.right(arm)[i])))
    return rows


def likeliest(found: Answers, arm: str, i: int, most: int = 3) -> list[tuple[str, float, bool]]:
    """Return the likeliest classes of an image under an arm: name, probability, and whether the image shows it."""
    order = np.argsort(-found.arms[arm][i], kind="stable")[:most]
    return [(found.classes[j], float(found.arms[arm][i, j]), bool(found.truth[i, j])) for j in order] if found.classes else []


def percent(share: float) -> str:
    """Return a probability as whole percent, never rounded to certain or impossible."""
    text = "< 1 %" if share < 0.01 else "> 99 %" if share > 0.99 else f"{100 * share:.0f} %"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


@dataclass(frozen=True)
class Neighbor:
    """An image near another under one model."""

    id: str
    label: str
    same: bool  # shows what the other shows
    distance: float  # 1 - cosine, in [0, 2]
    kept: bool  # is among the pretrained model's nearest too


def neighbors(lab: Lab, name: str, found: Answers, i: int) -> tuple[dict[str, list[Neighbor]], str]:
    """Return the nearest images of a test image under the pretrained and every finetuned model, and what is missing and why."""
    measured = {arm: one for arm, one in measuring.results(lab, name, "retrieval").items() if arm in found.near}
    stored = {arm: one for arm, one in measured.items() if len(one.get("neighbors_after") or ()) == len(found)}
    if not stored:
        reasons = (one.get("neighbors_after_reason") for one in measured.values())
        older = "they were not stored when these runs were measured; measure Retrieval again to have them"
        return {}, f"No neighbors are shown: {next(filter(None, reasons), older)}."
    labels, result = found.labels, dict[str, list[Neighbor]]()
    first = next(iter(stored))
    before = [found.near[first][j] for j in stored[first]["neighbors_before"][i]]
    for model, arm, key in [("pretrained", first, "before"), *((arm, arm, "after") for arm in stored)]:
        pairs = zip(stored[arm][f"neighbors_{key}"][i], stored[arm][f"neighbor_distances_{key}"][i], strict=True)
        near = [(found.near[arm][j], float(far)) for j, far in pairs]
        mine = labels.get(found.ids[i], frozenset())
        result[model] = [
            Neighbor(
                one,
                _named(labels.get(one)),
                _alike(mine, labels.get(one)),
                far,
                model != "pretrained" and one in before,
            )
            for one, far in near
        ]
    missing = [arm for arm in found.arms if arm not in stored]
    return result, f"Not stored: the neighbors of {', '.join(missing)}." if missing else ""


def _named(labels: frozenset[str] | None) -> str:
    return "label unknown" if labels is None else ", ".join(sorted(labels)) or "no finding"


def _alike(a: frozenset[str], b: frozenset[str] | None) -> bool:
    """Whether two images show the same as `retrieval` means it: one finding in common, or neither any."""
    return b is not None and (bool(a & b) or (not a and not b))


def captions(found: Answers, images: Sequence[int], more: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return what is said below each picture of a gallery: its truth, and each model's answer."""
    notes = list(more) or [""] * len(images)
    return [
        {"image": int(i), "id": found.ids[i], "label": found.label(i), "said": said(found, i), "note": note}
        for i, note in zip(images, notes, strict=True)
    ]

"""What a picture is from outside (size, color, margins, file), and how well that alone tells the classes apart.

A model that can tell the classes by such a trait need not look at the patient. The rule is a decision tree of three questions,
judged on pictures it has not seen (five folds, patients kept together); it is worth a word when it is right for a good deal more
pictures than always naming the commonest class. The questions, folds and thresholds are our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FLAT = 24  # gray levels (of 256) by which a row of an even margin may vary: less than JPEG leaves, more than any picture's edge
GAIN = 0.15  # least share of the pictures beyond the commonest class that a rule must get right
SURE = 3.0  # standard errors by which it must do so
FOLDS = 5


class Traits(NamedTuple):
    """A picture from outside; margins as shares of its height or width."""

    width: int
    height: int
    gray: bool
    kind: str  # of file, as `images.FORMATS`
    deep: bool
    margins: tuple[float, float, float, float]  # top, bottom, left, right


class Hint(NamedTuple):
    """A trait that tells more than it should, and the place where it does so best."""

    trait: str  # a key of TRAITS
    right: float  # share of pictures that the rule names, each judged by a rule made without it
    commonest: str
    share: float  # of the commonest class
    where: str  # the example: what these pictures have in common
    there: int  # how many they are
    label: str  # what most of them are
    inside: float  # share of that class among them
    outside: float  # and among all
    examples: tuple[int, ...]  # places of such pictures


TRAITS = {"size": "the size", "color": "color or gray", "margins": "the width of even margins", "format": "the kind of file"}


def of(pixels: np.ndarray, kind: str) -> Traits:
    """Return the traits of a decoded picture `(h, w, 3)`."""
    gray = bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())
    green = pixels[..., 1]
    flat = FLAT if pixels.dtype == np.uint8 else FLAT * 257
    margins = tuple(_margin(side, flat) for side in (green, green[::-1], green.T, green.T[::-1]))
    return Traits(pixels.shape[1], pixels.shape[0], gray, kind, pixels.dtype != np.uint8, margins)  # type: ignore[arg-type]


def _margin(rows: np.ndarray, flat: int) -> float:
    """Return the share of rows, from the first on, in which every value is near the first row's middle one."""
    level = int(np.median(rows[0]))
    for number, row in enumerate(rows):
        if int(row.max()) - level > flat or level - int(row.min()) > flat:
            return number / len(rows)
    return 1.0


def hints(traits: Sequence[Traits], labels: Sequence[str], units: np.ndarray) -> list[Hint]:
    """Return the traits that tell the labels (n,) apart, the strongest first; units (n,) are patients, who stay in one fold."""
    names, truth = np.unique(np.array(labels), return_inverse=True)
    found = []
    for trait in TRAITS:
        values, said = _features(traits, trait)
        if (values != values[0]).any() and len(names) > 1 and len(traits) > 2 * FOLDS:
            hint = _hint(trait, values, said, names, truth, units)
            found += [hint] if hint else []
    return sorted(found, key=lambda hint: -hint.right)


def _features(traits: Sequence[Traits], trait: str) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Return the numbers `(n, f)` that a rule may ask for, and of each its name and form, or what yes and no are called."""
    if trait == "size":
        rows = [(one.width, one.height, one.width / one.height) for one in traits]
        return np.array(rows), [("a width", "{:.0f} px"), ("a height", "{:.0f} px"), ("a ratio of width to height", "{:.2f}")]
    if trait == "margins":
        said = [(f"an even margin at the {side}", "{:.0%}") for side in ("top", "bottom", "left", "right")]
        return np.array([one.margins for one in traits]), said
    if trait == "color":
        return np.array([[one.gray] for one in traits], dtype=float), [("no color", "color")]
    kinds = sorted({one.kind for one in traits})
    files = [[*(float(one.kind == kind) for kind in kinds), float(one.deep)] for one in traits]
    said = [(f"{kind} as the kind of file", f"another kind of file than {kind}") for kind in kinds]
    return np.array(files), [*said, ("more than 8 bits", "8 bits")]


def _hint(
    trait: str, values: np.ndarray, said: list[tuple[str, str]], names: np.ndarray, truth: np.ndarray, units: np.ndarray
) -> Hint | None:
    from sklearn.tree import DecisionTreeClassifier

    n, sizes = len(truth), np.bincount(truth)
    rule = DecisionTreeClassifier(max_depth=3, min_samples_leaf=max(3, n // 100), random_state=0)
    folds = _folds(truth, units)
    right = np.zeros(n, dtype=bool)
    for fold in range(FOLDS):
        held = folds == fold
        if held.any() and not held.all():
            right[held] = rule.fit(values[~held], truth[~held]).predict(values[held]) == truth[held]
    accuracy, share = float(right.mean()), float(sizes.max() / n)
    error = np.sqrt(share * (1 - share) / len(np.unique(units)))
    if accuracy - share < max(GAIN * (1 - share), SURE * error):
        return None
    simple = DecisionTreeClassifier(max_depth=1, random_state=0).fit(values, truth)  # one question is enough for an example
    leaves = simple.apply(values)
    counts = {leaf: np.bincount(truth[leaves == leaf], minlength=len(sizes)) for leaf in np.unique(leaves)}
    usual = sizes / n
    beyond = {leaf: (count - count.sum() * usual) / np.sqrt(count.sum() * usual * (1 - usual)) for leaf, count in counts.items()}
    leaf = max(beyond, key=lambda leaf: beyond[leaf].max())  # where a class is most surely more frequent than elsewhere
    label = int(beyond[leaf].argmax())
    there = np.flatnonzero(leaves == leaf)
    inside = float(counts[leaf][label] / len(there))
    examples = tuple(there[truth[there] == label].tolist())
    feature, bound = int(simple.tree_.feature[0]), float(simple.tree_.threshold[0])
    where = _answer(*said[feature], bound, leaf == simple.tree_.children_left[0])
    common = str(names[sizes.argmax()])
    return Hint(trait, accuracy, common, share, where, len(there), str(names[label]), inside, float(sizes[label] / n), examples)


def _folds(truth: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return a fold for each picture, each class spread evenly over them and the pictures of a unit together."""
    _, first, unit = np.unique(units, return_index=True, return_inverse=True)
    order = np.lexsort((np.random.default_rng(0).permutation(len(first)), truth[first]))
    fold = np.empty(len(first), dtype=np.int64)
    fold[order] = np.arange(len(first)) % FOLDS
    return fold[unit]


def _answer(name: str, form: str, bound: float, low: bool) -> str:
    """Return in words what the pictures on one side of a bound have."""
    if "{" not in form:
        return form if low else name
    return f"{name} {'of at most' if low else 'of more than'} {form.format(bound)}"

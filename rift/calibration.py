"""Whether the tests of a comparison keep what they promise: many seeds of one and the same arm, compared with themselves (A/A).

Two groups of K seeds that have no seed in common are drawn from the arm's runs and compared as if they were two arms; what is
called a difference is a false call, and at most 5 % should be. Then a difference is planted into one of the groups: answers of
the same images turned from right to wrong (or back) in every run, a share of other embeddings mixed into its own. The smallest
one that the noncentral t distribution says is found with the stated power is planted, and how often it is found is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from rift import api, dataset, differences, similarity, statistics
from rift.errors import SettingError
from rift.runs import SCHEMA, Lab, Run, write_json
from rift.verdict import LEVEL

SIZES = (3, 5)  # seeds in a group
SEARCHED = 300  # draws that the search for the planted difference looks at
Plant = Callable[[float], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """What S runs of one arm gave on the same images, as `differences` compares it."""

    table: np.ndarray  # (S, n) parts of an accuracy, or (S, 1 + folds) from `leave_out`
    compare: Callable[[np.ndarray, np.ndarray], statistics.Difference]  # rows of a table with rows of another
    plant: Plant  # a strength in [0, 1] gives the table with a difference planted


def accuracy(hits: np.ndarray, weights: np.ndarray, groups: np.ndarray | None = None) -> Metric:
    """Return the metric of hits `(S, n)` bool; the accuracy is the mean of weight · hit.

    Planted: of a random order of the images, common to all runs, the first that are right become wrong; wrong ones right, where
    most are wrong.
    """
    order = np.random.default_rng(0).permutation(hits.shape[1])
    turned = hits if hits.mean() >= 0.5 else ~hits

    def plant(strength: float) -> np.ndarray:
        nth = np.cumsum(turned[:, order], axis=1)
        flips = np.zeros_like(hits)
        flips[:, order] = turned[:, order] & (nth <= round(strength * hits.shape[1]))
        return (hits ^ flips) * weights

    return Metric(hits * weights, lambda a, b: statistics.paired_difference(a, b, groups=groups), plant)


def debiased_cka(before: np.ndarray, after: np.ndarray, groups: np.ndarray | None = None) -> Metric:
    """Return the metric of pretrained `(n, d)` and finetuned embeddings `(S, n, d)`.

    Planted: the embedding of another image is mixed in, the same in all runs; the pretrained one, where the CKA is below 0.5.
    """
    fold = statistics.folds(len(before), groups)

    def number(embeddings: np.ndarray) -> statistics.Statistic:
        return lambda kept: similarity.debiased_cka(before[kept], embeddings[kept])

    def tabled(embeddings: np.ndarray) -> np.ndarray:
        return np.stack([statistics.leave_out(number(one), fold) for one in embeddings])

    table = tabled(after)
    other = np.random.default_rng(0).permutation(len(before))

    def plant(strength: float) -> np.ndarray:
        return tabled((1 - strength) * after + strength * (after[:, other] if table[:, 0].mean() >= 0.5 else before))

    n = len(before)
    return Metric(table, lambda a, b: statistics.paired_statistic_difference(a, b, n), plant)


def check(
    metrics: Mapping[str, Metric], *, sizes: Sequence[int] = SIZES, draws: int = 2000, power: float = 0.8, seed: int = 0
) -> list[dict[str, Any]]:
    """Return one row for each size of group and metric, and one for the family of all metrics; a pure function of its arguments.

    `false_calls` is the share of draws with p <= LEVEL; that of the family, with any p of at most LEVEL after Holm. `planted` is
    the difference planted, `power` what is stated of it and `found` the share of draws that find it. The intervals of shares are
    Wilson's for the number of `independent` comparisons, which are fewer than draws since these share seeds.
    """
    count = len(next(iter(metrics.values())).table)
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        drawn = np.stack([random.permutation(count)[: 2 * size] for _ in range(draws)])
        p_values, independent = [], []
        for name, metric in metrics.items():
            p = _p_values(metric, metric.table, drawn)
            independent.append(_independent(p <= 0.5, drawn, count))
            p_values.append(p)
            row = {"metric": name, "seeds": size, "draws": draws, "independent": independent[-1]}
            row |= _share("false_calls", p <= LEVEL, independent[-1])
            rows.append(row | _planted(metric, drawn, independent[-1], power))
        anything = np.array([min(statistics.holm(one)) <= LEVEL for one in zip(*p_values, strict=True)])
        row = {"metric": "family", "seeds": size, "draws": draws, "independent": min(independent)}
        rows.append(row | _share("false_calls", anything, min(independent)))
    return rows


def _compared(metric: Metric, table: np.ndarray, drawn: np.ndarray) -> list[statistics.Difference]:
    size = drawn.shape[1] // 2
    return [metric.compare(table[one[:size]], metric.table[one[size:]]) for one in drawn]


def _p_values(metric: Metric, table: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    return np.array([one.p_value for one in _compared(metric, table, drawn)])


def _share(name: str, hits: np.ndarray, independent: int) -> dict[str, float]:
    share = float(hits.mean())
    low, high = statistics.proportion_interval(round(share * independent), independent)
    return {name: share, f"{name}_low": low, f"{name}_high": high}


def _independent(half: np.ndarray, drawn: np.ndarray, count: int) -> int:
    """Return how many independent comparisons the draws are worth, at least as many as fit beside each other (our choice).

    From how the share of p-values below one half changes as one seed at a time is left out (jackknife): rare calls depend less
    on single seeds than that share does, so this errs on the low side.
    """
    spared = [~(drawn == one).any(1) for one in range(count)]
    if not all(one.any() for one in spared):  # so few seeds that some are in every draw
        return count // drawn.shape[1]
    without = np.array([half[one].mean() for one in spared])
    variance = (count - 1) * float(without.var())
    worth = float(half.mean() * (1 - half.mean())) / variance if variance else 0.0
    return int(np.clip(worth, count // drawn.shape[1], len(drawn)))


def _planted(metric: Metric, drawn: np.ndarray, independent: int, power: float) -> dict[str, Any]:
    """Plant the smallest difference that is stated to be found with this power, by halving, and count how often it is found."""
    low, high = 0.0, 1.0
    searched = drawn[:SEARCHED]
    if _stated(_compared(metric, metric.plant(high), searched))[1] < power:
        return {"planted": None, "planted_reason": f"no difference would be found with a power of {power:g}"}
    for _ in range(8):
        middle = (low + high) / 2
        enough = _stated(_compared(metric, metric.plant(middle), searched))[1] >= power
        low, high = (low, middle) if enough else (middle, high)
    found = _compared(metric, metric.plant(high), drawn)
    difference, stated = _stated(found)
    return {"planted": difference, "power": stated} | _share("found", np.array([f.p_value <= LEVEL for f in found]), independent)


def _stated(found: Sequence[statistics.Difference]) -> tuple[float, float]:
    """Return the mean difference and the power of a t test at LEVEL that has the mean variance of these comparisons."""
    freedom = found[0].seeds - 1
    reach = float(stats.t.isf(LEVEL / 2, freedom))
    difference = float(np.mean([one.difference for one in found]))
    error = float(np.sqrt(np.mean([((one.high - one.difference) / reach) ** 2 for one in found])))
    if error == 0:
        return difference, float(difference != 0)
    return difference, float(stats.nct.sf(reach, freedom, abs(difference) / error))


def run(data: str | Path, out: str | Path, *, method: str = "full", seeds: int = 24, **given: Any) -> dict[str, Any]:
    """Train one arm from many seeds as `api.compare` does, check the tests on its runs and write `out/calibration.json`.

    Its runs are ordinary ones of the lab, so none is trained twice. `setting.range` for fewer seeds than the two smallest groups
    hold, and for a task with several labels per image.
    """
    least = 2 * SIZES[0]
    if seeds < least:
        raise SettingError("setting.range", f"--seeds {seeds} is not allowed: two groups of {SIZES[0]} take at least {least}.")
    document = api.compare(data, out, methods=[method], regularizers=(), seeds=seeds, **given)
    lab = Lab(given.get("lab") or Path(out) / "lab")
    (arm,) = document["arms"]
    runs = [one for row in arm["runs"] if (one := lab.run(row["run"])).state == "done"]
    rows = check(_metrics(lab, runs), sizes=[size for size in SIZES if 2 * size <= len(runs)])
    about = {key: document[key] for key in ("version", "created", "backbone", "environment")}
    data_, natural = ({key: document[name][key] for key in ("name", "classes")} for name in ("data", "natural"))
    found = {"schema": SCHEMA, **about, "data": data_, "natural": natural, "arm": {**arm, "runs": len(runs)}, "rows": rows}
    write_json(Path(out) / "calibration.json", found)
    return found


def _metrics(lab: Lab, runs: Sequence[Run]) -> dict[str, Metric]:
    """Return the family's metrics of finished runs; natural accuracy where it can be computed."""
    asked = runs[0].experiment
    if asked.task.name == "multi_label":
        raise SettingError("setting.range", "The check takes images with one label each; this task gives them several.")
    images, natural = (dataset.load(lab.data / digest) for digest in (asked.data, asked.natural))
    test = dataset.split(images, asked.training.split_seed).test
    patients = None if images.groups is None else images.groups[test]
    found: dict[str, Metric] = {}
    for name, groups in (("balanced_accuracy", patients), ("natural_accuracy", natural.groups)):
        try:
            hits = np.stack([differences.scores(one, name) > 0 for one in runs])
        except ValueError:
            continue
        kept = differences.scored(runs[0], name)
        weights = statistics.balanced_weights(images.labels[test][kept]) if name == "balanced_accuracy" else np.ones(len(kept))
        found[name] = accuracy(hits, weights, None if groups is None else groups[kept])
    pairs = [differences.embeddings(lab, one, "test") for one in runs]
    found["cka_debiased"] = debiased_cka(pairs[0][0].embeddings, np.stack([after.embeddings for _, after in pairs]), patients)
    return found


def table(document: Mapping[str, Any]) -> str:
    """Return the rows as lines of text."""
    lines = [f"{'metric':20}{'K':>3}  {'false calls (95 % interval)':30}{'planted':>9}{'power':>7}  found (95 % interval)"]
    for row in document["rows"]:
        line = f"{row['metric']:20}{row['seeds']:>3}  {_said(row, 'false_calls'):30}"
        if row.get("planted") is not None:
            line += f"{row['planted']:>+9.3f}{row['power']:>7.2f}  {_said(row, 'found')}"
        lines.append(line + row.get("planted_reason", ""))
    return "\n".join(lines)


def _said(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"

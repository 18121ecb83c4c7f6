"""The numbers of many comparisons as one page of Markdown: what helped, what did nothing, what hurt, and every table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

COLUMNS = {
    "balanced_accuracy": "balanced accuracy",
    "cka_debiased": "debiased CKA",
    "natural_accuracy": "natural accuracy",
    "natural_agreement": "natural agreement",
}
FAMILY = ("balanced_accuracy", "cka_debiased", "natural_accuracy")  # those that get a verdict
SIGNS = {"higher": " ▲", "lower": " ▼", "not distinguishable": " ≈", None: ""}
HEAD = """# What RIFT does on real images

Made by `python -m tests.benchmarks.results --data DIR --weights FILE --lab DIR`, from {runs} finished runs. Nothing here
reproduces a table of a paper: the images, the backbones and the budget are ours. **Not for clinical use.**

Each arm is compared with `none` of the same method: the same images in the same order, the same seeds. About 200 training
images, the default training settings but where a table says otherwise, strength 1 (`l2_sp` 1000, since weights move so much
less than embeddings); nothing was tuned, for no arm. Natural numbers are of CIFAR-10's 1,000 test photos; *natural accuracy*
asks the finetuned embeddings with the pretrained model's own words. Numbers are means over seeds ± standard error. ▲ higher
than `none`, ▼ lower, ≈ not distinguishable; Holm's correction holds over all verdicts of one table. With three seeds the
intervals are wide (t has two degrees of freedom: 4.3 standard errors), and with this many arms Holm's correction is hard to
pass: ≈ says that these runs cannot tell, not that there is no difference. {failed}

`--check 2` trains two of the runs anew. Two LoRA runs of the ViT-tiny gave the same numbers on the machine that had made them;
no other run was checked there. One that an earlier machine had made (`colon full feature_l2`, seed 1) gave others on a later
one: 0.010 off in balanced accuracy, 0.0004 in debiased CKA, 0.001 in natural accuracy, perhaps since its processor sums in
another order.
"""


def short(document: Mapping[str, Any], title: str, source: str) -> dict[str, Any]:
    """Return what the page needs of a comparison document: numbers, no file's name and no pixel."""
    return {
        "title": title,
        "source": source,
        "counts": document["data"]["counts"],
        "backbone": {key: document["backbone"][key] for key in ("name", "weights", "parameters")}
        | {key: value for key, value in document["backbone"]["options"].items() if key in ("architecture", "pixels")},
        "pretrained": document["pretrained"],
        "environment": document["environment"],
        "arms": [
            {
                **{key: arm[key] for key in ("name", "method", "regularizer", "strength", "trainable_parameters")},
                "runs": [{key: run.get(key) for key in ("run", "seed", "diverged", *COLUMNS)} for run in arm["runs"]],
                "mean": {key: arm["mean"][key] for key in COLUMNS},
                "standard_error": {key: arm["standard_error"][key] for key in COLUMNS},
            }
            for arm in document["arms"]
        ],
        "differences": [one for one in document["differences"] if one["metric"] in FAMILY],
    }


def penalty(arm: Mapping[str, Any]) -> str:
    """Return the regularizer of an arm in words, its options in brackets."""
    options = ", ".join(
        f"{key}={value}" for key, value in arm["regularizer"]["options"].items() if key == "statistics" and value != "batch"
    )
    return arm["regularizer"]["name"] + (f"[{options}]" if options else "")


def differences(case: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield method, penalty and each difference that a case has."""
    arms = {arm["name"]: arm for arm in case["arms"]}
    for one in case["differences"]:
        if one["difference"] is not None:
            yield arms[one["arm"]]["method"]["name"], penalty(arms[one["arm"]]), one


def render(stored: Mapping[str, Any]) -> str:
    """Return the page."""
    cases = stored["cases"]
    runs = [run for case in cases.values() for arm in case["arms"] for run in arm["runs"]]
    failed = sum(run["balanced_accuracy"] is None for run in runs)
    text = HEAD.format(
        runs=len(runs) - failed,
        failed=f"{failed} runs diverged or failed; they are in no mean." if failed else "No run diverged.",
    )
    rows = [(name, *found) for name, case in cases.items() for found in differences(case)]
    text += "\n## In short\n\n" + "\n".join([*_short(rows), "", *_counts(rows), "", *_rivals(rows)])
    return text + "\n" + "\n".join(line for name, case in cases.items() for line in ["", *_table(name, case)]) + "\n"


def _short(rows: list[Any]) -> list[str]:
    """Say where RIFT helped, did nothing and hurt, in the same words."""
    lines = []
    for metric in FAMILY:
        of = [(f"{case} {method}", one) for case, method, kind, one in rows if kind == "rift" and one["metric"] == metric]
        parts = []
        for verdict in ("higher", "not distinguishable", "lower"):
            names = [name for name, one in of if one["verdict"] == verdict]
            parts.append(f"{verdict} in {len(names)}" + (f" ({', '.join(names)})" if names else ""))
        mean = float(np.mean([one["difference"] for _, one in of])) if of else float("nan")
        lines.append(f"- **RIFT, {COLUMNS[metric]}**, of {len(of)} comparisons: {'; '.join(parts)}. Mean difference {mean:+.3f}.")
    return lines


def _counts(rows: list[Any]) -> list[str]:
    """One row for each penalty: how often higher, not distinguishable, lower, and the mean difference."""
    lines = ["| penalty | " + " | ".join(f"{COLUMNS[m]} ▲ ≈ ▼ | mean difference" for m in FAMILY) + " |"]
    lines.append("| --- |" + " --- |" * (2 * len(FAMILY)))
    for kind in dict.fromkeys(kind for _, _, kind, _ in rows):
        cells = []
        for metric in FAMILY:
            of = [one for _, _, found, one in rows if found == kind and one["metric"] == metric]
            cells.append(
                " ".join(str(sum(one["verdict"] == v for one in of)) for v in ("higher", "not distinguishable", "lower"))
            )
            cells.append(f"{np.mean([one['difference'] for one in of]):+.3f}")
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines


def _rivals(rows: list[Any]) -> list[str]:
    """Say which rival is better than RIFT in the same tables, by means alone: no test was made between penalties."""
    found = {(case, method, kind, one["metric"]): one["difference"] for case, method, kind, one in rows}
    lines = []
    for kind in dict.fromkeys(kind for *_, kind, _ in found if kind != "rift"):
        places = [
            key[:2] for key in found if key[2:] == (kind, "natural_accuracy") and (*key[:2], "rift", "natural_accuracy") in found
        ]
        both = [
            place
            for place in places
            if all(
                found[*place, kind, metric] > found[*place, "rift", metric]
                for metric in ("balanced_accuracy", "natural_accuracy")
            )
        ]
        neither = [
            place
            for place in places
            if all(
                found[*place, kind, metric] < found[*place, "rift", metric]
                for metric in ("balanced_accuracy", "natural_accuracy")
            )
        ]
        lines.append(
            f"- {kind} against RIFT, by the means: better in balanced and natural accuracy in {len(both)} of {len(places)}, "
            f"worse in both in {len(neither)}."
        )
    return lines


def _table(name: str, case: Mapping[str, Any]) -> list[str]:
    before, counts, backbone = case["pretrained"], case["counts"], case["backbone"]
    pixels, epochs = backbone.get("pixels"), case.get("training", {}).get("epochs")
    verdicts = {(one["arm"], one["metric"]): one["verdict"] for one in case["differences"]}
    lines = [
        f"## {name}: {case['title']}, {backbone.get('architecture', backbone['name'])}",
        "",
        f"Source {case['source']}. Training {counts['train']} (drawn anew for every seed), validation {counts['validation']}, "
        f"test {counts['test']} images. Trained on {case['environment']['device']}, threads: {case['environment']['threads']}"
        f"{f', at {pixels} px' if pixels else ''}{f', {epochs} epochs' if epochs else ''}. "
        f"Before finetuning: natural accuracy {before['natural_accuracy']:.3f}, "
        f"5-nearest-neighbor accuracy {before['knn_accuracy']:.3f}.",
        "",
        "| weights | method | penalty | trained | seeds | " + " | ".join(COLUMNS.values()) + " |",
        "| --- | --- | --- | --- | --- |" + " --- |" * len(COLUMNS),
    ]
    order = list(dict.fromkeys(arm["method"]["name"] for arm in case["arms"]))
    for arm in sorted(case["arms"], key=lambda arm: order.index(arm["method"]["name"])):
        cells = [
            f"{_mean(arm, key)}{SIGNS[verdicts.get((arm['name'], key))] if arm['regularizer']['name'] != 'none' else ''}"
            for key in COLUMNS
        ]
        known = sum(run["balanced_accuracy"] is not None for run in arm["runs"])
        lines.append(
            f"| `{backbone['weights'][:8]}` | {arm['method']['name']} | {penalty(arm)} | {arm['trainable_parameters'] or 0:,} "
            f"| {known} | {' | '.join(cells)} |"
        )
    return lines


def _mean(arm: Mapping[str, Any], key: str) -> str:
    mean, error = arm["mean"][key], arm["standard_error"][key]
    if mean is None:
        return "–"
    return f"{mean:.3f}" + (f" ± {error:.3f}" if error is not None else "")

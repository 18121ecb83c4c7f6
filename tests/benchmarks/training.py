"""Training beside its floor and its peers: the same model, images, order, rates and epochs, in turns within one run.

*floor*: forward, backward and step over batches that lie in memory as float tensors, and nothing else. *ours*: what a run does
between its start and its last step: decoding into the cache, augmentation, batching, norm of the gradient, an event for each
step, checkpoints. The peers read the files anew in each epoch (see `peers`). No contestant clips, so that all do the same
arithmetic; all are judged by the same function on the same test images afterwards, untimed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from rift.config import Training
from tests.benchmarks import measured, peers
from tests.benchmarks.course import Course, Ran, accuracy, course, floor, naive_rift, naive_rsc, ours

UNCLIPPED = 1000.0  # so large that it never acts: the norm is computed all the same
GOALS = {"embedded": {"floor": 0.95, "peers": 1.5}, "vit_tiny": {"floor": 0.95, "peers": 1.0}}
PEERS = ("Trainer", "ImageFolder", "ImageFolder, 2 workers")


def with_threads(threads: int, contestant: Callable[[Course], Ran]) -> Callable[[Course], Ran]:
    """Return a contestant that runs with a number of threads."""

    def run(course: Course) -> Ran:
        kept = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return contestant(course)
        finally:
            torch.set_num_threads(kept)

    return run


def contestants(device: torch.device) -> tuple[dict[str, Callable[[Course], Ran]], dict[str, str]]:
    """Return who takes part, by name, and who was left out and why."""

    def bf16(course: Course) -> Ran:
        return ours(replace(course, training=course.training.model_copy(update={"precision": "bf16"})))

    found: dict[str, Callable[[Course], Ran]] = {"floor": floor, "ours": ours}
    found |= {"ImageFolder": peers.image_folder, "ImageFolder, 2 workers": partial(peers.image_folder, workers=2)}
    if missing := peers.missing():
        left_out = {"Trainer": missing}
    else:
        found["Trainer"], left_out = peers.trainer, {}
    for name, naive in (("rift", naive_rift), ("rsc", naive_rsc)):
        found |= {f"ours, {name}": partial(ours, regularizer=name), f"naive {name}": partial(floor, naive=naive)}
    if device.type == "cpu":
        others = {1, 2} - {torch.get_num_threads()}
        found |= {f"ours, {n} thread{'s' * (n > 1)}": with_threads(n, ours) for n in others}
        able = torch.cpu.get_capabilities()
        if able.get("avx512_bf16") or able.get("amx_bf16"):
            found["ours, bf16"] = bf16
        else:  # it is emulated then, and was twenty times slower
            left_out["ours, bf16"] = "this processor has no such arithmetic"
    return found, left_out


def compare(name: str, one: Course, rounds: int, warm: bool = True) -> dict[str, Any]:
    """Let the contestants train in turns, each round from another seed; returns their numbers and which goals are met."""
    found, left_out = contestants(one.device)

    def ran(contestant: Callable[[Course], Ran], turn: int) -> Ran:
        torch.use_deterministic_algorithms(False)  # ours asks for them, and the next one shall not inherit that
        result = contestant(replace(one, seed=turn))
        result.accuracy, result.classifier = accuracy(result.classifier, one), None
        return result

    if warm:  # lazy imports and caches are nobody's time
        short = replace(one, training=one.training.model_copy(update={"epochs": 1}))
        for contestant in found.values():
            contestant(short)
    all_ran = measured.in_turn({who: partial(ran, contestant) for who, contestant in found.items()}, rounds)
    speeds = {who: [one.images / one.seconds for one in several] for who, several in all_ran.items()}
    work = {who: [one.images / one.processor_seconds for one in several] for who, several in all_ran.items()}
    goals = {"floor": GOALS[name]["floor"], **{who: GOALS[name]["peers"] for who in PEERS if who in found}}
    return {
        "model": name,
        "pixels": one.pretrained.pixels,
        "images": len(one.chosen),
        "judged_images": len(one.judged),
        "epochs": one.training.epochs,
        "batch_size": one.training.batch_size,
        "rounds": rounds,
        "contestants": {
            who: {
                "images_per_second": measured.spread(speeds[who], 1),
                "to_floor": measured.ratios(speeds[who], speeds["floor"]),
                "to_floor_in_processor_time": measured.ratios(work[who], work["floor"]),
                "accuracy": measured.spread([one.accuracy for one in several]),
                "parts": {part: round(float(np.median([one.parts[part] for one in several])), 3) for part in several[0].parts},
            }
            for who, several in all_ran.items()
        },
        "left_out": left_out,
        "goals": [
            {
                "ours_to": who,
                "goal": goal,
                "ratio": (ratio := measured.ratios(speeds["ours"], speeds[who])),
                "met": ratio["median"] >= goal,
            }
            for who, goal in goals.items()
        ],
        "cached_to_naive": {name: measured.ratios(speeds[f"ours, {name}"], speeds[f"naive {name}"]) for name in ("rift", "rsc")},
    }


def measure(quick: bool, data: str = "", weights: str = "", device: str = "cpu") -> dict[str, Any]:
    """Compare with the embedded model and with ViT-tiny; `quick` shows only that it works."""
    on, rows = torch.device(device), []
    plans = [("embedded", 60, 160, 10, 5), ("vit_tiny", 40, 96, 4, 3)]  # drawings per class, images, epochs, rounds
    for name, drawn, most, epochs, rounds in [("embedded", 8, 16, 1, 1)] if quick else plans:
        training = Training(epochs=epochs, batch_size=8 if quick else 32, clip=UNCLIPPED)
        with course(data or f"sample:phantoms:images_per_class={drawn}", name, weights, on, training, most) as one:
            rows.append(compare(name, one, rounds, warm=not quick))
    chip = torch.cuda.get_device_name() if on.type == "cuda" else None
    return {"gpu": chip, "data": "own images" if data else "drawings", "models": rows}


def table(numbers: dict[str, Any]) -> str:
    """Return the numbers as Markdown."""
    lines = []
    for one in numbers["models"]:
        what = (
            f"{one['model']} at {one['pixels']} px, {one['images']} {'images' if numbers['data'] != 'drawings' else 'drawings'}"
        )
        lines += [f"**{what}, {one['epochs']} epochs, batches of {one['batch_size']}, {one['rounds']} rounds**", ""]
        lines += ["| contestant | share of the floor (quartiles) | in processor time | accuracy |", "| --- | --- | --- | --- |"]
        for who, row in one["contestants"].items():
            share, work, right = row["to_floor"], row["to_floor_in_processor_time"], row["accuracy"]
            lines.append(f"| {who} | {measured.told(share)} | {measured.told(work)} | {measured.told(right)} |")
        lines += ["", "| ours against | times as fast (quartiles) | the floor would be | goal | met |", "|" + " --- |" * 5]
        for goal in one["goals"]:
            met = "yes" if goal["met"] else "**no**"
            most = 1 / one["contestants"][goal["ours_to"]]["to_floor"]["median"]  # no loop with this arithmetic can win more
            lines.append(f"| {goal['ours_to']} | {measured.told(goal['ratio'])} | {most:.2f} | ≥ {goal['goal']} | {met} |")
        for name, ratio in one["cached_to_naive"].items():
            lines.append(f"| naive {name}, beside ours with {name} | {measured.told(ratio)} | | | |")
        parts = one["contestants"]["ours, rift"]["parts"]
        said = [f"In seconds, within a run of *ours, rift*: {', '.join(f'{name} {took}' for name, took in parts.items())}."]
        lines += ["", *said, *(f"Left out: {who}, {why}." for who, why in one["left_out"].items()), ""]
    return "\n".join(lines).rstrip()

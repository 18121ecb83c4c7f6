"""Run `python -m tests.benchmarks.gpu --out FILE.json` wherever a GPU is: how near training comes to what the chip can do.

Random weights, 224 px, bf16 autocast. The chip's dense bf16 rate is that of a large matrix product, measured before and after in
the same run. The work of an image is counted by torch's own counter over forward and backward, attention as plain products and
nothing computed twice, so that the share is that of useful work. *loop* is `rift.train` with an event for each step; *bare* is
forward, backward and step on one batch that lies on the device. A form that cannot run says why and is replaced by eager.
Goals, reported and never asserted: 45 % of the measured rate; each penalty at most 1 % of a step.

`--smoke` takes a small model and tiny shapes, on the CPU if need be: it shows that the script works, and measures nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rift import catalog, train
from rift.config import Choice, Training
from rift.model import Backbone, Classifier
from rift.views import autocast
from tests.benchmarks import measured, penalties

MODELS = {
    "CLIP ViT-B/16": Choice(name="timm", options={"model": "clip_base_16", "init": "random"}),
    "CLIP ViT-L/14": Choice(name="timm", options={"model": "clip_large_14", "init": "random"}),
    "DINOv2-L": Choice(name="timm", options={"model": "dinov2_large", "init": "random"}),
}
SMOKE = {"embedded": Choice(name="embedded", options={"init": "random"})}
FORMS: dict[str, dict[str, Any] | None] = {"eager": None, "compiled": {}, "CUDA graphs": {"mode": "reduce-overhead"}}
SHARE, OVERHEAD = 0.45, 0.01
PENALTIES = tuple(name for name in penalties.FORMS if name != "none")


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], device: torch.device, repeats: int, rounds: int) -> list[float]:
    """Return the time of one call by rounds, each of several calls; the first round warms up."""
    found = []
    for _ in range(rounds + 1):
        wait(device)
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        wait(device)
        found.append((time.perf_counter() - began) / repeats)
    return found[1:]


def matmul_rate(size: int, device: torch.device, rounds: int = 10, repeats: int = 20) -> dict[str, float]:
    """Return the rate of a bf16 product of two square matrices, in operations per second; 2 n³ operations each."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return measured.spread([2 * size**3 / one for one in seconds(lambda: a @ b, device, repeats, rounds)], 0)


def work_of(backbone: Backbone, images: int = 2) -> float:
    """Return the operations of training on one image: products of forward and backward, two for each multiply and add."""
    model = copy.deepcopy(backbone).cpu().train()
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.rand(images, 3, model.pixels, model.pixels)).square().mean().backward()
    return counter.get_total_flops() / images


def formed(classifier: Classifier, how: dict[str, Any] | None, try_it: Callable[[], Any]) -> str:
    """Compile a classifier in place and try it; where that fails, go back to eager and return why."""
    if how is None:
        return ""
    try:
        classifier.compile(**how)
        try_it()
    except Exception as error:
        classifier._compiled_call_impl = None  # what `compile` set
        return " ".join(f"{type(error).__name__}: {error}".replace("|", "/").split())[:160]  # one cell of a table
    return ""


def bare(classifier: Classifier, batch: int, device: torch.device) -> Callable[[], None]:
    """Return one step on a batch that lies on the device."""
    images = torch.rand(batch, 3, classifier.backbone.pixels, classifier.backbone.pixels, device=device)
    labels = torch.arange(batch, device=device) % 4
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, "bf16"):
            loss = F.cross_entropy(classifier(images)[1], labels)
        loss.backward()
        optimizer.step()

    return step


def speed(backbone: Backbone, batch: int, device: torch.device, rounds: int, repeats: int) -> dict[str, Any]:
    """Return images per second and peak memory of each form, bare and by our loop."""
    found: dict[str, Any] = {}
    for form, how in FORMS.items():
        for kind in ("bare", "loop"):
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            row: dict[str, Any] = {}
            train.seed_everything(0)  # as a run does, which asks for deterministic kernels
            torch.use_deterministic_algorithms(kind == "loop", warn_only=True)
            try:
                training = Training(batch_size=batch, precision="bf16")
                state, events = penalties.arm(backbone, "none", penalties.drawn(backbone, training, device), training)
                step = (
                    bare(state.classifier, batch, device)
                    if kind == "bare"
                    else (lambda events=events: penalties.next_step(events))
                )
                row["fallback"] = formed(state.classifier, how, step)
                row["images_per_second"] = measured.spread([batch / one for one in seconds(step, device, repeats, rounds)], 1)
                row["parts"] = state.parts
            except torch.OutOfMemoryError:
                row["fallback"] = f"a batch of {batch} does not fit into the memory"
            finally:
                state, events, step = None, None, None  # type: ignore[assignment]
            if device.type == "cuda":
                row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
            found[f"{kind}, {form}"] = row
    return found


def shares(rows: dict[str, Any], work: float, rate: float) -> dict[str, Any]:
    """Add to each row the share of the chip's rate that its images per second are."""
    for row in rows.values():
        if "images_per_second" in row:
            row["share"] = {key: round(value * work / rate, 4) for key, value in row["images_per_second"].items()}
    return rows


def overhead(backbone: Backbone, batch: int, device: torch.device, rounds: int) -> dict[str, Any]:
    """Return for each penalty how much longer a step takes than one without, or why that is not known."""
    found: dict[str, Any] = {}
    for name in PENALTIES:
        try:
            one = penalties.steps(rounds, batch, backbone, ("none", name), device.type, "bf16")
            found[name] = {**one["ratio_to_none"][name], "parts": max([1, *one["parts"].values()])}
        except torch.OutOfMemoryError:
            found[name] = {"why": f"two models and a batch of {batch} do not fit into the memory"}
            torch.cuda.empty_cache()
    return found


def measure(quick: bool, device: str = "auto") -> dict[str, Any]:
    """Measure every model; `quick` is the smoke test."""
    on = torch.device("cuda" if device in ("auto", "cuda") and torch.cuda.is_available() else "cpu")
    size, batches, rounds, repeats = (128, (4,), 1, 1) if quick else (8192, (64, 256), 10, 5)
    before = matmul_rate(size, on, rounds)
    rows = []
    for name, choice in (SMOKE if quick else MODELS).items():
        torch.manual_seed(0)
        backbone = penalties.with_words(catalog.door("backbones", choice.name)(**choice.options).to(on))
        rows.append(
            {
                "model": name,
                "pixels": backbone.pixels,
                "parameters": sum(p.numel() for p in backbone.parameters()),
                "work": work_of(backbone),
                "speed": {str(batch): speed(backbone, batch, on, rounds, repeats) for batch in batches},
                "overhead": {str(batch): overhead(backbone, batch, on, 2 if quick else 30) for batch in batches},
            }
        )
    after = matmul_rate(size, on, rounds)
    rate = max(before["median"], after["median"])
    for row in rows:
        row["speed"] = {batch: shares(one, row["work"], rate) for batch, one in row["speed"].items()}
    chip = torch.cuda.get_device_name() if on.type == "cuda" else None
    return {"gpu": chip, "smoke": quick, "matmul": {"size": size, "before": before, "after": after, "rate": rate}, "models": rows}


def table(numbers: dict[str, Any]) -> str:
    """Return the numbers as Markdown; one sentence where they are not of a GPU."""
    if not numbers.get("gpu") or numbers["smoke"]:
        return "Not yet run on a GPU."
    lines = [f"On one **{numbers['gpu']}**, whose bf16 rate in this run was {numbers['matmul']['rate'] / 1e12:.0f} TFLOP/s.", ""]
    lines += ["| model | batch | form | images/s | share of the rate (goal ≥ 45 %) | peak GB | note |", "|" + " --- |" * 7]
    for model in numbers["models"]:
        for batch, forms in model["speed"].items():
            for form, row in forms.items():
                rate, share = row.get("images_per_second", {}).get("median", "–"), row.get("share", {}).get("median")
                note = row.get("fallback", "") or (f"in {row['parts']} parts" if row.get("parts", 1) > 1 else "")
                told = f"{100 * share:.1f} %" if share is not None else "–"
                lines.append(f"| {model['model']} | {batch} | {form} | {rate} | {told} | {row.get('peak_gb', '–')} | {note} |")
    lines += ["", "| model | batch | penalty | a step over one without (quartiles; goal ≤ 1.01) |", "|" + " --- |" * 4]
    for model in numbers["models"]:
        for batch, forms in model["overhead"].items():
            for name, one in forms.items():
                told = one.get("why") or measured.told(one, 4) + (f", in {one['parts']} parts" if one["parts"] > 1 else "")
                lines.append(f"| {model['model']} | {batch} | `{name}` | {told} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    if not (chosen.smoke or torch.cuda.is_available()):
        parser.error("there is no GPU here; --smoke shows that the script works")
    from tests.benchmarks.sections import document

    busy = measured.busy()
    found = document("gpu", measure(chosen.smoke, chosen.device), chosen.smoke, busy)
    print(table(found["sections"]["gpu"]["numbers"]))
    if chosen.out:
        chosen.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The parts of BENCHMARKS.md: what each measures, how, and its table; one document of all that were measured, wherever.

A section is `measure(quick) -> numbers` and `table(numbers) -> Markdown`. Its numbers stand beside the machine and the versions
that made them, so that a section measured elsewhere (on a GPU, say) can be merged into the document.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import command, gpu, measured, penalties, presets, similarity, start, training

VERSIONS = ("torch", "torchvision", "timm", "transformers", "accelerate", "torch_cka", "gradio", "numpy")


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    title: str
    about: str
    measure: Callable[..., dict[str, Any]]
    table: Callable[[dict[str, Any]], str]
    missing: Callable[[], str] = lambda: ""  # why it cannot be measured here, empty where it can
    options: tuple[str, ...] = ()  # of the command, those that it takes


def _similarity(quick: bool) -> dict[str, Any]:
    return similarity.main(["--small"] if quick else [])


def _presets(quick: bool) -> dict[str, Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        data = "sample:phantoms:images_per_class=8" if quick else presets.DRAWINGS
        return presets.presets(data, Path(folder) / "lab", torch.get_num_threads())


def _app(quick: bool) -> dict[str, Any]:
    from tests.benchmarks import app

    return app.measure(8 if quick else 40)


def _app_table(numbers: dict[str, Any]) -> str:
    """Return what the app's benchmark found, as Markdown."""
    full, idle, busy = numbers["page_full"], numbers["idle"], numbers["training"]
    rows = [("the app answers after its start, s (goal ≤ 5)", numbers["app_start_seconds"])]
    rows += [(f"page full, {name}, p50, s (goal ≤ 3)", one["p50_seconds"]) for name, one in full.items()]
    rows += [(f"page full, {name}: p95 over p50", one["p95_seconds"] / one["p50_seconds"]) for name, one in full.items()]
    rows += [("a tick, idle, kilobytes", idle["tick"]["kilobytes_each"])]
    rows += [("a tick while a run trains, kilobytes", busy["tick"]["kilobytes_each"])]
    rows += [("a switch while a run trains over one idle, p50", _over(busy["button"], idle["button"], "switch"))]
    rows += [("an answer to Ask while a run trains over one idle, p50", _over(busy["button"], idle["button"], "ask"))]
    return "\n".join(["| what | found |", "| --- | --- |", *(f"| {name} | {value:.2f} |" for name, value in rows)])


def _over(busy: dict[str, Any], idle: dict[str, Any], name: str) -> float:
    return float(busy[name]["p50_seconds"]) / float(idle[name]["p50_seconds"])


SECTIONS = {
    "training": Section(
        "Training, beside its floor and its peers",
        "The same model, images, order of images, rates and epochs, each contestant in turn, in every round another first and "
        "from another seed. *floor*: forward, backward and step over float tensors that lie in memory. *ours*: a run from "
        "its start to its last step: decoding, augmentation, norm of the gradient, an event per step, checkpoints. *naive*: the "
        "floor with the pretrained model run in every step. The peers decode each file (PNG) in each epoch, as they do. "
        "Accuracy is that on the same test images after the same epochs, over the rounds' seeds. Where *ours* with the embedded "
        "model is beside its floor, by a profiler, of such a short run: checkpoints 2.3 %, decoding 1.7 % (also of images that "
        "are not trained on), the norm of the gradient 1.2 %, augmentation 0.6 %; the rest is in forward and backward, for which "
        "*ours* asks for deterministic algorithms. What the floor would be against a peer bounds every loop in fp32.",
        training.measure,
        training.table,
        options=("data", "weights", "device"),
    ),
    "gpu": Section(
        "On a GPU",
        "CLIP ViT-B/16, CLIP ViT-L/14 and DINOv2-L at 224 px with random weights in bf16; the share is of the chip's own rate of "
        "a dense bf16 product, measured in the same run (`tests/benchmarks/gpu.py` says how work is counted).",
        gpu.measure,
        gpu.table,
        lambda: "" if torch.cuda.is_available() else "there is no GPU here",
    ),
    "steps": Section(
        "What a penalty costs",
        "A step with each penalty over one without, the embedded model (192) and a ViT-B/32 (768), on the same batch of 32.",
        penalties.measure,
        penalties.table,
    ),
    "command": Section(
        "The whole command",
        "`python -m rift compare` on 200 drawings, 10 epochs, both arms; the one without is first, and pays for what both need.",
        command.measure,
        command.table,
    ),
    "start": Section(
        "From Start to the first step",
        "A comparison of `none` and `rift` on the drawn phantoms by a new process, a second one on the same images, which finds "
        "the pretrained model's pass in the lab's cache, and a third one by a worker that stood by, as the app keeps one. "
        "Seconds of the wall clock; the second arm's from the end of the first.",
        lambda quick: start.measure(1 if quick else 5),
        start.table,
    ),
    "similarity": Section(
        "CKA of all pairs of layers",
        "13 layers against 13, beside the package `torch_cka`, in processor time on one thread.",
        _similarity,
        similarity.table,
        lambda: "" if find_spec("torch_cka") else "torch_cka is not installed",
    ),
    "presets": Section(
        "Diagnostics that run the models",
        "The quick preset of each, on 200 test drawings, for each arm: seconds of the wall clock (of the processor). "
        "`spread` inverts 50 images through each block of the pretrained model, which the arms after the first take from the "
        "lab's cache.",
        _presets,
        presets.table,
    ),
    "app": Section(
        "The page",
        "In Chromium, idle and while a run trains. Until the app answers, on a first start (median of three, measured apart): "
        "importing Gradio 1.9 s, torch 1.0 s and the rest 0.4 s, laying out the example 0.3 s, making the page 0.7 s, Gradio's "
        "launch 0.4 s.",
        _app,
        _app_table,
        lambda: "" if find_spec("playwright") else "no browser",
    ),
}


def document(name: str, numbers: dict[str, Any], quick: bool, busy: float | None) -> dict[str, Any]:
    """Return the document of one section that was measured here; `busy`: what others used of the machine before."""
    about = {"quick": quick, "machine": {**measured.machine(numbers.get("gpu")), "busy_before": busy}}
    return {"sections": {name: {**about, "versions": measured.versions(*VERSIONS), "numbers": numbers}}}


def measure(name: str, quick: bool, options: dict[str, str]) -> dict[str, Any]:
    """Measure one section, in this process."""
    section, busy = SECTIONS[name], measured.busy()
    numbers = section.measure(quick, **{key: options[key] for key in section.options if options.get(key)})
    return document(name, numbers, quick, busy)

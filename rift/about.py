"""What a run says of how it came about: which process, what versions, what device, which model, and if memory sufficed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from typing import Any

import torch

from rift import __version__, accumulate, process
from rift.config import Training
from rift.model import Backbone, fingerprint
from rift.runs import Run
from rift.train import State
from rift.views import precision_of


def worker(device: torch.device) -> dict[str, Any]:
    """Return what the log says of a process that begins: which it is, so that no other is taken for it, and what it runs on."""
    runs_on = {"device": device.type, "threads": torch.get_num_threads(), "torch": torch.__version__}
    return {"pid": os.getpid(), "birth": process.birth(os.getpid()), **runs_on}


def backbone(pretrained: Backbone) -> dict[str, Any]:
    """Return the pretrained model's size and the SHA-256 of its weights."""
    return {
        "width": pretrained.width,
        "layers": pretrained.layers,
        "weights": pretrained.weights or fingerprint(pretrained),
        "parameters": sum(p.numel() for p in pretrained.parameters()),
    }


def environment(device: torch.device, precision: str, devices: int = 1) -> dict[str, Any]:
    """Return what a number may depend on besides its settings."""
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "timm", "safetensors")}
    return {
        "rift": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "precision": precision_of(device, precision),
        **({"devices": devices} if devices > 1 else {}),
    }


def memory(state: State, training: Training) -> dict[str, Any] | None:
    """Return what was done about too little memory, None where there was enough."""
    if not state.halvings:
        return None
    about: dict[str, Any] = {
        "batch_size": training.batch_size,
        "parts": state.parts,
        "exact": accumulate.exact(state.regularizer),
    }
    about |= {"halvings": state.halvings}
    return about | {"sentence": accumulate.sentence(about)}


def attempts(run: Run) -> list[dict[str, Any]]:
    """Return on what the run was worked at, each once: more than one and its bits may not be those of an undisturbed run."""
    found = (
        {key: event.get(key) for key in ("device", "threads", "torch")} for event in run.events() if event["event"] == "start"
    )
    return list({tuple(one.values()): one for one in found}.values())


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def remarks(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return in words what happened to runs, by name, that a reader of their numbers should know; most often nothing."""
    said = [f"{name}: {memory['sentence']}" for name, one in results.items() if (memory := one.get("memory"))]
    for name, one in results.items():
        if len(one.get("attempts") or ()) > 1:
            on = "; ".join(f"{a['device']}, {a['threads']} threads, torch {a['torch']}" for a in one["attempts"])
            said.append(f"{name} was worked at on different grounds ({on}): last bits may not be those of an undisturbed run.")
    keys = ("device", "threads", "torch", "precision")
    known = {name: one["environment"] for name, one in results.items() if one.get("environment")}
    grounds = {", ".join(f"{key} {one.get(key)}" for key in keys): name for name, one in known.items()}
    if len(grounds) > 1:
        on = "; ".join(f"{name}: {ground}" for ground, name in grounds.items())
        said.append(f"The runs were made on different grounds ({on}), which moves last bits as another seed would.")
    return said

"""All that a resumed run needs, in one file that runs no code when it is read and that no other run or lab can have written.

A safetensors file: tensors, and beside them one JSON text. HMAC-SHA256 over all of it with the lab's secret, and the run's id in
the text: a flipped bit, a torn file, a checkpoint of another run and one that came from elsewhere are all refused. It does not
stop a person who may write in the lab's folder, since the secret lies there too.
"""

from __future__ import annotations

import hmac
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rift import disk
from rift.errors import RunError

ENDING = ".safetensors"


def path(folder: Path, step: int) -> Path:
    """Return where the checkpoint after a step is kept."""
    return folder / f"step-{step:07d}{ENDING}"


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], key: bytes, run: str) -> None:
    """Write tensors and facts (plain JSON) as one sealed file, atomically; `run.disk` when the disk refuses."""
    held = _apart(tensors)
    text = json.dumps({"run": run, **facts}, allow_nan=False)
    metadata = {"facts": text, "hmac": _seal(held, text, key)}
    try:
        with disk.replacing(path) as file:
            save_file(held, file.name, metadata)
            with open(file.name, "rb") as written:  # the file that the library made, which may be a new one
                os.fsync(written.fileno())
    except SafetensorError as error:  # how the library tells of a full disk
        raise disk.refused(OSError(28, str(error)), "the checkpoint") from error


def read(path: Path, key: bytes, run: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `write` wrote, on the CPU; ValueError, in words, for what is damaged or was not written by this lab and run."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a safetensors file is no dict
    except (SafetensorError, OSError, OverflowError, MemoryError) as error:
        raise ValueError("it is torn, damaged or no checkpoint") from error
    text = metadata.get("facts", "")
    if not hmac.compare_digest(_seal(tensors, text, key), metadata.get("hmac", "")):
        raise ValueError("its seal is not this lab's: a bit of it changed, or it was not written here")
    facts = json.loads(text)
    if facts["run"] != run:
        raise ValueError("it is another run's")
    return tensors, facts


def _seal(tensors: Mapping[str, Tensor], text: str, key: bytes) -> str:
    mac = hmac.new(key, text.encode(), "sha256")
    for name in sorted(tensors):
        tensor = tensors[name]
        mac.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            mac.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return mac.hexdigest()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, each with memory of its own, as the format asks."""
    held, seen = {}, set[int]()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        held[name] = plain.clone() if plain.untyped_storage().data_ptr() in seen else plain
        seen.add(plain.untyped_storage().data_ptr())
    return held


def of_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Part an optimizer's state into tensors, by `optimizer.PLACE.NAME`, and the rest."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    for place, values in state["state"].items():
        for name, value in values.items():
            (tensors if isinstance(value, Tensor) else others)[f"optimizer.{place}.{name}"] = value
    return tensors, {"groups": state["param_groups"], "others": others}


def to_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Give an optimizer what `of_optimizer` took from its like; ValueError where it is of another build."""
    state: dict[int, dict[str, Any]] = {}
    for full, value in {**tensors, **facts["others"]}.items():
        kind, _, rest = full.partition(".")
        if kind == "optimizer":
            place, _, name = rest.partition(".")
            state.setdefault(int(place), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": facts["groups"]})


def of_generators() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the states of all random generators: torch's, CUDA's, numpy's and Python's."""
    tensors = {"rng.torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        tensors |= {f"rng.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    kind, keys, *more = np.random.get_state()
    return tensors, {"numpy": [kind, np.asarray(keys).tolist(), *more], "python": random.getstate()}


def to_generators(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Let all random generators go on from what `of_generators` returned."""
    torch.set_rng_state(tensors["rng.torch"])
    cuda = [tensors[name] for name in sorted(tensors) if name.startswith("rng.cuda.")]
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda)
    kind, keys, *more = facts["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *more))
    version, numbers, gauss = facts["python"]
    random.setstate((version, tuple(numbers), gauss))


def refuse_misfit(tensors: Mapping[str, Tensor], prefix: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of one part by their own names; ValueError where they do not fit, before anything was changed."""
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if {name: value.shape for name, value in found.items()} != {name: value.shape for name, value in wanted.items()}:
        raise ValueError("it is of another model or version")
    return found


def told(path: Path, error: Exception) -> RunError:
    """Return in words why a checkpoint was passed over."""
    return RunError("run.damaged", f"The checkpoint {path.name} was passed over: {error}. The one before it counts.")

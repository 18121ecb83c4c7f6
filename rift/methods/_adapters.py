"""What the adapter methods share: which layers they may take, how peft puts adapters there, and how size follows a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from torch import nn

from rift.errors import SettingError
from rift.model import Backbone

if TYPE_CHECKING:
    from peft import PeftConfig

# fc1 of a split SwiGLU is two layers, one of them the gate
LAYERS = {"qkv": ("attn.qkv",), "proj": ("attn.proj",), "fc1": ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x"), "fc2": ("mlp.fc2",)}

Qkv = Annotated[bool, Field(description="adapt the layer that makes queries, keys and values")]
Proj = Annotated[bool, Field(description="adapt the layer after attention")]
Fc1 = Annotated[bool, Field(description="adapt the first layer of the MLP, with its gate where it has one")]
Fc2 = Annotated[bool, Field(description="adapt the second layer of the MLP")]
Budget = Annotated[
    float | None,
    Field(gt=0, le=1, description="sets the size by trainable parameters, as a share of the backbone's (head not counted)"),
]


def targets(method: str, backbone: Backbone, **chosen: bool) -> dict[str, nn.Linear]:
    """Return the chosen linear layers of every block by their names in the ViT.

    Raises `setting.range` when none is chosen, or when a block has no such layer.
    """
    if not any(chosen.values()):
        raise SettingError("setting.range", f"{method}: no layer is chosen; set at least one of {', '.join(chosen)} to true.")
    found: dict[str, nn.Linear] = {}
    for i, block in enumerate(backbone.vit.blocks):
        layers = dict(block.named_modules())
        for part in (part for part, wanted in chosen.items() if wanted):
            here = {path: layers[path] for path in LAYERS[part] if isinstance(layers.get(path), nn.Linear)}
            if not here:
                kind = type(block).__name__
                message = f"{method}: this backbone's blocks ({kind}) have no layer {part}; set {part} to false, or choose full."
                raise SettingError("setting.range", message)
            found |= {f"blocks.{i}.{path}": layer for path, layer in here.items()}
    return found


def inject(backbone: Backbone, config: PeftConfig) -> None:
    """Freeze the backbone and let peft wrap the layers that `config.target_modules` names; only the adapters train."""
    from peft import inject_adapter_in_model

    backbone.requires_grad_(False)
    inject_adapter_in_model(config, backbone.vit)
    backbone.train(backbone.training)  # what is new follows the mode of the rest


def unwrap(backbone: Backbone) -> None:
    """Put every layer that `inject` wrapped back in its place, untouched as it stayed."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    vit = backbone.vit
    for name, module in list(vit.named_modules()):
        if isinstance(module, BaseTunerLayer):
            vit.set_submodule(name, module.get_base_layer())
    del vit.peft_config


def of_budget(method: str, setting: str, backbone: Backbone, budget: float, sizes: Mapping[int, int]) -> int:
    """Return the value of a setting whose number of trainable parameters comes nearest to a share of the backbone's.

    `sizes` maps each allowed value to its number; the head is not counted. Raises `setting.range` for a budget below the least
    or above the most of them, naming the budgets that there are.
    """
    total = sum(p.numel() for p in backbone.parameters())
    wanted = budget * total
    least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    if not sizes[least] <= wanted <= sizes[most]:
        asked = f"{method}: budget = {budget:g} asks for {wanted:,.0f} of the backbone's {total:,} parameters"
        have = f"{setting} = {least} to {most} has {sizes[least]:,} to {sizes[most]:,}"
        shares = f"{_digits(sizes[least] / total, math.ceil):g} to {_digits(min(1.0, sizes[most] / total), math.floor):g}"
        raise SettingError("setting.range", f"{asked}, but {have}; use a budget from {shares}.")
    return min(sizes, key=lambda value: abs(sizes[value] - wanted))


def _digits(share: float, towards: Callable[[float], int]) -> float:
    """Return a share rounded to two digits in one direction, so that a budget named in an error is one that is taken."""
    step = 10.0 ** (math.floor(math.log10(share)) - 1)
    return towards(share / step) * step

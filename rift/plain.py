"""A finished run's whole model for plain timm: one safetensors file, and the Python lines that load it without this project.

Low-rank and orthogonal adapters are merged into the layers that they stand beside, which is equal up to rounding. What plain timm
has no layer for (the embedded model's stem, AdaptFormer's branch, VPT's prompts, a head that draws images) comes as source in the
lines. CLIP is its image tower and the new head; the text tower never trains and is not in the file.
"""

from __future__ import annotations

import inspect
from typing import Any

from safetensors.torch import save

from rift import catalog, dataset, trained
from rift.errors import RunError
from rift.model import Classifier
from rift.runs import Lab, Run, write_bytes

FILE = "finetuned.safetensors"
LINES = '''"""{about}"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

{vit}
{added}{model}
model.load_state_dict(load_file("{file}"))
model.eval()

# images: (n, 3, {pixels}, {pixels}) in [0, 1], RGB: the center square, resized with antialiased bicubic
mean = torch.tensor({mean}).view(1, 3, 1, 1)
std = torch.tensor({std}).view(1, 3, 1, 1)
classes = {classes}


@torch.inference_mode()
def predict(images: Tensor) -> Tensor:
    """Return {returns}."""
    return model((images - mean) / std)
'''


def write(lab: Lab, run: Run) -> str:
    """Write the model of a finished run to `plain.safetensors` in it, once, and return the lines that load it.

    Raises `run.missing` where the run has no weights or its method adds layers that there are no lines for, and a ModelError
    where the pretrained weights are not at hand.
    """
    if not (run.path / "weights.safetensors").exists():
        raise RunError("run.missing", "The weights of this run are not here: it is not finished, or was opened without them.")
    classifier = trained.build(lab, run)
    added = _merge(run.experiment.method.name, classifier)
    wanted = set(trained.pretrained(run).vit.state_dict())
    foreign = set(classifier.backbone.vit.state_dict()) ^ wanted
    if foreign and not added:
        raise RunError("run.missing", f"The method {run.experiment.method.name} adds layers that plain timm cannot load.")
    path = run.path / "plain.safetensors"
    if not path.exists():
        vit, head = classifier.backbone.vit.state_dict(), classifier.head.state_dict()
        tensors = {f"{part}.{key}": value for part, state in (("vit", vit), ("head", head)) for key, value in state.items()}
        alone = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
        write_bytes(path, save(alone, {"format": "pt", "run": run.id}))
    return _lines(lab, run, classifier, added)


def _merge(method: str, classifier: Classifier) -> str:
    """Merge adapters where that can be done; else return the lines that add them to a plain ViT."""
    vit: Any = classifier.backbone.vit
    if method == "adaptformer":
        one = vit.blocks[0].mlp
        sizes = f"{one.down.in_features}, {one.down.out_features}, {one.scale}, 0.0"
        place = f"    block.mlp = Beside(block.mlp, block.ls2, {sizes})\n    block.ls2 = nn.Identity()\n"
        return f"\n{inspect.getsource(type(one))}\n\nfor block in vit.blocks:\n{place}"
    if method == "vpt":
        blocks, count, width = vit.prompts.tokens.shape
        made = f"Prompts({blocks}, {count}, {width}, {vit.prompts.prefix}, 0.0, 0.0)"
        return f"\n{inspect.getsource(type(vit.prompts))}\n\nvit.prompts = {made}\nvit.prompts.attach(vit.blocks)\n"
    wrapped = [module for module in vit.modules() if hasattr(module, "get_base_layer")]
    for module in wrapped:
        module.merge()
    if wrapped:
        catalog.module("methods", method).remove(classifier.backbone)  # what is left has the change in it
    return ""


def _lines(lab: Lab, run: Run, classifier: Classifier, added: str) -> str:
    backbone, experiment = classifier.backbone, run.experiment
    vit: Any = backbone.vit
    classes = dataset.load(lab.data / experiment.data).classes
    if experiment.backbone.name == "embedded":
        from rift.backbones import _image_tower as tower

        sources = [inspect.getsource(one) for one in (tower.Convolution, tower.Residual, tower.Stem, tower.image_tower)]
        imports = (
            "import itertools\n\nfrom timm.layers import PatchEmbed\nfrom timm.models.vision_transformer import VisionTransformer"
        )
        constants = f"PIXELS, WIDTH, DEPTH = {tower.PIXELS}, {tower.WIDTH}, {tower.DEPTH}"
        body = "\n\n".join([imports, constants + "\n", *sources, "vit = image_tower()"])
    else:
        name, count = vit.pretrained_cfg["architecture"], vit.num_classes
        body = f'vit = timm.create_model("{name}", pretrained=False, img_size={backbone.pixels}, num_classes={count})'
    if classifier.reads_tokens:
        patch = classifier.head.patch
        made = f"Model(vit, Pixels({classifier.head.convolution.in_channels}, {patch}))"  # type: ignore[union-attr]
        gray = f"GRAY = {inspect.getmodule(type(classifier.head)).GRAY}"  # type: ignore[union-attr]
        model = f"{gray}\n\n{inspect.getsource(type(classifier.head))}\n\n{TOKENS}\n\nmodel = {made}"
    else:
        model = f"model = nn.Sequential(OrderedDict(vit=vit, head=nn.Linear({backbone.width}, {len(classes)})))"
    return LINES.format(
        about=f"The finetuned model of run {run.id}, loaded with timm, torch and safetensors alone.",
        vit=body,
        added=added,
        model=f"\n{model}" if added or "\n" in model else model,
        file=FILE,
        pixels=backbone.pixels,
        mean=[round(float(one), 8) for one in backbone.mean.flatten()],
        std=[round(float(one), 8) for one in backbone.std.flatten()],
        classes=[str(one) for one in classes],
        returns="the images again" if classifier.reads_tokens else "logits (n, classes)",
    )


TOKENS = '''class Model(nn.Module):
    """A ViT and a head that reads its patch tokens."""

    def __init__(self, vit, head):
        super().__init__()
        self.vit, self.head = vit, head

    def forward(self, images):
        tokens = self.vit.forward_features(images)[:, self.vit.num_prefix_tokens :]
        return self.head(self.vit.fc_norm(tokens))
'''


def exactness(run: Run) -> str:
    """Say of a run's method and backbone what the file is."""
    method, backbone = run.experiment.method.name, run.experiment.backbone
    words = {
        "adaptformer": "The branches beside the MLPs stay branches; the lines bring their 20 lines of source.",
        "vpt": "The prompts stay prompts; the lines bring their source.",
    }
    if method in ("lora", "dora", "oft"):
        first = f"The adapters of {method} are merged into the layers they stand beside: equal up to rounding."
    else:
        first = words.get(method, "The weights are exactly those of the run, layer by layer.")
    second = ""
    if backbone.name == "embedded":
        second = " timm has no layer for the embedded model's convolutional stem; the lines bring its source."
    if backbone.name == "open_clip" or "clip" in str(backbone.options):
        second = " Of CLIP it is the image tower; the text tower never trains and is not in the file."
    return first + second

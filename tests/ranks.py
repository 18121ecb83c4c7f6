"""A training in float64 by one rank and by two, for `test_distributed`: `python -m tests.ranks OUT` writes how each case ends.

The toy model, five steps of seven images each, so that two ranks have four and three of them.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from rift import catalog, distributed, train
from rift.config import Training
from rift.model import Backbone, Classifier, NaturalHead
from rift.views import Views

CPU = torch.device("cpu")
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("none", {}, {}),
    ("rift", {}, {}),
    ("rift", {"mean": True, "epsilon": 1e-4}, {}),
    ("rift", {"statistics": "running"}, {}),
    ("rift", {"map": "procrustes"}, {}),
    ("rift", {"map": "learned"}, {}),
    ("rsc", {}, {}),
    ("rsc", {"debiased": True}, {}),
    ("feature_l2", {}, {}),
    ("feature_l2", {"layers": 2}, {}),
    ("procrustes", {}, {}),
    ("l2_sp", {}, {"optimizer": "sgd"}),  # the gradient of a key's bias is 0, and Adam makes steps of its rounding
    ("logit_distillation", {"labels": "dog+cat+ship"}, {}),
    ("rift", {}, {"parts": 2}),  # each batch in parts besides
    ("rift", {}, {"memory": 1}),  # the second rank runs out of memory once
    ("rift", {}, {"frozen": True}),  # the head alone trains, on cached embeddings
    ("feature_l2", {"layers": 2}, {"parts": 2}),
    ("rift", {}, {"task": "reconstruction"}),
]


def trained(place: int) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """Train one case and return its weights and averages, and its steps."""
    name, options, more = CASES[place]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    vit = timm.create_model("test_vit", num_classes=0, img_size=32)
    backbone = Backbone(vit, pixels=vit.patch_embed.img_size[0], mean=(0.5,) * 3, std=(0.5,) * 3).double().eval()
    rows = torch.nn.functional.normalize(torch.randn(3, backbone.width), dim=1)
    backbone._natural = lambda labels: NaturalHead(tuple(labels), rows[: len(labels)])
    pixels = np.random.default_rng(0).integers(0, 255, (35, backbone.pixels, backbone.pixels, 3), dtype=np.uint8)
    rule = {"optimizer": more.get("optimizer", "adamw"), "learning_rate": 1e-3, "warmup": 0.0, "clip": 1000.0}
    training = Training(epochs=1, batch_size=7, views=1, **rule)
    views = Views(pixels, np.arange(35) % 2, training, seed=0)
    views.pretrained = backbone
    task = catalog.door("tasks", more.get("task", "single_label"))(("a", "b"))
    classifier = Classifier(copy.deepcopy(backbone), task.head(backbone).double())
    if more.get("frozen"):
        classifier.backbone.requires_grad_(False)
        views.targets(())
        views._targets[()] = views._targets[()].double()
    penalty = catalog.door("regularizers", name)(backbone, classifier.backbone, views, **options).double()
    state = train.State(classifier, penalty, train.make_optimizer(classifier, penalty, training), parts=more.get("parts", 1))
    if "memory" in more and distributed.size() > 1 and torch.distributed.get_rank() == more["memory"]:
        run_out(classifier)
    distributed.same(train.tensors(state))
    events = [event.values for event in train.train(state, task, views, training, 10.0, 0, dict) if event.kind == "step"]
    assert [one["parts"] for one in state.halvings] == ([2] if "memory" in more and distributed.size() > 1 else [])
    keys = ("task_loss", "penalty", "gradient_norm")
    return train.tensors(state), [{key: event[key] for key in keys} for event in events]


def run_out(classifier: Classifier) -> None:
    """Let the third forward pass find no memory, on this rank."""
    passes = []

    def refuse(*_: Any) -> None:
        passes.append(1)
        if len(passes) == 3:
            raise torch.OutOfMemoryError("out of memory, as a test has it")

    classifier.register_forward_pre_hook(refuse)


def main(out: Path) -> None:
    """Train every case alone and as rank 0 of two, and write what both end with."""
    alone = [trained(place) for place in range(len(CASES))]
    with distributed.over(2, CPU, "tests.ranks", {}):
        together = [trained(place) for place in range(len(CASES))]
    torch.save((alone, together), out)


if __name__ == "__main__":
    if sys.argv[1].startswith("{"):
        about = json.loads(sys.argv[1])
        distributed.join(about["rank"], about["ranks"], about["meeting"], CPU)
        for case in range(len(CASES)):
            trained(case)
    else:
        main(Path(sys.argv[1]))

"""The two plain methods: everything trains, or only the head does."""

from __future__ import annotations

import timm
import torch
from torch.nn import functional as F

from rift.methods import full, linear
from rift.model import Backbone, Classifier, trainable

IMAGES, LABELS = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0])


def toy() -> Backbone:
    vit = timm.create_model("test_vit", pretrained=False, img_size=32, num_classes=0)
    return Backbone(vit, pixels=32, mean=(0.5,) * 3, std=(0.5,) * 3)


def train(classifier: Classifier, steps: int = 3) -> None:
    """A few steps of what the real loop does, weight decay included, over whatever wants a gradient."""
    classifier.train()
    optimizer = torch.optim.AdamW([p for p in classifier.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(classifier(IMAGES)[1], LABELS).backward()
        optimizer.step()
    classifier.eval()


def activations(backbone: Backbone) -> torch.Tensor:
    with torch.no_grad():
        return backbone.eval().activations(IMAGES)


def test_linear_trains_the_head_and_leaves_activations_bit_identical():
    backbone = toy()
    before = activations(backbone)
    assert linear.adapt(backbone) is None
    classifier = Classifier(backbone, torch.nn.Linear(backbone.width, 3))
    head = classifier.head.weight.detach().clone()
    assert trainable(backbone) == 0 and trainable(classifier) == backbone.width * 3 + 3
    train(classifier)
    assert torch.equal(activations(backbone), before)
    assert not torch.equal(classifier.head.weight, head)


def test_full_trains_every_parameter():
    backbone = toy().requires_grad_(False)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    images_before = activations(backbone)
    assert full.adapt(backbone) is None
    assert trainable(backbone) == sum(p.numel() for p in backbone.parameters()) > 0
    train(Classifier(backbone, torch.nn.Linear(backbone.width, 3)))
    still = [name for name, p in backbone.named_parameters() if torch.equal(p, before[name])]
    assert still == []
    assert not torch.allclose(activations(backbone), images_before)


def test_adapting_changes_no_output():
    for method in (full, linear):
        backbone = toy()
        before = activations(backbone)
        method.adapt(backbone)
        assert torch.equal(activations(backbone), before)

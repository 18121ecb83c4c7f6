"""The text tower's recipe: names in many prompts, each to learn the teacher's classifier rows of what it names."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rift import vocabulary
from rift.backbones.embedded import TextTower, tokenizer


def plural(name: str) -> str:
    """Return the regular English plural of a name."""
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return name[:-1] + "ies"
    return name + ("es" if name.endswith(("s", "x", "z", "ch", "sh")) else "s")


def name_rows(rows: Tensor) -> tuple[list[str], Tensor]:
    """Return every known name and its target `(m, d)`: the normalized mean of the classifier rows `(1000, d)` that it names."""
    names = vocabulary.names()
    targets = torch.stack([rows[list(named)].mean(0) for named in names.values()])
    return list(names), F.normalize(targets, dim=1)


def distill(rows: Tensor, *, steps: int = 3000, batch_size: int = 192, seed: int = 0, log: Callable[[str], None] = print) -> TextTower:
    """Train the text tower until a name in any prompt, singular or plural, has the direction of its row `(1000, d)`."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    names, targets = name_rows(rows)
    written = names + [plural(name) for name in names] + [template.format("x") for template in vocabulary.TEMPLATES]
    tower = TextTower(sorted({token for text in written for token in tokenizer().encode(text)}))
    optimizer = torch.optim.AdamW(tower.parameters(), lr=2e-3, weight_decay=0.01, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min((step + 1) / 200, (steps - step) / steps)
        ids = [draw.randrange(len(names)) for _ in range(batch_size)]
        texts = [draw.choice(vocabulary.TEMPLATES).format(names[i] if draw.random() < 0.6 else plural(names[i])) for i in ids]
        embeddings = F.normalize(tower(tower.encode(texts)), dim=1)
        # names of the same rows are the same target, so the cosine is the loss and similar names need not repel one another
        loss = (1 - (embeddings * targets[ids]).sum(1)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        if step % 250 == 0 or step + 1 == steps:
            log(f"text step {step + 1}/{steps}: cosine {1 - float(loss.detach()):.4f}")
    return tower.eval()

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


def _written(name: str, draw: random.Random) -> str:
    """Write a name as a person might: mostly bare, sometimes in the plural, sometimes in a prompt."""
    kind = draw.random()
    if kind < 0.6:
        return name
    return plural(name) if kind < 0.8 else draw.choice(vocabulary.TEMPLATES).format(name)


def name_rows(rows: Tensor) -> tuple[list[str], Tensor]:
    """Return every known name and its target `(m, d)`: the normalized mean of the classifier rows `(1000, d)` that it names."""
    names = vocabulary.names()
    return list(names), directions(rows, list(names.values()))


def directions(rows: Tensor, names: list[tuple[int, ...]]) -> Tensor:
    """Return the normalized mean `(m, d)` of the classifier rows `(1000, d)` of each name."""
    return F.normalize(torch.stack([rows[list(named)].mean(0) for named in names]), dim=1)


@torch.no_grad()
def _start_at_least_squares(tower: TextTower, texts: list[str], targets: Tensor) -> None:
    """Let the tower begin as the bag of words that fits best: a ridge solution as table, identity blocks, equal weights.

    From a random start the same cosine took thousands of steps.
    """
    tokens = tower.encode(texts)
    counts = torch.zeros(len(texts), len(tower.table.weight)).scatter_add_(1, tokens, (tokens > 0).float())
    shares = (counts / counts.sum(1, keepdim=True)).double()
    gram = shares.T @ shares + 1e-4 * torch.eye(shares.shape[1], dtype=torch.double)
    tower.table.weight.copy_(torch.linalg.solve(gram, shares.T @ targets.double()).float())
    tower.table.weight[0] = 0
    for layer in tower.blocks.layers:
        for module in (layer.linear2, layer.self_attn.out_proj):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for module in (tower.weight, tower.projection):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    nn.init.eye_(tower.projection.weight)


def distill(
    rows: Tensor, *, steps: int = 600, batch_size: int = 256, seed: int = 0, log: Callable[[str], None] = print
) -> TextTower:
    """Train the text tower until a name in any prompt, singular or plural, has the direction of its row `(1000, d)`."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    names, targets = name_rows(rows)
    plurals, prompts = [plural(name) for name in names], [template.format("x") for template in vocabulary.TEMPLATES]
    tower = TextTower(sorted({token for text in names + plurals + prompts for token in tokenizer().encode(text)}))
    prompted = [draw.choice(vocabulary.TEMPLATES).format(name) for name in names]
    _start_at_least_squares(tower, names + plurals + prompted, torch.cat([targets] * 3))
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min((step + 1) / 50, (steps - step) / steps)
        ids = [draw.randrange(len(names)) for _ in range(batch_size)]
        embeddings = F.normalize(tower(tower.encode([_written(names[i], draw) for i in ids])), dim=1)
        # names of the same rows are the same target, so the cosine is the loss and similar names need not repel one another
        loss = (1 - (embeddings * targets[ids]).sum(1)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        if step % 50 == 0 or step + 1 == steps:
            log(f"text step {step + 1}/{steps}: cosine {1 - float(loss.detach()):.4f}")
    return tower.eval()

"""Full finetuning: every parameter of the backbone and the new head train.

The strongest change a method can make: best fit to the task, and the most forgetting when nothing holds it back (Kumar 2022,
arXiv 2202.10054).
"""

from __future__ import annotations

from rift.model import Backbone, Stages


def adapt(backbone: Backbone) -> Stages | None:
    """Let every parameter train, in one stage."""
    backbone.requires_grad_(True)
    return None

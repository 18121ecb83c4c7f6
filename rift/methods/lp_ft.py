"""LP-FT: a linear probe first, then full finetuning from the head that it found (Kumar 2022, arXiv 2202.10054).

Stated by the paper: full finetuning from a head that knows nothing distorts the features while the head is learned; probing first
avoids that, with better accuracy on shifted data. What is our choice: both stages share the run's epochs, so that the method
costs no more than the others; the head is probed by the same optimizer as everything, not to convergence; in the second stage
warm-up and cosine begin anew, while the optimizer keeps what it knows of the head. A penalty on embeddings is idle while they
are fixed.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rift.model import Backbone, Stages


def adapt(
    backbone: Backbone,
    *,
    probe: Annotated[float, Field(gt=0, lt=1, description="share of the training steps in which only the head trains")] = 0.5,
) -> Stages | None:
    """Let everything train in the end, and only the head in the first stage."""
    backbone.requires_grad_(True)
    return Stages(((0.0, ("head.",)), (probe, ("",))))

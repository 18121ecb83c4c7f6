"""Linear probe: the backbone is frozen and only the new linear head trains (Alain & Bengio 2016, arXiv 1610.01644).

Embeddings, and with them everything the pretrained model knows, stay as they are to the last bit: the reference in which
nothing is forgotten.
"""

from __future__ import annotations

from rift.model import Backbone, Stages

BACKBONE_NEVER_TRAINS = True  # so that a penalty on it changes nothing


def adapt(backbone: Backbone) -> Stages | None:
    """Freeze the backbone, in one stage."""
    backbone.requires_grad_(False)
    return None

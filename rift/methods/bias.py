"""BitFit: only the biases train, those of the norms included (Ben Zaken 2021, arXiv 2106.10199).

About a thousandth of the parameters, none of them new. Layers without bias, such as CLIP's patch embedding, stay as they are.
The bias of the keys is counted and gets next to no gradient: attention's softmax cancels it.
"""

from __future__ import annotations

from rift.errors import SettingError
from rift.model import Backbone, Stages


def adapt(backbone: Backbone) -> Stages | None:
    """Let the biases train, in one stage; `setting.range` for a backbone without any."""
    biases = [p for name, p in backbone.named_parameters() if name.rsplit(".", 1)[-1] == "bias"]
    if not biases:
        raise SettingError("setting.range", "bias: this backbone has no biases; choose full, last_blocks or lora.")
    backbone.requires_grad_(False)
    for parameter in biases:
        parameter.requires_grad_(True)
    return None

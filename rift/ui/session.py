"""What the server remembers of an open page: its states and its moved controls, and no copy of the whole page.

Gradio 6.31 keeps for every session the configuration of every component and the last value of each, figures too, for its deep
links, which this app has not. Of 60 pages opened one after another each of the last 30 left 2.8 MB in the server with that copy,
and 1.4 MB without it (measured once each; what the rest is has not been looked into). And after every event it sums up how long
all earlier ones took, for a page that is closed here: a third of the server's time while pages only asked how a run goes.
"""

from __future__ import annotations

import os
from copy import copy
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio import state_holder


class Nothing(dict[int, Any]):
    """Seems to have everything, and keeps nothing: `SessionState` then has neither to make a configuration nor to hold it."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: int) -> dict[str, Any]:
        return {}

    def __setitem__(self, key: int, value: Any) -> None:
        pass


class Session(state_holder.SessionState):
    """Gradio's session without that copy."""

    def __init__(self, blocks: gr.Blocks):
        super().__init__(SimpleNamespace(default_config=SimpleNamespace(blocks={}), blocks={}))  # type: ignore[arg-type]
        self.blocks_config = copy(blocks.default_config)
        self.blocks_config.config_for_block = lambda *_, **__: {}  # type: ignore[method-assign]  # nothing keeps it
        self.config_values = Nothing()


def begin() -> None:
    """Let every session from now on be such a one, where Gradio is a version whose sessions are known to be made so."""
    os.environ |= {"GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000", "GRADIO_ANALYTICS_MAX_EVENTS": "1"}  # it sums up nothing
    if gr.__version__.startswith("6.31."):
        state_holder.SessionState = Session  # type: ignore[misc]

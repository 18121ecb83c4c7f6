"""What the server remembers of an open page: its states and its moved controls, and no copy of the whole page.

Gradio 6.31 keeps for every session the configuration of every component and the last value of each, figures too, for its deep
links, which this app has not; and it makes every control anew that a handler skips, and keeps that too. Of pages opened one after
another each of the last 30 left 2.8 MB in the server with both, about 1 MB without the first and 0.15 MB without either (measured
once each). And after every event it sums up how long all earlier ones took, for a page that is closed here: a third of the
server's time while pages only asked how a run goes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio import state_holder

KNOWN = gr.__version__.startswith("6.31.")  # what is below builds on how this version works


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
        self.blocks_config = copy.copy(blocks.default_config)
        self.blocks_config.config_for_block = lambda *_, **__: {}  # type: ignore[method-assign]  # nothing keeps it
        self.config_values = Nothing()


class Blocks(gr.Blocks):
    """A page that makes no component anew for a `gr.skip()`, and reads and writes plain values where it stands.

    Gradio 6.31 makes each skipped component anew and keeps it for the session, and it goes to another thread and back for every
    value: 60 times for one press of Start, each time behind whatever else computes. What comes and is sent is the same.
    """

    async def preprocess_data(self, block_fn: Any, inputs: Any, state: Any, explicit_call: bool = False) -> list[Any]:
        """Return what a handler is given; all but plain values is left to Gradio."""
        blocks = block_fn.inputs
        if state is None or block_fn.component_prop_inputs or not block_fn.preprocess or len(inputs) != len(blocks):
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        found = _plain(blocks, inputs, state, "preprocess")
        if left := [place for place in range(len(blocks)) if place not in found]:
            part, values = _part(block_fn, "inputs", left), [inputs[place] for place in left]
            found |= zip(left, await super().preprocess_data(part, values, state, explicit_call), strict=True)
        return [found[place] for place in range(len(blocks))]

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """Return what is sent for a handler's values; all but a `gr.skip()` and plain values is left to Gradio."""
        blocks, several = block_fn.outputs, isinstance(predictions, list | tuple)
        if state is None or not block_fn.postprocess or not several or len(predictions) != len(blocks) or len(blocks) == 1:
            return await super().postprocess_data(block_fn, predictions, state)
        found = _plain(blocks, predictions, state, "postprocess")
        for place, value in enumerate(predictions):
            if isinstance(value, dict) and value == gr.skip():
                found[place] = None if blocks[place].stateful else gr.skip()
        if left := [place for place in range(len(blocks)) if place not in found]:
            part, values = _part(block_fn, "outputs", left), [predictions[place] for place in left]
            sent = await super().postprocess_data(part, values if len(left) > 1 else values[0], state)
            found |= zip(left, sent, strict=True)
        return [found[place] for place in range(len(blocks))]


PLAIN = (gr.Number, gr.Slider, gr.Checkbox, gr.CheckboxGroup, gr.Radio, gr.Dropdown, gr.Textbox, gr.HTML)


def _plain(blocks: Sequence[Any], values: Sequence[Any], state: Any, how: str) -> dict[int, Any]:
    """Return by place what comes of values that need no thread and no look at files: a dictionary may name one.

    Where one is wrong nothing is returned, so that Gradio says it its own way.
    """
    found: dict[int, Any] = {}
    for place, (block, value) in enumerate(zip(blocks, values, strict=True)):
        several = value if isinstance(value, list) else [value]
        if isinstance(block, PLAIN) and all(isinstance(one, str | int | float | None) for one in several):
            try:
                found[place] = getattr(state[block._id], how)(value)
            except Exception:
                return {}
    return found


def _part(block_fn: Any, side: str, places: list[int]) -> Any:
    """Return an event with some of its components only."""
    part = copy.copy(block_fn)
    setattr(part, side, [getattr(block_fn, side)[place] for place in places])
    return part


def page(**about: Any) -> gr.Blocks:
    """Return an empty page, such a one where this version of Gradio is known."""
    return Blocks(**about) if KNOWN else gr.Blocks(**about)


def begin() -> None:
    """Let every session from now on be such a one, where this version of Gradio is known."""
    os.environ |= {"GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000", "GRADIO_ANALYTICS_MAX_EVENTS": "1"}  # it sums up nothing
    if KNOWN:
        state_holder.SessionState = Session  # type: ignore[misc]

"""What only Hugging Face Spaces has: a button that copies the Space and, on ZeroGPU, an event that does the worker's work."""

from __future__ import annotations

import os

import gradio as gr

from rift import jobs, lending
from rift.ui.state import App
from rift.ui.widgets import PRIVATE

LOOK_SECONDS = 3.0
WHERE = "The GPU is lent by the call, and each visitor has a share of it a day; the CPU is slower and has no such limit."


def on_spaces() -> bool:
    """Whether this process runs as a Space."""
    return bool(os.environ.get("SPACE_ID"))


def build(app: App) -> None:
    """Add these parts to the page; elsewhere there are none."""
    if on_spaces():
        gr.DuplicateButton("Duplicate this Space", size="sm", elem_id="duplicate")
    if lending.active():
        _lend(app)


def _lend(app: App) -> None:
    """Let the visitor's own page carry out what is queued of the comparison it shows, so that it counts as that visitor's."""
    import spaces

    app.device = jobs.IN_EVENT
    call = spaces.GPU(duration=lambda root, name, job, seconds: seconds)(lending.carry_out)
    where = gr.Radio(["GPU", "CPU"], value="GPU", label="Train on", info=WHERE, elem_id="where")

    def work(memory: dict[str, str], where: str) -> None:
        here = app.shown(memory)
        if here is None or here.home != "lab":
            return
        if where == "CPU":
            jobs.ensure_worker(app.lab, "cpu")
        else:
            lending.work(here.lab, here.id, call)

    timer = gr.Timer(LOOK_SECONDS)
    timer.tick(work, [app.memory, where], None, trigger_mode="once", concurrency_limit=None, **PRIVATE)

"""Choose how to finetune, see how long it takes, and start; what runs is a worker process, never this page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

import gradio as gr

from rift import api, catalog, dataset, estimate, service
from rift.config import PRESETS, Choice, Training
from rift.errors import SettingError, UserError
from rift.service import Order
from rift.ui.state import App, duration
from rift.ui.widgets import PRIVATE, Form, Menu, html, join, told

TITLE, ORDER = "2 Train", 2
MOST_SEEDS = 20
LEVELS = {"Quick": "quick", "Standard": "default", "Thorough": "thorough"}
STRENGTH = (
    "How strongly the model is asked to keep its old view of images. 0 is ordinary finetuning; the penalty is relative, "
    "so 1 means about the same for every backbone. Try 0.1 and 10."
)
AUTO = (
    "Tries up to five strengths in short trainings and takes the largest that costs the task nothing these images could show. "
    "The arm without a penalty gets as many tries at its learning rate. Nearly three times as long."
)
PAIRED = """
<ul class="rift checks"><li>the same images, split alike</li><li>the same order and the same augmentations</li>
<li>the same learning rate, epochs and seed</li><li>only the penalty differs</li></ul>
"""
TUNED = """
<ul class="rift checks"><li>the same images, split alike</li><li>the same order and the same augmentations</li>
<li>the same epochs and seed</li><li>as many tries each: one arm for its strength, the other for its learning rate</li></ul>
"""


class Controls:
    """What a person can choose, and how the values become an Order."""

    def __init__(self, app: App):
        self.app = app
        with gr.Row():
            with gr.Column(min_width=320):
                self.level = gr.Radio(list(LEVELS), value="Standard", label="Effort", info=_levels())
                regularizer = Menu("regularizers", "rift", "Regularizer")
                strength = gr.Number(1.0, label="Strength λ", info=STRENGTH, elem_id="strength")
                auto = gr.Checkbox(False, label="Choose the strength on the validation images", info=AUTO, elem_id="auto")
            with gr.Column(min_width=320):
                backbone = Menu("backbones", "embedded", "Pretrained backbone")
                method = Menu("methods", "full", "Finetuning method")
                both = gr.Checkbox(True, label="Train both arms: with the regularizer, and without", elem_id="both")
                paired = gr.HTML(PAIRED)
        auto.change(None, auto, paired, js=f"auto => [({json.dumps([PAIRED, TUNED])})[auto ? 1 : 0]]")
        with gr.Accordion("All training settings", open=False):
            seeds = gr.Number(1, precision=0, label="Seeds", info="every arm is trained once from each; 3 or more show chance")
            self.form = Form(Training)
        self.menus = (regularizer, backbone, method)
        self.inputs = [
            app.memory,
            strength,
            auto,
            both,
            seeds,
            *self.form.inputs,
            *(one for menu in self.menus for one in menu.inputs),
        ]

    def order(self, values: Sequence[Any]) -> tuple[Order, str, str]:
        """Return what is asked, the home of its images, and how they were given; raises a SettingError in words."""
        memory, strength, auto, both, seeds, *rest = values
        home, data, source = self.app.data(memory)
        if not data:
            raise SettingError("setting.unknown", "Choose images on the Data tab first.")
        if not auto and (strength is None or not 0 <= strength <= 1e6):
            raise SettingError("setting.range", "Give a strength between 0 and 1000000, for example 1.")
        if seeds is None or not 1 <= seeds <= MOST_SEEDS:
            raise SettingError("setting.range", f"Give 1 to {MOST_SEEDS} seeds.")
        at = len(self.form.inputs)
        training, chosen = api.settings_of(self.form.read(rest[:at])), []
        for menu in self.menus:
            chosen.append(menu.read(rest[at : at + len(menu.inputs)]))
            at += len(menu.inputs)
        asked = Order(
            data=data,
            natural=_natural(self.app, memory),
            regularizers=(chosen[0],),
            backbone=chosen[1],
            methods=(chosen[2],),
            strengths=("auto" if auto else float(strength),),
            baseline=bool(both),
            training=training,
            seeds=int(seeds),
            task=Choice(name=dataset.load(self.app.labs[home].data / data).task),
        )
        return asked, home, source


def build(app: App) -> None:
    """Fill the tab: the choices, what they cost, Start, and the same as a command."""
    controls = Controls(app)
    cost = gr.HTML(elem_id="cost")
    start = gr.Button("Start", variant="primary", size="lg", elem_id="start")
    with gr.Accordion("The same on the command line", open=False):
        command = gr.Code(language="shell", interactive=False, show_label=False, container=False, elem_id="command")

    def preview(*values: Any) -> tuple[Any, str]:
        try:
            asked, home, source = controls.order(values)
            return _cost(app, asked, home), _command(asked, source, values[0])
        except UserError as error:
            return html('<p class="rift problem">{what}</p>', what=error.sentence), ""

    def begin(*values: Any) -> tuple[dict[str, str], Any]:
        asked, home, source = controls.order(values)
        app.lab.adopt(app.labs[home], asked.data)
        name = service.start(app.lab, asked, source, device=app.device)
        if service.status(app.lab, name, device=app.device).state == "done":
            gr.Info("Exactly this was trained here before; this is its result. Another seed or setting gives a new one.")
        return {**values[0], "comparison": f"lab/{name}"}, gr.Tabs(selected="watch")

    inputs, shown = controls.inputs, [cost, command]
    levels = json.dumps({name: controls.form.show(PRESETS[preset]) for name, preset in LEVELS.items()})
    controls.level.change(None, controls.level, controls.form.inputs, js=f"name => ({levels})[name]")
    app.blocks.load(preview, inputs, shown, **PRIVATE)
    changes = [app.mark.change, *(one.change for one in inputs if one is not app.memory)]
    gr.on(changes, preview, inputs, shown, trigger_mode="always_last", concurrency_limit=None, **PRIVATE)
    start.click(told(begin), inputs, [app.memory, app.tabs], concurrency_limit=None, **PRIVATE)


def _levels() -> str:
    epochs = {name: PRESETS[preset].get("epochs", Training().epochs) for name, preset in LEVELS.items()}
    return ", ".join(f"{name}: {many} epochs" for name, many in epochs.items())


def _natural(app: App, memory: dict[str, str]) -> str:
    """Return the digest of the chosen natural set; the bundled one is read when it is first needed."""
    chosen = (memory or {}).get("natural")
    if chosen and (app.lab.data / chosen).exists():
        return str(chosen)
    return app.bundled()


def _cost(app: App, asked: Order, home: str) -> Any:
    images, natural = dataset.load(app.labs[home].data / asked.data), dataset.load(app.lab.data / asked.natural)
    dataset.refuse_misfit(images, asked.task, asked.training)
    sizes = estimate.sizes(images, natural, dataset.parts(images, asked.training, 0))
    planned = service.experiments(asked)
    runs = list({one.id: one for _, by_seed in planned for one in by_seed}.values())
    seconds = estimate.seconds(app.lab, runs, sizes)
    steps = sum(estimate.steps(run, sizes.train) for run in runs)
    time = (
        "Nobody has timed this backbone here yet; the first steps will tell"
        if seconds is None
        else f"About {duration(seconds)} on this machine"
    )
    what = f"{len(runs)} run{'s' if len(runs) > 1 else ''} of {images.name}, {steps} steps in all, {sizes.train} training images."
    notes = join("<br>{note}", [{"note": arm.note} for arm, _ in planned if arm.note])
    return html('<p class="rift cost"><b>{time}.</b> {what}{notes}</p>', time=time, what=what, notes=notes)


def _command(asked: Order, source: str, memory: dict[str, str]) -> str:
    """Return the command that does the same without a page."""
    parts = ["python", "-m", "rift", "compare", source or "DATA", "--out", "result"]
    for menu, flag, choice in (
        ("backbones", "--backbone", asked.backbone),
        ("methods", "--method", asked.methods[0]),
        ("regularizers", "--regularizer", asked.regularizers[0]),
    ):
        options = ",".join(f"{key}={value}" for key, value in catalog.changed(menu, choice).items())
        parts += [flag, f"{choice.name}:{options}" if options else choice.name]
    strength = asked.strengths[0]
    parts += ["--strength", strength if isinstance(strength, str) else f"{strength:g}"]
    parts += ["--seeds", str(asked.seeds)] if asked.seeds > 1 else []
    plain = Training()
    for key, value in asked.training:
        if value != getattr(plain, key):
            parts += ["--set", f"{key}={value}"]
    parts += ["--natural", memory["natural_source"]] if (memory or {}).get("natural_source") else []
    return shlex.join(parts)

"""Choose how to finetune, see what it takes, and start; what runs is a worker process, never this page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr

from rift import api, catalog, dataset, lineup, outlook, service, space, twin
from rift.config import PRESETS, Choice, Training
from rift.errors import SettingError, UserError
from rift.orders import Order
from rift.outlook import Outlook
from rift.twin import Saved
from rift.ui.arms import Arms
from rift.ui.state import App, duration
from rift.ui.widgets import PRIVATE, Form, Menu, html, join, problem, told

TITLE, ORDER = "2 Train", 2
LEVELS = {"Quick": "quick", "Standard": "default", "Thorough": "thorough"}
TASKS = [("What the labels ask for", ""), ("Make the images again, without labels (reconstruction)", "reconstruction")]
TASK_INFO = (
    "What the model is trained to do. Reconstruction names no class, so it has no accuracy; drift and zero-shot are compared."
)
PAIRED = ("the same images, split alike", "the same order and the same augmentations")
# What a person last chose stays in this browser, and nowhere else; a browser that keeps nothing begins with the defaults.
# Nothing is kept before what was kept is asked for: a page that is slow to load would keep its defaults, and then recall them
KEEP = "text => { try { if (text && window.riftRecalled) localStorage.setItem('rift-lab-train', text) } catch { } }"
RECALLED = "() => { window.riftRecalled = true; return Date.now() }"
RECALL = "() => { try { return [localStorage.getItem('rift-lab-train') ?? ''] } catch { return [''] } }"
SAVE = """text => {
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}))
  link.download = 'rift-settings.json'
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 1000)
}"""
# The file is read on the page and sent as a text: it is never a file of the server, not even for a moment.
LOAD = """(memory, _) => new Promise(done => {
  const input = document.createElement('input')
  input.type = 'file'
  input.accept = '.json,application/json'
  input.onchange = async () => done([memory, await input.files[0].slice(0, 65000).text()])
  input.oncancel = () => done([memory, ''])
  input.click()
})"""


class Controls:
    """What a person can choose, and how the values become an Order."""

    def __init__(self, app: App):
        self.app = app
        with gr.Row():
            with gr.Column(min_width=320):
                self.level = gr.Radio(list(LEVELS), value="Standard", label="Effort", info=_levels())
                self.task = gr.Dropdown(TASKS, value="", label="Task", info=TASK_INFO, elem_id="task")
            with gr.Column(min_width=320):
                self.backbone = Menu("backbones", "embedded", "Pretrained backbone", files=not app.public)
        self.arms = Arms()
        self.paired = gr.HTML()
        with gr.Accordion("All training settings", open=False):
            self.seeds = gr.Number(
                1, precision=0, label="Seeds", info="every arm is trained once from each; 3 or more show chance"
            )
            self.form = Form(Training, hidden=("shots",))  # those are of the images, and so on the Data tab
        self.rest = [self.task, self.seeds, *self.form.inputs, *self.backbone.inputs]
        self.inputs = [app.memory, *self.arms.inputs, *self.rest]
        self.arms.connect()

    def order(self, values: Sequence[Any]) -> tuple[Order, str, str]:
        """Return what is asked, the home of its images, and how they were given; raises a SettingError in words."""
        memory, *rest = values
        at = len(self.arms.inputs)
        arms, (task, seeds, *rest) = rest[:at], rest[at:]
        home, data, source = self.app.data(memory)
        if not data:
            raise SettingError("setting.unknown", "Choose images on the Data tab first.")
        if self.app.public:
            catalog.refuse_files("backbones", str(rest[len(self.form.inputs)]))
        line_up = lineup.fields(self.arms.read(arms))
        if seeds is None or not 1 <= seeds <= twin.SEEDS:
            raise SettingError("setting.range", f"Give 1 to {twin.SEEDS} seeds.")
        at = len(self.form.inputs)
        training = api.settings_of({**self.form.read(rest[:at]), "shots": (memory or {}).get("shots") or 0})
        asked = Order(
            data=data,
            natural=_natural(self.app, memory),
            backbone=self.backbone.read(rest[at:]),
            training=training,
            seeds=int(seeds),
            task=Choice(name=task or dataset.load(self.app.labs[home].data / data).task),
            **line_up,
        )
        return asked, home, source

    def fill(self, saved: Saved) -> list[Any]:
        """Return the values of everything but the memory that show these settings, and of the effort and the list of arms."""
        training = saved.training.model_dump()
        level = next((name for name, preset in LEVELS.items() if api.settings_of({"preset": preset}) == saved.training), None)
        plan, pick, *form = self.arms.fill(saved.arms, min(1, len(saved.arms) - 1))
        same = all(arm.method == saved.arms[0].method for arm in saved.arms)
        task = saved.task.name if saved.task and saved.task.name in [name for _, name in TASKS] else ""
        rest = [task, saved.seeds, *self.form.show(training), *self.backbone.show(saved.backbone)]
        return [level, pick, plan, same, *form, *rest]

    @property
    def filled(self) -> list[Any]:
        """The components that `fill` gives values for."""
        return [self.level, self.arms.pick, *self.arms.inputs, *self.rest]


def build(app: App) -> None:
    """Fill the tab: the choices, what they take, Start, and the same as a file, a command and a program."""
    controls = Controls(app)
    cost = gr.HTML(elem_id="cost")
    with gr.Row():
        start = gr.Button("Start", variant="primary", size="lg", elem_id="start", scale=3)
        save = gr.Button("Save settings", size="lg", elem_id="save-settings")
        load = gr.Button("Load settings", size="lg", elem_id="load-settings")
    trouble = gr.HTML(elem_id="train-problem")
    kept, slot = (gr.Textbox(visible="hidden", elem_id=name) for name in ("kept-settings", "slot-settings"))
    filled = gr.Number(visible="hidden", elem_id="filled-settings")  # when
    with gr.Accordion("The same on the command line", open=False):
        command = gr.Code(language="shell", interactive=False, show_label=False, container=False, elem_id="command")
    with gr.Accordion("The same in Python", open=False):
        program = gr.Code(language="python", interactive=False, show_label=False, container=False, elem_id="program")

    def preview(*values: Any) -> tuple[Any, ...]:
        names = controls.arms.label(values[1 : 1 + len(controls.arms.inputs)])
        try:
            asked, home, source = controls.order(values)
            images = dataset.load(app.labs[home].data / asked.data)
            natural = str((values[0] or {}).get("natural_source", ""))
            said = _cost(outlook.of(app.lab, app.labs[home], asked, app.device), images.name)
            same = twin.command(asked, images, source, natural), twin.python(asked, images, source, natural)
            return said, *same, names, _paired(asked), twin.save(asked, images), *[gr.Button(interactive=True)] * 2
        except UserError as error:
            told = html('<p class="rift problem" role="status">Start is off: {what}</p>', what=error.sentence)
            return told, "", "", names, gr.skip(), gr.skip(), *[gr.Button(interactive=False)] * 2

    def begin(*values: Any) -> tuple[dict[str, str], Any]:
        asked, home, source = controls.order(values)
        app.lab.adopt(app.labs[home], asked.data)
        name = service.start(app.lab, asked, source, device=app.device)
        if all(run.state == "done" for run in service.runs(service.arms(app.lab, name))):
            gr.Info("Exactly this was trained here before; this is its result. Another seed or setting gives a new one.")
        return app.started(values[0], name), gr.Tabs(selected="watch")

    def loaded(memory: dict[str, Any], text: str) -> list[Any]:
        nothing = [gr.skip()] * (len(controls.filled) + 1)
        if not text:
            return ["", *nothing]
        try:
            saved = twin.load(text, files=not app.public)
        except UserError as error:
            return [problem(error), *nothing]
        return ["", {**(memory or {}), "shots": saved.training.shots}, *controls.fill(saved)]

    def recalled(text: str) -> list[Any]:
        try:
            return controls.fill(twin.load(text, files=not app.public))
        except UserError:  # none, or of another version
            return [gr.skip()] * len(controls.filled)

    inputs, shown = controls.inputs, [cost, command, program, controls.arms.pick, controls.paired, kept, start, save]
    levels = json.dumps({name: controls.form.show(PRESETS[preset]) for name, preset in LEVELS.items()})
    controls.level.input(None, controls.level, controls.form.inputs, js=f"name => ({levels})[name]")
    again = app.blocks.load(recalled, slot, controls.filled, js=RECALL, **PRIVATE)
    again.then(None, None, filled, js=RECALLED)
    # One event for all: of two, the answer to what was before could come last, and stay
    changes = [filled.change, app.remembered().change, *(one.change for one in inputs if one is not app.memory)]
    gr.on(changes, preview, inputs, shown, trigger_mode="always_last", concurrency_limit=None, **PRIVATE)
    kept.change(None, kept, None, js=KEEP)
    save.click(None, kept, None, js=SAVE)
    load.click(loaded, [app.memory, slot], [trouble, app.memory, *controls.filled], js=LOAD, **PRIVATE)
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


def _paired(asked: Order) -> Any:
    """Return what the arms have in common, as a list that can be checked."""
    arms = twin.arms(asked)
    tuned = any(arm.strength == "auto" for arm in arms)
    rates = "as many tries each: an arm with a penalty for its strength, one without for its learning rate"
    lines = [*PAIRED, "the same epochs and seeds", rates if tuned else "the same learning rate"]
    lines += (
        [] if all(arm.method == arms[0].method for arm in arms) else ["each is compared with the plain arm of its own method"]
    )
    lines += ["only the penalty differs"] if len(arms) > 1 and len(lines) == 4 and not tuned else []
    return html('<ul class="rift checks">{lines}</ul>', lines=join("<li>{line}</li>", [{"line": line} for line in lines]))


def _cost(found: Outlook, name: str) -> Any:
    """Return what a comparison takes, in words; what nobody has measured is said to be unknown."""
    many = f"{found.runs} run{'' if found.runs == 1 else 's'} of {name}, {found.steps} steps in all"
    what = [f"{many}, {found.sizes.train} training images."]
    if found.finished:
        was = (
            "1 more was trained here before and is"
            if found.finished == 1
            else f"{found.finished} more were trained here before and are"
        )
        what += [f"{was} not repeated."]
    gpu = found.device == "cuda"
    if found.seconds is None:
        time = f"Nobody has timed this backbone {'on this GPU' if gpu else 'here'} yet; the first steps will tell"
    else:
        time = f"About {duration(found.seconds)} on this machine" if found.runs else "Nothing is left to train"
        what += [f"That is about {round(found.seconds)} GPU seconds."] if gpu and found.runs else []
    what += _memory(found, "GPU memory" if gpu else "memory")
    if found.runs and found.disk:
        what += [f"About {space.said(found.disk)} on the disk, which has {space.said(found.free)} free."]
    if found.ahead:
        wait = "" if found.ahead_seconds is None else f", about {duration(found.ahead_seconds)}"
        others = "Another run is" if found.ahead == 1 else f"{found.ahead} other runs are"
        what += [f"{others} before yours{wait}; it waits its turn."]
    lines = join("<br>{line}", [{"line": line} for line in [*what, *found.notes]])
    return html('<p class="rift cost" role="status"><b>{time}.</b>{lines}</p>', time=time, lines=lines)


def _memory(found: Outlook, kind: str) -> list[str]:
    if found.memory is None:
        return [f"How much {kind} it takes is not known before the first run."]
    size = found.memory.bytes
    amount = f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"
    if found.memory.measured:
        return [f"About {amount} of {kind} at its peak, as runs like this took here."]
    return [f"At least {amount} of {kind} for the models alone; nobody has measured such a run here yet."]

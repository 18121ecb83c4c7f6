"""One guided exercise on the page: predict, run, see. What it asks and what it finds is `rift.exercises`'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from markupsafe import Markup

from rift import dataset, exercises
from rift.errors import SettingError, UserError
from rift.exercises import Exercise
from rift.orders import Order
from rift.ui.state import App, duration
from rift.ui.widgets import PRIVATE, html, join, problem, told

READY = "answer => ({__type__: 'update', interactive: answer !== null})"  # on the page itself: Start waits for nothing else


class Panel:
    """The controls of one exercise; `values` are for `outputs`."""

    def __init__(self, app: App, exercise: Exercise):
        self.app, self.exercise, name = app, exercise, exercise.name
        with gr.Accordion(exercise.title, open=False, elem_id=f"exercise-{name}") as self.box:
            gr.HTML(_step("1", "Predict", exercise.setup))
            choices = [(text, outcome) for outcome, text in exercise.answers.items()]
            self.answer = gr.Radio(choices, label=exercise.question, elem_id=f"answer-{name}")
            gr.HTML(_step("2", "Run"))
            self.cost = gr.HTML(elem_id=f"exercise-cost-{name}")
            with gr.Row():
                self.start = gr.Button(
                    "Start", variant="primary", interactive=False, scale=0, min_width=160, elem_id=f"exercise-start-{name}"
                )
                self.stop = gr.Button(
                    "Stop this exercise", variant="stop", visible=False, scale=0, min_width=220, elem_id=f"exercise-stop-{name}"
                )
            gr.HTML(_step("3", "What to see"))
            self.seen = gr.HTML(elem_id=f"exercise-seen-{name}")
            self.open = gr.Button("Open in Compare", visible=False, elem_id=f"exercise-open-{name}")
        self.outputs = [self.answer, self.cost, self.start, self.stop, self.seen, self.open]
        self.answer.change(None, self.answer, self.start, js=READY)
        self.start.click(told(self._begin), [app.memory, self.answer], app.memory, concurrency_limit=None, **PRIVATE).then(
            self.values, [app.memory, self.answer], self.outputs, **PRIVATE
        )
        self.stop.click(told(self._halt), app.memory, None, queue=False, **PRIVATE).then(
            self.values, [app.memory, self.answer], self.outputs, **PRIVATE
        )
        self.open.click(told(self._open), app.memory, [app.memory, app.tabs], **PRIVATE)

    @property
    def key(self) -> str:
        """What this browser remembers of the exercise is under this name: the prediction and the comparison it was for."""
        return f"exercise-{self.exercise.name}"

    def values(self, memory: dict[str, str], chosen: str | None) -> list[Any]:
        """Return the panel as it stands for the images of this browser: nothing is shown before a prediction was made."""
        app = self.app
        try:
            home, asked = self._asked(memory)
            images = dataset.load(app.labs[home].data / asked[0].data)
            natural = dataset.load(app.lab.data / asked[0].natural)
            predicted, _, begun = (memory or {}).get(self.key, "").partition(" ")
            standing = exercises.standing(app.lab, asked, device=app.device)
            mine = begun == asked[-1].id and standing.state != "new"
            cost = html('<p class="rift">{text}</p>', text=_cost(exercises.cost(app.lab, asked, images, natural)))
            seen: Any = html('<p class="rift about">{text}</p>', text="It appears here after your prediction and the run.")
            if mine and standing.state == "done":
                seen = self._seen(asked, predicted)
            elif mine:
                seen = _waiting(standing)
        except UserError as error:
            hidden = [gr.Button(visible=False)]
            return [gr.skip(), problem(error), gr.Button(interactive=False), *hidden, "", *hidden]
        stale = {"value": None} if predicted and chosen == predicted else {}  # it was given for other images
        value = {"value": predicted} if mine else stale
        again, done = mine and standing.state == "stopped", mine and standing.state == "done"
        return [
            gr.Radio(interactive=not mine, **value),
            "" if done else cost,
            gr.Button("Go on" if again else "Start", interactive=again or (not mine and bool(chosen) and not stale)),
            gr.Button(visible=mine and standing.state == "running"),
            seen,
            gr.Button(visible=done),
        ]

    def _asked(self, memory: dict[str, str]) -> tuple[str, tuple[Order, ...]]:
        home, data, _ = self.app.data(memory)
        if not data:
            raise SettingError("setting.unknown", "Choose images on the Data tab first.")
        images = dataset.load(self.app.labs[home].data / data)
        return home, exercises.orders(self.exercise, images, self.app.bundled())

    def _begin(self, memory: dict[str, str], answer: str | None) -> dict[str, str]:
        if answer not in self.exercise.answers:
            raise SettingError("setting.unknown", "Predict first: choose one of the answers, then press Start.")
        home, asked = self._asked(memory)
        self.app.lab.adopt(self.app.labs[home], asked[0].data)
        name = exercises.begin(self.app.lab, asked, self.app.data(memory)[2], device=self.app.device)
        return {**self.app.started(memory, name), self.key: f"{answer} {name}"}

    def _halt(self, memory: dict[str, str]) -> None:
        exercises.stop(self.app.lab, self._asked(memory)[1])

    def _open(self, memory: dict[str, str]) -> tuple[dict[str, str], Any]:
        return {**memory, "comparison": f"lab/{self._asked(memory)[1][-1].id}"}, gr.Tabs(selected="compare")

    def _seen(self, asked: Sequence[Order], predicted: str) -> Markup:
        rows = exercises.findings(self.app.lab, self.exercise, asked)
        pairs = [{"head": head, "text": text} for head, text in exercises.answer(self.exercise, rows, predicted)]
        sentences = [{"text": row["sentence"]} for row in rows]
        if chance := exercises.chance(self.app.lab, self.exercise, asked):
            sentences.append({"text": chance})
        return html(
            '<div class="rift seen"><dl>{pairs}</dl><ul class="limits">{sentences}</ul><p class="about">{about}</p></div>',
            pairs=join("<div><dt>{head}</dt><dd>{text}</dd></div>", pairs),
            sentences=join("<li>{text}</li>", sentences),
            about=exercises.about(rows),
        )


def build(app: App) -> None:
    """Put all exercises on the page; one is looked up when it is opened, and again when its runs or the images change."""
    opened = gr.State([])
    panels = [Panel(app, one) for one in exercises.EXERCISES.values()]
    inputs = [app.memory, opened, *(panel.answer for panel in panels)]
    everything = [output for panel in panels for output in panel.outputs]

    def again(memory: dict[str, str], opened: list[str], *answers: str | None) -> list[Any]:
        pairs = zip(panels, answers, strict=True)
        each = [panel.values(memory, one) if panel.key in opened else [gr.skip()] * len(panel.outputs) for panel, one in pairs]
        return [value for values in each for value in values]

    for panel in panels:

        def expand(memory: dict[str, str], opened: list[str], chosen: str | None, panel: Panel = panel) -> list[Any]:
            return [[*opened, panel.key], *panel.values(memory, chosen)]

        panel.box.expand(expand, [app.memory, opened, panel.answer], [opened, *panel.outputs], **PRIVATE)
    gr.on([app.remembered().change, app.ready.change], again, inputs, everything, concurrency_limit=None, **PRIVATE)


def _step(number: str, title: str, text: str = "") -> Markup:
    about = html('<p class="about">{text}</p>', text=text) if text else ""
    return html('<div class="rift step"><h3>{number} {title}</h3>{about}</div>', number=number, title=title, about=about)


def _cost(cost: exercises.Cost) -> str:
    if not cost.runs:
        return "All of it was trained here before, so it opens at once."
    runs = f"{cost.runs} run{'s' if cost.runs > 1 else ''} to train"
    if cost.seconds is None:
        return f"{runs}; nobody has timed this here yet."
    return f"{runs}: about {duration(cost.seconds)} on this machine. The unbroken runs are shared by the exercises."


def _waiting(standing: exercises.Standing) -> Markup:
    """Say that it runs, or why it does not."""
    running = "Running. The bar at the top says how far it is, and the answer appears here."
    text = running if standing.state == "running" else standing.message
    return html('<p class="rift" role="status">{text}</p>', text=text)

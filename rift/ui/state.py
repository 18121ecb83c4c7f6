"""What the tabs share: the labs, what this browser remembers, and who is told when a comparison moves on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gradio as gr
import plotly.graph_objects as go
from gradio.components.plot import PlotData

from rift import catalog, estimate, naming, service, visitors
from rift.errors import UserError
from rift.runs import Lab
from rift.service import Status
from rift.ui.files import Files
from rift.ui.shared import POLL_SECONDS, Made, Pace, Seen
from rift.ui.widgets import PRIVATE, html, problem, told
from rift.visitors import Everyone, Labs

REMEMBERED = {"comparison": "", "data": "", "source": "", "natural": "", "natural_source": ""}
WORDS = {
    "queued": "Waiting",
    "preparing": "Preparing",
    "training": "Training",
    "evaluating": "Measuring",
    "done": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
    "lost": "Interrupted",
}


class Shown(NamedTuple):
    """The comparison that a page shows; `home` names its lab."""

    home: str
    lab: Lab
    id: str

    @property
    def key(self) -> str:
        return f"{self.home}/{self.id}"


@dataclass
class App:
    """One page over a lab; tabs add themselves to `follow` (told at every step) and `show` (told when results are there)."""

    labs: Labs | Everyone  # "lab", "example" where there is one, and what was opened from bundles: those of whoever asks
    files: Files
    device: str
    blocks: gr.Blocks
    memory: gr.BrowserState
    tabs: gr.Tabs
    ready: gr.State  # the comparison whose results are on show, and how many runs they are of
    public: bool = False  # whether others than who sits at this machine may look at the page
    tab: Any = None  # the tab that is built now; its `select` says when it is opened
    follow: list[tuple[list[Any], Callable[[Shown], list[Any]]]] = field(default_factory=list)
    show: list[tuple[list[Any], Callable[[Shown], list[Any]]]] = field(default_factory=list)
    made: Made = field(default_factory=Made)
    _bundled: str = ""

    def remembered(self, part: str = "memory") -> gr.Textbox:
        """Return a hidden text that changes when what this browser remembers does, or the part that this JavaScript names.

        Gradio says "change" of a BrowserState whenever its object is another one, even with the same content. And the text is
        for one listener: of two on one change that last, each lets the other ask again when it ends, for ever (Gradio 6.31).
        """
        text = gr.Textbox(visible="hidden", elem_classes="memory")
        self.memory.change(None, self.memory, text, js=f"memory => JSON.stringify({part})")
        return text

    @property
    def lab(self) -> Lab:
        """The lab that new data and runs go to."""
        return self.labs["lab"]

    @property
    def apart(self) -> bool:
        """Whether visitors are kept apart, each in a lab of their own."""
        return isinstance(self.labs, Everyone)

    def door(self) -> Lab:
        """Return the lab for something of a person's own; raises `data.consent` or `run.quota` where it may not come in."""
        visitors.admit(self.lab)
        return self.lab

    def shown(self, memory: dict[str, str]) -> Shown | None:
        """Return the comparison that this browser looks at: its own, else the example, else none."""
        home, _, name = str((memory or {}).get("comparison", "")).partition("/")
        if home in self.labs and name in service.comparisons(self.labs[home]):
            return Shown(home, self.labs[home], name)
        if "example" in self.labs and (found := service.comparisons(self.labs["example"])):
            return Shown("example", self.labs["example"], found[0])
        return None

    @staticmethod
    def started(memory: dict[str, str], name: str) -> dict[str, str]:
        """Return what a browser remembers that looks at a comparison just begun; it differs even where it looked at it before.

        The bar at the top looks again when the memory differs.
        """
        return {**memory, "comparison": f"lab/{name}", "begun": str(time.time_ns())}

    def of(self, ready: str) -> Shown | None:
        """Return the comparison that `ready` names; None while none is on show."""
        home, _, name = ready.partition(" ")[0].partition("/")
        return Shown(home, self.labs[home], name) if home in self.labs else None

    def data(self, memory: dict[str, str]) -> tuple[str, str, str]:
        """Return home, digest and source of the chosen images: this browser's, else the example's."""
        memory = memory or {}
        if memory.get("data") and (self.lab.data / memory["data"]).exists():
            return "lab", memory["data"], memory.get("source", "")
        if (example := self.shown({})) is not None:
            order, source = service.order_of(example.lab, example.id)
            return "example", order.data, source
        return "", "", ""

    def bundled(self) -> str:
        """Return the digest of the bundled photos, taken into the lab when needed; they are read once for all visitors."""
        home = self.labs.get("example", self.lab)
        if not self._bundled or not (home.data / self._bundled).exists():  # one's own go when all data are deleted
            self._bundled = catalog.door("natural", "bundled")(home.data).digest
        self.lab.adopt(home, self._bundled)
        return self._bundled

    def rendered(self, parts: list[tuple[list[Any], Callable[[Shown], list[Any]]]], here: Shown, version: str) -> list[Any]:
        """Return what `follow` or `show` give of a comparison: once for all pages that watch how it moves, a class perhaps.

        So is all of the example on a public server, which every visitor sees first.
        """

        def make() -> list[Any]:
            return [sent(value) for _, render in parts for value in render(here)]

        key = (parts is self.follow, here.home, here.lab.root, here.id, version, naming.title(here.lab, here.id))
        shared = parts is self.follow or (self.apart and here.home == "example")
        return self.made.once(key, make) if shared else make()

    def outputs(self, parts: Sequence[tuple[list[Any], Any]]) -> list[Any]:
        """Return all components of `follow` or `show`, in order."""
        return [component for components, _ in parts for component in components]


def sent(value: Any) -> Any:
    """Return a figure as the text that is sent, anything else as it is."""
    return PlotData(type="plotly", plot=value.to_json()) if isinstance(value, go.Figure) else value


def connect(app: App) -> None:
    """Build the status bar and the polling that moves the whole page; called after the tabs, in their row."""
    seen, ready = gr.State(""), app.ready
    timer, pace, recent = gr.Timer(POLL_SECONDS, active=False), Pace(), Seen()
    bar = gr.HTML(elem_id="status", scale=8, min_width=240)
    stop = gr.Button("Stop", variant="stop", size="sm", visible=False, scale=0, min_width=96, elem_id="stop")
    resume = gr.Button("Go on", variant="primary", size="sm", visible=False, scale=0, min_width=96, elem_id="resume")
    moved = [timer, seen, ready, bar, stop, resume, *app.outputs(app.follow)]

    def only(*first: Any) -> list[Any]:
        """Return values for the first of `moved` and leave the others as they are."""
        return [*first, *[gr.skip()] * (len(moved) - len(first))]

    def look(memory: dict[str, str], seen: str, ready: str, request: gr.Request) -> list[Any]:
        """Return what changed since `seen`; nothing at all where nothing did."""
        here = app.shown(memory)
        if here is None:
            return only(gr.Timer(active=False), "", ready, html(IDLE))
        key = here.lab.root, here.id
        try:
            status = recent.once(key, pace.now / 2, lambda: service.status(here.lab, here.id, device=app.device))
        except UserError as error:
            return only(gr.Timer(active=False), "", ready, problem(error))
        mark = f"{here.key} {status.version}"
        wait = pace.seconds(str(request.session_hash)) if status.active else POLL_SECONDS  # who only looks once is no watcher
        if not status.active:
            recent.forget(key)  # nobody else would look: a page that sees it asks no more
        if mark == seen:
            return only()
        if not status.active and status.done:
            ready = f"{here.key} {status.done}"
        values = app.rendered(app.follow, here, status.version)
        buttons = [gr.Button(visible=status.active), gr.Button(visible=status.state in ("stopped", "failed", "lost"))]
        return [gr.Timer(wait, active=status.active), mark, ready, _bar(here, status), *buttons, *values]

    def results(ready: str) -> list[Any]:
        here = app.of(ready)
        return app.rendered(app.show, here, ready) if here else [gr.skip()] * len(app.outputs(app.show))

    def fresh(memory: dict[str, str], request: gr.Request) -> Any:
        """Attach a reloaded page, a second tab or a link `?run=` to its comparison."""
        asked = dict(request.query_params) if request else {}
        memory, linked = {**REMEMBERED, **(memory or {})}, asked.get("run", "")
        if "deleted" in asked:
            gr.Info("All of it is deleted; the page is as new.")
        home = next((home for home, lab in app.labs.items() if linked and linked in service.comparisons(lab)), "")
        return {**memory, "comparison": f"{home}/{linked}"} if home else memory

    inputs = [app.memory, seen, ready]
    opened = app.blocks.load(fresh, app.memory, app.memory, **PRIVATE)
    opened.then(look, inputs, moved, **PRIVATE)
    timer.tick(look, inputs, moved, concurrency_limit=None, **PRIVATE)
    ready.change(told(results), ready, app.outputs(app.show), concurrency_limit=None, **PRIVATE)
    app.remembered().change(look, inputs, moved, concurrency_limit=None, **PRIVATE)

    def halt(memory: dict[str, str]) -> None:
        if (here := app.shown(memory)) is not None and here.home == "lab":
            service.stop(here.lab, here.id)
            recent.forget((here.lab.root, here.id))

    def go_on(memory: dict[str, str]) -> None:
        if (here := app.shown(memory)) is not None and here.home == "lab":
            service.start(here.lab, *service.order_of(here.lab, here.id), device=app.device)

    for button, act in ((stop, halt), (resume, go_on)):
        button.click(told(act), app.memory, None, queue=False, **PRIVATE).then(look, inputs, moved, **PRIVATE)


IDLE = '<div class="rift status"><b class="state">Ready</b><span>Choose images, then press Start on the Train tab.</span></div>'


def _bar(here: Shown, status: Status) -> str:
    state, message = WORDS[status.state], status.message
    if here.home == "example":
        state, message = "Example", "A finished comparison to look around in. Bring your own images on the Data tab."
    elif here.lab.read_only:
        state, message = "Opened", "From a bundle, read-only."
    left = "" if status.seconds_left is None else f"about {duration(status.seconds_left)} left"
    closing = "Safe to close this tab: the work goes on." if status.active else ""
    return html(
        '<div class="rift status {name}"><b class="state" aria-live="polite">{state}</b><span class="message">{message}</span>'
        '<progress max="1" value="{progress}" aria-label="Progress"></progress><span class="left">{left}</span>'
        '<small>{closing}</small><button type="button" class="copy" data-copy="?run={id}">Copy link</button></div>',
        id=here.id,
        name=status.state,
        state=state,
        message=message,
        progress=f"{status.progress:.3f}",
        left=left,
        closing=closing,
    )


def duration(seconds: float) -> str:
    """Return a time that is only estimated as a person says it."""
    return estimate.duration(seconds, step=5)

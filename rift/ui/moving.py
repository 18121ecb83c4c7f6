"""A small map of the images that moves with the epochs: a slider steps through them, and the newest is shown by default."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr
import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rift import figures, watching
from rift.places import Places
from rift.ui.state import App, sent
from rift.ui.widgets import PRIVATE, html

MAP = """
<div class="rift"><h3>Where the images go</h3><p class="about">Up to 80 validation images, each where the model sees it, on the
two axes along which the pretrained model tells them apart best. Epoch 0 is the pretrained model; a thin line leads from there.
Color and symbol are the class. A flat shadow of many dimensions: distances can mislead.</p></div>
"""
NO_MAP = "No map yet: it comes with the first epoch. Runs that are older than this page have none."
FRAME_SECONDS, MOST_FRAMES = 0.6, 40


class Map:
    """The map of the images: `reached` names what there is to show; its parts follow that unless the person steps back."""

    def __init__(self, app: App):
        self.app = app
        self.reached = gr.State("")  # home/comparison, its newest epoch, and how many arms have a map
        gr.HTML(MAP)
        self.epoch = gr.Slider(0, 1, 0, step=1, label="Epoch", elem_id="map-epoch")
        with gr.Row():
            self.newest = gr.Checkbox(True, label="Stay at the newest", elem_id="map-newest", container=False, min_width=160)
            self.play = gr.Button("Play from the start", size="sm", elem_id="map-play", scale=0, min_width=150)
        self.plot = gr.Plot(show_label=False, container=False, elem_id="map", elem_classes=["wide"])
        self.said = gr.HTML(elem_id="map-said")
        shown = [self.epoch, self.newest, self.play, self.plot, self.said]
        inputs = [self.reached, self.epoch, self.newest]
        self.reached.change(self._follow, inputs, shown, **PRIVATE)
        self.newest.input(self._follow, inputs, shown, **PRIVATE)
        stepped = {**PRIVATE, "trigger_mode": "always_last"}
        self.epoch.input(self._step, [self.reached, self.epoch], [self.newest, self.plot, self.said], **stepped)
        self.play.click(self._play, self.reached, [self.epoch, self.newest, self.plot, self.said], **PRIVATE)

    def _maps(self, reached: str) -> dict[str, Any]:
        here = self.app.of(reached)
        return watching.maps(here.lab, here.id) if here else {}

    def _follow(self, reached: str, epoch: float, newest: bool) -> list[Any]:
        """Draw what there is: its newest epoch, or the one that the person chose."""
        maps = self._maps(reached)
        last = max((one.newest for one in maps.values()), default=0)
        chosen = last if newest else min(int(epoch or 0), last)
        slider = gr.Slider(maximum=max(1, last), value=chosen, visible=last > 0)
        return [slider, gr.Checkbox(visible=last > 0), gr.Button(visible=last > 1), *self._drawn(reached, maps, chosen)]

    def _step(self, reached: str, epoch: float) -> list[Any]:
        maps = self._maps(reached)
        last = max((one.newest for one in maps.values()), default=0)
        return [int(epoch or 0) >= last, *self._drawn(reached, maps, int(epoch or 0))]

    def _play(self, reached: str) -> Iterator[list[Any]]:
        """Show the epochs one after the other, some left out where they are many."""
        maps = self._maps(reached)
        last = max((one.newest for one in maps.values()), default=0)
        for epoch in sorted({round(place * last / min(last, MOST_FRAMES)) for place in range(min(last, MOST_FRAMES) + 1)}):
            yield [epoch, epoch == last, *self._drawn(reached, maps, epoch)]
            time.sleep(FRAME_SECONDS)

    def _drawn(self, reached: str, maps: dict[str, Any], epoch: int) -> list[Any]:
        """Return plot and sentence, made once for all pages that watch."""
        here = self.app.of(reached)
        if here is None or not maps:
            return [figures.empty(NO_MAP), ""]
        key = ("map", here.home, here.lab.root, here.id, epoch, *((arm, one.newest) for arm, one in maps.items()))
        says = '<p class="rift says">{text}</p>'
        return self.app.made.once(key, lambda: [sent(figure(maps, epoch)), html(says, text=watching.moved(maps, epoch))])


def figure(maps: Mapping[str, Places], epoch: int) -> go.Figure:
    """Return one panel for each arm with its images where they are after an epoch, all on axes that hold still.

    Classes differ in color and symbol; a line leads from each image's pretrained place.
    """
    columns = min(3, len(maps))
    titles = [f"{figures.text(arm)}, epoch {min(epoch, one.newest)}" for arm, one in maps.items()]
    plot = make_subplots(-(-len(maps) // columns), columns, subplot_titles=titles, horizontal_spacing=0.03, vertical_spacing=0.14)
    whole = np.concatenate([np.concatenate([one.start, *one.epochs.values()]) for one in maps.values()])
    low, high = whole.min(0), whole.max(0)
    pad = 0.06 * np.maximum(high - low, 1e-9)
    shown: set[int] = set()
    for place, one in enumerate(maps.values()):
        at = {"row": place // columns + 1, "col": place % columns + 1}
        now, gap = one.at(epoch), np.full_like(one.start, np.nan)
        ways = np.stack([one.start, now, gap], axis=1).reshape(-1, 2).astype(np.float32)
        look = {"color": figures.faded(figures.GREY, 0.45), "width": 1}
        plot.add_scatter(x=ways[:, 0], y=ways[:, 1], mode="lines", line=look, hoverinfo="skip", showlegend=False, **at)
        for index in np.unique(one.labels):
            of_class = now[one.labels == index].astype(np.float32)
            tint, shape = figures.class_look(int(index)) if index >= 0 else (figures.GREY, "circle-open")
            name = figures.text(one.classes[index] if index >= 0 else "label unknown")
            marker = {"color": tint, "symbol": shape, "size": 8, "opacity": 0.85, "line": {"width": 1, "color": tint}}
            common = {"mode": "markers", "marker": marker, "name": name, "legendgroup": name, "showlegend": index not in shown}
            plot.add_scatter(x=of_class[:, 0], y=of_class[:, 1], hovertemplate=f"{name}<extra></extra>", **common, **at)
            shown.add(int(index))
    share = next(iter(maps.values())).share
    plot.update_annotations(font_size=13)
    figures.style(plot, 110 + 300 * -(-len(maps) // columns)).update_layout(margin={"t": 96}, legend={"y": 1.12})
    plot.update_xaxes(range=[low[0] - pad[0], high[0] + pad[0]], title_text=f"axis 1 ({share[0]:.0%})", showticklabels=False)
    plot.update_yaxes(range=[low[1] - pad[1], high[1] + pad[1]], showticklabels=False)
    return plot.update_yaxes(title_text=f"axis 2 ({share[1]:.0%})", col=1)

"""What the arms can do and what they forgot: the verdict, the numbers, and one page for each diagnostic of the menu."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import gradio as gr

from rift import ask, catalog, comparison, figures, naming, overview, report, service
from rift.errors import UserError
from rift.ui.state import App, Shown
from rift.ui.widgets import PRIVATE, html, join, problem, told

TITLE, ORDER = "4 Compare", 4
WORDS = "cat, dog, bird, lion, car, ship, coffee, palace"
MARK = '<div class="rift">{part}</div>'


def build(app: App) -> None:
    """Fill the tab; a diagnostic becomes a sub-tab by being in the menu, and asks for a photo where it has `look`."""
    heading = gr.HTML(elem_id="compare-heading")
    app.show.append(([heading], lambda here: [_heading(app, here)]))
    with gr.Tabs(overflow_behavior="wrap"):
        with gr.Tab("Verdict"):
            verdicts = gr.HTML(elem_id="verdicts")
            table = gr.HTML(elem_id="arms")
            app.show.append(([verdicts, table], _numbers))
        for name in catalog.names("diagnostics"):
            module = catalog.module("diagnostics", name)
            with gr.Tab(getattr(module, "TITLE", name.replace("_", " ").capitalize()), id=name, elem_id=f"tab-{name}"):
                _diagnostic(app, name, module)
        with gr.Tab("Trade-off", elem_id="tab-tradeoff"):
            _tradeoff(app)
        with gr.Tab("Photos", elem_id="tab-photos"):
            photos = gr.HTML(elem_id="photos")
            app.show.append(([photos], lambda here: [_photos(app, here)]))
    _other(app)


def _heading(app: App, here: Shown) -> Any:
    """Say what is shown, and link what can be taken away."""
    about = naming.about(here.lab, here.id)
    links = [
        {"address": app.files.document(here.home, here.id, name), "what": what}
        for name, what in (("report.html", "Report (one page, works offline)"), ("comparison.json", "All numbers (JSON)"))
    ]
    note = "This is the example that comes with the app: synthetic drawings, not patients. " if here.home == "example" else ""
    return html(
        '<div class="rift"><h2>{title}</h2><p class="about">{note}{about}</p><p class="links">{links}</p></div>',
        title=naming.title(here.lab, here.id),
        note=note,
        about=about,
        links=join('<a href="{address}" target="_blank" rel="noopener" download>{what}</a>', links),
    )


def _numbers(here: Shown) -> list[Any]:
    document = service.result(here.lab, here.id)
    found = overview.verdicts(document)
    nothing = '<div class="rift"><p>There is nothing to compare: it takes two finished arms.</p></div>'
    about = f"Differences of the arms with their 95 % intervals; the thin line is no difference. {overview.spoken_of(document)}"
    verdicts = html(
        '<div class="rift"><p class="about">{about}</p>{part}</div>', about=about, part=report.part("verdicts", found)
    )
    seeds = max(len(arm["runs"]) for arm in document["arms"])
    spread = (
        f"mean ± standard error over {seeds} seeds"
        if seeds > 1
        else "below a share, its 95 % interval over images; one seed, so the chance of training itself is in no interval"
    )
    table = html(
        '<div class="rift"><h3>Numbers</h3><p class="about">Last epoch of every arm; {spread}.</p>{part}{trials}</div>',
        spread=spread,
        trials=report.part("tunings", document),
        part=report.part("arms", document, overview.table(document, service.measures(here.lab, here.id))),
    )
    return [verdicts if found else nothing, table]


def _diagnostic(app: App, name: str, module: Any) -> None:
    gr.HTML(html('<p class="rift about">{text}</p>', text=catalog.summary("diagnostics", name)))
    sentence = gr.HTML()
    plot = gr.Plot(show_label=False, container=False, elem_id=f"figure-{name}")
    with gr.Accordion("Data", open=False):
        data = gr.HTML()

    def render(here: Shown) -> list[Any]:
        measured = service.measures(here.lab, here.id).items()  # of this diagnostic alone: a figure is drawn once
        section = next(report.sections({arm: {name: one[name]} for arm, one in measured if name in one}), None)
        if section is None:
            document, lab = service.result(here.lab, here.id), shlex.quote(str(here.lab.root))
            how = next(one for one in report.unmeasured(document, {}, lab) if one["name"] == name)
            return [html(MARK, part=report.part("unmeasured", how)), figures.empty("not measured"), ""]
        words = html('<p class="rift says">{text}</p>', text=section["sentence"])
        plot = gr.Plot(section["figure"], elem_classes=["wide"] if section["min_width"] else [])
        return [words, plot, html(MARK, part=report.part("data", section))]

    app.show.append(([sentence, plot, data], render))
    if hasattr(module, "look"):
        _ask(app, name, module)


def _tradeoff(app: App) -> None:
    """Show all finished runs of the lab on these images, in whatever comparison they were trained."""
    about = (
        "All finished arms of this lab on the same images and backbone, in whatever comparison they were trained: what each can "
        "do against what it kept. Dotted: the arms that no other one beats in both."
    )
    gr.HTML(html('<p class="rift about">{text}</p>', text=about))
    sentence = gr.HTML(elem_id="tradeoff-sentence")
    plot = gr.Plot(show_label=False, container=False, elem_id="figure-tradeoff", elem_classes=["wide"])
    with gr.Accordion("Data", open=False):
        data = gr.HTML()

    def render(here: Shown) -> list[Any]:
        first = next(run for arm in service.arms(here.lab, here.id) for run in arm.runs)
        section = report.tradeoff_section({"arms": comparison.arms_like(here.lab, first)})
        words = html('<p class="rift says">{text}</p>', text=section["sentence"])
        return [words, section["figure"], html(MARK, part=report.part("data", section))]

    app.show.append(([sentence, plot, data], render))


def _ask(app: App, name: str, module: Any) -> None:
    """Let a photo of one's own, or one of the natural set, be put to all models side by side."""
    gr.HTML('<div class="rift"><h3>Ask about a photo of your own</h3></div>')
    with gr.Row():
        with gr.Column(min_width=320):
            photo = gr.File(label="Drop a photo", height=110, elem_id=f"photo-{name}")
            words = gr.Textbox(WORDS, label="Words to choose from", info="separated by commas", elem_id=f"words-{name}")
            button = gr.Button("Ask all models", elem_id=f"ask-{name}")
            preview = gr.HTML(elem_id=f"preview-{name}")
        with gr.Column(min_width=320):
            sentence = gr.HTML(elem_id=f"answer-{name}")
            plot = gr.Plot(show_label=False, container=False, visible=False, elem_id=f"look-{name}")
    kept = gr.State("")

    def keep(path: str | None) -> tuple[Any, str, Any]:
        """Take the photo into the lab and out of Gradio's cache."""
        if not path:
            return gr.skip(), gr.skip(), gr.skip()
        try:
            key = ask.keep_photo(app.lab, Path(path).read_bytes())
        except UserError as error:
            return None, "", problem(error)
        finally:
            Path(path).unlink(missing_ok=True)
        address = app.files.photo("lab", key)
        return None, key, html('<img class="rift photo" src="{address}" alt="your photo">', address=address)

    def answer(memory: dict[str, str], key: str, text: str) -> tuple[Any, Any]:
        here = app.shown(memory)
        if here is None:
            return html('<p class="rift about">There is no comparison to ask yet.</p>'), gr.skip()
        labels = [word for part in text.replace(";", ",").split(",") if (word := part.strip())]
        found = ask.look(here.lab, here.id, name, ask.photo(app.lab, key), labels)
        return html('<p class="rift says">{text}</p>', text=module.look_sentence(found)), gr.Plot(
            module.look_figure(found), visible=True
        )

    photo.upload(keep, photo, [photo, kept, preview], **PRIVATE)
    gr.on(
        [button.click, words.submit],
        told(answer),
        [app.memory, kept, words],
        [sentence, plot],
        **{**PRIVATE, "show_progress": "minimal"},
    )


def _photos(app: App, here: Shown) -> Any:
    """Return a dozen natural photos with what each model calls them."""
    natural = service.order_of(here.lab, here.id)[0].natural
    found = report.photos(service.measures(here.lab, here.id))
    rows = [{**one, "uri": app.files.picture(here.home, natural, one["index"], 160)} for one in found]
    about = (
        "What each model calls the same photo, with the probability among the labels it knows. The photos are evenly spaced "
        "over the set; none was picked for its answer."
    )
    return html('<div class="rift"><p class="about">{about}</p>{part}</div>', about=about, part=report.part("photos", rows))


def _other(app: App) -> None:
    """Let an earlier comparison of this lab be looked at again."""
    with gr.Accordion("Other comparisons of this lab", open=False):
        pick = gr.Dropdown([], label="Comparison", elem_id="pick-comparison")

    def choices(memory: dict[str, str]) -> Any:
        here = app.shown(memory)
        found = [
            (f"{home}/{name}", naming.label(lab, name)) for home, lab in app.labs.items() for name in service.comparisons(lab)
        ]
        return gr.Dropdown([(label, key) for key, label in found], value=here.key if here else None)

    app.blocks.load(choices, app.memory, pick, **PRIVATE)
    app.mark.change(choices, app.memory, pick, **PRIVATE)
    pick.input(lambda key, memory: {**memory, "comparison": key}, [pick, app.memory], app.memory, **PRIVATE)

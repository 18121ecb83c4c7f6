"""What was compared before, what can be taken away or shared of it, and what is stored until it is deleted."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gradio as gr
from markupsafe import Markup

from rift import comparison, naming, plain, service, sharing, storage
from rift.errors import RunError, UserError
from rift.ui.history import History
from rift.ui.state import REMEMBERED, App, Shown
from rift.ui.widgets import PRIVATE, html, join, told

TITLE, ORDER = "5 Keep", 5
DOCUMENTS = (
    ("report.html", "Report", "One page with every plot; works offline, in any browser."),
    ("numbers.csv", "All numbers (CSV)", "One row for each arm, run and metric, with n and 95 % interval where known."),
    ("comparison.json", "All numbers (JSON)", "The comparison as one document, with the differences and the environment."),
    (
        "predictions.csv",
        "Predictions (CSV)",
        "What every run said of every image, to the last digit; with the names of your files.",
    ),
)
WEIGHTS = (
    "Both files in one folder, then from load import predict: it needs torch, timm and safetensors, and nothing of this app. "
    "The first click puts the model together, which takes some seconds for a large one."
)
BUNDLE = (
    "One zip that opens read-only in any RIFT Lab: settings, curves, numbers, predictions. The names of your files are in it, "
    "and, where a local weights file was used, the path to it."
)
SHARE = (
    "A link opens one read-only page with the numbers and plots of this comparison, and nothing else of this app. Anyone who has "
    "the link can open it until you revoke it; whoever runs this machine decides from where it can be reached. The names of the "
    "set and of its classes are on the page; names of files are not."
)
PICTURES = "also show pictures: natural photos, and those of your images that the diagnostics show"
BASE = "location.origin + location.pathname.replace(/\\/?$/, '/')"
STORED = (
    "Images, models and results lie in one folder on the machine that runs this page, until you delete them: nothing is sent "
    "anywhere and nothing is deleted by itself. An upload that was given to the page is deleted as soon as it is read. In this "
    "browser: which images and which comparison you looked at last."
)
STORED_PUBLIC = (
    "Images, models and results lie on this server, apart from those of other visitors, until 24 hours after you were last here "
    "or until you delete them. An upload that was given to the page is deleted as soon as it is read. In this browser: the key "
    "that opens what is yours, and which images and which comparison you looked at last. Whoever has the key sees it all; it is "
    "in no address and cannot be told to you again, so another browser starts anew: take a bundle along."
)
SURE = (
    "Sure? Images, photos, runs, comparisons, links and opened bundles will be deleted, for everybody who uses this page. What "
    "is still at work is stopped first. There is no way back; take away what you want to keep."
)
ANEW = """() => {
  for (const key of Object.keys(localStorage)) if (key.startsWith('rift-lab')) localStorage.removeItem(key);
  location.assign(location.pathname + '?deleted=1');
}"""


def build(app: App) -> None:
    """Fill the tab: four sub-tabs."""
    with gr.Tabs(overflow_behavior="wrap"):
        with gr.Tab("History", elem_id="tab-history"):
            History(app)
        with gr.Tab("Take away", elem_id="tab-take"):
            _take_away(app)
        with gr.Tab("Share", elem_id="tab-share"):
            _share(app)
        with gr.Tab("Your data", elem_id="tab-stored") as tab:
            _stored(app, tab)


def _take_away(app: App) -> None:
    """Link what can be taken away from the comparison on show."""
    heading = gr.HTML(elem_id="take-heading")
    files = gr.HTML(elem_id="take-files")
    with gr.Accordion("As a bundle that opens elsewhere", open=True):
        gr.HTML(html('<p class="rift about">{text}</p>', text=BUNDLE))
        pictures = gr.Checkbox(label="with the images", elem_id="bundle-pictures")
        weights = gr.Checkbox(label="with the finetuned weights", elem_id="bundle-weights")
        link = gr.HTML(elem_id="bundle-link")
    with gr.Accordion("Finetuned weights for plain timm", open=False, elem_id="weights"):
        models = gr.HTML()

    def bundled(ready: str, pictures: bool, weights: bool) -> Any:
        here = app.of(ready)
        if here is None or not all(run.state == "done" for run in service.runs(service.arms(here.lab, here.id))):
            return html('<p class="rift about">A bundle is made of a finished comparison.</p>')
        address = app.files.bundled(here.home, here.id, bool(pictures), bool(weights))
        return html('<p class="rift links"><a href="{address}" download>Download the bundle</a></p>', address=address)

    def render(here: Shown) -> list[Any]:
        title = html('<div class="rift"><h2>{title}</h2></div>', title=naming.title(here.lab, here.id))
        rows = [
            {"address": app.files.document(here.home, here.id, name), "what": what, "about": about}
            for name, what, about in DOCUMENTS
        ]
        row = '<li><a href="{address}" download>{what}</a><small>{about}</small></li>'
        return [title, html('<ul class="rift takes">{rows}</ul>', rows=join(row, rows)), _models(app, here)]

    app.show.append(([heading, files, models], render))
    gr.on([app.ready.change, pictures.change, weights.change], told(bundled), [app.ready, pictures, weights], link, **PRIVATE)


def _models(app: App, here: Shown) -> Markup:
    """Return links to the whole model of each run, and what it is exactly."""
    rows, said = [], set()
    for arm in comparison.trained(service.arms(here.lab, here.id)):
        for run in arm.runs:
            if (run.path / "weights.safetensors").exists():
                names = {"file": plain.FILE, "lines": "load.py"}
                links = {key: app.files.weights(here.home, run.id, name) for key, name in names.items()}
                rows.append({"name": comparison.name_of_run(arm, run), **links})
                said.add(plain.exactness(run))
    if not rows:
        return html('<p class="rift about">This comparison came without weights.</p>')
    if here.home == "example":
        said.add("The example's weights are kept in half precision.")
    row = (
        '<tr><th scope="row">{name}</th><td><a href="{file}" download>finetuned.safetensors</a></td>'
        '<td><a href="{lines}" download>load.py</a></td></tr>'
    )
    return html(
        '<div class="rift"><p class="about">{about} {exact}</p><div class="scroll"><table class="plain"><thead><tr>'
        '<th scope="col">Run</th><th scope="col">Weights</th><th scope="col">Lines that load them</th></tr></thead>'
        "<tbody>{rows}</tbody></table></div></div>",
        about=WEIGHTS,
        exact=" ".join(sorted(said)),
        rows=join(row, rows),
    )


def _share(app: App) -> None:
    """Make a link to the comparison on show, list all links, and revoke one."""
    heading = gr.HTML(elem_id="share-heading")
    gr.HTML(html('<p class="rift about">{text}</p>', text=SHARE))
    pictures = gr.Checkbox(label=PICTURES, elem_id="share-pictures")
    make = gr.Button("Make a link", variant="primary", elem_id="share")
    link = gr.Textbox(
        label="The link", info="shown this once: copy it now", interactive=False, visible=False, buttons=["copy"], elem_id="link"
    )
    listed = gr.HTML(elem_id="shares")
    # a button within the list says which link it ends
    chosen = gr.HTML("", js_on_load=_LISTEN, elem_id="revoke-asked")

    def render(here: Shown) -> list[Any]:
        return [html('<div class="rift"><h2>Share {title}</h2></div>', title=naming.title(here.lab, here.id))]

    app.show.append(([heading], render))

    def create(ready: str, pictures: bool) -> tuple[Any, Any]:
        here = app.of(ready)
        if here is None:
            raise RunError("run.missing", "There is no finished comparison to share yet.")
        token = sharing.create(app.lab, here.home, here.id, pictures=bool(pictures))
        return gr.Textbox(app.files.shared(token), visible=True), _links(app)

    def revoke(name: str) -> tuple[Any, Any]:
        sharing.revoke(app.lab, str(name))
        return gr.Textbox("", visible=False), _links(app)

    made = make.click(told(create), [app.ready, pictures], [link, listed], **PRIVATE)
    made.then(None, link, link, js=f"path => path && !path.includes('://') ? {BASE} + path : path")
    chosen.click(told(revoke), chosen, [link, listed], **PRIVATE)
    gr.on([app.tab.select, app.ready.change], lambda: _links(app), None, listed, **PRIVATE)


_LISTEN = """
if (!window.riftRevokes) {
  window.riftRevokes = true;
  document.addEventListener('click', event => {
    const button = event.target.closest('[data-revoke]');
    if (button) { props.value = button.dataset.revoke; trigger('click'); }
  });
}
"""


def _links(app: App) -> Markup:
    rows = []
    for share in sharing.shares(app.lab):
        title = "deleted"
        with suppress(UserError, KeyError):
            title = naming.title(app.labs[share.home], share.comparison)
        rows.append(
            {
                "title": title,
                "pictures": "with pictures" if share.pictures else "numbers and plots",
                "when": naming.when(share.created),
                "name": share.name,
            }
        )
    if not rows:
        return html('<p class="rift about" role="status">Nothing is shared.</p>')
    row = (
        '<tr><th scope="row">{title}</th><td>{pictures}</td><td>{when}</td><td class="acts"><button type="button" '
        'data-revoke="{name}" aria-label="Revoke the link of {when} to {title}">Revoke</button></td></tr>'
    )
    return html(
        '<div class="rift"><h3>Shared now</h3><div class="scroll"><table class="history"><thead><tr><th scope="col">Comparison'
        '</th><th scope="col">What is seen</th><th scope="col">Since</th><th scope="col"><span class="unseen">What to do</span>'
        "</th></tr></thead><tbody>{rows}</tbody></table></div></div>",
        rows=join(row, rows),
    )


def _stored(app: App, tab: gr.Tab) -> None:
    """Say what is stored, where and until when, and delete all of it after one confirmation."""
    gr.HTML(
        html(
            '<div class="rift"><h2>What is stored, where and until when</h2><p class="about">{text}</p></div>',
            text=STORED_PUBLIC if app.apart else STORED,
        )
    )
    sizes = gr.HTML(elem_id="stored")
    erase = gr.Button("Delete my data now", variant="stop", elem_id="erase")
    with gr.Column(visible=False, elem_id="erase-sure") as question:
        gr.HTML(html('<div class="rift problem" role="alert">{text}</div>', text=SURE))
        with gr.Row():
            sure = gr.Button("Delete everything", variant="stop", scale=0, min_width=180, elem_id="sure-erase")
            keep = gr.Button("Keep it", scale=0, min_width=120, elem_id="keep-data")

    def gone() -> tuple[dict[str, str], Any, Any]:
        storage.erase(app.lab)
        app.made.forget()
        return dict(REMEMBERED), gr.Column(visible=False), _sizes(app)

    gr.on([tab.select, app.tab.select], lambda: _sizes(app), None, sizes, **PRIVATE)
    erase.click(lambda: gr.Column(visible=True), None, question, **PRIVATE)
    keep.click(lambda: gr.Column(visible=False), None, question, **PRIVATE)
    busy = {**PRIVATE, "show_progress": "full", "show_progress_on": sizes}
    deleted = sure.click(told(gone), None, [app.memory, question, sizes], **busy)
    deleted.success(None, None, None, js=ANEW)


def _sizes(app: App) -> Markup:
    found = storage.stored(app.lab)
    rows = [{"what": row.what, "count": f"{row.number:,}", "size": _size(row.bytes)} for row in found]
    total = _size(sum(row.bytes for row in found))
    return html(
        '<div class="rift"><div class="scroll"><table class="numbers small"><thead><tr><th scope="col">What</th><th scope="col">'
        'Number</th><th scope="col">Size</th></tr></thead><tbody>{rows}<tr><th scope="row"><b>In all</b></th><td></td>'
        "<td><b>{total}</b></td></tr></tbody></table></div></div>",
        rows=join('<tr><th scope="row">{what}</th><td>{count}</td><td>{size}</td></tr>', rows),
        total=total,
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.1f}\u00a0MB" if count >= 1e5 else f"{count / 1e3:.1f}\u00a0kB"
